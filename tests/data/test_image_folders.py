"""Tests of image folders: `DIR/<class>/*`, `DIR/<split>/<class>/*`, and Tiny-ImageNet in its published layout."""

import itertools
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cnn2gnn_jax import config as configs
from cnn2gnn_jax import data
from cnn2gnn_jax.configs import base
from cnn2gnn_jax.runtime.errors import UserError


def test_a_folder_of_images_is_read(tmp_path, config, image_folder):
    (image_folder / "train" / "ant" / "notes.txt").write_text("")
    (image_folder / "train" / ".hidden").mkdir()
    dataset = data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")
    assert dataset.classes == ("ant", "bee")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 and dataset.test.labels.tolist() == [0] * 2 + [1] * 2
    np.testing.assert_array_equal(dataset.train.images[5], Image.open(image_folder / "train" / "bee" / "1.png"))


def test_an_image_folder_keeps_the_file_of_every_image(tmp_path, config, image_folder):
    odd = os.fsdecode(b"caf\xe9.png")  # a name that is not valid UTF-8
    shutil.copy(image_folder / "train" / "bee" / "3.png", image_folder / "train" / "bee" / odd)

    def load(**fields):
        return data.load(config(name="image_folder", manual_dir=image_folder, **fields), tmp_path / "cache")

    for _ in range(2):
        whole = load()
        assert whole.train.files == (
            *(f"train/ant/{i}.png" for i in range(4)),
            *(f"train/bee/{i}.png" for i in range(4)),
            f"train/bee/{odd}",
        )
        assert whole.test.files == ("val/ant/0.png", "val/ant/1.png", "val/bee/0.png", "val/bee/1.png")
    for part in (load(limit=3, holdout=0.4), load(holdout=0.5, holdout_seed=1), load(image_size=9)):
        for split in (part.train, part.test, part.holdout or part.test):
            assert len(split.files) == len(split)
            for image, file in zip(split.images, split.files, strict=True):
                np.testing.assert_array_equal(image, Image.open(image_folder / file))
    (native,) = (tmp_path / "cache" / "datasets").glob("image_folder-native-*/test_files.json")
    native.write_text(native.read_text().replace("0.png", "1.png"))
    assert load().test.files == whole.test.files
    assert data.load(config(), tmp_path / "cache").train.files is None


def test_wrong_folders_of_images_are_refused(tmp_path, config, image_folder):
    settings = config(name="image_folder", manual_dir=image_folder)
    (image_folder / "val" / "wasp").mkdir()
    with pytest.raises(UserError, match="wasp holds no image"):
        data.load(settings, tmp_path / "cache")
    shutil.copy(image_folder / "val" / "bee" / "0.png", image_folder / "val" / "wasp")
    with pytest.raises(UserError, match="class wasp is not in"):
        data.load(settings, tmp_path / "cache")
    shutil.rmtree(image_folder / "val" / "wasp")
    for split in ("train", "val"):
        shutil.rmtree(image_folder / split / "bee")
    with pytest.raises(UserError, match=r"train holds 1 class \(ant\)"):
        data.load(settings, tmp_path / "cache")
    shutil.rmtree(image_folder / "train")
    with pytest.raises(UserError, match=r"holds val/ but no train/"):
        data.load(settings, tmp_path / "cache")
    shutil.rmtree(image_folder / "val")
    with pytest.raises(UserError, match=r"mine holds no folder of images: set data.manual_dir"):
        data.load(settings, tmp_path / "cache")


def test_a_wrong_image_folder_does_not_use_the_cache_of_another(tmp_path, config, image_folder):
    data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    for manual_dir, message in (
        (tmp_path / "nowhere", "nowhere is no folder: set it to"),
        (tmp_path / "empty", "empty holds no folder of images: set data.manual_dir"),
        (image_folder / "train" / "ant", r"ant holds no folder of images \(4 files \(0.png, .* lie in it directly\)"),
        ("", "data.manual_dir is not set"),
    ):
        with pytest.raises(UserError, match=message):
            data.load(config(name="image_folder", manual_dir=manual_dir), tmp_path / "cache")
    shutil.copytree(image_folder / "train" / "ant", tmp_path / "single" / "ant")
    with pytest.raises(UserError, match=r"single holds 1 class \(ant\): expected 2 or more"):
        data.load(config(name="image_folder", manual_dir=tmp_path / "single"), tmp_path / "cache")


