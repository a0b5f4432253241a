"""CRD: contrastive representation distillation (Tian et al., 2020)."""

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
from cnn2gnn_jax.errors import UserError
from cnn2gnn_jax.networks.layers import linear_init
from cnn2gnn_jax.networks.norm import at_least_float32
from cnn2gnn_jax.parallel import all_gather

EPSILON = 1e-7


class Embedding(nn.Module):
    """A linear layer to `features` and l2 normalisation: (B, F) to (B, features), float32 or wider."""

    features: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        dtype = at_least_float32(pooled.dtype)
        dense = nn.Dense(self.features, dtype=dtype, param_dtype=dtype, kernel_init=linear_init, name="linear")
        return maps.normalize_rows(dense(pooled))


class Negatives(NamedTuple):
    """Training images shared by a batch, and how often each is a negative of each image.

    rows: (L,) training indices.
    times: (b, L); every row sums to K, and is 0 for images of the row's own class.
    """

    rows: jax.Array
    times: jax.Array


def draw_negatives(rng: jax.Array, own_labels: jax.Array, training_labels: np.ndarray, count: int) -> Negatives:
    """`count` negatives of other classes for each of b images, drawn on the device.

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


def create(hyper: Mapping[str, Any], axis_name: str | None) -> Distiller:
    """`ce_weight` * cross-entropy + `weight` * the contrastive losses of the student's side and the teacher's.

    Pooled features are embedded in `feature_dim` dimensions, (B, D); a bank, (N, D), holds what each training image was
    embedded as last, one for each network. The student's embedding v is scored against the teacher's bank and the
    teacher's against the student's: P = exp(<bank row, v> / `temperature`) / Z, with Z = N * the mean of exp over the
    first batch, then fixed. Of the image itself and K = `negatives` images of other classes, a side's loss is
    -(1/B) sum[log P+ / (P+ + K/N + e) + sum log (K/N) / (P- + K/N + e)]. After the loss, the rows of the batch become
    Q(`momentum` * old + (1 - momentum) * new).

    `training_labels`, (N,) integers, are the classes of all training images, by training index; `init` needs them.
    """

    def modules():
        return {side: Embedding(hyper["feature_dim"]) for side in ("student", "teacher")}

    def init(rng, student, teacher):
        labels = _training_labels(hyper)
        params_rng, *bank_rngs = jax.random.split(rng, 3)
        pooled = {"student": student.pooled, "teacher": teacher.pooled}
        params, _ = connectors.initialise(params_rng, modules(), pooled)
        bound, shape = math.sqrt(3 / hyper["feature_dim"]), (len(labels), hyper["feature_dim"])
        banks = {
            side: jax.random.uniform(key, shape, at_least_float32(pooled[side].dtype), -bound, bound)
            for side, key in zip(("student", "teacher"), bank_rngs, strict=True)
        }
        log_z = {side: jnp.zeros((), bank.dtype) for side, bank in banks.items()}
        return params, {"bank": banks, "log_z": log_z, "initialised": jnp.zeros((), bool)}

    def side_loss(embedding, bank, log_z, initialised, negatives, batch):
        """This device's share of one side's loss, and log Z."""
        n, k, mask = len(bank), hyper["negatives"], batch["mask"]
        own = jnp.sum(embedding * bank[batch["index"]], axis=-1) / hyper["temperature"]
        scores = jnp.einsum("bd,ld->bl", embedding, bank[negatives.rows], precision="highest") / hyper["temperature"]

        def log_sums():
            sums = jax.nn.logsumexp(scores, axis=-1, b=negatives.times)
            return lax.stop_gradient(jnp.logaddexp(own, sums))

        # The sums of the first batch alone are needed; the collective stays outside the condition.
        sums = all_gather(lax.cond(initialised, lambda: jnp.zeros_like(own), log_sums), axis_name)
        everyone = all_gather(mask, axis_name)
        images = jnp.maximum(jnp.sum(everyone), 1)
        first = jax.nn.logsumexp(sums, where=everyone) + math.log(n) - jnp.log(images * (k + 1))
        log_z = jnp.where(initialised, log_z, first.astype(log_z.dtype))
        noise = k / n
        positive = own - log_z
        log_hit = positive - jnp.log(jnp.exp(positive) + noise + EPSILON)
        log_miss = math.log(noise) - jnp.log(jnp.exp(scores - log_z) + noise + EPSILON)
        each = -(log_hit + jnp.sum(negatives.times * log_miss, axis=-1))
        return losses.batch_mean(each, mask, axis_name), log_z

    def updated(bank, embedding, batch):
        index, mask = (all_gather(batch[name], axis_name) for name in ("index", "mask"))
        new = maps.normalize_rows(
            hyper["momentum"] * bank[index] + (1 - hyper["momentum"]) * all_gather(embedding, axis_name)
        )
        return bank.at[jnp.where(mask, index, len(bank))].set(new, mode="drop")

    def loss(params, memory, student, teacher, batch, epoch, rng):
        del epoch
        negatives = draw_negatives(rng, batch["label"], _training_labels(hyper), hyper["negatives"])
        pooled = {"student": student.pooled, "teacher": lax.stop_gradient(teacher.pooled)}
        embeddings = {side: module.apply({"params": params[side]}, pooled[side]) for side, module in modules().items()}
        parts, log_z = {}, {}
        for side, other in (("student", "teacher"), ("teacher", "student")):
            parts[side], log_z[side] = side_loss(
                embeddings[side],
                memory["bank"][other],
                memory["log_z"][side],
                memory["initialised"],
                negatives,
                batch,
            )
        banks = {
            side: updated(bank, lax.stop_gradient(embeddings[side]), batch) for side, bank in memory["bank"].items()
        }
        total, metrics = weighted(hyper, cross_entropy(student, batch, axis_name), parts["student"] + parts["teacher"])
        return total, {"bank": banks, "log_z": log_z, "initialised": jnp.ones((), bool)}, metrics

    return Distiller(("pooled",), init, (Stage("train", loss),), student=("logits", "pooled"))


def _training_labels(hyper: Mapping[str, Any]) -> np.ndarray:
    labels = hyper.get("training_labels")
    assert labels is not None, "crd needs hyper['training_labels']"
    labels = np.asarray(labels, np.int32)
    if len(np.unique(labels)) < 2:
        raise UserError("crd contrasts images with those of other classes, but all training images are of one class")
    return labels
