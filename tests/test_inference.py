"""Mechanisms 1 and 2 against NumPy, written from the paper's text, and what must not change their answers."""

import functools

import jax
import numpy as np
import pytest

from cnn2gnn_jax import gnn, inference
from cnn2gnn_jax.gnn import GRAPHS, SPARSE_GRAPHS, GraphStudent, HeadRows

SPARSITY, CLASSES, ANCHORS, WIDTH = 3, 4, 12, 6
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64():
        yield


def relu(x):
    return np.maximum(x, 0)


def eq3(distances, sparsity=SPARSITY):
    """Eq. 3 row by row; where the s + 1 smallest are equal, all columns at that distance share the row."""
    weights = np.zeros_like(distances)
    for row, d in zip(weights, distances, strict=True):
        cut = np.sort(d)[sparsity]
        slack = relu(cut - d) if d.min() < cut else d == cut
        row[:] = slack / slack.sum()
    return weights


def factor(adjacency, self_loops):
    looped = adjacency + self_loops * np.eye(len(adjacency))
    root = np.diag(looped.sum(-1) ** -0.5)
    return root @ looped @ root


@functools.partial(jax.jit, static_argnames=("mechanism", "module", "reading"))
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
        self.bias[list(popular)] -= 8  # near to everyone
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
        """From nodes to the anchors."""
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
        """Eq. 2 twice; adjacency None is A = I, normalised to itself."""
        p = np.eye(len(nodes)) if adjacency is None else factor(adjacency, self.self_loops)
        hidden = relu(p @ nodes @ self.params["layer1"]["Dense_0"]["kernel"])
        return p @ hidden @ self.params["layer2"]["Dense_0"]["kernel"]

    def predict(self, mechanism, images=None, columns=None, **arguments):
        images = self.images if images is None else images
        columns = self.columns() if columns is None else columns
        return jax.device_get(predict(mechanism, self.module, self.params, columns, images, **arguments))


def mechanism_1(setting):
    """One image at a time is cascaded with the anchors; its own row of the graph with loops is kept too."""
    logits, rows = [], []
    for image in setting.images:
        nodes = np.concatenate([setting.anchors, image[None]])
        if setting.name == "euclidean_sparse":
            p = eq3(((nodes[:, None] - nodes[None]) ** 2).sum(-1))
            adjacency = (p + p.T) / 2
        elif setting.name == "learned":
            # Every node has distances to the anchors alone: nobody chooses the image.
            p = np.pad(eq3(setting.distances(nodes)), ((0, 0), (0, 1)))
            adjacency = (p + p.T) / 2
        else:
            adjacency = None if setting.name == "off" else setting.dense_adjacency(nodes)
        logits.append(setting.student(nodes, adjacency)[-1])
        loops = np.eye(len(nodes)) * (setting.self_loops or adjacency is None)
        rows.append(((0 if adjacency is None else adjacency) + loops)[-1])
    return np.array(logits), np.array(rows)


def mechanism_2(setting, reading):
    if setting.name == "euclidean_sparse":
        p = eq3(((setting.images[:, None] - setting.images[None]) ** 2).sum(-1))
        adjacency = (p + p.T) / 2
        return setting.student(setting.images, adjacency), adjacency, np.full(len(setting.images), -1)
    nearest = eq3(setting.distances(setting.images)).argmax(-1)
    asking = setting.anchors[nearest] if reading == "similar" else setting.images
    p = eq3(setting.distances(asking)[:, nearest])
    adjacency = (p + p.T) / 2
    return setting.student(setting.images, adjacency), adjacency, nearest


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("self_loops", [True, False])
def test_one_by_one_equals_mechanism_1_one_image_at_a_time(name, self_loops):
    setting = Setting(name, self_loops=self_loops)
    logits, rows = mechanism_1(setting)
    found = setting.predict("one_by_one")
    close(found.logits, logits)
    close(found.adjacency, rows)
    nearest = setting.distances(setting.images).argmin(-1) if name in SPARSE_GRAPHS else -1
    np.testing.assert_array_equal(found.nearest, np.broadcast_to(nearest, 20))


