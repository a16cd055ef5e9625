"""An engine on a CPU: compiled products, attention and GPT-2 passes. Imported where it is chosen, and only there."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from evolora.models.quantization import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evolora.models.genome import GenomeLayout


def refuses(model: "PreTrainedModel", _layout: "GenomeLayout") -> str | None:
    """Why the engine cannot run `model`, in words; None where it can. Asked before anything is compiled or imported."""
    if model.device.type != "cpu":
        return f"the model is on {model.device}"
    if is_quantised(model):
        return "the base is quantised"
    if find_spec("numba") is None:
        return "without numba, which pip install 'evolora[fast]' brings"
    return None


def has_passes(model: "PreTrainedModel") -> bool:
    """Whether the engine has passes of its own for `model`, which keep what they need."""
    return bool(model.config.model_type == "gpt2")
