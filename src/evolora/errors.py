"""The errors that users meet. None of them shows a key."""

from evolora.masking import mask


class _Masked:
    def __init__(self, *arguments: object) -> None:
        super().__init__(*(mask(each) if isinstance(each, str) else each for each in arguments))


class InputError(_Masked, ValueError):
    """Bad input, found before any work: one sentence that names the option or the file and line, what was found and
    what was expected. The command line prints it and exits with code 2."""


class RewardError(_Masked, RuntimeError):
    """A reward function raised or returned something that is not one score per completion."""


class CheckpointError(_Masked, RuntimeError):
    """A checkpoint is missing, truncated or altered; the message names the file."""
