import numpy as np
import pytest

from cnn2gnn_jax.data import batches
from cnn2gnn_jax.data.permutations import Stream, permutation, rank_in_class
from cnn2gnn_jax.errors import UserError


@pytest.mark.parametrize("n", [1, 2, 100, 1797])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**70])
def test_an_epochs_order_is_a_permutation_fixed_by_seed_and_epoch(n, seed):
    order = batches.epoch_order(seed, 3, n)
    assert order.dtype == np.int32 and sorted(order) == list(range(n))
    np.testing.assert_array_equal(order, batches.epoch_order(seed, 3, n))


def test_epochs_seeds_and_uses_have_orders_of_their_own():
    orders = [
        batches.epoch_order(0, 0, 100),
        batches.epoch_order(0, 1, 100),
        batches.epoch_order(1, 0, 100),
        batches.shuffled_order(100, 0),
        batches.shuffled_order(100, 1),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_orders_are_those_of_earlier_versions():
    # Runs resumed after an upgrade of NumPy must go on with the same batches.
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
def test_evaluation_batches_hold_every_image_once_in_nearly_equal_numbers(n, size):
    indices, mask = batches.evaluation_batches(n, size)
    assert indices.shape == mask.shape == (-(-n // size), -(-n // indices.shape[0]))
    assert indices.shape[1] <= size and indices.dtype == np.int32 and mask.dtype == bool
    assert indices[mask].tolist() == list(range(n))
    counts = mask.sum(1)
    assert counts.max() - counts.min() <= 1
    for row, valid in zip(indices, mask, strict=True):
        assert valid[: valid.sum()].all()
        assert (row[valid.sum() :] == row[valid][-1]).all()


def test_evaluation_batches_follow_the_order_given():
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


def test_the_seed_of_a_balanced_batch_chooses_images_and_the_classes_with_one_more():
    labels = np.arange(10).repeat(60)
    drawn = [batches.balanced_batch(labels, 25, seed) for seed in range(20)]
    assert len({tuple(batch) for batch in drawn}) == 20
    with_more = {tuple(np.flatnonzero(np.bincount(labels[batch], minlength=10) == 3)) for batch in drawn}
    assert len(with_more) > 10
    assert any((np.diff(labels[batch]) < 0).any() for batch in drawn)


def test_a_balanced_batch_gives_one_more_only_to_classes_that_have_it():
    labels = np.array([0, 0, 1, 1, 1])
    for seed in range(10):
        assert np.bincount(labels[batches.balanced_batch(labels, 5, seed)]).tolist() == [2, 3]


@pytest.mark.parametrize(("labels", "size"), [([0, 0, 1, 1], 5), ([0, 0, 1, 1], 0), ([0, 1, 1, 1], 4)])
def test_a_balanced_batch_that_cannot_be_is_refused(labels, size):
    with pytest.raises(UserError, match="class-balanced batch"):
        batches.balanced_batch(np.array(labels), size, seed=0)


def test_rank_in_class_counts_earlier_images_of_the_class():
    assert rank_in_class(np.array([5, 3, 5, 5, 3])).tolist() == [0, 0, 1, 2, 1]


def test_every_stream_is_independent():
    assert len({tuple(permutation(50, stream, 0)) for stream in Stream}) == len(Stream)


@pytest.mark.parametrize("classes, size", [(3, 30), (5, 100), (1, 7), (7, 7)])
def test_a_grouped_order_is_a_permutation_whose_groups_are_of_one_class(classes, size):
    labels = np.random.default_rng(0).integers(0, 7, 503)
    order = batches.grouped_order(labels, classes, size, seed=1, epoch=2)
    assert sorted(order.tolist()) == list(range(503))
    group = -(-size // classes)
    whole = sum(np.bincount(labels) // group)
    for block in labels[order[: whole * group]].reshape(whole, group):
        assert len(set(block.tolist())) == 1
    again = [batches.grouped_order(labels, classes, size, *at).tolist() for at in ((1, 2), (1, 3), (2, 2))]
    assert again[0] == order.tolist() and again[1] != again[0] != again[2]
