import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cnn2gnn_jax.data import batches
from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.runtime.errors import UserError


@pytest.mark.parametrize("n", [1, 2, 100, 1797])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**70])
def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch(n, seed):
    order = batches.epoch_order(seed, 3, n)
    assert order.dtype == np.int32 and sorted(order) == list(range(n))
    np.testing.assert_array_equal(order, batches.epoch_order(seed, 3, n))


def test_orders_differ_between_epochs_seeds_and_streams():
    orders = [
        batches.epoch_order(0, 0, 100),
        batches.epoch_order(0, 1, 100),
        batches.epoch_order(1, 0, 100),
        batches.shuffled_order(100, 0),
        batches.shuffled_order(100, 1),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_orders_equal_those_of_earlier_versions():
    # A run that is resumed after an upgrade of NumPy must continue with the same batches.
    assert batches.epoch_order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert batches.epoch_order(7, 11, 10).tolist() == [8, 3, 1, 4, 0, 9, 6, 7, 2, 5]
    assert batches.shuffled_order(10, 0).tolist() == [8, 7, 4, 2, 6, 5, 9, 0, 1, 3]


def test_orders_are_uniform():
    firsts = np.bincount([batches.epoch_order(0, epoch, 5)[0] for epoch in range(2000)], minlength=5)
    assert np.all(abs(firsts - 400) < 5 * np.sqrt(400 * 0.8))


def test_class_sorted_order_keeps_the_order_within_a_class():
    labels = np.array([1, 0, 1, 0, 2, 1])
    assert batches.class_sorted_order(labels).tolist() == [1, 3, 0, 2, 5, 4]


@pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 100), (100, 100), (101, 100), (359, 100), (250, 100), (10000, 96)])
def test_evaluation_batches_contain_every_image_once_and_have_nearly_equal_sizes(n, size):
    indices, mask = batches.evaluation_batches(n, size)
    assert indices.shape == mask.shape == (-(-n // size), -(-n // indices.shape[0]))
    assert indices.shape[1] <= size and indices.dtype == np.int32 and mask.dtype == bool
    assert indices[mask].tolist() == list(range(n))
    counts = mask.sum(1)
    assert counts.max() - counts.min() <= 1
    for row, valid in zip(indices, mask, strict=True):
        assert valid[: valid.sum()].all()
        assert (row[valid.sum() :] == row[valid][-1]).all()


def test_evaluation_batches_follow_the_order():
    order = batches.shuffled_order(23, 5)
    indices, mask = batches.evaluation_batches(23, 5, order)
    np.testing.assert_array_equal(indices[mask], order)


@pytest.mark.parametrize("size", [1, 7, 10, 25, 99, 100, 500])
def test_a_balanced_batch_has_no_repeats_and_equal_classes(size):
    labels = np.random.default_rng(0).permutation(np.arange(10).repeat(60))
    batch = batches.balanced_batch(labels, size, seed=3)
    assert batch.dtype == np.int32 and len(batch) == len(set(batch)) == size
    counts = np.bincount(labels[batch], minlength=10)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(batch, batches.balanced_batch(labels, size, seed=3))


def test_the_seed_chooses_the_images_and_the_classes_with_one_more():
    labels = np.arange(10).repeat(60)
    drawn = [batches.balanced_batch(labels, 25, seed) for seed in range(20)]
    assert len({tuple(batch) for batch in drawn}) == 20
    with_more = {tuple(np.flatnonzero(np.bincount(labels[batch], minlength=10) == 3)) for batch in drawn}
    assert len(with_more) > 10
    assert any((np.diff(labels[batch]) < 0).any() for batch in drawn)


def test_a_balanced_batch_takes_one_more_only_from_classes_with_enough_images():
    labels = np.array([0, 0, 1, 1, 1])
    for seed in range(10):
        assert np.bincount(labels[batches.balanced_batch(labels, 5, seed)]).tolist() == [2, 3]


@pytest.mark.parametrize(("labels", "size"), [([0, 0, 1, 1], 5), ([0, 0, 1, 1], 0), ([0, 1, 1, 1], 4)])
def test_an_impossible_balanced_batch_is_refused(labels, size):
    with pytest.raises(UserError, match="class-balanced batch"):
        batches.balanced_batch(np.array(labels), size, seed=0)


def test_rank_in_class_counts_earlier_images_of_the_class():
    assert rank_in_class(np.array([5, 3, 5, 5, 3])).tolist() == [0, 0, 1, 2, 1]


def test_every_stream_is_independent():
    assert len({tuple(permutation(50, stream, 0)) for stream in Stream}) == len(Stream)


@st.composite
def groupings(draw):
    """Draws labels, a number of classes in a batch, a batch size that is possible with them, and a seed."""
    counts = draw(st.lists(st.integers(1, 60), min_size=1, max_size=9))
    classes = draw(st.integers(1, len(counts)))
    size = draw(st.integers(classes, max(classes, classes * min(counts))))
    seed = draw(st.integers(0, 2**31 - 1))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 + 1, counts))
    return labels, classes, size, seed


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(groupings(), st.integers(0, 50))
def test_a_grouped_batch_has_the_right_number_of_classes_and_no_image_twice(grouping, epoch):
    labels, classes, size, seed = grouping
    order = batches.grouped_order(*grouping, epoch)
    assert order.dtype == np.int32 and len(order) == len(labels) // size * size
    for batch in order.reshape(-1, size):
        assert len(set(batch.tolist())) == size
        _, counts = np.unique(labels[batch], return_counts=True)
        assert len(counts) == classes and counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(order, batches.grouped_order(*grouping, epoch))
    np.testing.assert_array_equal(order, batches.grouped_order(labels * 2, classes, size, seed, epoch))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(groupings())
