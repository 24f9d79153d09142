"""The two kinds of error that a user sees as one line; everything else is a bug or an outage and keeps its traceback."""


class UsageError(ValueError):
    """The command line or the job file is wrong (exit code 2): names the file, the key and what was expected."""


class RunError(RuntimeError):
    """The run cannot go on (exit code 1): says what happened and what to do next."""
