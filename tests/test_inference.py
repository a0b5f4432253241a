"""Tests of Mechanisms 1 and 2 against NumPy code from the paper's text, and of what must not change predictions."""

import functools

import jax
import numpy as np
import pytest

from cnn2gnn_jax import gnn, inference
from cnn2gnn_jax.gnn import GRAPHS, SPARSE_GRAPHS, GraphStudent, HeadRows
from tests.oracles import eq3, normalized_adjacency, relu

SPARSITY, CLASSES, ANCHORS, WIDTH = 3, 4, 12, 6
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64():
        yield


@functools.partial(jax.jit, static_argnames=("mechanism", "module", "mechanism2_graph"))
def predict(mechanism, module, params, columns, images, **arguments):
    return getattr(inference, mechanism)(module, {"params": params}, columns, images, **arguments)


class Setting:
    """A student with random parameters, its anchors and `count` unseen images, in NumPy and in JAX."""

    def __init__(self, name="learned", count=20, self_loops=True, popular=(), sparsity=SPARSITY):
        rng = np.random.default_rng(0)
        self.name, self.self_loops = name, self_loops
        self.module = GraphStudent(
            num_classes=CLASSES,
            backbone=gnn.Flatten(),
            graph=name,
            sparsity=sparsity,
            hidden=7,
            head_widths=(9, 5),
            self_loops=self_loops,
        )
        self.anchors = rng.normal(size=(ANCHORS, WIDTH))
        self.images = rng.normal(size=(count, WIDTH))
        self.kernel, self.bias = rng.normal(size=(ANCHORS, 5)), rng.normal(size=ANCHORS)
        self.bias[list(popular)] -= 8  # at a small distance from every image
        rows = HeadRows(self.kernel, self.bias) if name == "learned" else None
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), self.anchors, rows)["params"]
        self.params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)

    def cast(self, dtype):
        for field in ("anchors", "images", "kernel", "bias", "params"):
            setattr(self, field, jax.tree.map(dtype, getattr(self, field)))
        return self

    def columns(self, order=slice(None)):
        rows = HeadRows(self.kernel[order], self.bias[order]) if self.name == "learned" else None
        return inference.anchors(self.module, {"params": self.params}, self.anchors[order], rows)

    def distances(self, nodes):
        """Returns the distances from nodes to the anchors."""
        if self.name == "euclidean_sparse":
            return ((nodes[:, None] - self.anchors[None]) ** 2).sum(-1)
        for layer in ("Dense_0", "Dense_1"):
            nodes = relu(nodes @ self.params["head"][layer]["kernel"] + self.params["head"][layer]["bias"])
        return nodes @ self.kernel.T + self.bias

    def dense_adjacency(self, nodes):
        if self.name == "inner_product":
            unit = nodes / np.linalg.norm(nodes, axis=-1, keepdims=True)
            return relu(unit @ unit.T)
        distance = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
        return 1 / (distance + np.diag(np.full(len(nodes), np.inf)))

    def student(self, nodes, adjacency):
        """Applies Eq. 2 twice. The adjacency None stands for A = I, which the normalization does not change."""
        p = np.eye(len(nodes)) if adjacency is None else normalized_adjacency(adjacency, self.self_loops)
        hidden = relu(p @ nodes @ self.params["layer1"]["Dense_0"]["kernel"])
        return p @ hidden @ self.params["layer2"]["Dense_0"]["kernel"]

    def predict(self, mechanism, images=None, columns=None, **arguments):
        images = self.images if images is None else images
        columns = self.columns() if columns is None else columns
        return jax.device_get(predict(mechanism, self.module, self.params, columns, images, **arguments))


def mechanism_1(setting):
    """Classifies each image alone, in its graph with the anchors. Returns logits and rows of A with self-loops."""
    logits, rows = [], []
    for image in setting.images:
        nodes = np.concatenate([setting.anchors, image[None]])
        if setting.name == "euclidean_sparse":
            p = eq3(((nodes[:, None] - nodes[None]) ** 2).sum(-1), SPARSITY)
            adjacency = (p + p.T) / 2
        elif setting.name == "learned":
            # All nodes have distances to the anchors only, so no node has the image as a neighbor.
            p = np.pad(eq3(setting.distances(nodes), SPARSITY), ((0, 0), (0, 1)))
            adjacency = (p + p.T) / 2
        else:
            adjacency = None if setting.name == "off" else setting.dense_adjacency(nodes)
        logits.append(setting.student(nodes, adjacency)[-1])
        loops = np.eye(len(nodes)) * (setting.self_loops or adjacency is None)
        rows.append(((0 if adjacency is None else adjacency) + loops)[-1])
    return np.array(logits), np.array(rows)


