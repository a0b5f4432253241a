"""Tests of intervals over seeds and images against the bootstrap's exact variance, known models and Student's t."""

import numpy as np
import pytest
from scipy import stats

from cnn2gnn_jax.report.statistics import BOTH, IMAGES, SEEDS, bootstrap, paired, summarize

RNG = np.random.default_rng(0)


def crossed(rng, seeds, images, of_seeds, of_images, rest):
    """Returns values (S, N) of a crossed random-effects model with mean 0."""
    return (
        of_seeds * rng.standard_normal((seeds, 1))
        + of_images * rng.standard_normal((1, images))
        + rest * rng.standard_normal((seeds, images))
    )


def exact_variance(values):
    """Returns the variance of the mean of S x N values if rows and columns are drawn independently, with replacement.

    A mean of S drawn rows has weights w / S with E[w w^T] = (1 - 1/S) 1 1^T + I. The same holds for columns.
    """
    seeds, images = values.shape
    rows, columns = values.sum(axis=1), values.sum(axis=0)
    a, b = 1 - 1 / seeds, 1 - 1 / images
    second = a * b * values.sum() ** 2 + a * (columns**2).sum() + b * (rows**2).sum() + (values**2).sum()
    return second / values.size**2 - values.mean() ** 2


@pytest.mark.parametrize("shape", [(20, 200), (12, 1000), (30, 30)])
def test_the_interval_is_that_of_the_bootstraps_exact_variance(shape):
    values = 0.3 + crossed(RNG, *shape, 0.5, 1.0, 1.0)
    low, high = bootstrap(values)
    half = 1.96 * np.sqrt(exact_variance(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_the_variance_is_that_of_the_model():
    """Tests the mean over many data sets: seeds count as 1/S, images as 1/N, and the rest as up to 3/(S N)."""
    seeds, images = 20, 100
    widths = [np.diff(bootstrap(crossed(RNG, seeds, images, 1.0, 3.0, 1.0)))[0] for _ in range(60)]
    variance = np.mean((np.array(widths) / 2 / 1.96) ** 2)
    expected = (1 - 1 / seeds) * 1.0 / seeds + (1 - 1 / images) * 9.0 / images
    assert variance == pytest.approx(expected + 3 / seeds / images, rel=0.12)


def test_the_bootstrap_covers_the_truth_where_an_interval_over_seeds_alone_does_not():
    covered = {"bootstrap": 0, "seeds alone": 0}
    for _ in range(120):
        values = crossed(RNG, 10, 60, 0.2, 2.0, 0.5)
        low, high = bootstrap(values)
        covered["bootstrap"] += low <= 0 <= high
        means = values.mean(axis=1)
        half = stats.t.ppf(0.975, 9) * stats.sem(means)
        covered["seeds alone"] += abs(means.mean()) <= half
    assert covered["bootstrap"] >= 0.89 * 120 and covered["seeds alone"] <= 0.6 * 120


def students(seeds, images, rng=RNG):
    """Returns which images the student of each seed classifies correctly. Some images are easy for all, others hard."""
    easy = rng.random(images)
    return {seed: rng.random(images) < easy for seed in range(seeds)}


def accuracies(correct):
    return {seed: 100 * float(right.mean()) for seed, right in correct.items()}


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_is_never_narrower_than_over_seeds_alone_and_wider_for_few_images(seeds):
    for images in (50, 5000):
        ours, theirs = students(seeds, images), students(seeds, images)
        alone = paired(accuracies(ours), accuracies(theirs))
        both = paired(accuracies(ours), accuracies(theirs), (ours, theirs))
        assert (alone.over, both.over) == (SEEDS, BOTH)
        assert both.mean == pytest.approx(alone.mean) and both.n == alone.n == seeds
        assert both.interval[0] <= alone.interval[0] and both.interval[1] >= alone.interval[1]
    # Every seed is wrong on the same images. So seeds do not differ, and do not show how uncertain 50 images are.
    right, wrong = np.arange(50) < 40, np.arange(50) < 30
    ours, theirs = dict.fromkeys(range(seeds), right), dict.fromkeys(range(seeds), wrong)
    assert np.ptp(paired(accuracies(ours), accuracies(theirs)).interval) == pytest.approx(0)
    low, high = paired(accuracies(ours), accuracies(theirs), (ours, theirs)).interval
    # The difference is 1 on a fifth of the images, so it has the deviation of a binomial distribution.
    assert (high - low) / 2 == pytest.approx(100 * 1.96 * np.sqrt(0.2 * 0.8 / 50), rel=0.1)


def test_the_interval_of_one_seed_is_over_images_alone():
    ours, theirs = students(1, 400), students(1, 400)
    result = paired(accuracies(ours), accuracies(theirs), (ours, theirs))
    difference = ours[0].astype(float) - theirs[0]
    assert result.over == IMAGES and result.n == 1
    assert np.ptp(result.interval) / 2 == pytest.approx(100 * 1.96 * difference.std() / 20, rel=0.08)
    assert str(result) == f"{result.mean:+.2f} [{result.interval[0]:+.2f}, {result.interval[1]:+.2f}]"


def test_the_same_images_are_drawn_for_both_arms_and_in_every_call():
    ours = students(4, 300)
    assert paired(accuracies(ours), accuracies(ours), (ours, ours)).interval == (0, 0)
    theirs = students(4, 300)
    first, second = (paired(accuracies(ours), accuracies(theirs), (ours, theirs)) for _ in range(2))
    assert first == second
    # A seed that only one arm has changes nothing.
    more = theirs | {9: np.zeros(300, bool)}
    assert paired(accuracies(ours), accuracies(more), (ours, more)) == first


def test_statistics_against_scipy():
    ours, theirs = {0: 3.0, 1: 5.0, 2: 9.0, 7: 1.0}, {0: 1.0, 1: 4.0, 2: 5.0, 8: 1.0}
    result = paired(ours, theirs)
    expected = stats.ttest_rel([3.0, 5.0, 9.0], [1.0, 4.0, 5.0]).confidence_interval(0.95)
    assert result.n == 3 and result.mean == pytest.approx(7 / 3)
    assert result.interval == pytest.approx((expected.low, expected.high))
    assert paired({0: 1.0}, {1: 1.0}) is None and paired({0: 2.0}, {0: 1.0}).interval is None
    values = [3.0, 5.0, 9.0]
    assert summarize(values)[:2] == pytest.approx((np.mean(values), stats.tstd(values)))
    assert summarize([]) is None and str(summarize([1.0])) == "1.00"
