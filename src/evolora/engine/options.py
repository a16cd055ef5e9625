"""Options of the engine, and of how it completes prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from evolora.options import Options, option

EngineName = Literal["auto", "cpu", "eager", "vllm"]
ProductsName = Literal["auto", "torch", "compiled"]
RecomputedName = Literal["off", "selective", "on"]
CheckpointingName = Literal["auto", "off", "selective", "on"]

ENGINES: Mapping[str, str] = {
    "cpu": "evolora.engine.cpu.engine:CpuEngine",
    "eager": "evolora.engine.eager.engine:EagerEngine",
    "vllm": "evolora.engine.vllm.engine:VllmWriter",
}
"""Each engine's class, as module:class, imported where it is chosen: numba and all that is compiled only where it is
used."""

# How long completions are where no target says it.
NO_TARGETS = 32


class EngineOptions(Options):
    """Who computes, and on what."""

    type: EngineName = option(
        "auto",
        "what runs the model: evolora's compiled passes (cpu), transformers' own layers (eager), the faster of "
        "them, or vLLM to write completions and the eager engine to score and train on them (vllm)",
    )
    device: str = option(
        "auto",
        "where to compute: auto (cuda where there is one), cpu, cuda, cuda:1, or several: cuda:0,cuda:1",
        common=True,
    )
    threads: int = option(
        0, "CPU threads; 0 takes all cores, or half if a large model is measured to be faster", common=True, ge=0
    )
    products: ProductsName = option(
        "auto",
        "what multiplies float32 matrices on a CPU: torch's own library, evolora's compiled products, or the faster",
    )
    rows_per_slice: int | None = option(
        None,
        "rows that go through the model together; default: what fits into half the free memory, at most 512 on a CPU",
        ge=1,
    )
    update_tokens: int | None = option(
        None,
        "tokens whose activations an update keeps at a time, on each thread; more go in micro-batches; default: those "
        "of half the free memory in all, halved when memory runs out",
        ge=1,
    )
    gradient_checkpointing: CheckpointingName = option(
        "auto",
        "what an update computes again on its way back, to keep less: nothing (off), what costs little (selective), or "
        "every layer (on); default: nothing of small models, every layer of others on a CPU, else as little as fits "
        "into half the free memory",
    )
    canary: bool = option(
        True, "check in every generation that the adapters are truly applied (--no-canary: only before the run)"
    )
    vllm_slots: int | None = option(
        None,
        "genomes that vLLM holds at a time (--engine vllm); more go in waves; default: what fits into a quarter of the "
        "free memory, at most 256",
        ge=1,
    )
    vllm_sleep: bool = option(
        False, "vLLM gives its memory to an update, and takes it back before it writes again (--engine vllm on a GPU)"
    )
    draft_rows: int = option(
        8, "most rows whose completions are drafted by their parent's and checked in one pass; 0 never", ge=0
    )

    def go_together(self) -> None:
        super().go_together()
        if self.type != "vllm" and self.vllm_slots is not None:
            raise ValueError(f"--vllm-slots {self.vllm_slots} with --engine {self.type}: expected --engine vllm")
        if self.type != "vllm" and self.vllm_sleep:
            raise ValueError(f"--engine {self.type} with --vllm-sleep: expected --engine vllm")


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Which tokens sampling keeps of softmax(logits / temperature): the `top_k` likeliest (0: all); of these the fewest
    likeliest that have the share `top_p` (nucleus sampling: Holtzman et al., 2020, arXiv 1904.09751); and those of at
    least `min_p` times the likeliest's probability (Nguyen et al., 2024, arXiv 2407.01082). As transformers has them,
    but for ties, which are kept together."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def _stops(value: Any) -> Any:
    """A list of texts, of one as well."""
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list) and not all(found):
        raise PydanticCustomError("stop", "expected texts that are not empty")
    whole = isinstance(found, list) and all(isinstance(text, str) for text in found)
    return [text.replace("\\n", "\n") for text in found] if whole else value


Stop = Annotated[list[str] | None, BeforeValidator(_stops)]


def temperature_option() -> Any:
    """The field, which other parts are told, too."""
    return option(1.0, "sampling temperature of the rollouts", of="completion", gt=0)


class CompletionOptions(Options):
    """How prompts are completed."""

    max_new_tokens: int | None = option(
        None, "longest completion in tokens; default from the targets", of="completion", common=True, ge=1
    )
    temperature: float = temperature_option()
    top_k: int = option(0, "rollouts sample among so many likeliest tokens; 0: among all", of="completion", ge=0)
    top_p: float = option(
        1.0, "rollouts sample among the fewest likeliest tokens that have this share", of="completion", gt=0, le=1
    )
    min_p: float = option(
        0.0,
        "rollouts sample among tokens of at least this share of the likeliest's probability",
        of="completion",
        ge=0,
        le=1,
    )
    eos_token: str | None = option(None, "token that ends a completion, beside the model's own", of="completion")
    stop: Stop = option(
        None,
        "texts that end a completion, which is cut before them; \\n in one is a new line",
        of="completion",
        free_text=True,
    )
    special_tokens: bool = option(
        True,
        "leave special tokens that do not end a completion in the text that rewards see (--no-special-tokens: all are "
        "taken out, as TRL does)",
        of="completion",
    )

    @property
    def truncation(self) -> Truncation | None:
        """What sampling keeps of each distribution; None for all of it."""
        found = Truncation(top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        return None if found == Truncation() else found

    @property
    def longest(self) -> int:
        """The longest completion in tokens, where no task is there to say it."""
        return self.max_new_tokens or NO_TARGETS
