"""Does an engine say of a model what the model itself says, and of an adapter what PEFT says?

Architectures go wrong in silence: state that runs over left padding, an adapter that is added to the wrong rows, a
cache that loses a row. So before a run two uneven prompts are completed in one batch, by the base and by an adapter of
noise, and compared with plain forward passes, one text at a time, without padding and cache.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

import evolora.models.lora
from evolora.engine.base import Engine, Scoring
from evolora.engine.oracle import largest, log_probs_of, logits_of, said_of, tolerance_of, uneven_prompts
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.files import user_cache
from evolora.models.lora import as_peft_model
from evolora.models.quantization import is_quantised

_NEW_TOKENS = 6
# The noise's size in the genome, doubled until it changes log-probabilities by so much, and so many tolerances.
_LEAST_NOISE, _MOST_NOISE, _SHOWS, _TIMES_TOLERANCE = 0.02, 2.0, 0.1, 5.0


@dataclass(frozen=True)
class Difference:
    """By how much an engine's log-probabilities differ from the model's own, at most, and by how much they may."""

    of_base: float
    of_adapter: float
    tolerance: float

    @property
    def largest(self) -> float:
        return max(self.of_base, self.of_adapter)

    @property
    def too_large(self) -> bool:
        return not self.largest <= self.tolerance  # NaN is no equality


def checked(
    engine: Engine, model: PreTrainedModel, lora: LoraConfig, check: Callable[[], Difference]
) -> Difference | None:
    """`check`, which is `check_engine`, once for a model's kind, its adapter's and the versions of what runs them; None
    where that is known to be right. What is known is in the user's cache folder."""
    mark = _mark(engine, model, lora)
    if mark is not None and mark.exists():
        return None
    found = check()
    if mark is not None:
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return found


def _mark(engine: Engine, model: PreTrainedModel, lora: LoraConfig) -> Path | None:
    """The file that is there once the engine was found to be right; None where there is no place for it."""
    with contextlib.suppress(OSError, RuntimeError):
        digest = hashlib.sha256()
        for room in (Path(__file__).parent, Path(evolora.models.lora.__file__).parent):
            for path in sorted(room.rglob("*.py")):
                digest.update(path.read_bytes())
        config = {**model.config.to_dict(), "_name_or_path": None, "attention": model.config._attn_implementation}
        adapter = {**lora.to_dict(), "base_model_name_or_path": None}
        versions = [torch.__version__, transformers.__version__, peft.__version__]
        if is_quantised(model):
            versions.append(version("bitsandbytes"))
        kind = [getattr(engine, "name", type(engine).__name__), str(engine.device.type), str(model.dtype), versions]
        digest.update(json.dumps([config, adapter, kind], sort_keys=True, default=str).encode())
        return user_cache() / "checked" / digest.hexdigest()[:32]
    return None


def check_engine(
    engine: Engine,
    model: PreTrainedModel,
    lora: LoraConfig,
    founder: Tensor,
    text: Text,
    *,
    name: str,
    writes: str | None = None,
) -> Difference:
    """Compare `engine` with `model` and with PEFT's adapter of the genome `founder` [genome_length] and noise; `name`
    is the model's in messages, and `writes` that of an engine of another program which writes, and whose libraries may
    be in the model's way. What was found.

    Raises InputError where they differ, or where the engine cannot run the model.
    """
    try:
        found = _difference(engine, model, lora, founder, text)
    except InputError:
        raise
    except Exception as error:  # whatever an architecture breaks, in the engine or in transformers
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if writes is not None:
            raise InputError(
                f"--engine {writes}: cannot be had: {_kind(model)} cannot be run beside it ({what}), expected --engine "
                "auto"
            ) from error
        raise InputError(f"--model {name}: {_kind(model)} cannot be run ({what}), expected another model") from error
    if not found.too_large:
        return found
    if not found.of_base <= found.tolerance:
        where = _first_layer_that_differs(model, text, found.tolerance)
        raise InputError(
            f"--model {name}: {_kind(model)} says something else of a prompt in a batch than of the same prompt alone "
            f"(log-probabilities differ by {found.of_base:.2g}, {found.tolerance:.2g} is rounding){where}, expected a "
            "model that can be run in batches"
        )
    layers = sorted({type(model.get_submodule(module.name)).__name__ for module in engine.layout.modules})
    raise InputError(
        f"--model {name}: an adapter on {_kind(model)} does not say what PEFT's says (log-probabilities differ by "
        f"{found.of_adapter:.2g}, {found.tolerance:.2g} is rounding; adapted are {', '.join(layers)}), expected other "
        "--target-modules"
    )


