"""CRD: contrastive representation distillation (Tian et al., 2020)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnn2gnn_jax import losses
from cnn2gnn_jax.distillers import connectors, maps
from cnn2gnn_jax.distillers.base import Distiller, Stage, cross_entropy, weighted
from cnn2gnn_jax.networks.layers import linear_init
from cnn2gnn_jax.networks.norm import at_least_float32
from cnn2gnn_jax.runtime.collectives import all_gather
from cnn2gnn_jax.runtime.errors import UserError

SIDES = ("student", "teacher")
EPSILON = 1e-7
MOST_SCORES = 2**25  # images of a batch times training images up to which each image has negatives of its own


class Embedding(nn.Module):
    """A linear layer to `features` and l2 normalisation: (B, F) to (B, features), float32 or wider."""

    features: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        dtype = at_least_float32(pooled.dtype)
        dense = nn.Dense(self.features, dtype=dtype, param_dtype=dtype, kernel_init=linear_init, name="linear")
        return maps.normalize_rows(dense(pooled))


class Negatives(NamedTuple):
    """Training images that are scored, and how often each is a negative of each image.

    rows: (L,) training indices; None for all N in their order.
    times: (b, L); every row sums to K, and is 0 for images of the row's own class.
    """

    rows: jax.Array | None
    times: jax.Array


def draw_negatives(
    rng: jax.Array, index: jax.Array, own_labels: jax.Array, training_labels: np.ndarray, count: int
) -> Negatives:
    """`count` negatives of other classes for each of b images, on the device, each image's own draw as in the original.

    Every training image gets a random key for each of the b; an image's negatives are the `count` of other classes with
    the smallest keys, a uniform draw without replacement. Where other classes have fewer than `count` images, each of
    them is taken as often as goes, and the rest of `count` is drawn; the original draws with replacement there.

    The largest key of a draw is searched bit by bit, which reads the (b, N) keys 32 times and sorts nothing: at b = 64
    and N = 50,000, 13 MB of keys and 0.4 GB read a step.

    Args:
      rng: the same on every device.
      index: (b,) training indices of the images; an image's draw depends on `rng` and its own alone.
      own_labels: (b,) their classes.
      training_labels: (N,) classes of all training images, on the host.
      count: K.
    """
    n, sizes = len(training_labels), np.bincount(training_labels)
    others = jnp.asarray(np.maximum(n - sizes, 1))[own_labels][:, None]
    other = jnp.asarray(training_labels) != own_labels[:, None]
    keys = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(rng, i), (n,), jnp.uint32))(index)
    rest = count % others

    def below(bound: jax.Array) -> jax.Array:
        return other & (keys < bound)

    def settle_bit(k: jax.Array, largest: jax.Array) -> jax.Array:
        raised = largest | (jnp.uint32(1) << (31 - k).astype(jnp.uint32))
        return jnp.where(jnp.sum(below(raised), axis=1, keepdims=True) < rest, raised, largest)

    largest = lax.fori_loop(0, 32, settle_bit, jnp.zeros_like(others, jnp.uint32))
    chosen, level = below(largest), other & (keys == largest)
    # Two keys may be equal: as many are taken as are missing.
    chosen |= level & (jnp.cumsum(level, axis=1) <= rest - jnp.sum(chosen, axis=1, keepdims=True))
    return Negatives(None, jnp.where(other, count // others + chosen, 0))


def draw_shared_negatives(rng: jax.Array, own_labels: jax.Array, training_labels: np.ndarray, count: int) -> Negatives:
    """`count` negatives of other classes for each of b images, drawn on the device from one order for the whole batch.

    For training sets that are too large to score whole.

    One random order of the training set serves the whole batch: an image's negatives are the first `count` of other
    classes in it, so each image's are a uniform draw without replacement, and the memory bank is read once a batch and
    not once an image. Where other classes have fewer than `count` images, each of them is taken as often as goes, and
    the first ones in the order once more.

    Args:
      rng: the same on every device.
      own_labels: (b,) classes of the images.
      training_labels: (N,) classes of all training images, on the host.
      count: K.
    """
    n, sizes = len(training_labels), np.bincount(training_labels)
    others = jnp.asarray(np.maximum(n - sizes, 1))[own_labels]
    # So many that `count` of another class are among them, whichever that is.
    rows = jax.random.permutation(rng, n)[: min(n, count + int(sizes.max()))]
    other = jnp.asarray(training_labels)[rows] != own_labels[:, None]
    rank = jnp.cumsum(other, axis=1)
    once_more = rank <= (count % others)[:, None]
    return Negatives(rows, jnp.where(other, (count // others)[:, None] + once_more, 0))


def create(hyper: Mapping[str, Any]) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * the contrastive losses of the student's side and the teacher's.

    Pooled features are embedded in `feature_dim` dimensions, (B, D); a bank, (N, D), holds what each training image was
    embedded as last, one for each network. The student's embedding v is scored against the teacher's bank and the
    teacher's against the student's: P = exp(<bank row, v> / `temperature`) / Z, with Z = N * the mean of exp over the
    first batch, then fixed. Of the image itself and K = `negatives` images of other classes, a side's loss is
    -(1/B) sum[log P+ / (P+ + K/N + e) + sum log (K/N) / (P- + K/N + e)]. After the loss, the rows of the batch become
    Q(`momentum` * old + (1 - momentum) * new).

    Each image has negatives of its own, and its scores are (b, N), as long as the global batch times N is at most
    `MOST_SCORES`, a batch of 64 of 524,288 images. Beyond, one random order of the training set serves the whole batch
    (`draw_shared_negatives`).

    `training_labels`, (N,) integers, are the classes of all training images, by training index; `init` needs them.
    """
    method = _Crd(hyper)
    return Distiller(("pooled",), method.init, (Stage("train", method.loss),), student=("logits", "pooled"))


