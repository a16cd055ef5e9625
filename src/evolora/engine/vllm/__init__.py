"""vLLM with the genomes in its LoRA slots: it writes completions and does not train. Imported where it is asked for."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from evolora.models.quantization import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evolora.models.genome import GenomeLayout

BLOCK = 128
"""Tokens of a block of keys and values on a CPU, of which a row has whole ones; others have smaller blocks. What was
computed of a whole one is found again."""

# The precisions that both sides have.
_DTYPES = ("float32", "bfloat16", "float16")


def refuses(model: "PreTrainedModel", layout: "GenomeLayout") -> str | None:
    """Why vLLM cannot write for `model` with genomes of `layout`, in words; None where it can. vLLM is imported only
    where nothing else speaks against it."""
    if is_quantised(model):
        return "the base is quantised"
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        return f"vLLM has no {dtype}"
    if model.get_output_embeddings() in [model.get_submodule(module.name) for module in layout.modules]:
        return "the output embedding is adapted"
    if find_spec("vllm") is None:
        return "vLLM is not installed; it wants an environment of its own (docs/engines.md has the two lines)"
    from evolora.engine.vllm.loading import refuses_architecture

    return refuses_architecture(model)
