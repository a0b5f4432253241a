"""The training-set graph on a batch of images, for several sizes of the training set, against the paper's mechanisms.

The features are random vectors as long as the pooled features of ResNet18. What computes them costs the same for all
mechanisms, and is left out.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import students
from benchmarks.timing import Row, milliseconds, take_turns
from cnn2gnn_jax import gnn, inference, neighbors
from cnn2gnn_jax.neighbors import Bank, Settings
from cnn2gnn_jax.training import bank as stored_banks
from cnn2gnn_jax.training.state import head_rows

SIZES = (5_000, 50_000, 500_000)
FEATURES, CLASSES, SPARSITY = 512, 100, 10
ROUNDS = 5


def make_bank(size: int) -> Bank:
    """A bank of `size` random training images."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, CLASSES, size, dtype=np.int32))
    features = jnp.asarray(rng.standard_normal((size, FEATURES), dtype=np.float32))
    settings = Settings("backbone", "labels", SPARSITY, 1.0, 0.1)
    return neighbors.make_bank(features, labels, jax.nn.one_hot(labels, CLASSES, dtype=bool), settings, "float16")


def rows() -> list[Row]:
    """The rows of the table."""
    batch = students.BATCH
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal((batch, FEATURES), dtype=np.float32))
    task = dataclasses.replace(students.student("pixels", 5_000), mean=(), std=())
    state = students.start(task, {"input": inputs, "label": jnp.zeros(batch, jnp.int32)})
    module, variables = task.module, state.variables
    assert isinstance(module, gnn.GraphStudent)
    columns = inference.anchors(module, variables, inputs, head_rows(task, state, np.arange(batch)))
    functions: dict[str, Callable[[], object]] = {}
    for mechanism in (inference.one_by_one, inference.batch_by_batch):
        apply = jax.jit(functools.partial(mechanism, module))
        functions[mechanism.__name__] = functools.partial(apply, variables, columns, inputs)
    memory = {}
    logits = jnp.zeros((batch, CLASSES))
    for size in SIZES:
        bank = make_bank(size)
        program = jax.jit(neighbors.predict).lower(bank, logits, inputs).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        memory[size] = (stored_banks.size(bank), analysis.temp_size_in_bytes)
        functions[f"training_set_{size}"] = functools.partial(program, bank, logits, inputs)
    seconds = take_turns(functions, ROUNDS)
    table_rows = []
    for size in SIZES:
        stored, working = (number / 1e6 for number in memory[size])
        turn = {name: seconds[name] for name in (f"training_set_{size}", "one_by_one", "batch_by_batch")}
        table_rows.append(
            Row(
                f"training set of {size:,} : one by one, {batch} images, {FEATURES} features",
                turn[f"training_set_{size}"] / turn["one_by_one"],
                "",
                f"median of {ROUNDS} turns, for each image: {milliseconds(turn, batch)}; "
                f"bank {stored:.3g} MB, working memory of the batch {working:.3g} MB",
            )
        )
    return table_rows
