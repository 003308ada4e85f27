"""The error tree: all a user can cause, each with one line that says what was expected, what came, what to do."""


class AdaPrunerError(Exception):
    """Base of all errors raised on purpose; the command line prints the line and exits with `exit_code`."""

    exit_code = 2


class ConfigError(AdaPrunerError):
    """A run config, a flag or a Python argument says something that cannot be."""


class DataError(AdaPrunerError):
    """A data set is missing, empty, or says something that cannot be trained on."""


class RunError(AdaPrunerError):
    """A run folder cannot be written, read or resumed."""
