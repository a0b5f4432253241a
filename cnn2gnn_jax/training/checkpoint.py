"""Checkpoints by Orbax: the newest state of a stage, and the best where one is chosen on held-out images.

    <folder>/step_<n>/state/...        as Orbax writes it
    <folder>/step_<n>/manifest.json    of a verified folder, since Orbax notices few damages

Orbax writes beside and renames too; the manifest is written before it renames.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cnn2gnn_jax.runtime import artifact, processes, storage
from cnn2gnn_jax.runtime.console import say
from cnn2gnn_jax.runtime.errors import UserError

KIND = artifact.Kind("a checkpoint", format=1, remake="run the run's own command again")
# What Orbax writes or dates once all else is there; nothing of a state is read from them.
_LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")
_OS_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")  # as TensorStore words it


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
        self._saving: tuple[int, dict[str, Any]] = (0, {})  # the step and the facts of the checkpoint being written
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
        """Seals the checkpoint being written, before Orbax renames its folder."""
        if processes.is_first():
            step, facts = self._saving
            [beside] = self.folder.glob(f"step_{step}.*")
            artifact.seal(beside, KIND, self.owner, facts, _LATER)

    def newest(self) -> int | None:
        """The step of the newest checkpoint, None without any."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: dict[str, Any] | None = None) -> None:
        """Writes a state, in the background, and JSON facts about it."""
        # A copy, since the next step is given the buffers of the state itself to reuse.
        args = ocp.args.Composite(state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)))
        self.wait()
        self._saving = step, facts or {}
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

    def _saved(self, step: int) -> Any:
        """The shapes of the state of a step."""
        return ocp.StandardCheckpointHandler().metadata(self.folder.absolute() / f"step_{step}" / "state")

    def facts(self) -> dict[str, Any]:
        """The JSON facts saved with the newest state.

        Raises:
          UserError: it is damaged or another's.
        """
        return artifact.read_manifest(self.folder / f"step_{self._checked()}", KIND, self.owner)["facts"]

    def _checked(self) -> int:
        """The newest step, after its files were hashed; those that have changed since raise UserError."""
        step = self.newest()
        # Of the best there is but one.
        back = "run the run's own command again, which goes back to the one before; or " * (self.folder.name == "last")
        mend = f"{back}delete {self.folder.parent} to train this stage again"

        def check() -> None:
            try:
                artifact.read(self.folder / f"step_{step}", KIND, self.owner)
            except artifact.Refused as error:
                raise UserError(f"{error.what}: {mend}") from None

        if step is None:
            raise UserError(f"{self.folder} holds no checkpoint: {mend}")
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
        try:
            artifact.read(path, KIND, owner)
        except artifact.Damaged as error:
            say(f"{error.what}: it is removed, and training goes back to the checkpoint before")
            shutil.rmtree(path)
        except artifact.Refused as error:
            raise UserError(
                f"{error.what}: put back the one that was there, or delete {folder.parent} to train this stage again"
            ) from None
        else:
            return step
    return 0


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
