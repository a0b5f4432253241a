"""Tests of serving with the training-set graph: predictions and neighbors, the choice of the mechanism, and bundles."""

import csv
import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn2gnn_jax import data, export, neighbors, pipeline, predict
from cnn2gnn_jax import run as runs
from cnn2gnn_jax.evaluation import choice, thinning
from cnn2gnn_jax.evaluation.choice import Grid
from cnn2gnn_jax.runtime import artifact, storage
from cnn2gnn_jax.runtime.errors import UserError
from cnn2gnn_jax.serving import bundle, graph_choice, mechanism, trained
from cnn2gnn_jax.serving.pictures import Pictures
from cnn2gnn_jax.training import bank as banks

LEARNED, OFF = "graph_learned-seed0", "graph_off-seed0"


@pytest.fixture(scope="module")
def dataset(cache, bank_run):
    return data.load(runs.read(bank_run[0]).config.data, cache)


@pytest.fixture(scope="module")
def students(bank_run):
    """Returns the students with and without a graph, each with its bank."""
    return {
        graph: mechanism.choose(trained.open_student(bank_run[0], graph), "training_set").student
        for graph in ("learned", "off")
    }


def pictures_of(images):
    return Pictures([str(i) for i in range(len(images))], images)


def by_bank(student, images, count=0):
    return predict.student_predictions(student, pictures_of(images), "training_set", count)


def stored_of(workdir, name):
    return banks.read(workdir / banks.BANK / name, runs.evaluation_fingerprint(runs.read(workdir)))


@pytest.fixture
def copy(bank_run, tmp_path):
    """Returns a function that copies the run and changes the bank of the student without a graph."""

    def make(**changes):
        workdir = tmp_path / "run"
        shutil.copytree(bank_run[0], workdir, dirs_exist_ok=True)
        changed = stored_of(bank_run[0], OFF)._replace(**changes)
        fingerprint = runs.evaluation_fingerprint(runs.read(workdir))
        banks.save(workdir / banks.BANK / OFF, changed, fingerprint)
        return workdir

    return make


# Predictions.


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_the_predictions_for_test_images_are_those_of_the_evaluation(bank_run, students, dataset, graph):
    rows = by_bank(students[graph], dataset.test.images)
    right = [row["class"] == dataset.classes[label] for row, label in zip(rows, dataset.test.labels, strict=True)]
    [expected] = [
        entry["accuracy"]
        for entry in bank_run[1]["accuracies"]
        if (entry["graph"], entry["mechanism"]) == (graph, "training_set")
    ]
    assert 100 * np.mean(right) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("graph", ["learned", "off"])
def test_neighbors_are_the_nearest_of_all_training_images(students, dataset, graph):
    student, images = students[graph], dataset.test.images[:20]
    bank = student.bank.bank
    s = bank.settings.sparsity
    rows = by_bank(student, images, len(dataset.train))
    features = student.model.feature_spaces(jnp.asarray(images))[bank.settings.space]
    queries = np.asarray(neighbors.queries(bank, features), np.float64)
    d = -queries @ np.asarray(bank.keys, np.float64).T
    for row, distances in zip(rows, d, strict=True):
        nearest = np.argsort(distances)[: s + 1]
        slack = distances[nearest[-1]] - distances[nearest]
        expected = {int(i): weight for i, weight in zip(nearest[:-1], slack / slack.sum(), strict=False)}
        shown = {link["index"]: link["weight"] for link in row["neighbors"]}
        assert shown == pytest.approx({i: w for i, w in expected.items() if i in shown}, abs=1e-3)
        assert sum(shown.values()) == pytest.approx(1, abs=1e-5)
        weights = [link["weight"] for link in row["neighbors"]]
        assert weights == sorted(weights, reverse=True) and min(weights) > 0
        assert all(link["class"] == dataset.classes[dataset.train.labels[link["index"]]] for link in row["neighbors"])
        assert "self_weight" not in row
    assert by_bank(student, images, 1)[3]["neighbors"] == rows[3]["neighbors"][:1]


def test_a_prediction_does_not_depend_on_the_other_images(students, dataset):
    images = dataset.test.images[:120]
    together = by_bank(students["learned"], images, 3)
    for position in (0, 57, 119):
        [row] = by_bank(students["learned"], images[position : position + 1], 3)
        assert row["probability"] == pytest.approx(together[position]["probability"], abs=1e-6)
        assert row["neighbors"] == together[position]["neighbors"]


