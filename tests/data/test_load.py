import json
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cnn2gnn_jax import data
from cnn2gnn_jax.data import digits, sources
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError
from tests.data.conftest import Cifar100

# Does the same as the fixture `published_images`, in the programs that the tests start.
OF_SMALL_FILES = f"""
from cnn2gnn_jax.data import sources
sources.PUBLISHED["cifar100"].images.update({Cifar100.IMAGES})
"""


def of_datasets(cache_dir: pathlib.Path) -> pathlib.Path:
    (folder,) = (path for path in (cache_dir / "datasets").iterdir() if path.is_dir())
    return folder


def assert_is(dataset: data.Dataset, cifar100) -> None:
    assert dataset.classes == cifar100.classes
    for split, loaded in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(loaded.images, cifar100.images[split])
        np.testing.assert_array_equal(loaded.labels, cifar100.labels[split])
        np.testing.assert_array_equal(loaded.index, np.arange(len(loaded)))
        assert (loaded.images.dtype, loaded.labels.dtype, loaded.index.dtype) == (np.uint8, np.int32, np.int32)


def test_cifar100_is_read_exactly_and_in_order_and_then_without_the_originals(tmp_path, config, cifar100):
    settings = config(name="cifar100", manual_dir=cifar100.parent)
    first = data.load(settings, tmp_path / "cache")
    assert_is(first, cifar100)
    assert isinstance(first.train.images, np.memmap) and first.holdout is None
    np.testing.assert_allclose(first.mean, (cifar100.images["train"] / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(first.std, (cifar100.images["train"] / 255).std((0, 1, 2)), rtol=1e-12)
    shutil.rmtree(cifar100.parent)
    second = data.load(config(name="cifar100"), tmp_path / "cache")
    assert_is(second, cifar100)
    assert second.fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"data.manual_dir=.*originals is no folder"):
        data.load(settings, tmp_path / "cache")


def test_the_archive_gives_the_same_data_set_as_the_folder(tmp_path, config, cifar100, publish):
    publish("cifar100", cifar100.pack(tmp_path / "cifar-100-binary.tar.gz"))
    from_archive = data.load(config(name="cifar100", manual_dir=tmp_path), tmp_path / "cache_1")
    from_folder = data.load(config(name="cifar100", manual_dir=cifar100.folder), tmp_path / "cache_2")
    assert_is(from_archive, cifar100)
    assert from_archive.fingerprint == from_folder.fingerprint


def test_different_original_files_have_different_caches(tmp_path, config, cifar100):
    first = data.load(config(name="cifar100", manual_dir=cifar100.folder), tmp_path / "cache")
    shutil.copytree(cifar100.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    copied = data.load(config(name="cifar100", manual_dir=tmp_path / "copy"), tmp_path / "cache")
    assert data.load(config(name="cifar100"), tmp_path / "cache").fingerprint == first.fingerprint == copied.fingerprint
    # The changed file keeps its name and size.
    content = bytearray((tmp_path / "copy" / "train.bin").read_bytes())
    content[1] = (content[1] + 1) % 100
    (tmp_path / "copy" / "train.bin").write_bytes(content)
    second = data.load(config(name="cifar100", manual_dir=tmp_path / "copy"), tmp_path / "cache")
    assert second.train.labels[0] != first.train.labels[0] and second.fingerprint != first.fingerprint
    with pytest.raises(UserError, match="holds 3 versions"):
        data.load(config(name="cifar100"), tmp_path / "cache")


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("array", ["train_images", "test_labels"])
def test_a_damaged_cache_is_reported_and_rebuilt(tmp_path, config, cifar100, caplog, array):
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    fingerprint = data.load(settings, tmp_path / "cache").fingerprint
    folder = of_datasets(tmp_path / "cache")
    flip_a_bit(folder / f"{array}.npy")
    with caplog.at_level("WARNING", logger="absl"):
        mended = data.load(settings, tmp_path / "cache")
    assert_is(mended, cifar100)
    assert mended.fingerprint == fingerprint
    assert any(str(folder) in line and array in line and "damaged" in line for line in caplog.messages)


def test_a_cache_of_another_version_is_rebuilt(tmp_path, config, cifar100, caplog):
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    data.load(settings, tmp_path / "cache")
    manifest = of_datasets(tmp_path / "cache") / "manifest.json"
    storage.write_json(manifest, storage.read_json(manifest) | {"format": 1})
    with caplog.at_level("WARNING", logger="absl"):
        assert_is(data.load(settings, tmp_path / "cache"), cifar100)
    [line] = [line for line in caplog.messages if "anew" in line]
    assert "made anew: " in line and "was written by another version of this program (" in line
    assert "format 1; this one is " in line and "damaged" not in line


def test_damaged_records_are_prepared_again(tmp_path, config, cifar100):
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    data.load(settings, tmp_path / "cache")
    for path in (tmp_path / "cache" / "tfds").rglob("*.array_record*"):
        flip_a_bit(path)
    shutil.rmtree(of_datasets(tmp_path / "cache"))
    assert_is(data.load(settings, tmp_path / "cache"), cifar100)


def test_without_originals_and_records_a_damaged_cache_is_refused(tmp_path, config, cifar100):
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    data.load(settings, tmp_path / "cache")
    shutil.rmtree(cifar100.parent)
    flip_a_bit(of_datasets(tmp_path / "cache") / "train_images.npy")
    shutil.rmtree(tmp_path / "cache" / "tfds")
    with pytest.raises(UserError, match=r"cifar100-native-.* is damaged .* set data.manual_dir"):
        data.load(config(name="cifar100"), tmp_path / "cache")


def test_a_cache_on_a_read_only_disk_is_opened(tmp_path, config, cifar100, monkeypatch):
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    data.load(settings, tmp_path / "cache")
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError(13, "read-only")))
    assert_is(data.load(settings, tmp_path / "cache"), cifar100)
    with pytest.raises(UserError, match=r"cifar100: .*read-only"):
        data.load(config(name="cifar100", image_size=8), tmp_path / "cache")


