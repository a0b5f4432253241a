"""Means over seeds, and paired differences with intervals over seeds and images."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 4000  # bootstrap samples
_CHUNK = 250  # samples that are computed together
# What the interval of a `Difference` is over.
BOTH, IMAGES, SEEDS = "seeds and images", "images alone", "seeds alone"


class Summary(NamedTuple):
    """The mean and sample standard deviation of n values; the deviation of a single value is None."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def summarize(values: Sequence[float]) -> Summary | None:
    """The summary of values; None without values."""
    if not values:
        return None
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


class Difference(NamedTuple):
    """A mean difference over n seeds, its 95% confidence interval or None, and what the interval is over."""

    mean: float
    interval: tuple[float, float] | None
    n: int
    over: str = ""

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.interval[0]:+.2f}, {self.interval[1]:+.2f}]"


Correct = Mapping[int, np.ndarray]
"""Which of the N images a student classifies correctly, (N,) bool, by its seed."""


def paired(
    ours: Mapping[int, float], theirs: Mapping[int, float], correct: tuple[Correct, Correct] | None = None
) -> Difference | None:
    """The mean of ours minus theirs over their common seeds, with its interval; None without a common seed.

    Args:
      ours: accuracies in percent by seed.
      theirs: accuracies in percent by seed.
      correct: which images our and their students classify correctly, over the same images; None if not recorded.

    Returns:
      The mean and its interval. With `correct`, the interval is over seeds and images: that of `bootstrap`, widened
      where Student's t interval over seeds is wider, since a bootstrap of three or five seeds is too narrow. For a
      single seed it is over images alone. Without `correct` it is Student's t interval over seeds; a single seed has
      none.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    if not seeds:
        return None
    mean, intervals, over = float(differences.mean()), [], ""
    if len(seeds) > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * stats.sem(differences))
        intervals, over = [(mean - half, mean + half)], SEEDS
    if correct is not None:
        images = [correct[0][seed].astype(np.int8) - correct[1][seed].astype(np.int8) for seed in seeds]
        low, high = bootstrap(np.stack(images))
        intervals, over = [*intervals, (100 * low, 100 * high)], BOTH if intervals else IMAGES
    if not intervals:
        return Difference(mean, None, len(seeds))
    return Difference(mean, (min(low for low, _ in intervals), max(high for _, high in intervals)), len(seeds), over)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of the mean of crossed `values`, (S, N), for S seeds on the same N images.

    Seeds and images are drawn with replacement, independently, as in Owen's pigeonhole bootstrap (2007), which is
    slightly conservative. For a single seed, images alone are drawn. The draws are the same in every call and with
    every version of NumPy.

    Returns:
      The two ends, in the unit of `values`.
    """
    seeds, images = values.shape
    seed_counts, image_counts = _counts(seeds, 0), _counts(images, 1)
    columns = np.ascontiguousarray(values.T, np.float64)
    sums = np.concatenate([image_counts[k : k + _CHUNK].astype(np.float64) @ columns for k in range(0, DRAWS, _CHUNK)])
    low, high = np.quantile((seed_counts * sums).sum(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low) / values.size, float(high) / values.size


@functools.lru_cache(maxsize=4)
def _counts(size: int, stream: int) -> np.ndarray:
    """How often each of `size` items occurs in each of DRAWS bootstrap samples, (DRAWS, size) uint16."""
    # The raw numbers of this generator are the same in every version of NumPy.
    raw = np.random.Philox(key=np.array([0, stream], np.uint64))
    counts = np.empty((DRAWS, size), np.uint16)
    for draw in range(DRAWS):
        drawn = (raw.random_raw(size) % np.uint64(size)).astype(np.intp)
        counts[draw] = np.bincount(drawn, minlength=size)
    return counts


UNIFORM = 1.5  # with fewer distinct anchors per batch, the graph of Mechanism 2 has no structure


def is_uniform(entry: Mapping[str, Any]) -> bool:
    """Whether Mechanism 2 turned the graph of an accuracy into a uniform average of the batch.

    If all images of a batch have the same nearest anchor, the distances between their anchors are all equal, and Eq. 3
    gives all images the same weight. The mean over batches shows whether this is so in most batches.
    """
    distinct = (entry.get("diagnostics") or {}).get("distinct_anchors")
    return entry["mechanism"] == "batch_by_batch" and distinct is not None and distinct < UNIFORM
