"""The two kinds of trouble a user can be told about; anything else is a bug."""


class UserError(Exception):
    """Trouble that one line can explain, and that names its fix. Shown without a traceback."""

    exit_code = 1


class SetupError(UserError):
    """Wrong before any data is read: a recipe, an option, a missing file. Exit code 2."""

    exit_code = 2


class DataError(UserError):
    """Found in the data or while running. Exit code 1."""

    exit_code = 1