def _load_and_count(settings, cache_dir, queue):
    sources.PUBLISHED["cifar100"].images.update(Cifar100.IMAGES)  # the fixture has no effect in a new process
    queue.put(len(data.load(settings, cache_dir).train))


def test_processes_share_a_cache(tmp_path, config, cifar100):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    processes = [context.Process(target=_load_and_count, args=(settings, tmp_path / "cache", queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [300, 300]
    for process in processes:
        process.join()
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_killed_process_leaves_nothing_that_is_read(tmp_path, config, cifar100):
    program = (
        "import os, pathlib, sys, types\n"
        "from cnn2gnn_jax import data\n"
        f"{OF_SMALL_FILES}"
        "from cnn2gnn_jax.data import images\n"
        "decode, done = images.decode, []\n"
        "def killed(*args):\n"
        "    done.append(1)\n"
        "    return os.kill(os.getpid(), 9) if len(done) > 350 else decode(*args)\n"
        "images.decode = killed\n"
        f"data.load(types.SimpleNamespace(**{vars(config(name='cifar100', manual_dir=cifar100.folder))!r}), "
        f"pathlib.Path({str(tmp_path / 'cache')!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert list((tmp_path / "cache" / "datasets").glob("*.partial"))
    assert_is(data.load(config(name="cifar100", manual_dir=cifar100.folder), tmp_path / "cache"), cifar100)
    assert not list((tmp_path / "cache" / "datasets").glob("*.partial"))


def test_preparing_prints_nothing_and_warns_of_nothing(tmp_path, config, cifar100):
    program = (
        "import pathlib, types\n"
        "from cnn2gnn_jax import data\n"
        f"{OF_SMALL_FILES}"
        f"data.load(types.SimpleNamespace(**{vars(config(name='cifar100', manual_dir=cifar100.folder))!r}), "
        f"pathlib.Path({str(tmp_path / 'cache')!r}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"is truncated: [\d,]+ bytes, expected a multiple of 3,074"),
        (lambda content: content[:1] + b"\xff" + content[2:], "label 255, expected 0 to 99"),
        (lambda content: b"", "is truncated: 0 bytes"),
    ],
)
def test_wrong_cifar_files_are_refused(tmp_path, config, cifar100, split, damage, message):
    path = cifar100.folder / f"{split}.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{split}.bin.* {message}"):
        data.load(config(name="cifar100", manual_dir=cifar100.folder), tmp_path / "cache")


def test_files_of_another_number_of_images_than_published_are_refused(tmp_path, config, cifar100, published_images):
    settings = config(name="cifar100", manual_dir=cifar100.folder)
    for images in ({"train.bin": 50_000, "test.bin": 200}, {"train.bin": 300, "test.bin": 201}):
        published_images("cifar100", images)
        with pytest.raises(UserError, match=r"bin holds [23]00 images, expected the [\d,]+ of .*fetch .*data.limit"):
            data.load(settings, tmp_path / "cache")
    published_images("cifar100", Cifar100.IMAGES)
    assert_is(data.load(settings, tmp_path / "cache"), cifar100)


def test_the_published_numbers_of_images():
    counts = {name: list(published.images.values()) for name, published in sources.PUBLISHED.items()}
    assert counts["cifar10"] == [10_000] * 6 and counts["cifar100"] == [50_000, 10_000]
    assert counts["stl10"] == [5_000, 8_000]


def test_cifar10_joins_its_five_files(tmp_path, config, published_images):
    files = [f"data_batch_{i}.bin" for i in range(1, 6)]
    published_images("cifar10", dict.fromkeys([*files, "test_batch.bin"], 10))
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = rng.integers(0, 256, (60, 3073), np.uint8)
    records[:, 0] %= 10
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(records[10 * i : 10 * i + 10].tobytes())
    (folder / "test_batch.bin").write_bytes(records[50:].tobytes())
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    dataset = data.load(config(name="cifar10", manual_dir=tmp_path), tmp_path / "cache")
    assert dataset.classes == tuple(names) and (len(dataset.train), len(dataset.test)) == (50, 10)
    np.testing.assert_array_equal(dataset.train.labels, records[:50, 0])
    np.testing.assert_array_equal(dataset.train.images[33, :, :, 1].ravel(), records[33, 1 + 1024 : 1 + 2048])


def test_stl10_is_read(tmp_path, config, published_images):
    published_images("stl10", {"train_X.bin": 10, "test_X.bin": 20})
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 3, 96, 96), np.uint8)
    labels = (np.arange(30) % 10 + 1).astype(np.uint8)
    for split, part in (("train", slice(0, 10)), ("test", slice(10, 30))):
        (folder / f"{split}_X.bin").write_bytes(pixels[part].tobytes())
        (folder / f"{split}_y.bin").write_bytes(labels[part].tobytes())
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    dataset = data.load(config(name="stl10", manual_dir=folder), tmp_path / "cache")
    assert dataset.classes == tuple("abcdefghij") and (len(dataset.train), len(dataset.test)) == (10, 20)
    np.testing.assert_array_equal(dataset.test.images[3, :, 17, 2], pixels[13, 2, 17, :])
    np.testing.assert_array_equal(dataset.test.labels, labels[10:] - 1)
    (folder / "train_y.bin").write_bytes(bytes(10))
    with pytest.raises(UserError, match="label 0, expected 1 to 10"):
        data.load(config(name="stl10", manual_dir=folder), tmp_path / "other_cache")