def test_a_training_image_is_a_new_picture_and_finds_itself(students, dataset):
    """Tests that prediction masks no training image, since it does not know which images were used for training."""
    rows = by_bank(students["off"], dataset.train.images[:10], 1)
    assert [row["neighbors"][0]["index"] for row in rows] == list(range(10))


def test_all_training_images_at_the_same_distance_share_the_row(students, dataset):
    """Tests more tied images than the search lists. Each is shown with the weight that it has in the prediction."""
    student, image = students["off"], dataset.test.images[0]
    bank = student.bank.bank
    nearest = by_bank(student, image[None], 1)[0]["neighbors"][0]["index"]
    same = [*range(7), nearest]
    keys = bank.keys.at[jnp.array(same)].set(bank.keys[nearest])
    bank = bank.replace(keys=keys, settings=bank.settings._replace(sparsity=2))
    [row] = by_bank(student._replace(bank=student.bank._replace(bank=bank)), image[None], 100)
    assert sorted(link["index"] for link in row["neighbors"]) == sorted(set(same))
    assert {link["weight"] for link in row["neighbors"]} == {1 / len(set(same))}


def test_files_name_the_neighbors_and_every_format_shows_them(students, dataset, copy):
    files = tuple(f"class {label}/\udcff ü {i}.png" for i, label in enumerate(dataset.train.labels))
    workdir = copy(files=files)
    assert stored_of(workdir, OFF).files == files
    student = mechanism.choose(trained.open_student(workdir, "off"), "training_set").student
    rows = by_bank(student, dataset.test.images[:3], 2)
    for row in rows:
        assert [link["image"] for link in row["neighbors"]] == [files[link["index"]] for link in row["neighbors"]]
    table = predict.format_table(rows)
    assert "itself" not in table and f"class {rows[0]['neighbors'][0]['class']}/" in table
    [first, *_] = csv.DictReader(io.StringIO(predict.format_csv(rows)))
    assert "self_weight" not in first and first["neighbor_1_image"] == rows[0]["neighbors"][0]["image"]
    assert f"training image {by_bank(students['off'], dataset.test.images[:1], 1)[0]['neighbors'][0]['index']}, " in (
        predict.format_table(by_bank(students["off"], dataset.test.images[:1], 1))
    )


@pytest.fixture(scope="module")
def cnn(bank_config, tmp_path_factory):
    config = bank_config.copy_and_resolve_references()
    config.method, config.student.network = "ce", "resnet8"
    config.evaluate.training_set.spaces = ("backbone",)
    config.evaluate.training_set.signals = ("labels",)
    workdir = tmp_path_factory.mktemp("cnn") / "run"
    return workdir, pipeline.run(config, workdir)


def test_a_cnn_predicts_and_shows_neighbors_with_its_bank(cnn, dataset, tmp_path):
    workdir, results = cnn
    student = mechanism.choose(trained.open_student(workdir), "training_set").student
    rows = by_bank(student, dataset.test.images, 2)
    right = [row["class"] == dataset.classes[label] for row, label in zip(rows, dataset.test.labels, strict=True)]
    [expected] = [e["accuracy"] for e in results["accuracies"] if e["mechanism"] == "training_set"]
    assert 100 * np.mean(right) == pytest.approx(expected, abs=0.3)
    assert all(row["neighbors"] for row in rows)
    with pytest.raises(UserError, match="has no neighbors: leave --neighbors out, or give --mechanism=training_set"):
        predict.student_predictions(student, pictures_of(dataset.test.images[:1]), neighbors=1)
    export.write(workdir, tmp_path / "bundle", mechanism="training_set")
    found = bundle.read(tmp_path / "bundle").call(dataset.test.images[:3])
    np.testing.assert_allclose(found.max(-1), [row["probability"] for row in rows[:3]], atol=1e-5)


# The choice of the mechanism.