def mechanism_2(setting, mechanism2_graph):
    if setting.name == "euclidean_sparse":
        p = eq3(((setting.images[:, None] - setting.images[None]) ** 2).sum(-1), SPARSITY)
        adjacency = (p + p.T) / 2
        return setting.student(setting.images, adjacency), adjacency, np.full(len(setting.images), -1)
    nearest = eq3(setting.distances(setting.images), SPARSITY).argmax(-1)
    queries = setting.anchors[nearest] if mechanism2_graph == "similar" else setting.images
    p = eq3(setting.distances(queries)[:, nearest], SPARSITY)
    adjacency = (p + p.T) / 2
    return setting.student(setting.images, adjacency), adjacency, nearest


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("self_loops", [True, False])
def test_one_by_one_equals_mechanism_1_one_image_at_a_time(name, self_loops):
    setting = Setting(name, self_loops=self_loops)
    logits, rows = mechanism_1(setting)
    prediction = setting.predict("one_by_one")
    close(prediction.logits, logits)
    close(prediction.adjacency, rows)
    nearest = setting.distances(setting.images).argmin(-1) if name in SPARSE_GRAPHS else -1
    np.testing.assert_array_equal(prediction.nearest, np.broadcast_to(nearest, 20))


def test_one_by_one_in_float32_is_close_to_float64():
    prediction = Setting().cast(np.float32).predict("one_by_one").logits
    assert prediction.dtype == np.float32
    np.testing.assert_allclose(prediction, mechanism_1(Setting())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_one_by_one_does_not_depend_on_the_other_images(name):
    setting = Setting(name)
    original = setting.predict("one_by_one")
    unchanged = np.array([0, 4])
    images = -3 * setting.images
    images[unchanged] = setting.images[unchanged]
    changed = setting.predict("one_by_one", images)
    jax.tree.map(lambda a, b: close(a[unchanged], b[unchanged]), changed, original)
    assert not np.allclose(changed.logits[1], original.logits[1])


@pytest.mark.parametrize("max_weights", [inference._MAX_PARALLEL_WEIGHTS, 1])
@pytest.mark.parametrize("self_loops", [True, False])
def test_one_by_one_without_a_head_equals_the_student_on_anchors_and_image(monkeypatch, max_weights, self_loops):
    monkeypatch.setattr(inference, "_MAX_PARALLEL_WEIGHTS", max_weights)
    jax.clear_caches()
    setting = Setting("euclidean_sparse", self_loops=self_loops)
    setting.images[3] = setting.anchors[5]  # an image at distance 0 from an anchor
    prediction = setting.predict("one_by_one")
    for k, image in enumerate(setting.images):
        nodes = np.concatenate([setting.anchors, image[None]])
        outputs, adjacency = setting.module.apply({"params": setting.params}, nodes, None)
        close(prediction.logits[k], outputs.logits[-1])
        close(prediction.adjacency[k], adjacency[-1] + self_loops * np.eye(ANCHORS + 1)[-1])
    assert (prediction.adjacency[:, -1] > self_loops).all()


def test_batch_by_batch_without_a_head_uses_no_anchor():
    setting = Setting("euclidean_sparse")
    prediction = setting.predict("batch_by_batch")
    setting.anchors = -setting.anchors
    jax.tree.map(np.testing.assert_array_equal, setting.predict("batch_by_batch"), prediction)
    mask = np.arange(20) < 14
    outputs, adjacency = setting.module.apply({"params": setting.params}, setting.images, None, mask=mask)
    prediction = setting.predict("batch_by_batch", mask=mask)
    close(prediction.logits[mask], outputs.logits[mask])
    close(prediction.adjacency, adjacency + np.eye(20))


@pytest.mark.parametrize("name", SPARSE_GRAPHS)
@pytest.mark.parametrize("mechanism2_graph", inference.MECHANISM2_GRAPHS)
@pytest.mark.parametrize("self_loops", [True, False])
def test_batch_by_batch_equals_mechanism_2(name, mechanism2_graph, self_loops):
    # Many of the 20 images share one of the 12 anchors, so in some rows the s + 1 smallest distances are equal.
    setting = Setting(name, self_loops=self_loops, popular=(2, 7))
    logits, adjacency, nearest = mechanism_2(setting, mechanism2_graph)
    if name == "learned":
        shared = np.bincount(nearest, minlength=ANCHORS)
        assert shared.max() > SPARSITY + 1 and (shared > 0).sum() > 1
    prediction = setting.predict("batch_by_batch", mechanism2_graph=mechanism2_graph)
    close(prediction.logits, logits)
    close(prediction.adjacency, adjacency + self_loops * np.eye(20))
    np.testing.assert_array_equal(prediction.nearest, nearest)


@pytest.mark.parametrize("name", ["inner_product", "euclidean"])
def test_batch_by_batch_with_a_dense_graph_uses_the_graph_of_the_batch(name):
    setting = Setting(name)
    adjacency = setting.dense_adjacency(setting.images)
    prediction = setting.predict("batch_by_batch")
    close(prediction.logits, setting.student(setting.images, adjacency))
    close(prediction.adjacency, adjacency + np.eye(20))
    np.testing.assert_array_equal(prediction.nearest, -1)


@pytest.mark.parametrize("mechanism", ["one_by_one", "batch_by_batch"])
@pytest.mark.parametrize("self_loops", [True, False])
def test_with_the_graph_off_both_mechanisms_equal_the_perceptron(mechanism, self_loops):
    setting = Setting("off", self_loops=self_loops)
    prediction = setting.predict(mechanism)
    close(prediction.logits, setting.student(setting.images, None))
    own = np.eye(ANCHORS + 1)[[-1] * 20] if mechanism == "one_by_one" else np.eye(20)
    np.testing.assert_array_equal(prediction.adjacency, own)


@pytest.mark.parametrize("name", SPARSE_GRAPHS)
@pytest.mark.parametrize("mechanism", ["one_by_one", "batch_by_batch"])
def test_the_order_of_the_anchors_does_not_matter(name, mechanism):
    setting = Setting(name)
    order = np.random.default_rng(1).permutation(ANCHORS)
    plain, moved = setting.predict(mechanism), setting.predict(mechanism, columns=setting.columns(order))
    close(moved.logits, plain.logits)
    if (name, mechanism) == ("euclidean_sparse", "batch_by_batch"):
        np.testing.assert_array_equal(plain.nearest, -1)
    else:
        np.testing.assert_array_equal(order[moved.nearest], plain.nearest)


@pytest.mark.parametrize("name", SPARSE_GRAPHS)
@pytest.mark.parametrize("mechanism2_graph", inference.MECHANISM2_GRAPHS)
def test_the_order_of_the_images_does_not_matter(name, mechanism2_graph):
    setting = Setting(name)
    order = np.random.default_rng(1).permutation(20)
    plain = setting.predict("batch_by_batch", mechanism2_graph=mechanism2_graph)
    moved = setting.predict("batch_by_batch", setting.images[order], mechanism2_graph=mechanism2_graph)
    close(moved.logits, plain.logits[order])
    close(moved.adjacency, plain.adjacency[np.ix_(order, order)])


@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "off"])
@pytest.mark.parametrize("mechanism2_graph", inference.MECHANISM2_GRAPHS)
@pytest.mark.parametrize("real", [15, 3])  # 3 is fewer than sparsity + 1
def test_padding_has_no_effect(name, mechanism2_graph, real):
    setting = Setting(name)
    mask = np.isin(np.arange(20), np.random.default_rng(0).permutation(20)[:real])
    prediction = setting.predict("batch_by_batch", mask=mask, mechanism2_graph=mechanism2_graph)
    other = np.where(mask[:, None], setting.images, 50 * setting.images[::-1])
    close(
        setting.predict("batch_by_batch", other, mask=mask, mechanism2_graph=mechanism2_graph).logits[mask],
        prediction.logits[mask],
    )
    if real > SPARSITY:
        close(
            prediction.logits[mask],
            setting.predict("batch_by_batch", setting.images[mask], mechanism2_graph=mechanism2_graph).logits,
        )
    assert np.isfinite(prediction.logits).all()


