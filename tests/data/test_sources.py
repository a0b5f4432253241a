import dataclasses
import socket
import time

import pytest

from cnn2gnn_jax import data
from cnn2gnn_jax.data import download, sources
from cnn2gnn_jax.runtime.errors import UserError


def test_the_folder_its_parent_and_the_archive_are_found(tmp_path, cifar100, publish):
    downloads = tmp_path / "downloads"
    for manual_dir in (cifar100.folder, cifar100.parent):
        assert sources.find("cifar100", str(manual_dir), downloads).path == cifar100.folder
    archives = tmp_path / "archives"
    archives.mkdir()
    archive = cifar100.pack(archives / "cifar-100-binary.tar.gz")
    publish("cifar100", archive)
    for manual_dir in (archives, archives / archive.name):
        assert sources.find("cifar100", str(manual_dir), downloads).path == archives / archive.name
    assert sources.find("cifar100", "", archives).path == archives / archive.name
    assert sources.find("cifar100", "", downloads) is None
    assert sources.find("cifar100", str(downloads), archives) is None


def test_the_archive_is_used_if_the_folder_is_incomplete(tmp_path, cifar100, publish):
    publish("cifar100", cifar100.pack(cifar100.parent / "cifar-100-binary.tar.gz"))
    (cifar100.folder / "test.bin").unlink()
    assert sources.find("cifar100", str(cifar100.parent), tmp_path).path.name == "cifar-100-binary.tar.gz"


def test_the_key_depends_on_names_and_sizes_but_not_on_the_location(tmp_path, cifar100):
    key = sources.find("cifar100", str(cifar100.parent), tmp_path).key
    (cifar100.folder / "coarse_label_names.txt").write_text("not read")
    moved = cifar100.parent.rename(tmp_path / "moved")
    assert sources.find("cifar100", str(moved), tmp_path).key == key
    with open(moved / "cifar-100-binary" / "train.bin", "ab") as file:
        file.write(bytes(3074))
    assert sources.find("cifar100", str(moved), tmp_path).key != key


def test_published_checksums_are_complete():
    for published in sources.PUBLISHED.values():
        if published.archive:
            assert len(bytes.fromhex(published.archive.sha256)) == 32
            assert published.archive.url.endswith(published.archive.name)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_offline_the_expected_files_are_named_immediately(tmp_path, config, monkeypatch, name):
    def no_name_server(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name_server)
    begin = time.monotonic()
    with pytest.raises(UserError) as raised:
        data.load(config(name=name), tmp_path)
    assert time.monotonic() - begin < 10
    published = sources.PUBLISHED[name]
    for needed in (published.archive.name, published.page, *published.files, "data.manual_dir", "cannot be reached"):
        assert needed in str(raised.value)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_server_that_does_not_answer_is_reported(tmp_path, config, monkeypatch):
    assert download._ANSWER_SECONDS < 8
    monkeypatch.setattr(download, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(1))
    with pytest.raises(UserError, match=r"cifar10: expected .*did not answer"):
        data.load(config(name="cifar10"), tmp_path)


def test_a_download_is_verified_and_kept(tmp_path, config, cifar100, publish, capfd):
    archive = cifar100.pack(tmp_path / "cifar-100-binary.tar.gz")
    publish("cifar100", archive)
    first = data.load(config(name="cifar100"), tmp_path / "cache")
    assert (tmp_path / "cache" / "downloads" / archive.name).stat().st_size == archive.size
    (tmp_path / archive.name).unlink()
    second = data.load(config(name="cifar100", image_size=16), tmp_path / "cache")
    assert first.train.images.shape[1:] == (32, 32, 3) and second.train.images.shape[1:] == (16, 16, 3)
    assert "downloading" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "sent a file of sha256 .*, expected 000"),
        ({"size": 10}, "sent more than 10 bytes"),
        ({"size": 10**9}, "of 1,000,000,000 bytes"),
        ({"url": "file:///does/not/exist"}, "cannot be reached"),
    ],
)
def test_a_wrong_download_is_refused_and_leaves_nothing(tmp_path, config, cifar100, publish, changes, message):
    archive = cifar100.pack(tmp_path / "cifar-100-binary.tar.gz")
    publish("cifar100", dataclasses.replace(archive, **changes))
    with pytest.raises(UserError, match=message):
        data.load(config(name="cifar100"), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "downloads").iterdir()] == [".lock"]


def test_an_archive_in_manual_dir_is_verified(tmp_path, config, cifar100, publish):
    archive = cifar100.pack(tmp_path / "cifar-100-binary.tar.gz")
    publish("cifar100", archive)
    path = tmp_path / archive.name
    whole = path.read_bytes()
    settings = config(name="cifar100", manual_dir=tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"has {len(whole) // 2:,} bytes, expected {len(whole):,}"):
        data.load(settings, tmp_path / "cache")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"has sha256 .*, expected"):
        data.load(settings, tmp_path / "cache")
    path.write_bytes(whole)
    assert len(data.load(settings, tmp_path / "cache").train) == 300


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"name": "cifar100"}, ["cifar-100-binary.tar.gz", "where cifar-100-binary lacks test.bin", "cifar.html"]),
        ({"name": "mini_imagenet"}, ["train.csv, val.csv, test.csv, images", "meta-learning-lstm"]),
        ({"name": "image_folder"}, ["cifar-100-binary holds no image"]),
        ({"name": "unheard_of"}, ["unknown data set 'unheard_of'", "digits, cifar10, cifar100, stl10, mini_imagenet"]),
        ({"name": "../../etc"}, ["unknown data set"]),
        ({"name": ""}, ["unknown data set"]),
    ],
)
def test_a_missing_data_set_is_described(tmp_path, config, cifar100, fields, needed):
    (cifar100.folder / "test.bin").unlink()
    with pytest.raises(UserError) as raised:
        data.load(config(manual_dir=cifar100.parent, **fields), tmp_path / "cache")
    for part in (*needed, str(cifar100.parent)):
        assert part in str(raised.value)


def test_a_manual_dir_that_does_not_exist_is_named(tmp_path, config):
    with pytest.raises(UserError, match=r"data.manual_dir=.*/nowhere is no folder"):
        data.load(config(name="cifar100", manual_dir=tmp_path / "nowhere"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"data\.manual_dir is ''"):
        data.load(config(name="mini_imagenet"), tmp_path / "cache")
