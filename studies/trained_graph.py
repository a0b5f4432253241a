"""Does it pay to train the training-set graph?

    python -m studies.trained_graph WORKDIR OUT.jsonl

WORKDIR is the workdir of a run; see `studies.student.load`. Over the teacher's stored features x, three students
without the paper's graph are trained, each with five seeds:

    retrieved   the logits are f(x). The graph is added after the training.
    metric      like `retrieved`, and a linear map W of the features is trained by the direct loss
                -log(sum_j p_ij [y_i = y_j] + epsilon), where P is the graph (Eq. 3) with cosine distances between x W.
    joint       like `metric`, and the logits in training are f(x) + g(x) log(P Y + epsilon), where the gate g is a
                linear function of x that starts at 0.

An image is never its own neighbor. Gradients of the direct loss reach W through the queries and through the keys. The
nearest columns are searched among keys that are recomputed every REFRESH steps; the weights are always those of the
current W. The learning rate of W is chosen on held-out images, with the first seed. After training, each student is
combined with the graph in each of its spaces; `studies.student.measure` chooses the settings on held-out images and
reads the test images once.
"""

import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn2gnn_jax import graph, losses, neighbors
from cnn2gnn_jax.evaluation.choice import Embedded
from studies import student as students
from studies.student import Images, Student

ARMS = ("retrieved", "metric", "joint")
SEEDS = 5
EPOCHS, BATCH, REFRESH = 10, 100, 50
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
KD_WEIGHT, TEMPERATURE = 0.9, 4.0
HIDDEN, WIDTH = 256, 128
EPSILON = 0.1
METRIC_RATES = (0.01, 0.1)
SPARSITY = 10


class Setting(NamedTuple):
    """One way to train: an arm of ARMS, the learning rate of the metric, and the sparsity in training."""

    arm: str
    metric_rate: float = 0.0
    sparsity: int = SPARSITY


class Inputs(NamedTuple):
    """The training images: standardized features (N, F), labels (N,), and the teacher's probabilities (N, C)."""

    x: jax.Array
    labels: jax.Array
    teacher: jax.Array