@pytest.mark.parametrize("mechanism2_graph", inference.MECHANISM2_GRAPHS)
def test_images_that_share_an_anchor_are_exactly_tied_in_float32(mechanism2_graph):
    """Tests that rounding errors do not choose among images that share an anchor."""
    setting = Setting("learned", count=100, popular=(2, 7), sparsity=10)
    prediction = setting.cast(np.float32).predict("batch_by_batch", mechanism2_graph=mechanism2_graph)
    nearest = np.asarray(prediction.nearest)
    assert prediction.logits.dtype == np.float32
    assert len(np.unique(nearest)) > 1 and np.bincount(nearest).max() > 11
    # For all j that share an anchor, p_ij has the same value p_i. With `similar`, A_ij has one value for them too; with
    # `test_rows`, A_ij = (p_i + p_j) / 2 between images that share an anchor.
    adjacency = prediction.adjacency - np.eye(100)
    for anchor in np.unique(nearest):
        same = nearest == anchor
        if mechanism2_graph == "similar":
            group = adjacency[:, same]
            np.testing.assert_allclose(group, np.broadcast_to(group[:, :1], group.shape), atol=1e-6)
        else:
            within = adjacency[np.ix_(same, same)]
            own = within.diagonal()
            np.testing.assert_allclose(within, (own[:, None] + own) / 2, atol=1e-6)


def test_unknown_mechanism2_graph_is_refused():
    with pytest.raises(ValueError, match="mechanism2_graph 'sideways' is unknown: choose one of similar, test_rows"):
        Setting().predict("batch_by_batch", mechanism2_graph="sideways")


def test_sparsity_beyond_the_anchors_is_refused():
    setting = Setting()
    with pytest.raises(ValueError, match="sparsity 3 .* 3 columns"):
        setting.predict("one_by_one", columns=setting.columns(slice(3)))
