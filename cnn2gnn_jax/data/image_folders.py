"""Finds the images in a user's folder: the files of each class and split, and the files that are not read."""

import dataclasses
import pathlib
from collections.abc import Iterator

from cnn2gnn_jax.data.images import IMAGE_SUFFIXES
from cnn2gnn_jax.runtime.errors import UserError

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")
_MAX_NAMED = 3  # number of files that a message lists

Files = dict[str, list[pathlib.Path]]  # the image files of each class


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The image files of a folder.

    train: the files of each class, sorted by path.
    test: the files of each class in the test split; None if the folder has no test split.
    lists: files that give the labels of images.
    left_out: messages about files and folders that are not read. Hidden ones are ignored without a message.
    """

    train: Files
    test: Files | None
    lists: tuple[pathlib.Path, ...]
    left_out: tuple[str, ...]


def scan(folder: pathlib.Path) -> ImageFolder:
    """Finds the images in <class>/, or, if train/ contains folders, in train/<class>/ and test/<class>/.

    Images may be in subfolders of their class. The test split is the first of `TEST_FOLDERS` whose folders are classes
    of train/, or which has a list with the labels of its images, as Tiny-ImageNet's val/ has.

    Raises:
      UserError: `folder` is not a folder, it has fewer than 2 classes, or its layout is ambiguous.
    """
    if not folder.is_dir():
        raise UserError(f"data.manual_dir={folder} is no folder: set it to the one that holds the images")
    for path in _class_folders(folder):
        if path.name not in (names := (TRAIN_FOLDER, *TEST_FOLDERS)) and path.name.casefold() in names:
            raise UserError(f"{path}: write the name of a split in small letters, {path.name.casefold()}/")
    train_folder, left_out = folder / TRAIN_FOLDER, list[str]()
    if not _class_folders(train_folder):
        for name in TEST_FOLDERS:
            if _class_folders(folder / name):
                raise UserError(
                    f"{folder} holds {name}/ but no train/ with folders of images: add train/<class>/<image>, or "
                    f"rename {name}/"
                )
        return ImageFolder(_classes(folder, left_out), None, (), tuple(left_out))
    train = _classes(train_folder, left_out)
    _report_loose_files(folder, left_out)
    test_folder, test = _test_split(folder, train, left_out)
    for path in _class_folders(folder):
        if path.name not in (TRAIN_FOLDER, *TEST_FOLDERS):
            left_out.append(f"{path} lies beside train/: move it into train/ if it is a class")
    labels = (_label_list(test_folder),) if test_folder and _label_list(test_folder).is_file() else ()
    return ImageFolder(train, test, labels, tuple(left_out))


def _test_split(folder: pathlib.Path, train: Files, left_out: list[str]) -> tuple[pathlib.Path | None, Files | None]:
    """Finds the folder of the test split and its files. Reports other candidates in `left_out`.

    Raises:
      UserError: a class of the test split is not in train/, or the folders of all candidates differ from the classes.
    """
    test_folder, test, mismatches = None, None, list[str]()
    for candidate in (folder / name for name in TEST_FOLDERS):
        names = [path.name for path in _class_folders(candidate)]
        if not candidate.is_dir():
            continue
        if test_folder:
            left_out.append(f"{candidate}: the test split is {test_folder.name}/")
        elif _label_list(candidate).is_file():
            test_folder, test = candidate, _labelled_files(candidate, left_out)
        elif not names:
            left_out.append(f"{candidate} holds no folder of images")
        elif not set(names) & set(train):
            mismatches.append(
                f"{candidate}: none of its folders ({', '.join(names[:_MAX_NAMED])}) is a class of train/"
            )
        else:
            test_folder, test = candidate, files_by_class(candidate, left_out)
    if mismatches and test is None:
        raise UserError(f"{mismatches[0]}: name them as in train/, or move {mismatches[0].partition(':')[0]} elsewhere")
    left_out += mismatches
    if unknown := sorted(set(test or ()) - set(train)):
        raise UserError(f"{test_folder}: class {unknown[0]} is not in {folder / TRAIN_FOLDER}: add or remove it")
    return test_folder, test


def files_by_class(folder: pathlib.Path, left_out: list[str]) -> Files:
    """Finds the image files in each class folder and its subfolders, sorted. Reports other files in `left_out`.

    Raises:
      UserError: a class folder contains no image.
    """
    files: Files = {}
    others: list[pathlib.Path] = []
    for class_folder in _class_folders(folder):
        visible = sorted(_visible_files(class_folder))
        files[class_folder.name] = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
        others += [path for path in visible if path.suffix.lower() not in IMAGE_SUFFIXES]
        if not files[class_folder.name]:
            raise UserError(f"{class_folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): add some or remove it")
    if others:
        left_out.append(f"{folder}: {_summary(folder, others)} in its folders, no images ({', '.join(IMAGE_SUFFIXES)})")
    _report_loose_files(folder, left_out)
    return files


def _classes(folder: pathlib.Path, left_out: list[str]) -> Files:
    files = files_by_class(folder, left_out)
    if not files:
        loose = [path for path in folder.iterdir() if _is_visible_file(path)]
        hint = f" ({_summary(folder, loose)} lie in it directly)" if loose else ""
        raise UserError(
            f"{folder} holds no folder of images{hint}: set data.manual_dir to a folder that holds <class>/<image>, "
            "or train/<class>/<image> and test/<class>/<image>"
        )
    if len(files) < 2:
        split = (
            ", since train/ with folders in it is taken for the training split" if folder.name == TRAIN_FOLDER else ""
        )
        raise UserError(f"{folder} holds 1 class ({next(iter(files))}): expected 2 or more folders of images{split}")
    return files


def _label_list(folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{folder.name}_annotations.txt"


def _labelled_files(folder: pathlib.Path, left_out: list[str]) -> Files:
    """The files in images/ by the classes in Tiny-ImageNet's list. Each line of the list has a file, a class and a box.

    Raises:
      UserError: the list has another format, contains a file twice, or contains a file that does not exist.
    """
    path, images = _label_list(folder), folder / "images"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no list of images ({error}): fetch it again") from None
    class_of: dict[pathlib.Path, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if not name or not label or name.startswith(".") or not set(name).isdisjoint("/\\\0"):
            raise UserError(f"{path}, line {number}: {line[:80]!r}, expected FILE, a tab and CLASS")
        if images / name in class_of:
            raise UserError(f"{path}, line {number}: {name} is listed twice: fetch it again")
        class_of[images / name] = label
    present = set(images.iterdir()) if images.is_dir() else set()
    if missing := [file.name for file in class_of if file not in present]:
        raise UserError(f"{images} lacks {missing[0]}, which {path.name} names: complete the folder")
    files: Files = {}
    for file in sorted(class_of):
        files.setdefault(class_of[file], []).append(file)
    if unlisted := [file for file in present - set(class_of) if not file.name.startswith(".")]:
        left_out.append(f"{images}: {_summary(images, unlisted)}, not listed in {path.name}")
    return files


def _class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, sorted by name, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _visible_files(folder: pathlib.Path, parents: tuple[pathlib.Path, ...] = ()) -> Iterator[pathlib.Path]:
    """The files in a folder and its subfolders, without hidden ones. Links to a parent folder are not followed."""
    parents = (*parents, folder.resolve())
    for path in folder.iterdir():
        if _is_visible_file(path):
            yield path
        elif path.is_dir() and not path.name.startswith(".") and path.resolve() not in parents:
            yield from _visible_files(path, parents)


def _is_visible_file(path: pathlib.Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _report_loose_files(folder: pathlib.Path, left_out: list[str]) -> None:
    """Reports files that are not in a class folder."""
    if loose := [path for path in folder.iterdir() if _is_visible_file(path)]:
        left_out.append(f"{folder}: {_summary(folder, loose)} beside its folders")


def _summary(folder: pathlib.Path, paths: list[pathlib.Path]) -> str:
    """The number of files and the names of the first ones, for messages."""
    names = sorted(str(path.relative_to(folder)) for path in paths)
    more = ", ..." if len(names) > _MAX_NAMED else ""
    return f"{len(names)} {'file' if len(names) == 1 else 'files'} ({', '.join(names[:_MAX_NAMED])}{more})"
