"""Tests of the losses: against formulas in NumPy, for extreme inputs, with padding, and over two devices."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cnn2gnn_jax.distillers.base import LossInputs
from cnn2gnn_jax.distillers.crd import draw_negatives

EPOCH = 10
RNG_SEED = 3

# Each case is a method and a key of `MAPS` in conftest.py.
CASES = [
    *((method, "alike") for method in ("kd", "sp", "rkd", "pkt", "crd", "ccd", "dkd")),
    *(("fitnets", maps) for maps in ("alike", "larger_student", "larger_teacher", "odd")),
    *((method, maps) for method in ("at", "vid", "ab") for maps in ("larger_student", "larger_teacher", "more_stages")),
    *(("ft", maps) for maps in ("alike", "larger_student", "larger_teacher")),
]
METHODS = ("kd", "fitnets", "at", "sp", "vid", "rkd", "pkt", "ab", "ft", "crd", "ccd", "dkd")


# The formulas, in NumPy ----------------------------------------------------------------------------------------------


def unit(v):
    return v / np.maximum(np.sqrt((v**2).sum(-1, keepdims=True)), 1e-12)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def pool(x, height, width):
    """Computes adaptive average pooling, one output pixel at a time."""
    b, h, w, c = x.shape
    out = np.zeros((b, height, width, c))
    for i in range(height):
        for j in range(width):
            rows = slice(int(np.floor(i * h / height)), int(np.ceil((i + 1) * h / height)))
            columns = slice(int(np.floor(j * w / width)), int(np.ceil((j + 1) * w / width)))
            out[:, i, j] = x[:, rows, columns].mean((1, 2))
    return out


def common(x, y):
    size = min(x.shape[1], y.shape[1]), min(x.shape[2], y.shape[2])
    return pool(x, *size), pool(y, *size)


def convolution(x, weights, stride=1, padding=0):
    kernel, bias = np.asarray(weights["kernel"]), np.asarray(weights.get("bias", 0))
    k = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (range(0, n - k + 1, stride) for n in x.shape[1:3])
    out = [[np.einsum("bijc,ijco->bo", x[:, r : r + k, c : c + k], kernel) for c in columns] for r in rows]
    return np.array(out).transpose(2, 0, 1, 3) + bias


def transposed_convolution(x, weights):
    """Computes a transposed 4x4 convolution (stride 2, padding 1): each pixel adds a kernel to the output around it."""
    kernel = np.asarray(weights["kernel"])[::-1, ::-1]
    b, h, w, _ = x.shape
    out = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            out[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("bc,ijco->bijo", x[:, i, j], kernel)
    return out[:, 1:-1, 1:-1] + np.asarray(weights["bias"])


def batch_norm(x, weights):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(weights["scale"]) + np.asarray(weights["bias"])


def connected(s, t, weights):
    """Returns the student's feature map after convolution and BatchNorm, and the teacher's at the same size."""
    if s.shape[1] == t.shape[1]:
        x = convolution(s, weights["conv"])
    elif s.shape[1] in (2 * t.shape[1], 2 * t.shape[1] - 1):
        x = convolution(s, weights["conv"], 2, 1)
    elif 2 * s.shape[1] == t.shape[1]:
        x = transposed_convolution(s, weights["conv"])
    else:
        s, t = common(s, t)
        x = convolution(s, weights["conv"])
    return batch_norm(x, weights["norm"]), t


def attention(f):
    return unit((f**2).mean(-1).reshape(len(f), -1))


def stages(student, teacher):
    """Returns the pairs of the feature maps f1, f2, ... of both networks, or of the last ones if the numbers differ."""
    n = min(len(student), len(teacher)) - 1
    return list(zip(student[-n:], teacher[-n:], strict=True))


def kd(e):
    return 16 * kl(softmax(e.teacher.logits / 4), softmax(e.student.logits / 4)).mean()


def fitnets(e):
    s, t = connected(e.student.features[2], e.teacher.features[2], e.params["regressor"])
    return ((np.maximum(s, 0) - t) ** 2).mean()


def at(e):
    pairs = [common(*pair) for pair in stages(e.student.features, e.teacher.features)]
    return sum(((attention(s) - attention(t)) ** 2).mean() for s, t in pairs)


def sp(e):
    def similarity(f):
        f = f.reshape(len(f), -1)
        return unit(f @ f.T)

    return ((similarity(e.student.features[-1]) - similarity(e.teacher.features[-1])) ** 2).sum() / 36


def vid(e):
    total = 0
    for i, pair in enumerate(stages(e.student.features, e.teacher.features), 1):
        x, t = common(*pair)
        weights = e.params[f"stage{i}"]
        for k in range(3):
            x = convolution(np.maximum(x, 0) if k else x, weights[f"conv{k}"])
        variance = np.log(1 + np.exp(np.asarray(weights["rho"]))) + 1e-5
        total += (0.5 * ((x - t) ** 2 / variance + np.log(variance))).mean()
    return total


def smooth_l1(x):
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5).mean()


def rkd(e):
    def distances(p):
        d = np.sqrt(((p[:, None] - p[None]) ** 2).sum(-1))
        return d / d[d > 0].mean()

    def angles(p):
        b = len(p)
        out = np.zeros((b, b, b))
        for i in range(b):
            for j in range(b):
                for k in range(b):
                    out[i, j, k] = unit(p[j] - p[i]) @ unit(p[k] - p[i])
        return out

    s, t = e.student.pooled, e.teacher.pooled
    return 25 * smooth_l1(distances(s) - distances(t)) + 50 * smooth_l1(angles(s) - angles(t))


def pkt(e):
    def probabilities(p):
        k = (unit(p) @ unit(p).T + 1) / 2
        return k / k.sum(1, keepdims=True)

    s, t = probabilities(e.student.pooled), probabilities(e.teacher.pooled)
    return (t * np.log((t + 1e-7) / (s + 1e-7))).mean()


def ab(e):
    total, pairs = 0, stages(e.student.preactivations, e.teacher.preactivations)
    n = len(pairs)
    for i, (s, t) in enumerate(pairs):
        if s.shape != t.shape:
            s, t = connected(s, t, e.params[f"stage{i + 1}"])
        off = ((s + 1) ** 2)[(s > -1) & (t <= 0)].sum()
        on = ((s - 1) ** 2)[(s <= 1) & (t > 0)].sum()
        total += 2.0 ** (i - n + 1) * 3 / 1000 / len(s) * (off + on)
    return total


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def paraphrase(e, part):
    x = e.teacher.features[-1] if part == "encoder" else paraphrase(e, "encoder")
    for i in range(3):
        x = leaky(convolution(x, e.params["paraphraser"][f"{part}{i}"], padding=1))
    return x


def ft_reconstruction(e):
    assert paraphrase(e, "encoder").shape[-1] == e.teacher.features[-1].shape[-1] // 2
    return ((paraphrase(e, "decoder") - e.teacher.features[-1]) ** 2).mean()


def ft(e):
    x, weights = e.student.features[-1], e.params["translator"]
    for i in range(3):
        x = leaky(batch_norm(convolution(x, weights[f"conv{i}"], padding=1), weights[f"norm{i}"]))
    s, t = common(x, paraphrase(e, "encoder"))
    return np.abs(attention(s) - attention(t)).mean()


def crd(e):
    n, k, t = 33, 9, 0.07
    labels = e.hyper["training_labels"]
    index, own = e.batch["index"], e.batch["label"]
    times = np.asarray(draw_negatives(jax.random.key(RNG_SEED), index, own, labels, k).counts)
    embed = {
        side: unit(p @ np.asarray(e.params[side]["linear"]["kernel"]) + np.asarray(e.params[side]["linear"]["bias"]))
        for side, p in (("student", e.student.pooled), ("teacher", e.teacher.pooled))
    }
    total = 0
    for side, other in (("student", "teacher"), ("teacher", "student")):
        bank = np.asarray(e.memory["bank"][other])
        score = np.zeros((6, 1 + k))
        for i in range(6):
            slots = [int(e.batch["index"][i]), *np.repeat(np.arange(n), times[i])]
            score[i] = np.exp(bank[slots] @ embed[side][i] / t)
        score /= score.mean() * n
        hit = np.log(score[:, 0] / (score[:, 0] + k / n + 1e-7))
        miss = np.log(k / n / (score[:, 1:] + k / n + 1e-7))
        total += -(hit.sum() + miss.sum()) / 6
    return total


def ccd(e):
    (s, s_strong), (t, t_strong) = (np.split(x.logits, 2) for x in (e.student, e.teacher))
    cosine = (unit(t) * unit(t_strong)).sum(-1)
    plain, strong = (kl(softmax(a / 4), softmax(b / 4)) for a, b in ((t, s), (t_strong, s_strong)))
    return 16 * 0.5 * (plain.mean() + ((cosine + 1) * strong).mean())


def dkd(e):
    labels = e.batch["label"]
    s, t = softmax(e.student.logits / 4), softmax(e.teacher.logits / 4)
    total = 0
    for i, own in enumerate(labels):
        a, b = np.delete(t[i], own), np.delete(s[i], own)
        target = kl(np.array([t[i, own], a.sum()]), np.array([s[i, own], b.sum()]))
        total += target + 6 * kl(a / a.sum(), b / b.sum())
    return 16 * total / len(labels)


WEIGHTS = {
    **{"fitnets": 100, "at": 1000, "sp": 3000, "vid": 1, "rkd": 1, "pkt": 30000, "ft": 200, "crd": 0.8, "ccd": 1},
    "dkd": min((EPOCH + 1) / 20, 1),
}


def expected(method, stage, e):
    """Returns the total loss and its term besides the cross-entropy, which is None if there is no such term."""
    e.student, e.teacher = jax.tree.map(np.asarray, (e.student, e.teacher))
    e.batch = jax.tree.map(np.asarray, e.batch)
    labels = np.tile(e.batch["label"], len(e.student.logits) // len(e.batch["label"]))
    ce = cross_entropy(e.student.logits, labels)
    if stage == "pretrain":
        extra = ft_reconstruction(e) if method == "ft" else ab(e)
        return extra, extra
    if method == "ab":
        return ce, None
    extra = globals()[method](e)
    if method == "kd":
        return 0.1 * ce + 0.9 * extra, extra
    return ce + WEIGHTS[method] * extra, extra


# The losses, compiled ------------------------------------------------------------------------------------------------

# Each function runs only a few times, and most of the time is compilation. Less optimization makes it faster.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def evaluate(stage, params, memory, student, teacher, batch):
    """Returns (loss, (memory, metrics)), and the gradients for the parameters, the student and the teacher."""

    def loss(params, student, teacher):
        inputs = LossInputs(student, teacher, batch, jnp.int32(EPOCH), jax.random.key(RNG_SEED))
        value, new, metrics = stage.loss(params, memory, inputs)
        return value, (new, metrics)

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, student, teacher)


def arguments(e):
    return e.params, e.memory, e.student, e.teacher, e.batch


def stage_names(method):
    return ("pretrain", "train") if method in ("ab", "ft") else ("train",)


def staged(cases):
    return [(*case, stage) for case in cases for stage in stage_names(case[0])]


def find_stage(e, name):
    return next(stage for stage in e.distiller.stages if stage.name == name)


@pytest.mark.parametrize(
    ("method", "maps", "name", "bits"),
    [(*case, 64) for case in staged(CASES)]
    + [(*case, 32) for case in staged({method: (method, maps) for method, maps in CASES}.values())],
)
def test_loss_equals_its_formula(example, method, maps, name, bits):
    with jax.enable_x64() if bits == 64 else contextlib.nullcontext():
        e = example(method, maps, dtype=f"float{bits}")
        stage = find_stage(e, name)
        (loss, (_, metrics)), _ = jit(functools.partial(evaluate, stage))(*arguments(e))
        assert loss.dtype == f"float{bits}"
        total, extra = expected(method, name, e)
        tolerance = 1e-9 if bits == 64 else 1e-3
        np.testing.assert_allclose(loss, total, rtol=tolerance)
        if extra is not None:
            metric = metrics["reconstruction" if (method, name) == ("ft", "pretrain") else "distillation"]
            np.testing.assert_allclose(metric, extra, rtol=tolerance)


EXTREMES = {
    "random": lambda s, t: (s, t),
    "large": lambda s, t: (1e4 * np.sign(s), -1e4 * np.sign(t)),
    "identical_samples": lambda s, t: (np.broadcast_to(s[:1], s.shape), np.broadcast_to(t[:1], t.shape)),
    "identical_samples_of_the_student": lambda s, t: (np.broadcast_to(s[:1], s.shape), t),
    "zero": lambda s, t: (0 * s, 0 * t),
    "negative": lambda s, t: (-np.abs(s), -np.abs(t)),
}


@pytest.mark.parametrize(("method", "name"), staged([(method,) for method in METHODS]))
@pytest.mark.parametrize("bits", [64, 32])
def test_extreme_inputs_give_finite_losses_and_gradients_and_none_to_the_teacher(example, method, name, bits):
    with jax.enable_x64() if bits == 64 else contextlib.nullcontext():
        e = example(method, rows=2, classes=2, dtype=f"float{bits}")
        run = jit(functools.partial(evaluate, find_stage(e, name)))
        for case, change in EXTREMES.items():
            pairs = [change(s, t) for s, t in zip(*map(jax.tree.leaves, (e.student, e.teacher)), strict=True)]
            student, teacher = (
                jax.tree.unflatten(jax.tree.structure(e.student), side) for side in zip(*pairs, strict=True)
            )
            (loss, aux), gradients = run(e.params, e.memory, student, teacher, e.batch)
            for leaf in jax.tree.leaves((loss, aux, gradients)):
                assert np.all(np.isfinite(leaf)), case
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[2])), case


def spread(e, rows):
    """Pads the example to `rows` images. The padding has other outputs than the images, so its influence would show."""
    real = len(e.batch["mask"])
    views = len(e.student.logits) // real

    def pad(x, fill):
        parts = np.split(x, views) if len(x) == views * real else [x]
        return np.concatenate([np.concatenate([p, fill * p[: rows - real]]) for p in parts])

    e.student, e.teacher = jax.tree.map(lambda x: pad(x, 3), (e.student, e.teacher))
    e.batch = {
        "label": pad(e.batch["label"], 1),
        "index": pad(e.batch["index"], 1),  # the padding repeats images
        "mask": np.arange(rows) < real,
    }
    return e


@pytest.mark.parametrize(
    ("method", "maps", "name"),
    [
        *staged([(method, "alike") for method in METHODS]),
        ("ab", "larger_teacher", "pretrain"),
    ],
)
def test_padding_and_two_devices_change_nothing(example, method, maps, name):
    with jax.enable_x64():
        e = example(method, maps)
        stage = find_stage(e, name)
        (loss, aux), (to_params, to_student, _) = jit(functools.partial(evaluate, stage))(*arguments(e))
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)

        padded = spread(e, 8)
        views = len(padded.student.logits) // 8
        # Each device has the original images of its part of the batch, followed by their second views.
        by_device = np.arange(8 * views).reshape(views, 2, 4).swapaxes(0, 1).ravel()

        def device(*shard):
            (loss, (memory, metrics)), (to_params, to_student, _) = evaluate(stage, *shard)
            return *jax.lax.psum((loss, metrics, to_params), "batch"), memory, to_student

        mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        whole, rows = P(), P("batch")
        run = jax.shard_map(
            device,
            mesh=mesh,
            in_specs=(whole, whole, rows, rows, rows),
            out_specs=(whole, whole, whole, whole, rows),
            check_vma=False,
        )
        order = functools.partial(jax.tree.map, lambda x: x[by_device])
        value, metrics, gradients, memory, student_gradients = jit(run)(
            padded.params, padded.memory, order(padded.student), order(padded.teacher), padded.batch
        )
        jax.tree.map(close, (value, (memory, metrics), gradients), (loss, aux, to_params))
        back, real = np.argsort(by_device), np.flatnonzero(np.tile(np.arange(8) < 6, views))
        jax.tree.map(lambda x, y: close(x[back][real], y), student_gradients, to_student)
