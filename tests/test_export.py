"""Tests that a bundle gives the student's predictions without this package, and is refused if it is damaged."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from cnn2gnn_jax import export
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, trained
from cnn2gnn_jax.serving.pictures import read_pictures

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(finished_run, tmp_path_factory):
    """Returns the student of a run, the folder of its bundle, and the measured sizes and latencies."""
    workdir, _ = finished_run
    folder = tmp_path_factory.mktemp("export") / "bundle"
    return trained.open_student(workdir), folder, export.write(workdir, folder)[0]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_predictions_for_any_number_of_images_are_those_of_the_student(made, count):
    student, folder, _ = made
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8, 1), np.uint8)
    expected = jax.jit(lambda images: trained.predict(student, images).probabilities)(images)
    found = bundle.read(folder).call(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.sum(found, axis=-1), 1, atol=1e-5)


def test_it_is_lowered_for_cpus_and_gpus_with_no_row_of_the_table_but_the_anchors(made):
    student, folder, _ = made
    module = jax.export.deserialize(bytearray((folder / bundle.MODEL).read_bytes()))
    assert module.platforms == ("cpu", "cuda")
    anchors = student.model.anchors[0].columns
    assert anchors.rows.kernel.shape == (100, 256)
    weights = sum(leaf.size for leaf in jax.tree.leaves((student.model.variables, anchors)))
    assert len(module.mlir_module_serialized) < 4 * weights * 1.2


def test_size_and_latency_stand_beside_the_teachers(made):
    _, folder, measured = made
    assert set(measured) == {"student", "teacher"}
    assert all(set(facts["milliseconds"]) == {"1", "100"} for facts in measured.values())
    manifest = storage.read_json(folder / artifact.MANIFEST)
    assert manifest["facts"]["measured"]["student"] == measured["student"]
    assert measured["student"]["bytes"] == (folder / bundle.MODEL).stat().st_size
    assert len(export.measurements_table(measured).splitlines()) == 3


@pytest.fixture(scope="module")
def made_of_colour(made, tmp_path_factory):
    """Returns the record, the folder and the function of a bundle for 8x8 color images."""
    student, folder = made[0], tmp_path_factory.mktemp("export") / "colour"
    weights = jax.random.normal(jax.random.key(0), (8 * 8 * 3, len(student.recorded.classes)))

    def probabilities(images):
        return jax.nn.softmax(images.reshape(images.shape[0], -1) / 255 @ weights)

    recorded = student.recorded._replace(image_shape=(8, 8, 3))
    bundle.write(folder, student._replace(recorded=recorded), bundle.serialize(probabilities, (8, 8, 3)), {})
    return recorded, folder, probabilities


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_the_documentations_ten_lines_predict_without_this_package(made, made_of_colour, tmp_path, kind):
    student, folder, _ = made
    recorded, predict = student.recorded, lambda images: trained.predict(student, images).probabilities
    if kind == "colour":
        recorded, folder, predict = made_of_colour
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serve_a_bundle.md").read_text(), re.S)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 13, 4), np.uint8)  # with an alpha channel
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    shutil.copytree(folder, tmp_path / "BUNDLE")
    program = (
        "import sys\n"
        "for name in ('cnn2gnn_jax', 'flax', 'ml_collections', 'orbax', 'tensorflow_datasets'):\n"
        "    sys.modules[name] = None\n" + block + "\nprint(json.dumps(probabilities.tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pictures = read_pictures(sorted(tmp_path.glob("*.png")), recorded.image_shape)
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), predict(pictures.pixels), atol=1e-5)


def test_what_is_no_whole_bundle_of_this_version_is_refused(made, tmp_path):
    _, folder, _ = made
    other = tmp_path / "bundle"
    other.mkdir()
    manifest = storage.read_json(folder / artifact.MANIFEST)
    module = (folder / bundle.MODEL).read_bytes()
    (other / bundle.MODEL).write_bytes(module)
    for changes, message in (
        ({"format": 1}, r"by another version of this program \(.*format 1; this one is .*, format 2\)"),
        ({"files": {}}, "is damaged"),
        ({"facts": manifest["facts"] | {"platforms": ["tpu"]}}, "is for tpu, but JAX runs on cpu"),
        ({"facts": manifest["facts"] | {"image_shape": [8, 8]}}, "is damaged"),
    ):
        storage.write_json(other / artifact.MANIFEST, manifest | changes)
        with pytest.raises(UserError, match=message):
            bundle.read(other)
    storage.write_json(other / artifact.MANIFEST, manifest)
    (other / bundle.MODEL).write_bytes(module[:-1])
    with pytest.raises(UserError, match=r"model\.stablehlo is not what was written.*: delete it and export it again"):
        bundle.read(other)
    (other / bundle.MODEL).write_bytes(module[:1000])
    artifact.seal(other, bundle.KIND, manifest["fingerprint"], manifest["facts"])
    with pytest.raises(UserError, match="cannot be read by JAX"):
        bundle.read(other)


def test_only_a_bundle_is_replaced(made, tmp_path):
    student, folder, _ = made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(UserError, match="exists and is not a bundle"):
            export.write(student.recorded.workdir, taken)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    bundle.write(tmp_path / "new", student, (folder / bundle.MODEL).read_bytes(), {})
    bundle.write(tmp_path / "new", student, (folder / bundle.MODEL).read_bytes(), {"again": True})
    assert bundle.read(tmp_path / "new").facts["again"]
