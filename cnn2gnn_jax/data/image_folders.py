"""What a folder of the user's images holds: the files of each class and split, and what is not read."""

import dataclasses
import pathlib
from collections.abc import Iterator

from cnn2gnn_jax.data.images import IMAGE_SUFFIXES
from cnn2gnn_jax.runtime.errors import UserError

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")
_NAMED = 3  # files in a line about what is left out

Files = dict[str, list[pathlib.Path]]  # by class


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The image files of a folder.

    train: the files of each class, sorted by path.
    test: likewise, None where the folder has no test split.
    lists: files other than images that say something of them.
    left_out: one line for each thing that is not read. Hidden files and folders are passed over.
    """

    train: Files
    test: Files | None
    lists: tuple[pathlib.Path, ...]
    left_out: tuple[str, ...]


def scan(folder: pathlib.Path) -> ImageFolder:
    """Looks for <class>/<image> or, where train/ holds folders, for train/<class>/<image> and test/<class>/<image>.

    Images may lie in folders within that of their class. The test split is the first of `TEST_FOLDERS` whose folders
    are classes of train/, or that labels its images in a list, as Tiny-ImageNet's val/ does.

    Raises:
      UserError: it is no folder, holds fewer than 2 classes, or its folders contradict each other.
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
    _name_loose_files(folder, left_out)
    test_folder, test = _test_split(folder, train, left_out)
    for path in _class_folders(folder):
        if path.name not in (TRAIN_FOLDER, *TEST_FOLDERS):
            left_out.append(f"{path} lies beside train/: move it into train/ if it is a class")
    labels = (_label_list(test_folder),) if test_folder and _label_list(test_folder).is_file() else ()
    return ImageFolder(train, test, labels, tuple(left_out))


def _test_split(folder: pathlib.Path, train: Files, left_out: list[str]) -> tuple[pathlib.Path | None, Files | None]:
    """The folder of the test split and its files; adds the other candidates to `left_out`.

    Raises:
      UserError: a class of the split is not in train/, or folders are there that might be a split and none is.
    """
    test_folder, test, strangers = None, None, list[str]()
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
            strangers.append(f"{candidate}: none of its folders ({', '.join(names[:_NAMED])}) is a class of train/")
        else:
            test_folder, test = candidate, files_by_class(candidate, left_out)
    if strangers and test is None:
        raise UserError(f"{strangers[0]}: name them as in train/, or move {strangers[0].partition(':')[0]} elsewhere")
    left_out += strangers
    if unknown := sorted(set(test or ()) - set(train)):
        raise UserError(f"{test_folder}: class {unknown[0]} is not in {folder / TRAIN_FOLDER}: add or remove it")
    return test_folder, test


def files_by_class(folder: pathlib.Path, left_out: list[str]) -> Files:
    """The image files in each folder in `folder` and below it, sorted; adds to `left_out` what is not read.

    Raises:
      UserError: one holds no image.
    """
    files: Files = {}
    others: list[pathlib.Path] = []
    for sub in _class_folders(folder):
        visible = sorted(_visible_files(sub))
        files[sub.name] = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
        others += [path for path in visible if path.suffix.lower() not in IMAGE_SUFFIXES]
        if not files[sub.name]:
            raise UserError(f"{sub} holds no image ({', '.join(IMAGE_SUFFIXES)}): add some or remove it")
    if others:
        left_out.append(f"{folder}: {_some(folder, others)} in its folders, no images ({', '.join(IMAGE_SUFFIXES)})")
    _name_loose_files(folder, left_out)
    return files


def _classes(folder: pathlib.Path, left_out: list[str]) -> Files:
    files = files_by_class(folder, left_out)
    if not files:
        loose = [path for path in folder.iterdir() if _is_visible_file(path)]
        found = f" ({_some(folder, loose)} lie in it directly)" if loose else ""
        raise UserError(
            f"{folder} holds no folder of images{found}: set data.manual_dir to a folder that holds <class>/<image>, "
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
    """The files in images/ by the class that Tiny-ImageNet's list gives them, one line each: file, class, box.

    Raises:
      UserError: the list has another form, names a file twice or one that is not there.
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
        left_out.append(f"{images}: {_some(images, unlisted)}, not listed in {path.name}")
    return files


def _class_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a folder, sorted by name; hidden ones are passed over."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _visible_files(folder: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> Iterator[pathlib.Path]:
    """The files in a folder and below it; a link to a folder above is not followed."""
    above = (*above, folder.resolve())
    for path in folder.iterdir():
        if _is_visible_file(path):
            yield path
        elif path.is_dir() and not path.name.startswith(".") and path.resolve() not in above:
            yield from _visible_files(path, above)


def _is_visible_file(path: pathlib.Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _name_loose_files(folder: pathlib.Path, left_out: list[str]) -> None:
    if loose := [path for path in folder.iterdir() if _is_visible_file(path)]:
        left_out.append(f"{folder}: {_some(folder, loose)} beside its folders")


def _some(folder: pathlib.Path, paths: list[pathlib.Path]) -> str:
    """How many files there are, and the first of them."""
    names = sorted(str(path.relative_to(folder)) for path in paths)
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {'file' if len(names) == 1 else 'files'} ({', '.join(names[:_NAMED])}{more})"
