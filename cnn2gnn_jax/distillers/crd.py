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

ROLES = ("student", "teacher")
EPSILON = 1e-7
# Each image has its own negatives if the batch size times the number of training images is at most this.
MAX_SCORES = 2**25


class Embedding(nn.Module):
    """A linear layer and l2 normalization: (B, F) to (B, features), float32 or wider."""

    features: int

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        dtype = at_least_float32(pooled.dtype)
        dense = nn.Dense(self.features, dtype=dtype, param_dtype=dtype, kernel_init=linear_init, name="linear")
        return maps.normalize_rows(dense(pooled))


class Negatives(NamedTuple):
    """The negatives of b images: training images of other classes.

    scored: (L,), indices of the training images that are scored; None for all N.
    counts: (b, L), how often each of them is a negative of each image. A row sums to K, and is 0 for training images of
      the same class.
    """

    scored: jax.Array | None
    counts: jax.Array


def draw_negatives(
    rng: jax.Array, index: jax.Array, labels: jax.Array, training_labels: np.ndarray, count: int
) -> Negatives:
    """Draws `count` negatives for each of b images, independently for each image as in the original method.

    For each image, every training image gets a random number. The negatives are the `count` training images of other
    classes with the smallest random numbers, which is a uniform draw without replacement. If there are fewer than
    `count` training images of other classes, all of them are used equally often, and the remainder is drawn. (The
    original method draws with replacement in this case.)

    The largest random number of a draw is determined bit by bit. This reads the (b, N) random numbers 32 times and
    avoids sorting them. For b = 64 and N = 50,000 they take 13 MB, and 0.4 GB are read in a step.

    Args:
      rng: a key, which is the same on all devices.
      index: (b,), the training indices of the images. The draw for an image depends only on `rng` and its index.
      labels: (b,), the classes of the images.
      training_labels: (N,), the classes of all training images, on the host.
      count: K, the number of negatives of each image.
    """
    n, class_sizes = len(training_labels), np.bincount(training_labels)
    other_count = jnp.asarray(np.maximum(n - class_sizes, 1))[labels][:, None]
    is_other = jnp.asarray(training_labels) != labels[:, None]
    numbers = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(rng, i), (n,), jnp.uint32))(index)
    remainder = count % other_count

    def smaller_than(bound: jax.Array) -> jax.Array:
        return is_other & (numbers < bound)

    def set_bit(k: jax.Array, bound: jax.Array) -> jax.Array:
        larger_bound = bound | (jnp.uint32(1) << (31 - k).astype(jnp.uint32))
        return jnp.where(jnp.sum(smaller_than(larger_bound), axis=1, keepdims=True) < remainder, larger_bound, bound)

    bound = lax.fori_loop(0, 32, set_bit, jnp.zeros_like(other_count, jnp.uint32))
    chosen, is_bound = smaller_than(bound), is_other & (numbers == bound)
    # Several random numbers may equal the bound. Only as many are added as are still needed.
    chosen |= is_bound & (jnp.cumsum(is_bound, axis=1) <= remainder - jnp.sum(chosen, axis=1, keepdims=True))
    return Negatives(None, jnp.where(is_other, count // other_count + chosen, 0))


def draw_shared_negatives(rng: jax.Array, labels: jax.Array, training_labels: np.ndarray, count: int) -> Negatives:
    """Draws `count` negatives for each of b images from one random order of the training set for the whole batch.

    This is for training sets that are too large to score every training image. The negatives of an image are the first
    `count` training images of other classes in the random order. For each image this is a uniform draw without
    replacement, and the memory bank is read only once for the whole batch. If there are fewer than `count` training
    images of other classes, all of them are used equally often, and the first ones in the order once more.

    Args:
      rng: a key, which is the same on all devices.
      labels: (b,), the classes of the images.
      training_labels: (N,), the classes of all training images, on the host.
      count: K, the number of negatives of each image.
    """
    n, class_sizes = len(training_labels), np.bincount(training_labels)
    other_count = jnp.asarray(np.maximum(n - class_sizes, 1))[labels]
    # This many training images contain `count` of other classes, whatever the class of the image.
    scored = jax.random.permutation(rng, n)[: min(n, count + int(class_sizes.max()))]
    is_other = jnp.asarray(training_labels)[scored] != labels[:, None]
    rank = jnp.cumsum(is_other, axis=1)
    is_repeated = rank <= (count % other_count)[:, None]
    return Negatives(scored, jnp.where(is_other, (count // other_count)[:, None] + is_repeated, 0))


def create(hyper: Mapping[str, Any]) -> Distiller:
    """The loss is `ce_weight` * cross-entropy + `weight` * (contrastive loss of the student + that of the teacher).

    Pooled features of both networks are embedded in `feature_dim` dimensions, (B, D). Each network has a memory bank,
    (N, D), with the latest embeddings of all training images. An embedding v of one network is scored against the bank
    of the other network: P = exp(<bank row, v> / `temperature`) / Z. The normalizer Z is N times the mean of exp over
    the first batch, and then stays fixed. With P+ the score of the image itself and P- those of its K = `negatives`
    negatives, a contrastive loss is

        -(1/B) sum over images of [log(P+ / (P+ + K/N + e)) + sum over negatives of log((K/N) / (P- + K/N + e))]

    Afterwards, the bank rows of the batch become Q(`momentum` * old + (1 - `momentum`) * new), where Q normalizes to
    unit length.

    Each image has its own negatives, and scores (b, N), if the global batch size times N is at most `MAX_SCORES` (a
    batch of 64 with N = 524,288). For larger training sets see `draw_shared_negatives`.

    `hyper` must also contain `training_labels`, (N,) integers: the classes of all training images.
    """
    method = _Crd(hyper)
    return Distiller(("pooled",), method.init, (Stage("train", method.loss),), student=("logits", "pooled"))


@dataclasses.dataclass(frozen=True)
class _Crd:
    """The functions of CRD for given hyperparameters."""

    hyper: Mapping[str, Any]

    def modules(self):
        return {role: Embedding(self.hyper["feature_dim"]) for role in ROLES}

    def init(self, rng, student, teacher):
        labels = _training_labels(self.hyper)
        params_rng, *bank_rngs = jax.random.split(rng, 3)
        pooled = {"student": student.pooled, "teacher": teacher.pooled}
        params, _ = connectors.initialize(params_rng, self.modules(), pooled)
        bound, shape = math.sqrt(3 / self.hyper["feature_dim"]), (len(labels), self.hyper["feature_dim"])
        banks = {
            role: jax.random.uniform(key, shape, at_least_float32(pooled[role].dtype), -bound, bound)
            for role, key in zip(ROLES, bank_rngs, strict=True)
        }
        log_z = {role: jnp.zeros((), bank.dtype) for role, bank in banks.items()}
        return params, {"bank": banks, "log_z": log_z, "initialized": jnp.zeros((), bool)}

    def loss(self, params, memory, inputs):
        batch, negatives = inputs.batch, self._draw(inputs)
        pooled = {"student": inputs.student.pooled, "teacher": lax.stop_gradient(inputs.teacher.pooled)}
        embeddings = {
            role: module.apply({"params": params[role]}, pooled[role]) for role, module in self.modules().items()
        }
        contrastive, log_z = {}, {}
        for role, other_role in (ROLES, ROLES[::-1]):
            bank, old_log_z = memory["bank"][other_role], memory["log_z"][role]
            contrastive[role], log_z[role] = self._contrastive_loss(
                embeddings[role], bank, old_log_z, memory["initialized"], negatives, batch
            )
        banks = {
            role: self._update_bank(bank, lax.stop_gradient(embeddings[role]), batch)
            for role, bank in memory["bank"].items()
        }
        total, metrics = weighted(self.hyper, cross_entropy(inputs), contrastive["student"] + contrastive["teacher"])
        return total, {"bank": banks, "log_z": log_z, "initialized": jnp.ones((), bool)}, metrics

    def _draw(self, inputs):
        labels, index = _training_labels(self.hyper), inputs.batch["index"]
        if all_gather(index).size * len(labels) <= MAX_SCORES:
            return draw_negatives(inputs.rng, index, inputs.batch["label"], labels, self.hyper["negatives"])
        return draw_shared_negatives(inputs.rng, inputs.batch["label"], labels, self.hyper["negatives"])

    def _contrastive_loss(self, embedding, bank, log_z, initialized, negatives, batch):
        """This device's share of the contrastive loss of one network, and log Z."""
        n, k, mask = len(bank), self.hyper["negatives"], batch["mask"]
        self_scores = jnp.sum(embedding * bank[batch["index"]], axis=-1) / self.hyper["temperature"]
        bank_rows = bank if negatives.scored is None else bank[negatives.scored]
        scores = jnp.einsum("bd,ld->bl", embedding, bank_rows, precision="highest") / self.hyper["temperature"]

        def log_sums():
            sums = jax.nn.logsumexp(scores, axis=-1, b=negatives.counts)
            return lax.stop_gradient(jnp.logaddexp(self_scores, sums))

        # Only the first batch needs the sums. The collective must stay outside the condition.
        sums = all_gather(lax.cond(initialized, lambda: jnp.zeros_like(self_scores), log_sums))
        global_mask = all_gather(mask)
        images = jnp.maximum(jnp.sum(global_mask), 1)
        first_log_z = jax.nn.logsumexp(sums, where=global_mask) + math.log(n) - jnp.log(images * (k + 1))
        log_z = jnp.where(initialized, log_z, first_log_z.astype(log_z.dtype))
        noise = k / n
        log_positive = self_scores - log_z
        positive_term = log_positive - jnp.log(jnp.exp(log_positive) + noise + EPSILON)
        negative_terms = math.log(noise) - jnp.log(jnp.exp(scores - log_z) + noise + EPSILON)
        image_losses = -(positive_term + jnp.sum(negatives.counts * negative_terms, axis=-1))
        return losses.batch_mean(image_losses, mask), log_z

    def _update_bank(self, bank, embedding, batch):
        """The bank after its rows for the batch are moved towards the new embeddings."""
        index, mask = (all_gather(batch[name]) for name in ("index", "mask"))
        momentum = self.hyper["momentum"]
        new = maps.normalize_rows(momentum * bank[index] + (1 - momentum) * all_gather(embedding))
        return bank.at[jnp.where(mask, index, len(bank))].set(new, mode="drop")


def _training_labels(hyper: Mapping[str, Any]) -> np.ndarray:
    labels = hyper.get("training_labels")
    assert labels is not None, "crd needs hyper['training_labels']"
    labels = np.asarray(labels, np.int32)
    if len(np.unique(labels)) < 2:
        raise UserError(
            "the method crd contrasts images of different classes, but all training images are of one class: choose "
            "another method, or a data set with several classes"
        )
    return labels
