"""Tests of the graph student: against NumPy, with padding, in another order, on several devices, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cnn2gnn_jax import gnn, losses, networks
from cnn2gnn_jax.gnn import GRAPHS, GraphConvolution, GraphStudent, HeadRows
from cnn2gnn_jax.runtime import collectives
from tests.oracles import eq3, normalized_adjacency, relu

SPARSITY, CLASSES = 3, 4
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64():
        yield


def student(graph_name="learned", backbone=None, **fields):
    fields = {"sparsity": SPARSITY, "hidden": 7, "head_widths": (9, 5), **fields}
    return GraphStudent(num_classes=CLASSES, backbone=backbone or gnn.Flatten(), graph=graph_name, **fields)


def stem():
    return gnn.Stem((3,), dtype=jnp.float64)


def images(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4, 4, 2))


def random_variables(module, *arguments, dtype=np.float64):
    """Returns random parameters, also for biases and scales, and the BatchNorm statistics of a fresh network."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("mean", "var"):
            return np.full(leaf.shape, name == "var", dtype)
        noise = rng.normal(size=leaf.shape)
        scales = {"kernel": noise / np.sqrt(np.prod(leaf.shape[:-1])), "bias": noise / 5, "scale": 1 + noise / 5}
        return scales[name].astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), *arguments))


def setting(module, count):
    """Returns inputs, head rows and variables for a batch of `count` images, all in float64."""
    rng, rows = np.random.default_rng(1), None
    if module.graph == "learned":
        rows = HeadRows(rng.normal(size=(count, module.head_widths[-1])), rng.normal(size=count))
    inputs = images(count)
    return inputs, rows, random_variables(module, inputs, rows)


def numpy_head(params, nodes):
    for layer in ("Dense_0", "Dense_1"):
        nodes = relu(nodes @ params[layer]["kernel"] + params[layer]["bias"])
    return nodes


def numpy_adjacency(name, params, nodes, rows):
    """Returns the adjacency between the images of a batch, without self-loops."""
    distance = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
    if name == "off":
        return np.eye(len(nodes))
    if name == "inner_product":
        unit = nodes / np.linalg.norm(nodes, axis=-1, keepdims=True)
        return relu(unit @ unit.T)
    if name == "euclidean":
        return 1 / (distance + np.diag(np.full(len(nodes), np.inf)))
    d = distance**2 if name == "euclidean_sparse" else numpy_head(params["head"], nodes) @ rows.kernel.T + rows.bias
    p = eq3(d, SPARSITY)
    return (p + p.T) / 2


def numpy_student(name, params, nodes, rows, self_loops):
    """Applies the graph convolution of Eq. 2 twice. Returns the logits and the hidden activations."""
    normalized = normalized_adjacency(numpy_adjacency(name, params, nodes, rows), self_loops)
    hidden = relu(normalized @ nodes @ params["layer1"]["Dense_0"]["kernel"])
    return normalized @ hidden @ params["layer2"]["Dense_0"]["kernel"], hidden


def numpy_stem(params, x, epsilon=1e-5):
    """Applies convolution, BatchNorm in training mode, ReLU and 2x2 max-pooling, all twice, and flattens the result."""
    for i in range(2):
        kernel, norm = params[f"Conv_{i}"]["kernel"], params[f"BatchNorm_{i}"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        x = np.einsum("bhwcij,ijco->bhwo", windows, kernel)
        x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + epsilon) * norm["scale"] + norm["bias"]
        x = relu(x)
        x = np.stack([x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]).max(0)
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("leading", [(), (2,)])
def test_graph_convolution_is_pxw(leading):
    x, normalized = (
        np.random.default_rng(0).normal(size=(*leading, 6, 3)),
        np.random.default_rng(1).random((*leading, 6, 6)),
    )
    layer = GraphConvolution(5)
    variables = layer.init(jax.random.key(0), x, normalized)
    weight = np.float64(variables["params"]["Dense_0"]["kernel"])
    close(layer.apply(variables, x, normalized), normalized @ x @ weight)
    close(layer.apply(variables, x, None), x @ weight)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("self_loops", [True, False])
def test_student_equals_numpy(name, self_loops):
    module = student(name, self_loops=self_loops)
    inputs, rows, variables = setting(module, 8)
    outputs, adjacency = jax.jit(module.apply)(variables, inputs, rows)
    nodes = inputs.reshape(8, -1)
    logits, hidden = numpy_student(name, variables["params"], nodes, rows, self_loops and name != "off")
    close(outputs.logits, logits)
    close(outputs.pooled, hidden)
    if name == "off":
        assert adjacency is None
    else:
        close(adjacency, numpy_adjacency(name, variables["params"], nodes, rows))


