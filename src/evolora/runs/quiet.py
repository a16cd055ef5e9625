"""Libraries that speak unasked."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quieten() -> None:
    """Keep the libraries' progress bars and notices off the screen: what matters, the run itself says."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it wherever it is installed
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


@contextmanager
def quietened() -> Iterator[None]:
    """Inside, transformers shows no progress bars and no notices, which would break a screen; outside, what its user
    has set."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
