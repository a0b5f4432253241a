"""Means over seeds, and paired differences with intervals over seeds and images."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
DRAWS = 4000  # of a bootstrap
_CHUNK = 250  # draws at a time
# What an interval is over.
BOTH, IMAGES, SEEDS = "seeds and images", "images alone", "seeds alone"


class Summary(NamedTuple):
    """Of n values: their mean and sample deviation, None of a single one."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def summarize(values: Sequence[float]) -> Summary | None:
    """The summary, None of no values."""
    if not values:
        return None
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


class Difference(NamedTuple):
    """A mean difference over n seeds, its 95% confidence interval or None, and what that is over."""

    mean: float
    interval: tuple[float, float] | None
    n: int
    over: str = ""

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.interval[0]:+.2f}, {self.interval[1]:+.2f}]"


Correct = Mapping[int, np.ndarray]
"""Which of the N images a student has right, (N,) bool, by its seed."""


def paired(
    ours: Mapping[int, float], theirs: Mapping[int, float], correct: tuple[Correct, Correct] | None = None
) -> Difference | None:
    """Ours less theirs by the seeds that both have; None without a common seed.

    Args:
      ours: accuracies in percent by seed.
      theirs: likewise.
      correct: of the same images, those that our and their students have right; None where it is not known.

    Returns:
      The mean and its interval. With `correct`, the interval is over seeds and images: that of `bootstrap`, widened
      where Student's t interval over the seeds is wider, since a bootstrap of three or five seeds is too narrow. Of one
      seed it is over images alone. Without `correct` it is Student's, over seeds alone, and of one seed there is none.
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
    """The 95% percentile interval of the mean of crossed `values`, (S, N): of S seeds on the same N images.

    Seeds and images are drawn with replacement, independently, as in Owen's pigeonhole bootstrap (2007), which errs a
    little to the wide side. Of one seed the images alone are drawn. The draws are the same in every call and under
    every version of NumPy.
    """
    seeds, images = values.shape
    of_seeds, of_images = _counts(seeds, 0), _counts(images, 1)
    columns = np.ascontiguousarray(values.T, np.float64)
    sums = np.concatenate([of_images[k : k + _CHUNK].astype(np.float64) @ columns for k in range(0, DRAWS, _CHUNK)])
    low, high = np.quantile((of_seeds * sums).sum(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low) / values.size, float(high) / values.size


@functools.lru_cache(maxsize=4)
def _counts(size: int, stream: int) -> np.ndarray:
    """How often each of `size` items is drawn in each of DRAWS samples of as many, (DRAWS, size) uint16."""
    raw = np.random.Philox(key=np.array([0, stream], np.uint64))  # whose raw numbers no version of NumPy changes
    counts = np.empty((DRAWS, size), np.uint16)
    for draw in range(DRAWS):
        drawn = (raw.random_raw(size) % np.uint64(size)).astype(np.intp)
        counts[draw] = np.bincount(drawn, minlength=size)
    return counts


UNIFORM = 1.5  # distinct anchors a batch, under which a graph of Mechanism 2 has no structure


def is_uniform(entry: Mapping[str, Any]) -> bool:
    """Whether an accuracy is of a graph that Mechanism 2 made a uniform average of the batch.

    Where one anchor is the nearest of a whole batch, all distances between the anchors that stand for its images are
    equal, and Eq. 3 weighs all images alike. The mean over the batches tells whether this holds for most of them.
    """
    distinct = (entry.get("diagnostics") or {}).get("distinct_anchors")
    return entry["mechanism"] == "batch_by_batch" and distinct is not None and distinct < UNIFORM