def test_the_graph_off_equals_a_perceptron():
    module = student("off")
    inputs, _, variables = setting(module, 6)
    first, second = (variables["params"][layer]["Dense_0"]["kernel"] for layer in ("layer1", "layer2"))
    expected = relu(inputs.reshape(6, -1) @ first) @ second
    close(module.apply(variables, inputs, None)[0].logits, expected)
    # The prediction for an image does not depend on the other images.
    close(module.apply(variables, inputs[2:3], None)[0].logits, expected[2:3])
    assert set(variables["params"]) == {"layer1", "layer2"}


def test_stem_equals_numpy():
    module = gnn.Stem((3, 5), dtype=jnp.float64)
    x = images(6)
    variables = random_variables(module, x)
    actual, _ = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(variables, x)
    close(actual, numpy_stem(variables["params"], x))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_stem_takes_any_image_size(size):
    nodes, _ = jax.eval_shape(gnn.Stem((2, 3, 4)).init_with_output, jax.random.key(0), jnp.ones((2, *size, 3)))
    height, width = (max(1, side // 2 // 2 // 2) for side in size)
    assert nodes.shape == (2, height * width * 4)
    assert nodes.dtype == jnp.float32


@pytest.mark.parametrize("name", ["pixels", "teacher", "stem", "resnet8"])
def test_backbones(name):
    backbone = gnn.create_backbone(name, stem_widths=(2, 3), image_stem="cifar", dtype=jnp.float32)
    x = np.float32(images(2))
    variables = random_variables(backbone, x, dtype=np.float32)
    nodes, expected = jax.jit(lambda v, x: (backbone.apply(v, x), expected_nodes(name, v, x)))(variables, x)
    np.testing.assert_array_equal(nodes, expected)
    assert nodes.dtype == jnp.float32


def expected_nodes(name, variables, x):
    if name == "stem":
        return gnn.Stem((2, 3)).apply(variables, x)
    if name == "resnet8":
        return (
            networks.create("resnet8", 1).apply({kind: tree["network"] for kind, tree in variables.items()}, x).pooled
        )
    return x.reshape(2, -1)


def test_stored_half_precision_features_become_float32():
    assert gnn.Flatten().apply({}, jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.float32


def test_the_head_has_the_shapes_of_the_paper():
    module = GraphStudent(num_classes=10, backbone=gnn.Flatten(), sparsity=2)
    rows = HeadRows(jnp.zeros((3, 256)), jnp.zeros(3))
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((3, 64)), rows)["params"]
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["head"] == {
        "Dense_0": {"kernel": (64, 512), "bias": (512,)},
        "Dense_1": {"kernel": (512, 256), "bias": (256,)},
    }
    assert shapes["layer1"] == {"Dense_0": {"kernel": (64, 256)}}
    assert shapes["layer2"] == {"Dense_0": {"kernel": (256, 10)}}


def test_unknown_graph_is_refused():
    with pytest.raises(ValueError, match="graph 'kNN' is unknown: choose one of learned, off"):
        student("kNN").init(jax.random.key(0), images(5), None)


@functools.partial(jax.jit, static_argnums=0)
def step(module, variables, rows, inputs, labels, mask):
    """Returns loss, logits, statistics, and the gradients of parameters and head rows, in training mode."""

    def loss(params, rows):
        (outputs, _), changed = module.apply(
            {**variables, "params": params}, inputs, rows, train=True, mask=mask, mutable=["batch_stats"]
        )
        value = losses.batch_mean(losses.cross_entropy(outputs.logits, labels), mask)
        return value, (outputs.logits, changed)

    (value, (logits, changed)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        variables["params"], rows
    )
    value, gradients = collectives.psum((value, gradients))
    return value, logits, changed, gradients


def run_step(*arguments):
    return jax.device_get(step(*arguments))


SIZE = 16  # batch size in the tests below
LABELS = np.arange(SIZE) % CLASSES
PADDED = np.ones(SIZE, bool)
PADDED[[4, 5, 11]] = False  # with eight devices, one has only padding


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_are_right_and_reach_every_parameter(name):
    """Compares gradients through backbone, graph and normalization with finite differences in a random direction."""
    module = student(name, stem())
    inputs, rows, variables = setting(module, SIZE)
    *_, gradients = run_step(module, variables, rows, inputs, LABELS, PADDED)
    sizes = {
        jax.tree_util.keystr(path): float(np.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    }
    assert len(sizes) == (11 if name == "learned" else 5)
    assert min(sizes.values()) > 1e-6, sizes

    point = variables["params"], rows
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), point)

    def along(t):
        params, moved_rows = jax.tree.map(lambda leaf, d: leaf + t * d, point, direction)
        return run_step(module, {**variables, "params": params}, moved_rows, inputs, LABELS, PADDED)[0]

    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)))
    close((along(1e-6) - along(-1e-6)) / 2e-6, slope, rtol=1e-6)
    assert abs(slope) > 1e-3