def test_an_image_folder_is_read_again_after_a_change_of_the_same_size(tmp_path, config, image_folder):
    for path in image_folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    settings = config(name="image_folder", manual_dir=image_folder)
    first = data.load(settings, tmp_path / "cache")
    Image.new("RGB", (9, 9), "red").save(image_folder / "train" / "ant" / "0.bmp")
    second = data.load(settings, tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    assert second.train.images[0].reshape(-1, 3).tolist() == [[255, 0, 0]] * 81


def test_folders_with_equal_names_sizes_and_times_are_distinguished(tmp_path, config):
    first = {}
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        for split, label, k in itertools.product(("train", "test"), ("ant", "bee"), range(3)):
            path = tmp_path / name / split / label / f"{k}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
            os.utime(path, (0, 0))
        loaded = data.load(config(name="image_folder", manual_dir=tmp_path / name), tmp_path / "cache")
        expected = np.asarray(Image.open(tmp_path / name / loaded.train.files[0]))
        np.testing.assert_array_equal(loaded.train.images[0], expected)
        first[name] = expected
    assert (first["one"] != first["two"]).any()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("Train/ant", "Train/bee", "Test/ant", "Test/bee"), "in small letters"),
        (("train/images", "bus/images"), "holds 1 class .*taken for the training split"),
    ],
)
def test_names_that_could_be_splits_or_classes_are_refused(tmp_path, config, folders, message):
    for folder in folders:
        (tmp_path / "folder" / folder).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "folder" / folder / "0.png")
    with pytest.raises(UserError, match=message):
        data.load(config(name="image_folder", manual_dir=tmp_path / "folder"), tmp_path / "cache")


def test_class_folders_are_read_with_the_folders_in_them(tmp_path, config, image_folder):
    for path in sorted(image_folder.glob("train/*/[01].png")):
        (path.parent / "images" / "more").mkdir(parents=True, exist_ok=True)
        path.rename(path.parent / "images" / "more" / f"{path.stem}.PNG")
    (image_folder / "train" / "ant" / "loop").symlink_to(image_folder / "train" / "ant")
    dataset = data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")
    names = ("2.png", "3.png", "images/more/0.PNG", "images/more/1.PNG")
    assert dataset.train.files == tuple(f"train/{name}/{file}" for name in ("ant", "bee") for file in names)


def test_files_that_are_not_read_are_reported(tmp_path, config, image_folder, capsys):
    shutil.copytree(image_folder / "val", image_folder / "test")
    shutil.copytree(image_folder / "train" / "ant", image_folder / "wasp")
    (image_folder / "train" / "ant" / "notes.txt").write_text("")
    shutil.copy(image_folder / "train" / "ant" / "0.png", image_folder / "train" / "loose.png")
    (image_folder / "read.me").write_text("")
    for _ in range(2):
        dataset = data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")
        assert {file.split("/")[0] for file in dataset.test.files} == {"test"} and len(dataset.train) == 8
        lines = [line.removeprefix("image_folder: left out: ") for line in capsys.readouterr().err.splitlines()]
        assert lines == [
            f"{image_folder}/train: 1 file (ant/notes.txt) in its folders, no images (.jpg, .jpeg, .png, .bmp, .webp)",
            f"{image_folder}/train: 1 file (loose.png) beside its folders",
            f"{image_folder}: 1 file (read.me) beside its folders",
            f"{image_folder}/val: the test split is test/",
            f"{image_folder}/wasp lies beside train/: move it into train/ if it is a class",
        ]


def test_classes_may_be_called_train_and_test(tmp_path, config, image_folder, capsys):
    flat(image_folder)
    (image_folder / "ant").rename(image_folder / "train")
    (image_folder / "bee").rename(image_folder / "test")
    dataset = data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")
    assert dataset.classes == ("test", "train") and len(dataset.train) + len(dataset.test) == 12
    assert capsys.readouterr().err == ""