def test_mini_imagenet_splits_each_class_5_to_1_in_the_order_of_the_lists(tmp_path, config, mini_imagenet):
    dataset = data.load(config(name="mini_imagenet", manual_dir=mini_imagenet().parent), tmp_path / "cache")
    assert dataset.classes == ("house finch", "robin", "n99999999")
    assert dataset.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 10
    assert dataset.test.labels.tolist() == [0] + [1] * 2 + [2] * 2
    place = [0, 1, 2, 3, 4, *range(5), *range(10), 5, 5, 6, 10, 11]
    labels = [*dataset.train.labels, *dataset.test.labels]
    images = [*dataset.train.images, *dataset.test.images]
    for image, label, i in zip(images, labels, place, strict=True):
        assert image.shape == (84, 84, 3)
        assert abs(image.reshape(-1, 3).astype(int) - (16 * i, 16 * i, 80 * label)).max() <= 3


def test_images_of_mixed_sizes_need_an_image_size(tmp_path, config, mini_imagenet):
    folder = mini_imagenet(lambda label, i: (40 + 10 * i, 90 - 5 * label))
    with pytest.raises(UserError, match=r"n\d+\.jpg is 90x50, images before it are 90x40: set data.image_size"):
        data.load(config(name="mini_imagenet", manual_dir=folder), tmp_path / "cache")
    dataset = data.load(config(name="mini_imagenet", manual_dir=folder, image_size=20), tmp_path / "cache")
    assert dataset.train.images.shape == (20, 20, 20, 3)
    assert dataset.mean != dataset.std


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("val.csv", "name,label\nx.jpg,n1\n", "begins with 'name,label', expected filename,label"),
        ("val.csv", "", "begins with 'nothing', expected filename,label"),
        ("val.csv", "filename,label\n../x.jpg,n1\n", "line 2: '../x.jpg,n1', expected FILE,CLASS"),
        ("val.csv", "filename,label\nx.jpg\n", "line 2: 'x.jpg', expected FILE,CLASS"),
        ("val.csv", "filename,label\n" + "x.jpg,n1\n" * 2, "line 3: x.jpg is listed twice"),
        ("val.csv", "filename,label\nx.jpg,n1\n", "class n1 has 1 images, expected at least 6"),
        ("val.csv", "filename,label\n" + "".join(f"{i}.jpg,n1\n" for i in range(6)), "lacks 0.jpg"),
        ("val.csv", b"\xff\xfe", "is no list of images"),
        ("images/n9999999900000005.jpg", b"no image", "n9999999900000005.jpg: no JPEG"),
    ],
)
def test_a_wrong_mini_imagenet_is_refused_and_can_be_mended(tmp_path, config, mini_imagenet, file, content, message):
    folder = mini_imagenet()
    right = (folder / file).read_bytes()
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = config(name="mini_imagenet", manual_dir=folder)
    with pytest.raises(UserError, match=message):
        data.load(settings, tmp_path / "cache")
    (folder / file).write_bytes(right)
    assert len(data.load(settings, tmp_path / "cache").train) == 20


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "mini_imagenet", "insects", "digits"])
def test_a_folder_without_the_files_does_not_use_the_cache(tmp_path, config, cifar100, name):
    data.load(config(), tmp_path / "cache")
    data.load(config(name="cifar100", manual_dir=cifar100.folder), tmp_path / "cache")
    for place in ("datasets", "tfds"):
        for folder in list((tmp_path / "cache" / place).glob("cifar100-*[0-9a-f]")):
            if name not in ("cifar100", "digits"):
                shutil.copytree(folder, folder.with_name(folder.name.replace("cifar100", name)))
    (tmp_path / "empty").mkdir()
    for manual_dir in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"data.manual_dir|insects"):
            data.load(config(name=name, manual_dir=manual_dir), tmp_path / "cache")
    assert len(data.load(config(name=name), tmp_path / "cache").train) == (1438 if name == "digits" else 300)