def _difference(engine: Engine, model: PreTrainedModel, lora: LoraConfig, founder: Tensor, text: Text) -> Difference:
    prompts = uneven_prompts(text, model, _NEW_TOKENS)
    base = [logits_of(model, prompt) for prompt in prompts]
    tolerance = tolerance_of(base, model)

    size = _LEAST_NOISE
    while True:
        genomes = torch.stack([torch.zeros_like(founder), founder + size * _noise(founder)])
        noisy = as_peft_model(model, lora, state=engine.layout.to_state_dict(genomes[1]))
        adapted = [log_probs_of(logits_of(noisy, prompt)) for prompt in prompts]
        effect = largest(
            [float((log_probs_of(own) - other).abs().max()) for own, other in zip(base, adapted, strict=True)]
        )
        needed = max(_SHOWS, _TIMES_TOLERANCE * tolerance)
        if not effect < needed:  # NaN goes on, and differs
            break
        if size >= _MOST_NOISE:
            raise InputError(
                f"--target-modules: an adapter there changes nothing that {_kind(model)} says, expected others"
            )
        size *= 2
    how = text.decoding(_NEW_TOKENS)
    first = engine.generate(genomes, prompts, how)
    # Once more, with an end that a row meets early: it leaves the batch, and the others go on as they would.
    early = first.rows()[0][min(1, len(first.rows()[0]) - 1)]
    again = engine.generate(genomes, prompts, replace(how, ends=(*how.ends, early)))
    off: list[list[float]] = [[], []]
    for completions in (first, again):
        scored = engine.score(genomes, prompts, completions, Scoring()).log_probs.double().cpu()
        for place, row in enumerate(completions.rows()):
            whose, prompt = place // len(prompts), prompts[place % len(prompts)]
            chosen, likeliest, _ = said_of((model, noisy)[whose], prompt, row)
            off[whose] += [
                float((scored[place, : len(row)] - chosen).abs().max()),
                float((likeliest - chosen).max()),  # a greedy token is the likeliest
            ]
    return Difference(largest(off[0]), largest(off[1]), tolerance)


def _noise(founder: Tensor) -> Tensor:
    return torch.randn(founder.shape, generator=torch.Generator().manual_seed(0))


def _kind(model: PreTrainedModel) -> str:
    return type(model).__name__


@torch.no_grad()
def _first_layer_that_differs(model: PreTrainedModel, text: Text, tolerance: float) -> str:
    """Where a padded text first becomes another, in words; nothing where it is not seen."""
    short, long = uneven_prompts(text, model, _NEW_TOKENS)
    padding = len(long) - len(short)
    padded = torch.tensor([[0] * padding + short, long])
    mask = torch.ones_like(padded)
    mask[0, :padding] = 0
    seen: list[tuple[str, Tensor]] = []

    def keep(module: nn.Module, _: object, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            seen.append((type(module).__name__, hidden))

    leaves = [module for module in model.modules() if any(True for _ in module.children())]
    hooks = [module.register_forward_hook(keep) for module in leaves]
    try:
        model(input_ids=torch.tensor([short], device=model.device))
        alone, seen = seen, []
        model(input_ids=padded.to(model.device), attention_mask=mask.to(model.device))
    except Exception:
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    for (kind, own), (_, batch) in zip(alone, seen, strict=False):
        if batch.shape[1] == len(long) and float((batch[0, padding:] - own[0]).abs().max()) > tolerance:
            return f"; the first layer that does is a {kind}"
    return ""