@pytest.mark.parametrize(("accuracy", "chosen"), [(90.5, "training_set"), (80.25, "one_by_one"), (70, "one_by_one")])
def test_the_training_set_graph_predicts_if_it_is_better_on_held_out_images(copy, accuracy, chosen):
    student = trained.open_student(copy(accuracy=accuracy, accuracy_alone=80.25), "off")
    served = mechanism.choose(student)
    count = len(stored_of(student.recorded.workdir, OFF).held_out.labels)
    assert served.mechanism == chosen
    assert (served.student.bank is None) == (chosen == "one_by_one")
    assert served.reason == (
        f"{accuracy:.2f}% of {count} held-out training images are right with the training-set graph, 80.25% by the "
        "student alone"
    )
    for requested in ("one_by_one", "training_set"):
        served = mechanism.choose(student, requested)
        assert served.mechanism == requested and served.reason.startswith("as requested")


def test_without_held_out_images_nothing_says_that_it_is_better(copy):
    student = trained.open_student(copy(accuracy=None, accuracy_alone=None, held_out=None), "off")
    assert mechanism.choose(student).mechanism == "one_by_one"
    assert "no images were held out" in mechanism.choose(student).reason
    assert mechanism.choose(student, "training_set").student.bank is not None


def test_a_run_without_a_bank_predicts_one_by_one(finished_run, copy):
    student = trained.open_student(finished_run[0])
    assert mechanism.choose(student)[1:] == ("one_by_one", "the run has no training-set graph")
    with pytest.raises(
        UserError, match=r"no training-set graph .*enabled=True --config.data.holdout=0.1 in a new work"
    ):
        mechanism.choose(student, "training_set")
    workdir = copy()
    shutil.rmtree(workdir / banks.BANK)
    student = trained.open_student(workdir, "off")
    served = mechanism.choose(student)
    assert served.mechanism == "one_by_one" and served.reason.startswith("the run is not evaluated yet")
    with pytest.raises(UserError, match=r"graph_off-seed0 is missing: run the run's own command again"):
        mechanism.choose(student, "training_set")


