"""The exception for mistakes that a user can make and mend, and what ends a run that is to go on later."""


class UserError(Exception):
    """Wrong input: the message says what was found, what was expected and what to do.

    `main` prints it as one line and exits with code 2; nothing has been overwritten.
    """


class Stopped(BaseException):
    """SIGTERM: what can be saved is, and the same command goes on; the message says where it stopped.

    As with KeyboardInterrupt, no `except Exception` may swallow it. `main` exits with code 75.
    """
