"""The configs and sweeps that come with the package, which a command line may name without a path."""

import pathlib

from cnn2gnn_jax.runtime.errors import UserError

_FOLDER = pathlib.Path(__file__).parents[1] / "configs"
# Of each kind: its folder, and the function that tells it from modules that it is made of.
_KINDS = {"config": (_FOLDER, "get_config"), "sweep": (_FOLDER / "sweeps", "sweep")}
_FIELDS = "base"  # has get_config(), but names no data set


def names(kind: str) -> list[str]:
    """The names of the built-in files of a kind, `config` or `sweep`."""
    folder, function = _KINDS[kind]
    files = [path for path in sorted(folder.glob("*.py")) if path.stem != _FIELDS]
    return [path.stem for path in files if f"\ndef {function}(" in path.read_text(encoding="utf-8")]


def path_of(name: str, kind: str) -> pathlib.Path:
    """The file that a command line names: an existing path, which always wins, or a built-in file.

    Args:
      name: `configs/digits.py` or `digits`, without a word after a colon.
      kind: `config` or `sweep`.

    Raises:
      UserError: it is neither; the message lists the built-in names.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return path
    known = names(kind)
    if name not in known:
        raise UserError(f"{name} is no file and no built-in {kind}: give the path of a file, or {', '.join(known)}")
    return _KINDS[kind][0] / f"{name}.py"
