"""Property-based tests that untrusted files are either read correctly or refused with a one-line error."""

import csv
import io
import json
import string
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cnn2gnn_jax.data import binary, images
from cnn2gnn_jax.data.builders import mini_imagenet
from cnn2gnn_jax.runtime import storage
from cnn2gnn_jax.runtime.errors import UserError

few = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@few
@given(st.dictionaries(st.text().filter(lambda key: key != "seal"), JSON, max_size=6))
def test_what_is_sealed_is_read_as_it_was(value):
    assert storage.unsealed(json.loads(json.dumps(storage.sealed(value)))) == value


@few
@given(st.binary(min_size=1, max_size=7000), st.sampled_from([(1, 10), (2, 100)]))
def test_cifar_is_whole_records_with_labels_in_range_or_refused(content, kind):
    label_bytes, classes = kind
    length = label_bytes + 3072
    content = (content * (length // len(content) + 1))[: length * (1 + len(content) % 2)] + b"x" * (
        len(content) % 3 == 0
    )
    labels = content[label_bytes - 1 :: length]
    if len(content) % length or max(labels) >= classes:
        with pytest.raises(UserError):
            binary.cifar(content, label_bytes, classes, "x.bin")
        return
    pixels, actual = binary.cifar(content, label_bytes, classes, "x.bin")
    assert actual.tolist() == list(labels)
    assert b"".join(content[k * length + label_bytes : (k + 1) * length] for k in range(len(labels))) == b"".join(
        image.transpose(2, 0, 1).tobytes() for image in pixels
    )


NAMES = st.sampled_from(
    ["set/a", "./set/a", "../set/a", "/set/a", "set/../set/a", "set/a/b", "set/A", "set/a\0", "set//a"]
)
TYPES = st.sampled_from(
    [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)


@few
@given(st.lists(st.tuples(NAMES, TYPES, st.binary(max_size=20)), max_size=5))
def test_of_an_archive_only_a_regular_file_under_the_exact_name_is_read(tmp_path, members):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    # In the tar format, a name ends at its first zero byte.
    right = [
        c for name, kind, c in members if name.rstrip("\0").removeprefix("./") == "set/a" and kind == tarfile.REGTYPE
    ]
    if right:
        assert binary.read_files(tmp_path / "x.tar", "set", ("a",)) == {"a": right[0]}
    else:
        with pytest.raises(UserError, match="lacks set/a"):
            binary.read_files(tmp_path / "x.tar", "set", ("a",))
    assert sorted(tmp_path.rglob("*")) == before


def test_bombs_of_size_and_count_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(binary, "MAX_BYTES", 1000)
    monkeypatch.setattr(binary, "MAX_MEMBERS", 10)
    with tarfile.open(tmp_path / "large.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("set/a")
        member.size = 10_000_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(UserError, match="10,000,000 bytes, expected at most 1,000"):
        binary.read_files(tmp_path / "large.tar.gz", "set", ("a",))
    with tarfile.open(tmp_path / "many.tar.gz", "w:gz") as archive:
        for k in range(11):
            archive.addfile(tarfile.TarInfo(f"set/{k}"))
    with pytest.raises(UserError, match="more than 10 members"):
        binary.read_files(tmp_path / "many.tar.gz", "set", ("a",))
    (tmp_path / "a").write_bytes(bytes(1001))
    with pytest.raises(UserError, match="1,001 bytes"):
        binary.read_files(tmp_path, "set", ("a",))


CELLS = st.text(string.ascii_letters + string.digits + "=+-@,\"'. é\t", min_size=1, max_size=12)


@few
@given(st.lists(st.tuples(CELLS, st.sampled_from(["n1", "n2", "=1+1"])), max_size=14, unique_by=lambda row: row[0]))
def test_a_list_of_images_is_read_as_written_or_refused(tmp_path, rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([("filename", "label"), *rows])
    (tmp_path / "train.csv").write_text(out.getvalue(), encoding="utf-8")
    for name in ("val.csv", "test.csv"):
        (tmp_path / name).write_text("filename,label\n")
    expected = {label: [name for name, of in rows if of == label] for _, label in rows}
    try:
        assert mini_imagenet.files_by_class(tmp_path) == expected
    except UserError:
        assert any(name.startswith(".") for name, _ in rows) or any(len(names) < 6 for names in expected.values())


@few
@given(st.binary(max_size=300), st.integers(0, 2000))
def test_a_picture_with_bytes_changed_is_decoded_or_refused(content, at):
    out = io.BytesIO()
    Image.fromarray(np.arange(27 * 31 * 3, dtype=np.uint8).reshape(27, 31, 3)).save(out, "PNG")
    whole = out.getvalue()
    at %= len(whole)
    try:
        image = images.decode(whole[:at] + content + whole[at + len(content) :], "x.png", size=8)
    except images.ImageError as error:
        assert "\n" not in str(error)
    else:
        assert image.shape == (8, 8, 3) and image.dtype == np.uint8


def test_a_text_that_decompresses_to_gigabytes_is_not_decompressed():
    out, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("Comment", "x" * 50_000_000, zip=True)
    Image.new("L", (4, 4)).save(out, "PNG", pnginfo=notes)
    assert len(out.getvalue()) < 100_000
    with pytest.raises(images.ImageError, match="damaged or too large"):
        images.decode(out.getvalue(), "x.png")


def test_names_of_files_cannot_act_on_a_terminal():
    assert str(UserError("x\n\x1b[2Jerror: all is well\r.png: no image")) == "x??[2Jerror: all is well?.png: no image"