# A compiled step may compute the same number twice and round it differently. So gradients must not depend on whether
# two numbers are equal.


@pytest.mark.parametrize("name", GRAPHS)
def test_compiled_float32_gradients_equal_those_in_float64(name):
    module, inputs = student(name, sparsity=30), images(100)
    _, rows, variables = setting(module, 100)
    gradients = []
    for dtype in (np.float32, np.float64):
        arguments = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), (variables, rows, inputs))
        gradients.append(run_step(module, *arguments, np.arange(100) % CLASSES, np.ones(100, bool))[-1])
    jax.tree.map(lambda actual, e: close(actual, e, rtol=0, atol=1e-3 * np.abs(e).max()), *gradients)


def test_compiled_float32_gradients_of_the_stem_equal_those_in_float64():
    x = np.random.default_rng(0).normal(size=(100, 2, 2, 3))  # a shape for which XLA rounded differently
    gradients = []
    for dtype in (np.float32, np.float64):
        module = gnn.Stem((128,), dtype=dtype)
        variables = random_variables(module, x, dtype=dtype)

        def loss(params, x, module=module, variables=variables):
            variables = {**variables, "params": params}
            nodes, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.sin(3 * nodes))

        gradients.append(jax.jit(jax.grad(loss))(variables["params"], x.astype(dtype)))
    jax.tree.map(lambda actual, e: close(actual, e, rtol=0, atol=1e-3 * np.abs(e).max()), *gradients)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_padded_batch_equals_the_batch_without_padding(name):
    module = student(name, stem())
    inputs, rows, variables = setting(module, SIZE)
    keep = np.flatnonzero(PADDED)
    alone = jax.tree.map(lambda leaf: leaf[keep], rows)
    expected = run_step(module, variables, alone, inputs[keep], LABELS[keep], np.ones(len(keep), bool))
    for padding in (0, 100):
        inputs[~PADDED] = padding * np.random.default_rng(3).normal(size=inputs[~PADDED].shape)
        loss, logits, stats, (params, row_gradients) = run_step(module, variables, rows, inputs, LABELS, PADDED)
        jax.tree.map(close, (loss, logits[keep], stats, params), (*expected[:3], expected[3][0]))
        jax.tree.map(lambda actual, plain: close(actual[keep], plain), row_gradients, expected[3][1])
        jax.tree.map(lambda actual: np.testing.assert_array_equal(actual[~PADDED], 0), row_gradients)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_order_of_a_batch_does_not_matter(name):
    module = student(name, stem())
    inputs, rows, variables = setting(module, SIZE)
    order = np.random.default_rng(1).permutation(SIZE)
    plain = run_step(module, variables, rows, inputs, LABELS, PADDED)
    moved_rows = jax.tree.map(lambda leaf: leaf[order], rows)
    moved = run_step(module, variables, moved_rows, inputs[order], LABELS[order], PADDED[order])
    loss, logits, stats, (params, row_gradients) = plain
    back = jax.tree.map(lambda leaf: leaf[order], row_gradients)
    jax.tree.map(close, moved, (loss, logits[order], stats, (params, back)))


@pytest.mark.parametrize("name", GRAPHS)
def test_images_affect_each_other_unless_the_graph_is_off(name):
    module = student(name)
    inputs, rows, variables = setting(module, 8)
    changed = inputs.copy()
    changed[0] *= -1
    apply = jax.jit(lambda x: module.apply(variables, x, rows)[0].logits)
    assert np.array_equal(apply(inputs)[1:], apply(changed)[1:]) == (name == "off")


def over(devices, function, in_specs, out_specs):
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False))


@pytest.mark.parametrize(("name", "devices"), [("learned", 2), *((name, 8) for name in GRAPHS)])
def test_graph_and_gradients_over_devices_are_those_of_the_global_batch(name, devices):
    module = student(name, stem())
    inputs, rows, variables = setting(module, SIZE)
    part = P("batch")
    spread_step = over(devices, functools.partial(step, module), (P(), P(), part, part, part), (P(), part, P(), P()))
    actual = spread_step(variables, rows, inputs, LABELS, PADDED)
    expected = run_step(module, variables, rows, inputs, LABELS, PADDED)
    assert np.abs(expected[1]).max() > 0.01
    jax.tree.map(close, actual, expected)


def test_the_adjacency_over_devices_is_global():
    module = student()
    inputs, rows, variables = setting(module, 8)
    apply = over(4, lambda v, r, x: module.apply(v, x, r)[1], (P(), P(), P("batch")), P())
    expected = numpy_adjacency("learned", variables["params"], inputs.reshape(8, -1), rows)
    close(apply(variables, rows, inputs), expected)
