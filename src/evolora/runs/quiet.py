"""Libraries that speak unasked."""

import logging
import warnings


def quieten() -> None:
    """Keep the libraries' progress bars and notices off the screen: what matters, the run itself says."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it wherever it is installed
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