def test_a_data_set_prepared_by_tfds_is_read(tmp_path, config, image_folder):
    # A data set that TFDS has prepared is read if it has images and labels. This one is prepared from the folder of
    # images, and then opened by its name.
    import tensorflow_datasets as tfds

    from cnn2gnn_jax.data.builders.image_folder import ImageFolder

    class Insects(ImageFolder, skip_registration=True):
        pass

    data_dir = tmp_path / "tensorflow_datasets"
    builder = Insects(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=image_folder))
    by_default = data.load(config(name="insects"), tmp_path / "cache")
    versioned = data.load(config(name="insects:1.1.0", manual_dir=data_dir), tmp_path / "cache")
    assert by_default.classes == ("ant", "bee") and (len(by_default.train), len(by_default.test)) == (8, 4)
    np.testing.assert_array_equal(by_default.train.images, versioned.train.images)
    with pytest.raises(UserError, match="unknown data set"):
        data.load(config(name="insects:2.0.0", manual_dir=data_dir), tmp_path / "cache")

    info = data_dir / "insects" / "1.1.0" / "dataset_info.json"
    content = json.loads(info.read_text())
    for changes, message in (
        ({"fileFormat": "tfrecord"}, "stored as tfrecord, expected array_record"),
        ({"splits": content["splits"][:1]}, "splits train; expected train and test"),
    ):
        info.write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=message):
            data.load(config(name="insects"), tmp_path / "another_cache")


def test_digits_need_no_files(tmp_path, config):
    dataset = data.load(config(), tmp_path)
    assert dataset.train.images.shape == (1438, 8, 8, 1) and dataset.test.images.shape == (359, 8, 8, 1)
    assert dataset.classes == tuple("0123456789")
    assert dataset.train.images.min() == 0 and dataset.train.images.max() == 255
    assert set(np.unique(dataset.train.images)) == {round(level * 255 / 16) for level in range(17)}
    for counts in (np.bincount(dataset.train.labels), np.bincount(dataset.test.labels) * 4):
        assert counts.max() - counts.min() <= 10
    images = np.concatenate([split[0] for split in digits.load().values()])
    assert len(images) == 1797
    large = data.load(config(image_size=32), tmp_path)
    assert large.train.images.shape == (1438, 32, 32, 1) and large.fingerprint != dataset.fingerprint
    np.testing.assert_array_equal(large.train.labels, dataset.train.labels)


