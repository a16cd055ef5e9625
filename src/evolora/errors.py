"""The errors that users meet."""


class InputError(ValueError):
    """Bad input, found before any work: one sentence that names the option or the file and line, what was found and
    what was expected. The command line prints it and exits with code 2."""


class RewardError(RuntimeError):
    """A reward function raised or returned something that is not one score per completion."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, truncated or altered; the message names the file."""
