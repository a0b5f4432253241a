"""Training steps of CNN teachers in JAX and in PyTorch, in one process; images a second and share of the peak.

PyTorch runs channels-last, in bfloat16 by autocast and compiled where there is a GPU. Needs requirements-benchmark.txt.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import students, torch_networks
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax import results, train

# Dense bfloat16 operations a second, as published, by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "V100": 125e12}
IMAGES = 25_000


def jax_steps(name: str, batch: int, dtype: Any, steps: int) -> Callable[[], jax.Array]:
    """A function that takes `steps` more steps in JAX."""
    data = students.images(IMAGES)
    task = students.network(name, IMAGES, batch, dtype)
    chunk, state = train.make_chunk(task), [students.start(task, data)]

    def run() -> jax.Array:
        state[0], metrics = chunk(state[0], data, None, train.feed([task], 0, steps, {}), 0)
        return metrics["loss"]

    return run


def torch_steps(name: str, batch: int, low: bool, steps: int) -> Callable[[], float]:
    """A function that takes `steps` more steps in PyTorch, of the same network, optimiser and loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    model = torch_networks.create(name, 100).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    data = students.images(IMAGES)
    images = torch.from_numpy(np.array(data["input"])).to(device)
    labels = torch.from_numpy(np.array(data["label"], np.int64)).to(device)

    def step(index: torch.Tensor) -> torch.Tensor:
        x = images[index].permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25)
        with torch.autocast(device, torch.bfloat16, enabled=low):
            loss = torch.nn.functional.cross_entropy(
                model(x.contiguous(memory_format=torch.channels_last)), labels[index]
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    if device == "cuda":
        model = torch.compile(model)

    def run() -> float:
        order = torch.randperm(len(images), device=device)
        loss = torch.zeros(())
        for k in range(steps):
            loss = step(order[k * batch : (k + 1) * batch])
        return loss.item()

    return run


def _share(name: str, images_a_second: float) -> str:
    """The share of the device's peak that the training of `name` reaches, as text; '' where the peak is not known."""
    kind = jax.devices()[0].device_kind
    peak = next((value for part, value in PEAKS.items() if part in kind), None)
    if peak is None:
        return ""
    task = students.network(name, IMAGES)
    flops = results.network_costs(task, np.zeros((1, 32, 32, 3), np.uint8))["training_flops"]
    return f", {100 * flops * images_a_second / peak:.0f}% of the peak"


def rows() -> list[Row]:
    """The table's lines: on a GPU all networks in bfloat16, on the CPU ResNet18 in float32."""
    gpu = jax.default_backend() == "gpu"
    found = []
    for name in ("resnet18", "resnet34", "resnet152", "vgg13", "wrn_40_2") if gpu else ("resnet18",):
        batch, steps = (512, 20) if gpu else (students.BATCH, 2)
        dtype = jnp.bfloat16 if gpu else jnp.float32
        each = {"JAX": jax_steps(name, batch, dtype, steps), "PyTorch": torch_steps(name, batch, gpu, steps)}
        seconds = take_turns(each, rounds=5)
        rate = batch * steps / seconds["JAX"]
        detail = milliseconds(seconds, steps) + f" a step; JAX {rate:.0f} images/s{_share(name, rate)}"
        target = "" if gpu else "at most 2"
        what = f"{name}, batch {batch}, {'bf16' if gpu else 'f32'}: a step in JAX : in PyTorch"
        found.append(Row(what, seconds["JAX"] / seconds["PyTorch"], target, detail))
    return found