def unit(x: jax.Array) -> jax.Array:
    """Scales rows to unit length."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def init(seed: int, width: int, classes: int) -> dict[str, jax.Array]:
    """Initializes the parameters of a student over features of this width."""
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    return {
        "hidden": jax.random.normal(first, (width, HIDDEN)) * width**-0.5,
        "logits": jax.random.normal(second, (HIDDEN, classes)) * HIDDEN**-0.5,
        "metric": jnp.linalg.qr(jax.random.normal(third, (width, WIDTH)))[0],
        "gate": jnp.zeros(width),
    }


def features(params: dict[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
    """The features by space, and the logits, of images with standardized features (B, F)."""
    hidden = jax.nn.relu(x @ params["hidden"])
    return {"backbone": x, "hidden": hidden, "metric": x @ params["metric"], "logits": hidden @ params["logits"]}


def graph_votes(metric: jax.Array, keys: jax.Array, index: jax.Array, inputs: Inputs, sparsity: int) -> jax.Array:
    """The votes P Y of the training images `index`, (B, C), with the columns searched among `keys`."""
    queries = unit(inputs.x[index] @ metric)
    columns = neighbors.search(jax.lax.stop_gradient(queries), keys, sparsity, index).columns
    near = unit(inputs.x[columns] @ metric)
    weights = graph.sparse_neighbors(-jnp.einsum("bk,bsk->bs", queries, near), sparsity)
    signals = jax.nn.one_hot(inputs.labels[columns], inputs.teacher.shape[-1])
    return jnp.einsum("bs,bsc->bc", weights, signals)


def loss(
    params: dict[str, jax.Array], keys: jax.Array, index: jax.Array, inputs: Inputs, setting: Setting
) -> jax.Array:
    """The loss of the batch of training images `index`, (B,), with the columns of the graph searched among `keys`."""
    x, labels = inputs.x[index], inputs.labels[index]
    logits, direct = features(params, x)["logits"], jnp.zeros(())
    if setting.arm != "retrieved":
        votes = graph_votes(params["metric"], keys, index, inputs, setting.sparsity)
        direct = -jnp.mean(jnp.log(jnp.take_along_axis(votes, labels[:, None], 1) + EPSILON))
        if setting.arm == "joint":
            logits = logits + (x @ params["gate"])[:, None] * jnp.log(votes + EPSILON)
    ce = jnp.mean(losses.cross_entropy(logits, labels))
    teacher = jnp.log(jnp.maximum(inputs.teacher[index], 1e-12))
    return ce + KD_WEIGHT * jnp.mean(losses.distillation(logits, teacher, TEMPERATURE)) + direct


def train(inputs: Inputs, classes: int, setting: Setting, seed: int) -> dict[str, jax.Array]:
    """Trains a student, and returns its parameters."""
    params = init(seed, inputs.x.shape[1], classes)
    steps = EPOCHS * (len(inputs.x) // BATCH)
    rate = optax.schedules.cosine_decay_schedule(1.0, steps)
    decayed = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(lambda t: LEARNING_RATE * rate(t), MOMENTUM)
    )
    metric = optax.sgd(lambda t: setting.metric_rate * rate(t), MOMENTUM)
    labels = {name: "metric" if name == "metric" else "other" for name in params}
    optimizer = optax.multi_transform({"other": decayed, "metric": metric}, labels)

    @jax.jit
    def run(params: Any, state: Any, batches: jax.Array) -> tuple[Any, Any]:
        keys = unit(inputs.x @ params["metric"])

        def step(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], None]:
            gradients = jax.grad(loss)(carry[0], keys, index, inputs, setting)
            updates, state = optimizer.update(gradients, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, state), batches)[0]

    state, rng = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(len(inputs.x))[: len(inputs.x) // BATCH * BATCH].reshape(-1, BATCH)
        for start in range(0, len(order), REFRESH):
            params, state = run(params, state, order[start : start + REFRESH])
    return params


def fit(student: Student, setting: Setting, seed: int) -> Student:
    """Trains with a setting. Returns the same images with the logits and features of the trained student."""
    raw = student.train.embedded.features["backbone"]
    mean, std = raw.mean(0), np.maximum(raw.std(0), 1e-6)

    def standardized(images: Images) -> jax.Array:
        return jnp.asarray((images.embedded.features["backbone"] - mean) / std)

    inputs = Inputs(standardized(student.train), jnp.asarray(student.train.labels), jnp.asarray(student.train.teacher))
    params = train(inputs, student.classes, setting, seed)
    embed = jax.jit(functools.partial(features, params))

    def embedded(images: Images) -> Images:
        spaces = {name: np.asarray(values) for name, values in embed(standardized(images)).items()}
        return images._replace(embedded=Embedded(spaces["logits"], spaces))

    return student._replace(
        train=embedded(student.train), holdout=embedded(student.holdout), test=embedded(student.test)
    )


def measure(student: Student, setting: Setting, seed: int) -> Iterator[dict[str, Any]]:
    """Trains with a setting, and yields a row for each space."""
    trained = fit(student, setting, seed)
    without = students.accuracy_without_graph(trained.test)
    for space in ("backbone", "hidden") if setting.arm == "retrieved" else ("backbone", "metric"):
        grid = student.grid._replace(spaces=(space,), signals=("labels",))
        row = {**setting._asdict(), "seed": seed, "accuracy_without_graph": without}
        yield {**{f"train_{name}": row.pop(name) for name in ("metric_rate", "sparsity")}, **row} | students.measure(
            trained, grid
        )


def rows(student: Student) -> Iterator[dict[str, Any]]:
    """Yields the rows of the study. The first one is the teacher itself with the graph over its features."""
    teacher, grid = (
        students.with_teacher_logits(student),
        student.grid._replace(spaces=("backbone",), signals=("labels",)),
    )
    without = students.accuracy_without_graph(teacher.test)
    yield {"study": "teacher", "accuracy_without_graph": without, **students.measure(teacher, grid)}
    for arm in ARMS:
        settings = [Setting(arm)]
        if arm != "retrieved":
            settings = [Setting(arm, rate) for rate in METRIC_RATES]
        best, best_accuracy = settings[0], -1.0
        for setting in settings if len(settings) > 1 else ():
            for row in measure(student, setting, 0):
                if row["holdout_accuracy"] > best_accuracy:
                    best, best_accuracy = setting, row["holdout_accuracy"]
                # A candidate is judged on held-out images alone.
                yield {"study": "candidate", **{k: v for k, v in row.items() if k not in _OF_TEST_IMAGES}}
        for seed in range(SEEDS):
            for row in measure(student, best, seed):
                yield {"study": "trained graph", **row}


_OF_TEST_IMAGES = ("accuracy", "accuracy_of_neighbors", "accuracy_without_graph")


if __name__ == "__main__":
    trained_student = students.load(pathlib.Path(sys.argv[1]))
    students.write(pathlib.Path(sys.argv[2]), trained_student, rows(trained_student))
