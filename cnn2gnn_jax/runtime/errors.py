"""Exceptions: mistakes that a user can correct, and interruptions after which the same command continues."""

import errno

INTERRUPTED = 130  # the exit code after Ctrl-C, as in a shell


def printable(text: str) -> str:
    """Replaces control characters by `?`, since names of files and classes may contain any."""
    return "".join(character if character.isprintable() else "?" for character in text)


class UserError(Exception):
    """Wrong input. The message says what was found, what was expected and what to do.

    `main` prints it as one line and exits with code 2. Nothing has been overwritten.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InUse(UserError):
    """Another process is using the folder."""


class Diverged(UserError):
    """A loss or a weight became NaN or infinite in training."""


_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "give this user the right to it, or choose another folder",
    errno.EPERM: "give this user the right to it, or choose another folder",
    errno.EROFS: "make it writable, or choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def of_machine(error: OSError) -> str:
    """Formats an error of the operating system as one line: the file, the reason, and what to do."""
    reason = " ".join(str(error.strerror or error).split())
    file = f"{error.filename}: " if error.filename else ""
    # NumPy's error has no number: it says how much of an array was written, but not why the rest was not.
    remedy = _REMEDIES.get(error.errno or 0, "see whether the disk is full or broken")
    return f"{file}{reason}: {remedy}, and the same command goes on"


class Stopped(BaseException):
    """The run was stopped by SIGTERM after its state was saved; the message says where.

    It is a BaseException, as KeyboardInterrupt is, so that no `except Exception` catches it. The program exits with
    code 75, and the same command continues the run.
    """


class Interrupted(Stopped):
    """The run was stopped by Ctrl-C after its state was saved. The program exits with code 130."""