def test_one_by_one_in_float32_is_close_to_float64():
    found = Setting().cast(np.float32).predict("one_by_one").logits
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mechanism_1(Setting())[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_one_by_one_does_not_depend_on_who_else_is_asked(name):
    setting = Setting(name)
    together = setting.predict("one_by_one")
    stay = np.array([0, 4])
    others = -3 * setting.images
    others[stay] = setting.images[stay]
    among_others = setting.predict("one_by_one", others)
    jax.tree.map(lambda a, b: close(a[stay], b[stay]), among_others, together)
    assert not np.allclose(among_others.logits[1], together.logits[1])


@pytest.mark.parametrize("together", [inference._TOGETHER, 1])
@pytest.mark.parametrize("self_loops", [True, False])
def test_one_by_one_without_a_head_is_the_students_own_graph_of_anchors_and_image(monkeypatch, together, self_loops):
    monkeypatch.setattr(inference, "_TOGETHER", together)
    jax.clear_caches()
    setting = Setting("euclidean_sparse", self_loops=self_loops)
    setting.images[3] = setting.anchors[5]  # twins have no distance
    found = setting.predict("one_by_one")
    for k, image in enumerate(setting.images):
        nodes = np.concatenate([setting.anchors, image[None]])
        outputs, adjacency = setting.module.apply({"params": setting.params}, nodes, None)
        close(found.logits[k], outputs.logits[-1])
        close(found.adjacency[k], adjacency[-1] + self_loops * np.eye(ANCHORS + 1)[-1])
    assert (found.adjacency[:, -1] > self_loops).all()


def test_batch_by_batch_without_a_head_uses_no_anchor():
    setting = Setting("euclidean_sparse")
    found = setting.predict("batch_by_batch")
    setting.anchors = -setting.anchors
    jax.tree.map(np.testing.assert_array_equal, setting.predict("batch_by_batch"), found)
    mask = np.arange(20) < 14
    outputs, adjacency = setting.module.apply({"params": setting.params}, setting.images, None, mask=mask)
    found = setting.predict("batch_by_batch", mask=mask)
    close(found.logits[mask], outputs.logits[mask])
    close(found.adjacency, adjacency + np.eye(20))


@pytest.mark.parametrize("name", SPARSE_GRAPHS)
@pytest.mark.parametrize("reading", inference.READINGS)
@pytest.mark.parametrize("self_loops", [True, False])
def test_batch_by_batch_equals_mechanism_2(name, reading, self_loops):
    # Of 20 images over 12 anchors many share one: of some rows the s + 1 smallest distances are equal.
    setting = Setting(name, self_loops=self_loops, popular=(2, 7))
    logits, adjacency, nearest = mechanism_2(setting, reading)
    if name == "learned":
        shared = np.bincount(nearest, minlength=ANCHORS)
        assert shared.max() > SPARSITY + 1 and (shared > 0).sum() > 1
    found = setting.predict("batch_by_batch", reading=reading)
    close(found.logits, logits)
    close(found.adjacency, adjacency + self_loops * np.eye(20))
    np.testing.assert_array_equal(found.nearest, nearest)


@pytest.mark.parametrize("name", ["inner_product", "euclidean"])
def test_batch_by_batch_of_dense_graphs_is_the_batch_over_itself(name):
    setting = Setting(name)
    adjacency = setting.dense_adjacency(setting.images)
    found = setting.predict("batch_by_batch")
    close(found.logits, setting.student(setting.images, adjacency))
    close(found.adjacency, adjacency + np.eye(20))
    np.testing.assert_array_equal(found.nearest, -1)


@pytest.mark.parametrize("mechanism", ["one_by_one", "batch_by_batch"])
@pytest.mark.parametrize("self_loops", [True, False])
def test_with_the_graph_off_both_mechanisms_are_the_perceptron(mechanism, self_loops):
    setting = Setting("off", self_loops=self_loops)
    found = setting.predict(mechanism)
    close(found.logits, setting.student(setting.images, None))
    own = np.eye(ANCHORS + 1)[[-1] * 20] if mechanism == "one_by_one" else np.eye(20)
    np.testing.assert_array_equal(found.adjacency, own)


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
@pytest.mark.parametrize("reading", inference.READINGS)
def test_the_order_of_the_images_does_not_matter(name, reading):
    setting = Setting(name)
    order = np.random.default_rng(1).permutation(20)
    plain = setting.predict("batch_by_batch", reading=reading)
    moved = setting.predict("batch_by_batch", setting.images[order], reading=reading)
    close(moved.logits, plain.logits[order])
    close(moved.adjacency, plain.adjacency[np.ix_(order, order)])


@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "off"])
@pytest.mark.parametrize("reading", inference.READINGS)
@pytest.mark.parametrize("real", [15, 3])  # three are fewer than the sparsity asks for
def test_padding_takes_no_part(name, reading, real):
    setting = Setting(name)
    mask = np.isin(np.arange(20), np.random.default_rng(0).permutation(20)[:real])
    found = setting.predict("batch_by_batch", mask=mask, reading=reading)
    other = np.where(mask[:, None], setting.images, 50 * setting.images[::-1])
    close(setting.predict("batch_by_batch", other, mask=mask, reading=reading).logits[mask], found.logits[mask])
    if real > SPARSITY:
        close(found.logits[mask], setting.predict("batch_by_batch", setting.images[mask], reading=reading).logits)
    assert np.isfinite(found.logits).all()


@pytest.mark.parametrize("reading", inference.READINGS)
def test_images_that_share_an_anchor_tie_to_the_bit_in_float32(reading):
    """Else rounding would choose among them."""
    setting = Setting("learned", count=100, popular=(2, 7), sparsity=10)
    found = setting.cast(np.float32).predict("batch_by_batch", reading=reading)
    nearest = np.asarray(found.nearest)
    assert found.logits.dtype == np.float32
    assert len(np.unique(nearest)) > 1 and np.bincount(nearest).max() > 11
    # p_ij is one number p_i for all j of an anchor. Under `similar` A_ij is too; else it is (p_i + p_j) / 2 within.
    adjacency = found.adjacency - np.eye(100)
    for anchor in np.unique(nearest):
        same = nearest == anchor
        if reading == "similar":
            group = adjacency[:, same]
            np.testing.assert_allclose(group, np.broadcast_to(group[:, :1], group.shape), atol=1e-6)
        else:
            within = adjacency[np.ix_(same, same)]
            own = within.diagonal()
            np.testing.assert_allclose(within, (own[:, None] + own) / 2, atol=1e-6)


def test_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="reading 'sideways' is unknown: choose one of similar, test_rows"):
        Setting().predict("batch_by_batch", reading="sideways")


def test_sparsity_beyond_the_anchors_is_refused():
    setting = Setting()
    with pytest.raises(ValueError, match="sparsity 3 .* 3 columns"):
        setting.predict("one_by_one", columns=setting.columns(slice(3)))