@pytest.fixture
def tiny_imagenet(tmp_path):
    """Returns a folder with a Tiny-ImageNet of 2 classes in the published layout."""
    root, rng = tmp_path / "tiny-imagenet-200", np.random.default_rng(0)

    def picture(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(path)

    for wnid in ("n01443537", "n01629819"):
        for i in range(4):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t8\t8\n")
    for i in range(3):
        picture(root / "val" / "images" / f"val_{i}.JPEG")
        picture(root / "test" / "images" / f"test_{i}.JPEG")
    labels = "n01629819", "n01443537", "n01629819"
    lines = (f"val_{i}.JPEG\t{label}\t0\t32\t44\t62\n" for i, label in enumerate(labels))
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    for name in ("wnids.txt", "words.txt"):
        (root / name).write_text("n01443537\nn01629819\n")
    return root


def test_tiny_imagenet_is_read_as_published(tmp_path, config, tiny_imagenet, capsys):
    dataset = data.load(config(name="image_folder", manual_dir=tiny_imagenet), tmp_path / "cache")
    assert dataset.classes == ("n01443537", "n01629819")
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 and dataset.test.labels.tolist() == [0, 1, 1]
    assert dataset.train.files[1] == "train/n01443537/images/n01443537_1.JPEG"
    assert dataset.test.files == tuple(f"val/images/val_{i}.JPEG" for i in (1, 0, 2))
    for image, file in zip(dataset.test.images, dataset.test.files, strict=True):
        np.testing.assert_array_equal(image, Image.open(tiny_imagenet / file))
    messages = capsys.readouterr().err.splitlines()
    assert len(messages) == 3 and "2 files (n01443537/n01443537_boxes.txt, n01629819/n" in messages[0]
    assert "2 files (wnids.txt, words.txt)" in messages[1] and "none of its folders (images) is a class" in messages[2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"val_0.JPEG\tn01629819\nval_9.JPEG\tn01629819\n", "lacks val_9.JPEG, which val_annotations.txt names"),
        (b"val_0.JPEG\tn01629819\n" * 2, "line 2: val_0.JPEG is listed twice"),
        (b"val_0.JPEG n01629819\n", "line 1: 'val_0.JPEG n01629819', expected FILE, a tab and CLASS"),
        (b"../val_0.JPEG\tn01629819\n", "line 1: .*expected FILE"),
        (b"val_0.JPEG\tn5\n", "class n5 is not in"),
        (b"\xff\xfe", "is no list of images"),
    ],
)
def test_a_wrong_list_of_tiny_imagenet_is_refused(tmp_path, config, tiny_imagenet, lines, message):
    (tiny_imagenet / "val" / "val_annotations.txt").write_bytes(lines)
    with pytest.raises(UserError, match=message):
        data.load(config(name="image_folder", manual_dir=tiny_imagenet), tmp_path / "cache")


def test_a_test_folder_without_any_class_of_train_is_refused(tmp_path, config, image_folder):
    for name in ("ant", "bee"):
        (image_folder / "val" / name).rename(image_folder / "val" / name.upper())
    with pytest.raises(UserError, match=r"val: none of its folders \(ANT, BEE\) is a class of train/: name them"):
        data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")


def flat(image_folder):
    """Moves the images of both splits into one folder for each class, and removes the folders of the splits."""
    for name in ("ant", "bee"):
        for i, path in enumerate(sorted(image_folder.glob(f"*/{name}/*.png"))):
            (image_folder / name).mkdir(exist_ok=True)
            path.rename(image_folder / name / f"{i}.png")
    for split in ("train", "val"):
        shutil.rmtree(image_folder / split)


def test_without_a_test_folder_each_class_is_split_by_a_seed(tmp_path, config, image_folder):
    flat(image_folder)

    def load(**fields):
        return data.load(config(name="image_folder", manual_dir=image_folder, **fields), tmp_path / "cache")

    def pictures(split):
        return {image.tobytes() for image in split.images}

    first, again, other = load(test_fraction=0.3), load(test_fraction=0.3), load(test_fraction=0.3, split_seed=1)
    assert first.train.labels.tolist() == [0] * 4 + [1] * 4 and first.test.labels.tolist() == [0] * 2 + [1] * 2
    everything = {np.asarray(Image.open(path)).tobytes() for path in image_folder.rglob("*.png")}
    assert pictures(first.train) | pictures(first.test) == everything
    assert not pictures(first.train) & pictures(first.test)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    full = base.get_config()
    full.data.test_fraction = 1.0
    with pytest.raises(UserError, match="data.test_fraction"):
        configs.resolve(full)
    for path in sorted((image_folder / "bee").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"class bee has 1 image \(.*0.png\)"):
        load()


def test_unreadable_images_are_listed_and_left_out_only_if_asked(tmp_path, config, image_folder, caplog):
    settings = config(name="image_folder", manual_dir=image_folder, image_size=8)
    whole = data.load(settings, tmp_path / "cache")
    (image_folder / "train" / "ant" / "1.png").write_bytes(b"no image")
    broken = image_folder / "val" / "bee" / "0.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"2 images cannot be read \(train/ant/1.png: no JPEG.*; val/bee/0.png: damaged"
        ):
            data.load(settings, tmp_path / "cache")
        with caplog.at_level("WARNING", logger="absl"):
            left = data.load(config(**vars(settings) | {"skip_unreadable": True}), tmp_path / "cache")
    assert [line for line in caplog.messages if "ant/1.png" in line and "left out" in line]
    assert left.train.files == tuple(file for file in whole.train.files if file != "train/ant/1.png")
    np.testing.assert_array_equal(left.train.images, np.delete(whole.train.images, 1, axis=0))
    np.testing.assert_array_equal(left.test.images, np.delete(whole.test.images, 2, axis=0))
    assert left.test.labels.tolist() == [0, 0, 1]
    for path in (image_folder / "train" / "bee").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no training image of class bee can be read"):
        data.load(config(**vars(settings) | {"skip_unreadable": True}), tmp_path / "cache")
