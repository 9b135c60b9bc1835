"""The errors a user can meet, each with the exit code the command line returns for it.

A message says what is wrong, the numbers involved, and what to do. Anything that is not a `ForetellError` is a defect
of ours and keeps its traceback.
"""


class ForetellError(Exception):
    """Something the user can mend. Exit code 2: one clear message, no traceback."""

    exit_code = 2


class ConfigError(ForetellError):
    """A configuration key or value is wrong."""


class DataError(ForetellError):
    """The text, or the prepared data, cannot be used."""


class ModelError(ForetellError):
    """A model folder or file cannot be used."""


class CheckpointError(ForetellError):
    """A checkpoint is damaged, or does not belong to this run."""


class PlanError(ForetellError):
    """No forecast can be made, or nothing fits the budget."""


class MissingExtra(ForetellError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the extra `{extra}`: pip install 'foretell[{extra}]'")


class CheckFailed(ForetellError):
    """A check the user asked for did not hold. Exit code 3."""

    exit_code = 3


class Interrupted(ForetellError):
    """A signal ended the work and everything is saved. Exit code 128 + signal: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