def test_over_epochs_the_images_of_a_class_are_used_equally_often(grouping):
    labels = grouping[0]
    uses = np.zeros(len(labels), int)
    for epoch in range(12):
        np.add.at(uses, batches.grouped_order(*grouping, epoch), 1)
        for label in set(labels.tolist()):
            assert np.ptp(uses[labels == label]) <= 1


@pytest.mark.parametrize(("counts", "classes", "size"), [([310, 310, 15], 2, 20), ([500] * 100, 3, 100)])
def test_over_epochs_all_images_are_used_about_equally_often(counts, classes, size):
    labels = np.repeat(np.arange(len(counts)), counts)
    uses, epochs = np.zeros(len(labels), int), 40
    for epoch in range(epochs):
        np.add.at(uses, batches.grouped_order(labels, classes, size, 1, epoch), 1)
    assert abs(uses - epochs).max() <= 4


def test_grouped_batches_change_with_seed_and_epoch_and_mix_all_classes():
    labels = np.repeat(np.arange(10), 50)
    orders = [tuple(batches.grouped_order(labels, 3, 30, *at)) for at in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(orders)) == 4
    met = set()
    for epoch in range(60):
        for batch in labels[batches.grouped_order(labels, 3, 30, 0, epoch)].reshape(-1, 30):
            met |= {(a, b) for a in set(batch.tolist()) for b in set(batch.tolist()) if a < b}
    assert len(met) == 45


@pytest.mark.parametrize(
    ("counts", "classes", "size", "message"),
    [
        ([50, 50], 3, 30, "classes_per_batch is 3, but the training images have 2 classes: choose at most that"),
        ([310, 310, 15], 2, 100, "takes 50 images of .* class 2 has 15 .* to at least 7, or .* to at most 30"),
        ([15] * 100, 3, 100, "takes 34 images of .* class 0 has 15"),
    ],
)
def test_impossible_grouped_batches_are_refused(counts, classes, size, message):
    labels = np.repeat(np.arange(len(counts)), counts)
    with pytest.raises(UserError, match=message):
        batches.grouped_order(labels, classes, size, seed=0, epoch=0)
