"""Orbax checkpoints: the newest states of a stage, and the best one if the epoch is chosen on held-out images.

    <folder>/step_<n>/state/...        written by Orbax
    <folder>/step_<n>/manifest.json    hashes of the files, since Orbax detects little damage

Orbax writes a temporary folder and renames it; the manifest is written before that.
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
from cnn2gnn_jax.runtime.console import log
from cnn2gnn_jax.runtime.errors import UserError

KIND = artifact.Kind("a checkpoint", format=1, remake="run the run's own command again")
# Files that Orbax writes or changes last; no part of a state is read from them.
_UNHASHED = ("commit_success.txt", "_CHECKPOINT_METADATA")
_OS_ERROR = re.compile(r"(?:OS error |os_error_code=')(\d+)")  # in messages of TensorStore


class Checkpoints:
    """The checkpoints in one folder, of which the newest `keep` are kept; a context manager.

    Args:
      folder: the folder.
      owner: a fingerprint of what is trained; checkpoints of another owner are refused.
      keep: the number of checkpoints that are kept.

    Raises:
      OSError: from any method, if the disk is full or cannot be used for another reason.
    """

    def __init__(self, folder: pathlib.Path, owner: str, keep: int = 2) -> None:
        self.folder, self.owner = folder, owner
        self._saving: tuple[int, dict[str, Any]] = (0, {})  # step and facts of the checkpoint being written
        finished = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step", async_options=finished)
        with _os_errors(folder):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()  # raises the error of a write in progress
        finally:
            with _os_errors(self.folder):
                self._manager.close()

    def _seal(self) -> None:
        """Writes the manifest of the checkpoint being written, before Orbax renames its folder."""
        if processes.is_first():
            step, facts = self._saving
            [temporary] = self.folder.glob(f"step_{step}.*")
            artifact.seal(temporary, KIND, self.owner, facts, _UNHASHED)

    def newest(self) -> int | None:
        """The step of the newest checkpoint; None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: dict[str, Any] | None = None) -> None:
        """Writes a state and JSON facts about it, in the background."""
        # A copy, since the state is donated to the next step.
        args = ocp.args.Composite(state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)))
        self.wait()
        self._saving = step, facts or {}
        with _os_errors(self.folder):
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until the write in progress is complete."""
        with _os_errors(self.folder):
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """Restores the newest state.

        The number of devices that wrote it does not matter: rows that pad the head's table are added or dropped.

        Args:
          like: the state's shapes, with the shardings that determine where its arrays are put.

        Raises:
          UserError: it is damaged, has another owner or other shapes, or cannot be read.
        """
        step = self._checked()
        try:
            _check_shapes(self._saved(step), like)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like, strict=False))
            with _os_errors(self.folder):
                return self._manager.restore(step, args=args).state
        except Exception as error:  # Orbax and TensorStore raise many types
            if isinstance(error, MemoryError | jax.errors.JaxRuntimeError) or (
                isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
            ):
                raise  # an error of the machine, not of the files
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} cannot be restored ({reason}): "
                "delete that folder to train this stage again"
            ) from error

    def restore_as_saved(self) -> Any:
        """Restores the newest state as nested dictionaries of arrays on one device, with the shapes it was saved with.

        Raises:
          UserError: it is damaged or has another owner.
        """
        step, sharding = self._checked(), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), self._saved(step).tree)
        with _os_errors(self.folder):
            return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state

    def _saved(self, step: int) -> Any:
        """The shapes of the saved state of a step."""
        return ocp.StandardCheckpointHandler().metadata(self.folder.absolute() / f"step_{step}" / "state")

    def facts(self) -> dict[str, Any]:
        """The JSON facts that were saved with the newest state.

        Raises:
          UserError: it is damaged or has another owner.
        """
        return artifact.read_manifest(self.folder / f"step_{self._checked()}", KIND, self.owner)["facts"]

    def _checked(self) -> int:
        """The newest step, whose files are verified; raises UserError if they have changed."""
        step = self.newest()
        # Only the newest checkpoints have an earlier one to go back to.
        retry = "run the run's own command again, which goes back to the one before; or " * (self.folder.name == "last")
        remedy = f"{retry}delete {self.folder.parent} to train this stage again"

        def check() -> None:
            try:
                artifact.read(self.folder / f"step_{step}", KIND, self.owner)
            except artifact.Refused as error:
                raise UserError(f"{error.reason}: {remedy}") from None

        if step is None:
            raise UserError(f"{self.folder} holds no checkpoint: {remedy}")
        processes.on_first(check)
        return step


def recover(folder: pathlib.Path, owner: str) -> int:
    """Returns the step of the newest intact checkpoint, and removes damaged ones so that training can continue from it.

    Only one process may call it, under a lock.

    Args:
      folder: the folder, which may be missing.
      owner: as for `Checkpoints`.

    Returns:
      The step; 0 without an intact checkpoint.

    Raises:
      UserError: the newest checkpoint has another owner.
    """
    steps = [int(name) for path in folder.glob("step_*") if (name := path.name.removeprefix("step_")).isdigit()]
    for step in sorted(steps, reverse=True):
        path = folder / f"step_{step}"
        try:
            artifact.read(path, KIND, owner)
        except artifact.Damaged as error:
            log(f"{error.reason}: it is removed, and training goes back to the checkpoint before")
            shutil.rmtree(path)
        except artifact.Refused as error:
            raise UserError(
                f"{error.reason}: put back the one that was there, or delete {folder.parent} to train this stage again"
            ) from None
        else:
            return step
    return 0


@contextlib.contextmanager
def _os_errors(folder: pathlib.Path) -> Iterator[None]:
    """Raises OSError for errors of the operating system that TensorStore and Orbax report in their own messages."""
    try:
        with storage.naming(folder):
            yield
    except OSError:
        raise
    except Exception as error:
        if (match := _OS_ERROR.search(str(error))) is None:
            raise
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(folder)) from error


def _check_shapes(saved: Any, like: Any) -> None:
    """Raises ValueError if two states differ in more than the rows of the head's table."""
    saved_shapes, expected = ({_name(path): leaf.shape for path, leaf in _leaves(tree)} for tree in (saved, like))
    if saved_shapes.keys() != expected.keys():
        raise ValueError(f"it lacks or adds {sorted(saved_shapes.keys() ^ expected.keys())[0]}")
    for name, shape in expected.items():
        rows = 1 if name.startswith("table/") else 0
        if saved_shapes[name][rows:] != shape[rows:]:
            raise ValueError(f"{name} is {list(saved_shapes[name])}, expected {list(shape)}")


def _leaves(tree: Any) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Any) -> str:
    """The name of a leaf, as `table/values/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
