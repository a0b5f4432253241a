"""Tests of the predictions of a finished run, of the choice of its student, and of one-line errors for mistakes."""

import csv
import dataclasses
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cnn2gnn_jax import data, export, pipeline, predict
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.configs import digits
from cnn2gnn_jax.inference import BATCH_BY_BATCH, ONE_BY_ONE
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, graph_choice, trained
from cnn2gnn_jax.serving.pictures import Pictures, read_pictures

ROOT = pathlib.Path(__file__).parent.parent


def finished(cache, workdir, **fields):
    config = digits.get_config("smoke")
    config.cache_dir, config.tensorboard, config.evaluate.graph_off = str(cache), False, False
    config.student.stem_widths, config.student.sparsity, config.student.train.epochs = (8, 16), 20, 2
    config.update_from_flattened_dict(fields)
    return workdir, pipeline.run(config, workdir)


@pytest.fixture(scope="module")
def done(finished_run):
    return finished_run


@pytest.fixture(scope="module")
def student(done):
    return trained.open_student(done[0])


@pytest.fixture(scope="module")
def dataset(cache, done):
    config = trained.open_student(done[0]).recorded.config
    return data.load(config.data, cache)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """Returns a folder with the first 120 test images as PNG files, in a subfolder for each class."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(120):
        path = folder / dataset.classes[dataset.test.labels[i]] / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(dataset.test.images[i, ..., 0]).save(path)
    return folder


def change(path, **fields):
    storage.write_json(path, storage.read_json(path) | fields)


def change_record(workdir, **facts):
    path = workdir / runs.RECORD / artifact.MANIFEST
    change(path, facts=storage.read_json(path)["facts"] | facts)


def config_of(workdir):
    return storage.read_json(workdir / runs.RECORD / artifact.MANIFEST)["facts"]["config"]


def test_the_predictions_for_test_images_are_those_of_the_evaluation(done, student, dataset):
    pictures = Pictures([str(i) for i in range(len(dataset.test))], dataset.test.images)
    for mechanism in (ONE_BY_ONE, BATCH_BY_BATCH):
        rows = predict.student_predictions(student, pictures, mechanism)
        right = [row["class"] == dataset.classes[label] for row, label in zip(rows, dataset.test.labels, strict=True)]
        expected = [
            entry["accuracy"]
            for entry in done[1]["accuracies"]
            if (entry["graph"], entry["mechanism"]) == ("learned", mechanism)
            and entry["batch_order"] in (None, "shuffled")
        ]
        assert 100 * np.mean(right) == pytest.approx(expected[0], abs=0.3)


def test_files_are_prepared_as_the_cache_was(folder, student, dataset):
    pictures = read_pictures([folder], student.recorded.image_shape)
    assert len(pictures.names) == 120
    for name, pixels in zip(pictures.names, pictures.pixels, strict=True):
        np.testing.assert_array_equal(pixels, dataset.test.images[int(pathlib.Path(name).stem)])


def test_one_by_one_a_prediction_does_not_depend_on_the_other_images(folder, student):
    pictures = read_pictures([folder], student.recorded.image_shape)
    together = predict.student_predictions(student, pictures, neighbors=4)
    for position in (0, 57, 119):
        alone = Pictures([pictures.names[position]], pictures.pixels[position : position + 1])
        [row] = predict.student_predictions(student, alone, neighbors=4)
        assert row["class"] == together[position]["class"]
        assert row["probability"] == pytest.approx(together[position]["probability"], abs=1e-6)
        assert [n["index"] for n in row["neighbors"]] == [n["index"] for n in together[position]["neighbors"]]


def test_neighbors_are_the_anchors_that_the_report_shows(done, student, dataset):
    examples = done[1]["examples"]
    index = [example["test_index"] for example in examples]
    rows = predict.student_predictions(
        student, Pictures([str(i) for i in index], dataset.test.images[index]), neighbors=8
    )
    for row, example in zip(rows, examples, strict=True):
        assert row["class"] == dataset.classes[example["predicted"]]
        assert row["self_weight"] == pytest.approx(example["self_weight"], abs=1e-5)
        found = {n["index"]: n["weight"] for n in row["neighbors"]}
        assert found == pytest.approx(dict(example["neighbors"]), abs=1e-5)
        for neighbor in row["neighbors"]:
            assert neighbor["class"] == dataset.classes[dataset.train.labels[neighbor["index"]]]


def test_under_batch_by_batch_neighbors_are_images_of_the_batch(folder, student):
    pictures = read_pictures([folder], student.recorded.image_shape)
    rows = predict.student_predictions(student, pictures, "batch_by_batch", neighbors=200)
    for row in rows:
        assert {n["image"] for n in row["neighbors"]} < set(pictures.names) - {row["image"]}
        assert row["self_weight"] + sum(n["weight"] for n in row["neighbors"]) == pytest.approx(1, abs=1e-4)
    few = Pictures(pictures.names[:20], pictures.pixels[:20])
    with pytest.raises(UserError, match="found 20 images, expected at least 21"):
        predict.student_predictions(student, few, "batch_by_batch")


def test_formats_hold_the_same_and_a_formula_is_text():
    rows = [
        {"image": "=1+1.png", "class": "@x", "probability": 0.25, "self_weight": 0.5, "neighbors": []},
        {
            "image": "b\x1b[2J.png",
            "class": "-y, z",
            "probability": 1.0,
            "self_weight": 0.5,
            "neighbors": [{"class": "+k", "index": 3, "weight": 0.5}],
        },
    ]
    found = list(csv.DictReader(io.StringIO(predict.format_csv(rows))))
    assert [row["image"] for row in found] == ["'=1+1.png", "b\x1b[2J.png"]
    assert [row["class"] for row in found] == ["'@x", "'-y, z"]
    assert found[1]["neighbor_1_class"] == "'+k" and found[1]["neighbor_1_index"] == "3"
    assert found[0]["neighbor_1_weight"] == ""
    table = predict.format_table(rows)
    assert "\x1b" not in table and "0.2500" in table and "training image 3, +k" in table


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "ce", "student.network": "resnet8", "data.holdout": 0.2, "student.train.epoch": "best"},
        pytest.param({"student.backbone": "teacher", "evaluate.anchor_batches": 2}, marks=pytest.mark.slow),
        {
            "method": "gnn",
            "student.graph": "inner_product",
            "student.backbone": "pixels",
            "student.train.optimizer": "adamw",
        },
    ],
)
def test_every_kind_of_student_predicts_and_is_exported(cache, tmp_path, fields):
    workdir, results = finished(cache, tmp_path / "run", **fields)
    opened = trained.open_student(workdir)
    test = data.load(opened.recorded.config.data, cache).test
    pictures = Pictures([str(i) for i in range(len(test))], test.images)
    rows = predict.student_predictions(opened, pictures)
    right = [row["class"] == opened.recorded.classes[label] for row, label in zip(rows, test.labels, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(results["accuracies"][0]["accuracy"], abs=0.3)
    bundle.write(tmp_path / "bundle", opened, bundle.serialize_student(opened), {})
    of_bundle = predict.bundle_predictions(bundle.read(tmp_path / "bundle"), pictures)
    for one, other in zip(rows, of_bundle, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    if not opened.model.is_graph:
        with pytest.raises(UserError, match="without a graph"):
            predict.student_predictions(opened, pictures, neighbors=1)
        with pytest.raises(UserError, match="holds a CNN, which has no graph: leave --graph=off out"):
            trained.open_student(workdir, "off")
    change_record(workdir, teacher_folder="/nowhere")
    if opened.model.features is None:
        trained.open_student(workdir)
    else:
        with pytest.raises(UserError, match=r"the teacher of .*run is not there .*run the run's own command again"):
            trained.open_student(workdir)


@pytest.fixture(scope="module")
def both(cache, tmp_path_factory):
    """Returns a finished run with held-out images that trained a student with a graph and one without."""
    fields = {"method": "gnn", "evaluate.graph_off": True, "data.holdout": 0.2}
    return finished(cache, tmp_path_factory.mktemp("both") / "run", **fields)


def copied(run, tmp_path, **accuracies):
    """Copies a run and replaces its accuracies on held-out images by the given ones, if any. Returns the workdir."""
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    held_out = [{"graph": graph, "seed": 0, "accuracy": value} for graph, value in accuracies.items()]
    change(workdir / "results.json", holdout_accuracies=held_out)
    return workdir


def test_both_students_predict_as_they_were_evaluated(both, cache, tmp_path):
    workdir, results = both
    recorded = trained.open_student(workdir).recorded
    dataset = data.load(recorded.config.data, cache)
    held_out = {entry["graph"]: entry["accuracy"] for entry in results["holdout_accuracies"]}
    assert set(held_out) == {"learned", "off"}
    predictions = {}
    for choice, graph in (("learned", "learned"), ("off", "off")):
        student = trained.open_student(workdir, choice)
        assert student.model.graph == graph
        [expected] = [
            entry["accuracy"]
            for entry in results["accuracies"]
            if (entry["graph"], entry["mechanism"]) == (graph, "one_by_one")
        ]
        for split, accuracy in ((dataset.test, expected), (dataset.holdout, held_out[graph])):
            pictures = Pictures([str(i) for i in range(len(split))], split.images)
            rows = predictions[graph] = predict.student_predictions(student, pictures)
            right = [row["class"] == dataset.classes[label] for row, label in zip(rows, split.labels, strict=True)]
            assert 100 * np.mean(right) == pytest.approx(accuracy, abs=0.4)
    # The student without a graph needs no anchors, and has no neighbors.
    assert student.model.anchors[0].columns.nodes.shape[0] == 0
    for mechanism in (ONE_BY_ONE, BATCH_BY_BATCH):
        alone = predict.student_predictions(student, Pictures(["0"], dataset.holdout.images[:1]), mechanism)
        assert alone[0]["probability"] == pytest.approx(predictions["off"][0]["probability"], abs=1e-6)
    with pytest.raises(UserError, match="without a graph, which has no neighbors: leave --neighbors out"):
        predict.student_predictions(student, pictures, neighbors=1)


def test_the_bundle_says_which_student_it_holds(both, tmp_path):
    workdir, _ = both
    for choice, graph in (("learned", "learned"), ("off", "off")):
        export.write(workdir, tmp_path / choice, choice)
        assert storage.read_json(tmp_path / choice / artifact.MANIFEST)["facts"]["graph"] == graph
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    found = bundle.read(tmp_path / "off").call(images)
    np.testing.assert_allclose(found, trained.predict(trained.open_student(workdir, "off"), images)[0], atol=1e-5)


def test_the_best_student_is_that_with_more_held_out_images_right(both, tmp_path):
    for k, (on, off, graph) in enumerate(((14, 26.3, "off"), (26.3, 14, "learned"), (14, 14, "learned"))):
        workdir = copied(both, tmp_path / str(k), learned=on, off=off)
        assert trained.open_student(workdir, "best").model.graph == graph


def test_a_student_that_cannot_be_chosen_is_refused_with_what_to_do(done, both, tmp_path):
    for choice in ("off", "best"):
        with pytest.raises(UserError, match=r"trained no student without a graph .*--config.evaluate.graph_off=True"):
            trained.open_student(done[0], choice)
    workdir = copied(both, tmp_path)
    with pytest.raises(UserError, match="no accuracies on held-out training images: run the run's own command again"):
        trained.open_student(workdir, "best")
    config = config_of(workdir)
    change_record(workdir, config=config | {"data": config["data"] | {"holdout": 0.0}})
    with pytest.raises(UserError, match=r"has none: train with --config.data.holdout=0.1 in a new workdir"):
        trained.open_student(workdir, "best")


def test_a_line_says_that_the_other_student_is_better(both, tmp_path, capsys):
    recorded = trained.open_student(copied(both, tmp_path, learned=14, off=26.3)).recorded
    graph_choice.warn_of_better(recorded, "off")
    assert capsys.readouterr().err == ""
    graph_choice.warn_of_better(recorded, "learned")
    assert capsys.readouterr().err == (
        "warning: the student with the graph learned classifies 14.00% of the held-out training images correctly, "
        "the student without a graph 26.30%: --graph=off uses the better one\n"
    )
    results = storage.read_json(recorded.workdir / "results.json")
    for entry in results["accuracies"]:
        entry["accuracy"] = 50.0 if entry["graph"] == "off" else 60.0
    change(recorded.workdir / "results.json", accuracies=results["accuracies"], holdout_accuracies=[])
    graph_choice.warn_of_better(recorded, "learned")
    assert capsys.readouterr().err == ""
    graph_choice.warn_of_better(recorded, "off")
    said = capsys.readouterr().err
    assert (
        "50.00% of the test images correctly, the student with the graph learned 60.00% (according to results" in said
    )
    assert said.endswith(": --graph=learned uses the better one\n") and said.count("\n") == 1


def test_the_command_warns_and_serves_the_student_that_is_asked_for(both, folder, tmp_path):
    workdir = copied(both, tmp_path, learned=14, off=26.3)
    predicted = {}
    for choice in ("learned", "off", "best"):
        ran = command(f"--workdir={workdir}", folder / "3", "--format=json", f"--graph={choice}")
        assert ran.returncode == 0, ran.stderr
        assert ("--graph=off uses the better one" in ran.stderr) == (choice == "learned")
        predicted[choice] = json.loads(ran.stdout)
    assert predicted["best"] == predicted["off"] != predicted["learned"]


def test_a_workdir_needs_no_data_set(done, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(done[0], moved)
    change_record(moved, config=config_of(moved) | {"cache_dir": "/nowhere"}, teacher_folder="/nowhere")
    assert export.teacher_module(trained.open_student(moved)) is None


DAMAGE = {
    "another version": (lambda w: change(w / "run" / "manifest.json", format=0), "format 0; this one is"),
    "no config": (lambda w: shutil.rmtree(w / "run"), "is no workdir"),
    "no manifest": (lambda w: (w / "run" / "manifest.json").unlink(), "run is damaged (manifest.json is missing)"),
    "not JSON": (lambda w: (w / "run" / "manifest.json").write_text("{"), "is damaged"),
    "no such field": (lambda w: change_record(w, config={}), "is damaged"),
    "anchors cut": (lambda w: (w / "run" / "images.npy").write_bytes(b"PK\x03\x04"), "is damaged (images.npy"),
    "no checkpoints": (lambda w: shutil.rmtree(w / "checkpoints"), "is not there"),
    "another network": (
        lambda w: change_record(w, config=(c := config_of(w)) | {"student": c["student"] | {"hidden": 8}}),
        "a student of another version",
    ),
    "not finished": (
        lambda w: change_record(
            w,
            config=(c := config_of(w)) | {"student": c["student"] | {"train": c["student"]["train"] | {"epochs": 9}}},
        ),
        "for 28 of 126 steps",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_workdir_that_cannot_be_used_says_why(done, tmp_path, damage):
    workdir = tmp_path / "run"
    shutil.copytree(done[0], workdir)
    action, message = DAMAGE[damage]
    action(workdir)
    with pytest.raises(UserError) as raised:
        trained.open_student(workdir)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_workdir_of_another_version_does_not_send_its_user_in_a_circle(done, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(done[0], workdir)
    change(workdir / "run" / "manifest.json", format=1, program="cnn2gnn_jax 0.0.9")
    with pytest.raises(UserError) as raised:
        trained.open_student(workdir)
    assert str(raised.value).startswith(
        f"{workdir / 'run'} was written by another version of this program (cnn2gnn_jax 0.0.9, format 1; this one is "
    )
    assert str(raised.value).endswith(": use the version that wrote it, or train again in a new workdir")


def command(*arguments, module="predict"):
    program = [sys.executable, "-m", f"cnn2gnn_jax.{module}", *map(str, arguments)]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_prints_json(done, folder):
    ran = command(f"--workdir={done[0]}", folder / "3", "--format=json", "--neighbors=2")
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)
    assert len(rows) == len(list((folder / "3").iterdir()))
    assert all(len(row["neighbors"]) <= 2 and 0 < row["probability"] <= 1 for row in rows)


WRONG = {
    "no workdir": (["x.png"], "Exactly one of (workdir, bundle)"),
    "two": (["--workdir={run}", "--bundle={run}", "x.png"], "Exactly one of (workdir, bundle)"),
    "nothing to classify": (["--workdir={run}"], "no IMAGE_OR_FOLDER: give at least one"),
    "a negative number": (["--workdir={run}", "x.png", "--neighbors=-1"], "--neighbors is -1: expected 0 or more"),
    "no such workdir": (["--workdir=/nowhere", "x.png"], "/nowhere is no workdir"),
    "no such image": (["--workdir={run}", "/nowhere.png"], "/nowhere.png does not exist"),
    "no image": (["--workdir={run}", "README.md"], "README.md: no JPEG, PNG, BMP or WebP image"),
    "no folder of images": (["--workdir={run}", "{run}/checkpoints"], "holds no image"),
    "no such format": (["--workdir={run}", "x.png", "--format=xml"], "xml"),
    "no bundle": (["--bundle={run}", "x.png"], "is not a bundle"),
    "the graph of a bundle": (["--bundle={run}", "x.png", "--graph=off"], "give --workdir for --mechanism"),
    "no such graph": (["--workdir={run}", "x.png", "--graph=on"], "learned"),
    "no student without a graph": (["--workdir={run}", "x.png", "--graph=off"], "trained no student without a graph"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_one_line(done, capsys, monkeypatch, wrong):
    arguments, message = WRONG[wrong]
    monkeypatch.setattr(sys, "argv", ["predict", *(argument.format(run=done[0]) for argument in arguments)])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        predict.command_line.run(predict.main)
    found = capsys.readouterr()
    assert ended.value.code == 2 and found.out == ""
    [line] = found.err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_neighbors_are_named_by_their_files_where_the_data_set_has_files(done, cache, folder, tmp_path):
    opened = trained.open_student(done[0])
    run = runs.begin(ConfigDict(opened.recorded.config.to_dict()), tmp_path / "run")
    files = tuple(f"class {label}/{i}.png" for i, label in enumerate(run.dataset.train.labels))
    train = dataclasses.replace(run.dataset.train, files=files)
    runs.record(run._replace(dataset=dataclasses.replace(run.dataset, train=train)))
    with_files = opened._replace(recorded=runs.read(tmp_path / "run"))
    pictures = read_pictures([folder], opened.recorded.image_shape)
    for mechanism, field in (("one_by_one", "image"), ("batch_by_batch", "nearest_image")):
        rows = predict.student_predictions(with_files, pictures, mechanism, neighbors=2)
        links = [link for row in rows for link in row["neighbors"]]
        assert {link[field] for link in links} == {files[link["index"]] for link in links}
        [first] = list(csv.DictReader(io.StringIO(predict.format_csv(rows[:1]))))
        assert first[f"neighbor_1_{field}"] == rows[0]["neighbors"][0][field]
        table = predict.format_table(rows[:1])
        assert rows[0]["neighbors"][0][field] in table and "training image" not in table
        without = predict.student_predictions(opened, pictures, mechanism, neighbors=2)
        assert not any(link.get(field) for row in without for link in row["neighbors"])
        assert f"training image {without[0]['neighbors'][0]['index']}, " in predict.format_table(without[:1])


def test_unreadable_images_are_left_out_only_if_asked(student, folder, tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(folder / "3", pictures)
    count = len(list(pictures.iterdir()))
    (pictures / "broken.png").write_bytes(b"no")
    with pytest.raises(UserError, match=rf"1 of {count + 1} files cannot be read \(.*broken.png: no JPEG"):
        read_pictures([pictures], student.recorded.image_shape)
    assert len(read_pictures([pictures], student.recorded.image_shape, True).names) == count
