"""The exception for mistakes that a user can make and mend, and what ends a run that is to go on later."""

import errno

INTERRUPTED = 130  # the exit code after Ctrl-C, as of a shell's


def printable(text: str) -> str:
    """One line without what a terminal would act on: names of files and classes may hold anything."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


class UserError(Exception):
    """Wrong input: the message says what was found, what was expected and what to do.

    `main` prints it as one line and exits with code 2; nothing has been overwritten.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InUse(UserError):
    """Another process works in the folder that this one was to work in."""


class Diverged(UserError):
    """A loss or a weight became NaN or infinite in training."""


_MEND = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "give this user the right to it, or choose another folder",
    errno.EPERM: "give this user the right to it, or choose another folder",
    errno.EROFS: "make it writable, or choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def of_machine(error: OSError) -> str:
    """One line for what the machine refused: the file, why, and what to do; nothing half-written was left in place."""
    what = " ".join(str(error.strerror or error).split())
    where = f"{error.filename}: " if error.filename else ""
    # NumPy says how much of an array was written, and not why the rest was not.
    mend = _MEND.get(error.errno or 0, "see whether the disk is full or broken")
    return f"{where}{what}: {mend}, and the same command goes on"


class Stopped(BaseException):
    """SIGTERM: what can be saved is, and the same command goes on; the message says where it stopped.

    As with KeyboardInterrupt, no `except Exception` may swallow it. The program exits with code 75.
    """


class Interrupted(Stopped):
    """Ctrl-C in a program that saves its state, as SIGTERM does. It exits with code 130."""