@dataclasses.dataclass(frozen=True)
class _Crd:
    """CRD with its hyperparameters."""

    hyper: Mapping[str, Any]

    def modules(self):
        return {side: Embedding(self.hyper["feature_dim"]) for side in SIDES}

    def init(self, rng, student, teacher):
        labels = _training_labels(self.hyper)
        params_rng, *bank_rngs = jax.random.split(rng, 3)
        pooled = {"student": student.pooled, "teacher": teacher.pooled}
        params, _ = connectors.initialise(params_rng, self.modules(), pooled)
        bound, shape = math.sqrt(3 / self.hyper["feature_dim"]), (len(labels), self.hyper["feature_dim"])
        banks = {
            side: jax.random.uniform(key, shape, at_least_float32(pooled[side].dtype), -bound, bound)
            for side, key in zip(SIDES, bank_rngs, strict=True)
        }
        log_z = {side: jnp.zeros((), bank.dtype) for side, bank in banks.items()}
        return params, {"bank": banks, "log_z": log_z, "initialised": jnp.zeros((), bool)}

    def loss(self, params, memory, inputs):
        batch, negatives = inputs.batch, self._draw(inputs)
        pooled = {"student": inputs.student.pooled, "teacher": lax.stop_gradient(inputs.teacher.pooled)}
        embeddings = {
            side: module.apply({"params": params[side]}, pooled[side]) for side, module in self.modules().items()
        }
        parts, log_z = {}, {}
        for side, other in (SIDES, SIDES[::-1]):
            bank, old = memory["bank"][other], memory["log_z"][side]
            parts[side], log_z[side] = self._side(embeddings[side], bank, old, memory["initialised"], negatives, batch)
        banks = {
            side: self._updated(bank, lax.stop_gradient(embeddings[side]), batch)
            for side, bank in memory["bank"].items()
        }
        total, metrics = weighted(self.hyper, cross_entropy(inputs), parts["student"] + parts["teacher"])
        return total, {"bank": banks, "log_z": log_z, "initialised": jnp.ones((), bool)}, metrics

    def _draw(self, inputs):
        labels, index = _training_labels(self.hyper), inputs.batch["index"]
        if all_gather(index).size * len(labels) <= MOST_SCORES:
            return draw_negatives(inputs.rng, index, inputs.batch["label"], labels, self.hyper["negatives"])
        return draw_shared_negatives(inputs.rng, inputs.batch["label"], labels, self.hyper["negatives"])

    def _side(self, embedding, bank, log_z, initialised, negatives, batch):
        """This device's share of one side's loss, and log Z."""
        n, k, mask = len(bank), self.hyper["negatives"], batch["mask"]
        own = jnp.sum(embedding * bank[batch["index"]], axis=-1) / self.hyper["temperature"]
        scored = bank if negatives.rows is None else bank[negatives.rows]
        scores = jnp.einsum("bd,ld->bl", embedding, scored, precision="highest") / self.hyper["temperature"]

        def log_sums():
            sums = jax.nn.logsumexp(scores, axis=-1, b=negatives.times)
            return lax.stop_gradient(jnp.logaddexp(own, sums))

        # The sums of the first batch alone are needed; the collective stays outside the condition.
        sums = all_gather(lax.cond(initialised, lambda: jnp.zeros_like(own), log_sums))
        everyone = all_gather(mask)
        images = jnp.maximum(jnp.sum(everyone), 1)
        first = jax.nn.logsumexp(sums, where=everyone) + math.log(n) - jnp.log(images * (k + 1))
        log_z = jnp.where(initialised, log_z, first.astype(log_z.dtype))
        noise = k / n
        positive = own - log_z
        log_hit = positive - jnp.log(jnp.exp(positive) + noise + EPSILON)
        log_miss = math.log(noise) - jnp.log(jnp.exp(scores - log_z) + noise + EPSILON)
        each = -(log_hit + jnp.sum(negatives.times * log_miss, axis=-1))
        return losses.batch_mean(each, mask), log_z

    def _updated(self, bank, embedding, batch):
        """The bank with the rows of the batch moved towards what its images are embedded as now."""
        index, mask = (all_gather(batch[name]) for name in ("index", "mask"))
        momentum = self.hyper["momentum"]
        new = maps.normalize_rows(momentum * bank[index] + (1 - momentum) * all_gather(embedding))
        return bank.at[jnp.where(mask, index, len(bank))].set(new, mode="drop")


def _training_labels(hyper: Mapping[str, Any]) -> np.ndarray:
    labels = hyper.get("training_labels")
    assert labels is not None, "crd needs hyper['training_labels']"
    labels = np.asarray(labels, np.int32)
    if len(np.unique(labels)) < 2:
        raise UserError("crd contrasts images with those of other classes, but all training images are of one class")
    return labels
