"""The base model: SmolLM2-135M-Instruct, as scripts/smollm2.py brings it."""

import sys
from pathlib import Path


def base_model() -> str:
    """Its folder, brought if it is not there."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
    from smollm2 import bring

    return str(bring())
