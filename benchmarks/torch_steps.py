"""Training steps and inference in JAX and in PyTorch, in one process and alternately.

PyTorch runs channels-last. On a GPU the networks are large teachers in bfloat16, and PyTorch compiles them; on the CPU
they are networks that a laptop can train, in float32. Needs requirements-benchmark.txt.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import students, torch_networks
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax.evaluation import summary
from cnn2gnn_jax.training import loop
from cnn2gnn_jax.training.inputs import prepare_plain

# Published peaks in dense bfloat16 operations per second, by a part of the device's name.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "V100": 125e12}
IMAGES = 25_000
ON_GPU = ("resnet18", "resnet34", "resnet152", "vgg13", "wrn_40_2")
ON_CPU = ("resnet18", "vgg8", "wrn_16_2", "resnet20", "stem")
CPU_INFERENCE = ("resnet18", "vgg8", "wrn_16_2")
TURNS = 20
PAPER_STEPS = 200 * 50_000 // 100  # of the paper's recipe


def jax_steps(name: str, batch: int, dtype: Any, steps: int) -> Callable[[], jax.Array]:
    """Makes a function that takes `steps` steps in JAX; `stem` is the graph student over that backbone."""
    data = students.images(IMAGES)
    task = students.student("stem", IMAGES) if name == "stem" else students.network(name, IMAGES, batch, dtype)
    chunk, state = loop.make_chunk(task), [students.start(task, data)]

    def run() -> jax.Array:
        state[0], metrics = chunk(state[0], data, None, loop.feed([task], 0, steps, {}), 0)
        return metrics["loss"]

    return run


def torch_steps(name: str, batch: int, low: bool, steps: int) -> Callable[[], float]:
    """Makes a function that takes `steps` steps in PyTorch, with the same network, optimizer and loss."""
    device = _device()
    network = torch_networks.StemStudent(IMAGES, 100) if name == "stem" else torch_networks.create(name, 100)
    model: Any = network.to(device)
    model = model.to(memory_format=torch.channels_last)
    parameters = [p for key, p in model.named_parameters() if not key.startswith("rows.")]
    optimizers: list[Any] = [torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)]
    if name == "stem":
        # PyTorch has neither momentum nor weight decay for sparse rows; without them its step is a little cheaper.
        optimizers.append(torch.optim.SGD(model.rows.parameters(), lr=0.01))
    data = students.images(IMAGES)
    images = torch.from_numpy(np.array(data["input"])).to(device)
    labels = torch.from_numpy(np.array(data["label"], np.int64)).to(device)
    if device == "cuda":
        model = torch.compile(model)

    def step(index: torch.Tensor) -> torch.Tensor:
        x = _normalize(images[index])
        with torch.autocast(device, torch.bfloat16, enabled=low):
            logits = model(x, index) if name == "stem" else model(x)
            loss = torch.nn.functional.cross_entropy(logits, labels[index])
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss

    def run() -> float:
        order = torch.randperm(len(images), device=device)
        loss = torch.zeros(())
        for k in range(steps):
            loss = step(order[k * batch : (k + 1) * batch])
        return loss.item()

    return run


def _device() -> str:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def _normalize(images: torch.Tensor) -> torch.Tensor:
    x = images.permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.25)
    return x.contiguous(memory_format=torch.channels_last)


def jax_inference(name: str, batch: int) -> Callable[[], jax.Array]:
    """Makes a function that computes the logits of a batch in JAX."""
    data = students.images(batch)
    task = students.network(name, IMAGES, batch)
    variables = students.start(task, data).variables

    @jax.jit
    def logits(variables: Any, images: jax.Array) -> jax.Array:
        outputs: Any = task.module.apply(variables, prepare_plain(task, images), train=False)
        return outputs.logits

    return lambda: logits(variables, data["input"])


def torch_inference(name: str, batch: int) -> Callable[[], torch.Tensor]:
    """Makes a function that computes the logits of a batch in PyTorch."""
    model: Any = torch_networks.create(name, 100).to(_device())
    model = model.to(memory_format=torch.channels_last).eval()
    images = torch.from_numpy(np.array(students.images(batch)["input"])).to(_device())

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return model(_normalize(images))

    return run


def _utilization(name: str, images_per_second: float) -> str:
    """The fraction of the device's peak that training `name` reaches, as text; '' if the peak is unknown."""
    kind = jax.devices()[0].device_kind
    peak = next((value for part, value in PEAKS.items() if part in kind), None)
    if peak is None:
        return ""
    task = students.network(name, IMAGES)
    flops = summary.network_costs(task, np.zeros((1, 32, 32, 3), np.uint8))["training_flops"]
    return f", {100 * flops * images_per_second / peak:.0f}% of the peak"


def rows() -> list[Row]:
    """The rows of the table."""
    return list(_on_gpu() if jax.default_backend() == "gpu" else _on_cpu())


def _on_gpu() -> Iterator[Row]:
    batch, steps = 512, 20
    for name in ON_GPU:
        functions = {
            "JAX": jax_steps(name, batch, jnp.bfloat16, steps),
            "PyTorch": torch_steps(name, batch, True, steps),
        }
        seconds = take_turns(functions, rounds=5)
        rate = batch * steps / seconds["JAX"]
        detail = milliseconds(seconds, steps) + f" a step; JAX {rate:.0f} images/s{_utilization(name, rate)}"
        what = f"{name}, batch {batch}, bf16: a step in JAX : in PyTorch"
        yield Row(what, seconds["JAX"] / seconds["PyTorch"], "", detail)


def _on_cpu() -> Iterator[Row]:
    batch = students.BATCH
    for name in ON_CPU:
        functions = {"JAX": jax_steps(name, batch, jnp.float32, 1), "PyTorch": torch_steps(name, batch, False, 1)}
        seconds = take_turns(functions, rounds=TURNS)
        detail = f"medians of {TURNS} turns: {milliseconds(seconds)} a step"
        if name == "stem":
            detail += f"; 200 epochs of 50,000 images: {PAPER_STEPS * seconds['JAX'] / 3600:.2f} hours"
        what = f"{name}, batch {batch}, f32: a training step in JAX : in PyTorch"
        yield Row(what, seconds["JAX"] / seconds["PyTorch"], "at most 1.1", detail)
    for name in CPU_INFERENCE:
        functions = {"JAX": jax_inference(name, batch), "PyTorch": torch_inference(name, batch)}
        seconds = take_turns(functions, rounds=TURNS)
        detail = f"medians of {TURNS} turns: {milliseconds(seconds)} a batch"
        what = f"{name}, batch {batch}, f32: inference in JAX : in PyTorch"
        yield Row(what, seconds["JAX"] / seconds["PyTorch"], "at most 1.1", detail)
