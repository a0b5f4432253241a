"""The zoo's networks in PyTorch, to compare speed, with the same layers, shapes and numbers of parameters."""

import torch
from torch import nn
from torch.nn.functional import relu

_WIDE, _NARROW = (64, 128, 256, 512), (16, 32, 64)
_RESNETS = {
    "resnet18": ((2, 2, 2, 2), _WIDE, False),
    "resnet20": ((3, 3, 3), _NARROW, False),
    "resnet34": ((3, 4, 6, 3), _WIDE, False),
    "resnet152": ((3, 8, 36, 3), _WIDE, True),
}
_VGGS = {"vgg8": 1, "vgg13": 2}  # convolutions in each of the five blocks
_WRNS = {"wrn_16_2": (2, 2), "wrn_40_2": (6, 2)}  # blocks in each stage, width


def create(name: str, classes: int) -> nn.Module:
    """A network of `_RESNETS`, `_VGGS` or `_WRNS` for 32x32 images."""
    if name in _RESNETS:
        return _resnet(*_RESNETS[name], classes)
    return _vgg(_VGGS[name], classes) if name in _VGGS else _wrn(*_WRNS[name], classes)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        plan = [(width, 3, stride), (width, 3, 1)]
        if bottleneck:
            plan = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        layers: list[nn.Module] = []
        channels = inputs
        for outputs, kernel, step in plan:
            layers += [_conv(channels, outputs, kernel, step), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.residual = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != channels:
            self.shortcut = nn.Sequential(_conv(inputs, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu(self.residual(x) + self.shortcut(x))


def _resnet(depths: tuple[int, ...], widths: tuple[int, ...], bottleneck: bool, classes: int) -> nn.Module:
    channels = widths[0]
    layers: list[nn.Module] = [_conv(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for k in range(depth):
            layers.append(_Block(channels, width, 2 if stage and not k else 1, bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _vgg(convolutions: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for block, width in enumerate((64, 128, 256, 512, 512)):
        for _ in range(convolutions):
            layers += [_conv(channels, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        if block < 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class _PreActivation(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, width, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), _conv(width, width, 3)
        self.shortcut = _conv(inputs, width, 1, stride) if inputs != width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(out)
        return x + self.conv2(relu(self.norm2(self.conv1(out))))


def _wrn(blocks: int, widen: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 16, 3)]
    channels = 16
    for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for k in range(blocks):
            layers.append(_PreActivation(channels, width, 2 if stage and not k else 1))
            channels = width
    pool = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, classes))


class StemStudent(nn.Module):
    """The graph student over the backbone `stem`: head, Eq. 3 and two graph convolutions over the batch.

    The head's decision layer is a sparse embedding with a row for each training image. As in JAX, the cost of a step
    therefore depends only on the rows of its batch.
    """

    def __init__(self, rows: int, classes: int, sparsity: int = 50, hidden: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (32, 64, 128):
            layers += [_conv(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.stem = nn.Sequential(*layers, nn.Flatten())
        features = 16 * channels
        self.head = nn.Sequential(nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.rows = nn.Embedding(rows, 256, sparse=True)
        self.layer1, self.layer2 = nn.Linear(features, hidden, bias=False), nn.Linear(hidden, classes, bias=False)
        self.sparsity = sparsity

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        nodes = self.stem(x)
        distances = self.head(nodes) @ self.rows(index).T
        threshold = torch.topk(distances, self.sparsity + 1, largest=False).values[:, -1:]
        slack = relu(threshold - distances)
        weights = slack / slack.sum(-1, keepdim=True)
        adjacency = (weights + weights.T) / 2 + torch.eye(len(x), device=x.device)
        scale = adjacency.sum(-1).rsqrt()
        factor = adjacency * scale[:, None] * scale[None, :]
        return factor @ self.layer2(relu(factor @ self.layer1(nodes)))
