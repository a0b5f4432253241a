"""The zoo's networks in PyTorch, for comparing speed: the same layers, shapes and numbers of parameters."""

import torch
from torch import nn
from torch.nn.functional import relu

_RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet152": ((3, 8, 36, 3), True),
}


def create(name: str, classes: int) -> nn.Module:
    """One of resnet18, resnet34, resnet152, vgg13, wrn_40_2, for 32x32 images."""
    if name in _RESNETS:
        return _resnet(*_RESNETS[name], classes)
    return {"vgg13": _vgg13, "wrn_40_2": _wrn_40_2}[name](classes)


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


def _resnet(depths: tuple[int, ...], bottleneck: bool, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for k in range(depth):
            layers.append(_Block(channels, width, 2 if stage and not k else 1, bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _vgg13(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for block, width in enumerate((64, 128, 256, 512, 512)):
        for _ in range(2):
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


def _wrn_40_2(classes: int) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 16, 3)]
    channels = 16
    for stage, width in enumerate((32, 64, 128)):
        for k in range(6):
            layers.append(_PreActivation(channels, width, 2 if stage and not k else 1))
            channels = width
    pool = [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(channels, classes))
