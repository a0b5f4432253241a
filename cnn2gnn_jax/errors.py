"""The one exception for mistakes that a user can make and mend."""


class UserError(Exception):
    """Wrong input: the message says what was found, what was expected and what to do.

    `main` prints it as one line and exits with code 2; nothing has been overwritten.
    """