@pytest.mark.parametrize("name", ["keys", "labels", "signals", "mean", "scale", "held_out_logits", "manifest"])
def test_a_damaged_bank_is_refused_by_predict_and_export(copy, tmp_path, name):
    workdir = copy()
    path = next((workdir / banks.BANK / OFF).glob(f"{name}.*"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    message = rf"{OFF} is damaged .*{path.name}.*: delete it and run the run's own command again"
    with pytest.raises(UserError, match=message):
        mechanism.choose(trained.open_student(workdir, "off"))
    with pytest.raises(UserError, match=message):
        export.write(workdir, tmp_path / "bundle", "off")
    assert not (tmp_path / "bundle").exists()
    assert mechanism.choose(trained.open_student(workdir, "off"), "one_by_one").student.bank is None


def test_the_bank_of_another_evaluation_is_refused(copy):
    """Tests a run that was started again with other settings, and was killed before its evaluation."""
    workdir = copy()
    path = workdir / runs.RECORD / artifact.MANIFEST
    record = storage.read_json(path)
    record["facts"]["config"]["evaluate"]["training_set"]["weights"] = [0.5]
    storage.write_json(path, record)
    with pytest.raises(UserError, match="holds the bank of a student with the fingerprint"):
        mechanism.choose(trained.open_student(workdir, "off"))


def test_students_are_compared_with_their_training_set_graph(copy):
    workdir = copy()
    path = workdir / "results.json"
    results = storage.read_json(path)
    for entry in results["holdout_accuracies"]:
        entry["accuracy"] = {"learned": 60.0, "off": 70.0}[entry["graph"]]
    for entry in results["training_set"]:
        entry["accuracy"], entry["accuracy_two_fold"] = 99.0, {"learned": 80.0, "off": 65.0}[entry["graph"]]
    storage.write_json(path, results)
    recorded = runs.read(workdir)
    assert graph_choice.compare(recorded).accuracies == {"learned": 80.0, "off": 70.0}
    assert graph_choice.compare(recorded, with_training_set=False).accuracies == {"learned": 60.0, "off": 70.0}
    assert trained.open_student(workdir, "best").model.graph == "learned"


def test_the_command_prints_the_mechanism(copy, dataset, tmp_path, monkeypatch, capsys):
    Image.fromarray(dataset.test.images[0, ..., 0]).save(tmp_path / "a.png")
    flags = ["predict", f"--workdir={copy(accuracy=99.0, accuracy_alone=50.0)}", "--graph=off", str(tmp_path / "a.png")]
    for more, line in (
        (["--neighbors=2"], "mechanism training_set: 99.00% of "),
        (["--mechanism=one_by_one"], "mechanism one_by_one: as requested"),
    ):
        monkeypatch.setattr("sys.argv", [*flags, *more])
        predict.main()
        said = capsys.readouterr()
        assert [text.startswith(line) for text in said.err.splitlines() if text.startswith("mechanism")] == [True]
        assert ("training image" in said.out) == ("--neighbors=2" in more)


# Bundles.


@pytest.fixture(scope="module")
def made(bank_run, tmp_path_factory):
    """Returns a folder with two bundles: `whole` has the whole bank, and `60` has 60 useful images of it."""
    folder = tmp_path_factory.mktemp("bundles")
    export.write(bank_run[0], folder / "whole", "learned", "training_set")
    export.write(bank_run[0], folder / "60", "learned", "training_set", thinning.Selection(60, "useful"))
    return folder


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_bundle_predicts_as_its_student(made, students, dataset, count):
    opened = bundle.read(made / "whole")
    assert opened.facts["mechanism"] == "training_set"
    pictures = pictures_of(dataset.test.images[:count])
    expected = predict.student_predictions(students["learned"], pictures, "training_set")
    for row, other in zip(predict.bundle_predictions(opened, pictures), expected, strict=True):
        assert row["class"] == other["class"]
        assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)
    np.testing.assert_allclose(np.sum(opened.call(pictures.pixels), axis=-1), 1, atol=1e-5)


def test_a_bundle_of_fewer_images_predicts_with_these(made, students, dataset):
    facts = bundle.read(made / "60").facts["training_set"]
    student = students["learned"]
    section = student.recorded.config.evaluate.training_set
    stored, again = thinning.compare_sizes(student.bank, section, 10, thinning.Selection(60, "useful"))
    assert facts == again
    thinned = student._replace(bank=stored)
    assert set(np.bincount(np.asarray(thinned.bank.bank.labels))) == {6}
    assert facts["images"] == 60 and facts["settings"]["sparsity"] in (1, 5)
    expected = jax.jit(lambda images: trained.predict(thinned, images, "training_set").probabilities)
    images = dataset.test.images[:30]
    np.testing.assert_allclose(bundle.read(made / "60").call(images), expected(images), atol=1e-5)


def test_the_manifest_tells_the_accuracy_against_the_size(made, students):
    stored = students["learned"].bank
    count = len(stored.bank.labels)
    for name, size, selection in (("whole", count, "balanced"), ("60", 60, "useful")):
        facts = bundle.read(made / name).facts["training_set"]
        assert [row["images"] for row in facts["sizes"]] == sorted({size, 100, 200, 500, 1000, count})
        assert (facts["images"], facts["selection"], facts["key_type"]) == (size, selection, "float16")
        assert facts["accuracy_alone"] == stored.accuracy_alone
        assert facts["held_out_images"] == len(stored.held_out.labels)
        [row] = [row for row in facts["sizes"] if row["images"] == size]
        assert row == {key: facts[key] for key in ("images", "bytes", "accuracy")}
        assert all(0 <= row["accuracy"] <= 100 for row in facts["sizes"])
        assert "<-" in export.sizes_table(facts)
    sizes = {name: (made / name / bundle.MODEL).stat().st_size for name in ("whole", "60")}
    difference = bundle.read(made / "whole").facts["training_set"]["bytes"] - facts["bytes"]
    assert sizes["whole"] - sizes["60"] == pytest.approx(difference, rel=0.05)


@pytest.mark.parametrize("selection", thinning.SELECTIONS)
def test_no_image_that_is_counted_had_a_part_in_the_choice(students, selection):
    stored = students["off"].bank
    grid = Grid((stored.bank.settings.space,), (stored.bank.settings.signal,), (1, 5), (0.3, 1.0), (0.01, 0.1))
    held_out, half, right = stored.held_out, choice.halves(stored.held_out.labels), 0
    for k in (0, 1):
        chooses = banks.HeldOut(*(array[half == k] for array in held_out))
        kept = thinning.select(stored.bank, 50, chooses if selection == "useful" else None)
        part = thinning.subset(stored.bank, kept)
        images = choice.Embedded(chooses.logits, {grid.spaces[0]: chooses.features})
        counts = choice.count(images, chooses.labels, {(grid.spaces[0], grid.signals[0]): part}, grid)
        part = part.replace(settings=counts.settings[counts.best()])
        answer = neighbors.predict(part, held_out.logits[half != k], held_out.features[half != k])
        right += int(np.sum(np.argmax(answer.logits, -1) == held_out.labels[half != k]))
    thinned = thinning.thin(stored, grid, 50, selection)
    assert thinned.accuracy == pytest.approx(100 * right / len(half), abs=100 / len(half))


def test_the_most_useful_images_of_each_class_are_kept(students):
    stored = students["off"].bank
    use, labels = thinning.usefulness(stored.bank, stored.held_out), np.asarray(stored.bank.labels)
    found = neighbors.search(
        neighbors.queries(stored.bank, jnp.asarray(stored.held_out.features)),
        stored.bank.keys,
        stored.bank.settings.sparsity,
    )
    expected = np.zeros(len(labels))
    for row, weights, label in zip(found.columns, found.weights, stored.held_out.labels, strict=True):
        for column, weight in zip(np.asarray(row), np.asarray(weights), strict=True):
            expected[column] += weight if labels[column] == label else -weight
    np.testing.assert_allclose(use, expected, atol=1e-5)
    kept = thinning.select(stored.bank, 100, stored.held_out)
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        assert np.sum(labels[kept] == label) == 10
        assert use[kept][labels[kept] == label].min() >= use[np.setdiff1d(of_class, kept)].max() - 1e-12


def test_a_small_class_gives_all_it_has(students):
    bank = students["off"].bank.bank
    labels = np.repeat([0, 1, 2], [3, 10, 100])
    bank = bank.replace(keys=bank.keys[:113], labels=labels, signals=bank.signals[:113])
    for size, counts in ((9, [3, 3, 3]), (15, [3, 6, 6]), (60, [3, 10, 47]), (113, [3, 10, 100])):
        assert np.bincount(labels[thinning.select(bank, size)]).tolist() == counts


def test_a_smaller_bank_has_the_files_of_its_own_images(students):
    stored = students["off"].bank
    files = tuple(map(str, range(len(stored.bank.labels))))
    smaller = thinning.thin(stored._replace(files=files, held_out=None), None, 50)
    kept = [int(name) for name in smaller.files]
    assert len(kept) == 50
    np.testing.assert_array_equal(smaller.bank.labels, np.asarray(stored.bank.labels)[kept])


def test_a_bank_that_cannot_be_made_is_refused(bank_run, students, copy, tmp_path):
    count = len(students["off"].bank.bank.labels)
    for size in (9, count + 1):
        with pytest.raises(UserError, match=rf"--bank is {size}: expected 10 \(an image of each class\) to {count} "):
            export.write(bank_run[0], tmp_path / "bundle", "off", "training_set", thinning.Selection(size))
    with pytest.raises(
        UserError, match=r"--bank chooses the training images .* the mechanism is one_by_one \(as requested"
    ):
        export.write(bank_run[0], tmp_path / "bundle", "off", "one_by_one", thinning.Selection(50))
    workdir = copy(accuracy=None, accuracy_alone=None, held_out=None)
    with pytest.raises(UserError, match="useful needs held-out images, and the run has none: choose balanced"):
        export.write(workdir, tmp_path / "bundle", "off", "training_set", thinning.Selection(50, "useful"))
    assert not (tmp_path / "bundle").exists()
    export.write(workdir, tmp_path / "bundle", "off", "training_set", thinning.Selection(50))
    facts = bundle.read(tmp_path / "bundle").facts["training_set"]
    assert facts["accuracy"] is None and [row["images"] for row in facts["sizes"]] == [50]


def test_a_selection_of_all_images_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["export", "--workdir=run", "--out=bundle", "--bank_selection=useful"])
    with pytest.raises(UserError, match="--bank_selection is useful, but --bank keeps all images: give --bank=N"):
        export.main()


def test_a_bank_too_large_for_a_module_is_refused(students, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BANK_BYTES", 1000)
    with pytest.raises(
        UserError, match=r"the bank has .* bytes, but a bundle holds at most 1,000: keep fewer .* --bank"
    ):
        bundle.serialize_student(students["off"])
