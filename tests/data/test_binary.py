import io
import tarfile

import numpy as np
import pytest

from cnn2gnn_jax.data import binary
from cnn2gnn_jax.runtime.errors import UserError


@pytest.mark.parametrize(("label_bytes", "classes"), [(1, 10), (2, 100)])
def test_cifar_records_are_planes_row_by_row(label_bytes, classes):
    data = bytearray(2 * (label_bytes + 3072))
    second = label_bytes + 3072
    data[label_bytes - 1], data[second + label_bytes - 1] = 3, classes - 1
    channel, row, column = 1, 20, 7
    data[second + label_bytes + channel * 1024 + row * 32 + column] = 200
    images, labels = binary.cifar(bytes(data), label_bytes, classes, "x.bin")
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int32
    assert labels.tolist() == [3, classes - 1]
    assert images[1, row, column, channel] == 200 and images.sum() == 200


def test_stl10_planes_are_column_by_column_and_labels_begin_at_1():
    data = bytearray(2 * 27648)
    channel, row, column = 2, 50, 9
    data[27648 + channel * 9216 + column * 96 + row] = 77
    images, labels = binary.stl10(bytes(data), bytes([1, 10]), "train_X.bin")
    assert images.shape == (2, 96, 96, 3) and images.dtype == np.uint8
    assert labels.tolist() == [0, 9]
    assert images[1, row, column, channel] == 77 and images.sum() == 77


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary.cifar(bytes(3073 * 2 - 1), 1, 10, "a.bin"), r"a.bin is truncated: 6,145 bytes, .* 6,146"),
        (lambda: binary.cifar(b"", 1, 10, "a.bin"), r"a.bin is truncated: 0 bytes, .* 3,073"),
        (lambda: binary.cifar(bytes([10]) + bytes(3072), 1, 10, "a.bin"), "label 10, expected 0 to 9"),
        (lambda: binary.stl10(bytes(27648 + 1), bytes([1]), "b"), r"truncated: 27,649 bytes, .* 55,296"),
        (lambda: binary.stl10(bytes(27648), bytes([1, 2]), "b"), "2 labels for 1 images"),
        (lambda: binary.stl10(bytes(27648), bytes([0]), "b"), "label 0, expected 1 to 10"),
        (lambda: binary.stl10(bytes(27648), bytes([11]), "b"), "label 11, expected 1 to 10"),
        (lambda: binary.class_names(b"cat\ndog\n", 3, "n.txt"), "n.txt: 2 class names, expected 3"),
        (lambda: binary.class_names(b"cat\ndog\ncat\n", 3, "n.txt"), "n.txt: 2 class names, expected 3"),
        (lambda: binary.class_names(b"\xff\xfe", 2, "n.txt"), "n.txt: 1 class names, expected 2"),
    ],
)
def test_damaged_files_are_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_an_archive_is_read_without_extraction_and_only_regular_members_under_the_exact_names(tmp_path):
    link = tarfile.TarInfo("set/b")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        (tarfile.TarInfo("../set/a"), b"outside"),
        (tarfile.TarInfo("set/sub/a"), b"deeper"),
        (link, b""),
        (tarfile.TarInfo("./set/a"), b"A"),
        (tarfile.TarInfo("set/b"), b"B"),
    ]
    write_tar(tmp_path / "x.tar.gz", members)
    assert binary.read_files(tmp_path / "x.tar.gz", "set", ("a", "b")) == {"a": b"A", "b": b"B"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.gz"]
    with pytest.raises(UserError, match="lacks set/c"):
        binary.read_files(tmp_path / "x.tar.gz", "set", ("a", "c"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_archive_is_refused(tmp_path, mode):
    path = tmp_path / "x.tar"
    content = np.random.default_rng(0).bytes(100_000)
    write_tar(path, [(tarfile.TarInfo("set/a"), content)], mode)
    whole = path.read_bytes()
    for length in (0, 100, 600, 50_000, 90_000):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.tar.*fetch it again"):
            binary.read_files(path, "set", ("a",))
    path.write_bytes(b"no archive " * 1000)
    with pytest.raises(UserError, match=r"x\.tar is no whole tar archive"):
        binary.read_files(path, "set", ("a",))


def test_a_folder_is_read_as_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"A")
    assert binary.read_files(tmp_path, "set", ("a",)) == {"a": b"A"}
