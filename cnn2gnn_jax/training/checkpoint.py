"""Checkpoints by Orbax: the newest state of a stage, and the best where one is chosen on held-out images.

    <folder>/step_<n>/...           as Orbax writes it
    <folder>/step_<n>/files.json    whose it is, and the sha256 of each of its files, since Orbax notices few damages

A checkpoint without the list was written by an earlier version: it gets its list when training goes on.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from cnn2gnn_jax.runtime import processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import UserError

_LIST = "files.json"
_FOLLOWS = "Event loop is closed"  # of an error that TensorStore's threads print after the one that is raised
# What Orbax writes or dates once all else is there; nothing of a state is read from them.
_LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")
_OS_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")  # as TensorStore words it

# What the threads of Orbax and TensorStore suffer from is raised here as well: one line instead of pages.
logging.get_absl_logger().addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
_print = sys.unraisablehook
sys.unraisablehook = lambda found: _print(found) if str(found.exc_value) != _FOLLOWS else None


class Checkpoints:
    """The checkpoints in one folder; the newest `keep` stay. Use as a context manager.

    Orbax writes beside and renames, so a killed process leaves whole checkpoints alone.

    Args:
      folder: where they are.
      owner: names what is trained there; checkpoints of another owner are refused.
      keep: how many stay.

    Raises:
      OSError: from any method, where the disk is full or the like.
    """

    def __init__(self, folder: pathlib.Path, owner: str, keep: int = 2) -> None:
        self.folder, self.owner = folder, owner
        self._saving = 0
        finished = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step", async_options=finished)
        with _os_errors(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()  # raises what the write in progress suffers from
        finally:
            with _os_errors(self.folder):
                self._manager.close()

    def _seal(self) -> None:
        """Lists the files of the checkpoint being written, before Orbax renames its folder."""
        if processes.is_first():
            [beside] = self.folder.glob(f"step_{self._saving}.*")
            _seal(beside, self.owner)

    def newest(self) -> int | None:
        """The step of the newest checkpoint, None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: dict[str, Any] | None = None) -> None:
        """Writes a state, in the background, and JSON facts about it."""
        # A copy, since the next step is given the buffers of the state itself to reuse.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)), facts=ocp.args.JsonSave(facts or {})
        )
        self.wait()
        self._saving = step
        with _os_errors(self.folder):
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when the write in progress is complete."""
        with _os_errors(self.folder):
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """The newest state, shaped `like` (shapes with the shardings that say where to put it).

        However many devices wrote it: rows that fill up the head's table for their number are added or dropped.

        Raises:
          UserError: it is damaged or another's, cannot be read, or has other shapes.
        """
        step = self._checked()
        try:
            _check_shapes(self._saved(step), like)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like, strict=False))
            with _os_errors(self.folder):
                return self._manager.restore(step, args=args).state
        except Exception as error:  # Orbax and its storage raise many kinds
            if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) or (
                isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
            ):
                raise  # of the machine, and not of the files
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} cannot be restored ({reason}): "
                "delete that folder to train this stage again"
            ) from error

    def restore_as_saved(self) -> Any:
        """The newest state as nested dictionaries of arrays on one device, whatever its shapes and devices.

        Raises:
          UserError: it is damaged or another's.
        """
        step, here = self._checked(), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), self._saved(step).tree)
        with _os_errors(self.folder):
            return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state

    def _saved(self, step: int | None) -> Any:
        """The shapes of the state of a step."""
        return ocp.StandardCheckpointHandler().metadata(self.folder.absolute() / f"step_{step}" / "state")

    def facts(self) -> dict[str, Any]:
        """The JSON facts saved with the newest state.

        Raises:
          UserError: it is damaged or another's.
        """
        step = self._checked()
        with _os_errors(self.folder):
            return self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts

    def _checked(self) -> int | None:
        """The newest step, after its files were read; those that have changed since raise UserError."""
        step = self.newest()

        def check() -> None:
            if (folder := self.folder / f"step_{step}").is_dir() and (wrong := _damage(folder, self.owner)):
                # Of the best there is but one.
                back = "run the run's own command again, which goes back to the one before; or "
                raise UserError(
                    f"the checkpoint {folder} is damaged ({wrong}): {back if self.folder.name == 'last' else ''}"
                    f"delete {self.folder.parent} to train this stage again"
                )

        processes.on_first(check)
        return step


def recover(folder: pathlib.Path, owner: str) -> int:
    """The step of the newest sound checkpoint in a folder that may be missing, 0 for none.

    Damaged ones are named and removed, so that training goes on from the one before: for one process, under a lock.

    Raises:
      UserError: the newest one is another owner's.
    """
    steps = [int(name) for path in folder.glob("step_*") if (name := path.name.removeprefix("step_")).isdigit()]
    for step in sorted(steps, reverse=True):
        path = folder / f"step_{step}"
        if not (path / _LIST).exists():
            _seal(path, owner)
        if not (wrong := _damage(path, owner)):
            return step
        say(f"the checkpoint {path} is damaged ({wrong}): it is removed, and training goes back to the one before")
        shutil.rmtree(path)
    return 0


def _seal(folder: pathlib.Path, owner: str) -> None:
    storage.write_json(folder / _LIST, {"owner": owner, "files": _hashes(folder)})


def _hashes(folder: pathlib.Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (_LIST, *_LATER)]
    return {str(path.relative_to(folder)): storage.sha256(path) for path in files}


def _damage(folder: pathlib.Path, owner: str) -> str:
    """What is wrong with a checkpoint, '' for nothing; one without a list is taken as it is.

    Raises:
      UserError: it is another owner's.
    """
    if not (folder / _LIST).exists():
        return ""
    try:
        facts = storage.read_json(folder / _LIST)
        expected, of = dict(facts["files"]), facts["owner"]
    except (UserError, KeyError, TypeError, ValueError):
        return f"{_LIST} is no list of its files"
    if of != owner:
        raise UserError(
            f"the checkpoint {folder} is of {of}, expected {owner}: put back the one that was there, or delete "
            f"{folder.parent.parent} to train this stage again"
        )
    found = _hashes(folder)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"{wrong[0]} is not what was written" if wrong else ""


@contextlib.contextmanager
def _os_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns errors of the operating system that TensorStore and Orbax raise in their own words into OSError."""
    try:
        with storage.naming(folder):
            yield
    except OSError:
        raise
    except Exception as error:
        if (found := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


def _check_shapes(saved: Any, like: Any) -> None:
    """Raises ValueError if two states differ in more than the rows of the head's table."""
    found, expected = ({_name(path): leaf.shape for path, leaf in _leaves(tree)} for tree in (saved, like))
    if found.keys() != expected.keys():
        raise ValueError(f"it lacks or adds {sorted(found.keys() ^ expected.keys())[0]}")
    for name, shape in expected.items():
        rows = 1 if name.startswith("table/") else 0
        if found[name][rows:] != shape[rows:]:
            raise ValueError(f"{name} is {list(found[name])}, expected {list(shape)}")


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Any) -> str:
    """`table/values/kernel`, whether a part is a key, an attribute or a position."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