def test_limit_keeps_the_first_images_of_each_class(tmp_path, config):
    whole, limited = data.load(config(), tmp_path), data.load(config(limit=7), tmp_path)
    for full, part in ((whole.train, limited.train), (whole.test, limited.test)):
        assert np.bincount(part.labels).tolist() == [7] * 10
        expected = np.sort(np.concatenate([np.flatnonzero(full.labels == k)[:7] for k in range(10)]))
        np.testing.assert_array_equal(part.images, full.images[expected])
        np.testing.assert_array_equal(part.labels, full.labels[expected])
        np.testing.assert_array_equal(part.index, np.arange(70))
    assert (limited.mean, limited.std) == (whole.mean, whole.std)
    assert len(data.load(config(limit=10**6), tmp_path).train) == len(whole.train)


def test_classes_keeps_the_first_classes(tmp_path, config):
    whole, few = data.load(config(limit=7), tmp_path), data.load(config(limit=7, classes=3), tmp_path)
    assert few.classes == whole.classes[:3] and few.fingerprint != whole.fingerprint
    np.testing.assert_array_equal(few.train.images, whole.train.images[whole.train.labels < 3])
    np.testing.assert_array_equal(few.test.labels, whole.test.labels[whole.test.labels < 3])
    with pytest.raises(UserError, match="data.classes=11, but digits has 10"):
        data.load(config(classes=11), tmp_path)


@pytest.mark.parametrize("limit", [0, 20])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
def test_holdout_is_a_stratified_fraction_of_train(tmp_path, config, limit, fraction):
    whole = data.load(config(limit=limit), tmp_path)
    split = data.load(config(limit=limit, holdout=fraction), tmp_path)
    assert len(split.train) + len(split.holdout) == len(whole.train) and len(split.test) == len(whole.test)
    rows = [image.tobytes() for image in whole.train.images]
    assert sorted(image.tobytes() for part in (split.train, split.holdout) for image in part.images) == sorted(rows)
    counts, held = np.bincount(whole.train.labels), np.bincount(split.holdout.labels, minlength=10)
    np.testing.assert_array_equal(held, np.clip(np.rint(fraction * counts), 1, counts - 1))
    for part in (split.train, split.holdout):
        np.testing.assert_array_equal(part.index, np.arange(len(part)))
        lookup = dict(zip(rows, whole.train.labels, strict=True))
        assert all(lookup[i.tobytes()] == k for i, k in zip(part.images, part.labels, strict=True))
    again = data.load(config(limit=limit, holdout=fraction), tmp_path)
    np.testing.assert_array_equal(again.holdout.images, split.holdout.images)
    other = data.load(config(limit=limit, holdout=fraction, holdout_seed=1), tmp_path)
    assert not np.array_equal(other.holdout.images, split.holdout.images)


def test_the_fingerprint_depends_only_on_what_affects_results(tmp_path, config):
    def of(**fields):
        return data.load(config(**fields), tmp_path / "cache").fingerprint

    different = [
        of(),
        of(image_size=16),
        of(limit=5),
        of(holdout=0.1),
        of(holdout=0.2),
        of(holdout=0.1, holdout_seed=1),
        of(limit=5, holdout=0.1),
    ]
    assert len(set(different)) == len(different)
    assert of(holdout_seed=1) == of(image_size=8) == of()
    assert data.load(config(), tmp_path / "elsewhere").fingerprint == of()


def test_a_class_too_small_to_hold_images_out_is_refused(tmp_path, config):
    with pytest.raises(UserError, match="class 0 has 1 training image, expected at least 2"):
        data.load(config(holdout=0.5, limit=1), tmp_path)


def test_a_class_of_a_folder_too_small_to_hold_images_out_is_named(tmp_path, config, image_folder):
    for k in (1, 2, 3):
        (image_folder / "train" / "ant" / f"{k}.png").unlink()
    with pytest.raises(UserError, match=r"class ant has 1 training image.*evaluate.training_set.enabled to False"):
        data.load(config(name="image_folder", manual_dir=image_folder, holdout=0.1), tmp_path / "cache")


def test_images_without_contrast_are_refused(tmp_path, config, image_folder):
    for path in image_folder.rglob("*.png"):
        Image.new("RGB", (9, 9), "red").save(path)
    with pytest.raises(UserError, match="a channel is the same in all training images"):
        data.load(config(name="image_folder", manual_dir=image_folder), tmp_path / "cache")
