"""Speed, memory and equality on one GPU, in at most ten minutes, with nothing fetched: random weights in the shapes of
known models.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --shapes tiny

Of each shape: tokens a second without adapters and with 8, 32 and 256 genomes, beside transformers' own `generate`;
how often the host waits for the device; a GRPO update beside TRL's; the peak of memory; whether tokens and
log-probabilities are PEFT's. And a run of the bundled model. Prints a table and writes it, with all figures, as JSON.
What fails or has no time left is named there; the exit status is 1 if anything failed.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from evolora import evolve
from evolora.engine.base import Decoding, Scoring
from evolora.engine.calibration import choose_rows
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.text import Text
from evolora.models.base import BUNDLED_MODEL, load_base, module_tree
from evolora.models.lora import as_peft_model, lora_config, lora_layout
from evolora.refiners import GRPOConfig, GRPORefiner
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example

GENOMES = (0, 8, 32, 256)
PROMPTS = 8
GROUP = 8
LEARNING_RATE = 1e-5
# Of the genomes' noise: about as far from the base as adapters are after some generations.
NOISE = 0.01
_GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and how much is written by it."""

    kind: type[PreTrainedModel]
    config: Any
    new_tokens: int
    genomes: tuple[int, ...] = GENOMES


SHAPES: dict[str, Shape] = {
    "tiny": Shape(
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        ),
        new_tokens=24,
        genomes=(0, 4),
    ),
    "0.5B": Shape(
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
            num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        ),
        new_tokens=64,
    ),
    "7B": Shape(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
        ),
        new_tokens=64,
    ),
}  # fmt: skip


@dataclass
class Subject:
    """A model, its engine and layout, the founder of its genomes, and a tokenizer whose ids it knows."""

    name: str
    shape: Shape
    model: PreTrainedModel
    tokenizer: Any

    def __post_init__(self) -> None:
        self.lora = lora_config(self.model, dropout=0.0)
        self.layout, self.founder = lora_layout(self.model, self.lora, seed=0)
        self.engine = EagerEngine(self.model, self.layout)
        self.text = Text.of(self.model, self.tokenizer)
        words = "one two three four five six seven eight nine ten eleven twelve".split()
        self.prompts = [f"Count {' '.join(words[: 4 + index])}:" for index in range(PROMPTS)]
        self.ids = self.text.encode(self.prompts)

    def genomes(self, count: int) -> Tensor:
        noise = torch.randn(count, len(self.founder), generator=torch.Generator().manual_seed(count))
        return self.founder + NOISE * noise

    def decoding(self, new_tokens: int | None = None) -> Decoding:
        """To full length: nothing that can be written ends a completion."""
        return Decoding(max_new_tokens=new_tokens or self.shape.new_tokens, ends=[-1], pad=0)


def random_subject(name: str, device: str, dtype: torch.dtype, tokenizer: Any) -> Subject:
    shape, before = SHAPES[name], torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = shape.kind(shape.config)
    finally:
        torch.set_default_dtype(before)
    return Subject(name, shape, model.requires_grad_(False).eval(), tokenizer)


def timed(device: torch.device, work: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds, the median, after a warm-up; the device has finished."""
    seconds = []
    for _ in range(1 + repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def decoding(subject: Subject) -> dict[str, Any]:
    """Tokens a second, in slices as a run has them."""
    engine, how = subject.engine, subject.decoding()
    length = max(map(len, subject.ids)) + how.max_new_tokens
    rows = choose_rows(subject.model, length)
    found: dict[str, Any] = {"rows_per_slice": rows}
    for count in subject.shape.genomes:
        genomes = subject.genomes(count) if count else None
        size = max(1, rows // PROMPTS)

        def write(genomes: Tensor | None = genomes, size: int = size) -> None:
            if genomes is None:
                engine.generate(None, subject.ids * 8, how)
            for part in () if genomes is None else genomes.split(size):
                engine.generate(part, subject.ids, how)

        seconds = timed(engine.device, write, repeats=1 if count > 32 else 3)
        found[f"tokens a second, {count or 'no'} genomes"] = (count or 8) * PROMPTS * how.max_new_tokens / seconds
    stock = timed(engine.device, lambda: stock_generate(subject, subject.ids * 8))
    found["tokens a second, transformers' generate, no genomes"] = 8 * PROMPTS * how.max_new_tokens / stock
    return found


def stock_generate(subject: Subject, prompts: list[list[int]], model: Any = None) -> Tensor:
    """What transformers writes, greedily and to full length: [rows, tokens]."""
    net, width, new_tokens = model or subject.model, max(map(len, prompts)), subject.shape.new_tokens
    device = subject.model.device
    ids = torch.tensor([[0] * (width - len(own)) + own for own in prompts]).to(device)
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts]).to(device)
    with torch.no_grad():
        written: Tensor = net.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    return written[:, width:]


def waits(subject: Subject) -> dict[str, Any]:
    """How often the host waits for the device in a step, as CUDA itself reports it."""
    if subject.engine.device.type != "cuda":
        return {}
    counts = []
    for new_tokens in (16, 48):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                subject.engine.generate(subject.genomes(8), subject.ids, subject.decoding(new_tokens))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchronizing" in str(one.message) for one in said))
    return {"waits a step": (counts[1] - counts[0]) / 32, "waits of a call of 16 steps": counts[0]}


def equality(subject: Subject) -> dict[str, Any]:
    """An adapter's tokens and log-probabilities beside PEFT's; in half precision each side rounds its own way."""
    genome = subject.genomes(1)
    peft = as_peft_model(subject.model, subject.lora, state=subject.layout.to_state_dict(genome[0]))
    prompt = subject.ids[0]
    own = subject.engine.generate(genome, [prompt], subject.decoding())
    theirs = stock_generate(subject, [prompt], peft)[0].tolist()
    scored = subject.engine.score(genome, [prompt], own, Scoring()).log_probs[0].cpu()
    row = own.rows()[0]
    ids = torch.tensor([prompt + row]).to(subject.model.device)
    with torch.no_grad():
        plain = torch.log_softmax(peft(input_ids=ids).logits[0].float(), -1)[len(prompt) - 1 : -1].cpu()
    chosen = plain.gather(1, torch.tensor(row)[:, None])[:, 0]
    same = next((i for i, (a, b) in enumerate(zip(row, theirs, strict=True)) if a != b), len(row))
    return {
        "first tokens that are PEFT's": f"{same} of {len(row)}",
        "largest difference of log-probabilities": float((scored - chosen).abs().max()),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
    }


def even_words(completions: list[str], **_: object) -> list[float]:
    """A reward that costs nothing and differs within a group."""
    return [sum(ord(word[-1]) % 2 for word in text.split()) / 20 for text in completions]


def our_update(subject: Subject) -> Callable[[], None]:
    refiner = GRPORefiner(
        subject.engine,
        subject.text,
        RewardScorer(even_words),
        GRPOConfig(
            lr=LEARNING_RATE, rl_steps=1, rollout_samples=GROUP, epochs=1, minibatches=1, kl_weight=0.0,
            target_kl=None, max_new_tokens=subject.shape.new_tokens,
        ),
        seed=0,
    )  # fmt: skip
    examples = [Example(text, {}) for text in subject.prompts]

    def update() -> None:
        refined = refiner.refine(subject.founder[None], examples)
        if not refined.genomes.isfinite().all():
            raise RuntimeError("the update is not finite")

    return update


def update(subject: Subject) -> dict[str, Any]:
    """A GRPO update, rollout and one step, of 8 prompts x 8 completions; each side alone on the device."""
    device, tokens = subject.engine.device, PROMPTS * GROUP * subject.shape.new_tokens
    ours = timed(device, our_update(subject))
    found = {
        "seconds an update": ours,
        "completions": f"{PROMPTS} x {GROUP} x {subject.shape.new_tokens}, ends allowed",
    }
    theirs = trl_seconds(subject)
    return {**found, "seconds an update, TRL": theirs, "faster than TRL by": theirs / ours, "tokens at most": tokens}


def trl_seconds(subject: Subject, steps: int = 4) -> float:
    """The median of TRL's steps but the first."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig as TRLConfig
    from trl import GRPOTrainer

    device, seconds = subject.engine.device, []

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronise(device)
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronise(device)
            seconds.append(time.perf_counter() - self.started)

    with TemporaryDirectory() as folder:
        config = TRLConfig(
            output_dir=folder, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
            max_completion_length=subject.shape.new_tokens, max_steps=steps, num_iterations=1, beta=0.0,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", temperature=1.0, top_p=1.0, top_k=0,
            disable_dropout=True, gradient_checkpointing=False, use_cpu=device.type == "cpu",
            bf16=subject.model.dtype == torch.bfloat16, report_to="none", logging_strategy="no", save_strategy="no",
            eval_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=module_tree(subject.model),
            reward_funcs=even_words,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": subject.prompts}),
            processing_class=subject.tokenizer,
            peft_config=subject.lora,
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return statistics.median(seconds[1:])


def bundled(device: str) -> dict[str, Any]:
    """A run of the bundled model."""
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        result = evolve(gens=3, pop=8, device=device, out=Path(folder) / "run")
    last, winner = result.history[-1], result.summary["winner"]
    return {
        "seconds": time.perf_counter() - start,
        "tokens a second": last["time.tokens_per_second"],
        "test, base": result.summary["base"]["test"]["reward"],
        "test, winner": winner["test"]["reward"],
    }


class Report:
    """What was measured: shown as it comes, and written."""

    def __init__(self, out: Path, device: torch.device, minutes: float) -> None:
        self.out, self.device = out, device
        self.end = time.perf_counter() + 60 * minutes
        self.failed = 0
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.rows: dict[str, Any] = {"device": name, "torch": torch.__version__, "parts": {}}

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if time.perf_counter() > self.end:
            self._keep(name, {"not measured": "no time left"})
            return
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            found = measure()
        except Exception as error:  # the other measurements are worth having all the same
            traceback.print_exc()
            self.failed += 1
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        if self.device.type == "cuda":
            found["peak memory, GiB"] = torch.cuda.max_memory_allocated(self.device) / _GIB
        self._keep(name, {**found, "seconds of measuring": time.perf_counter() - start})

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        self.rows["parts"][name] = found
        for label, value in found.items():
            print(f"{name:<18} {label:<52} {f'{value:,.4g}' if isinstance(value, float) else value}", flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.rows, indent=1) + "\n")


PARTS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "equality": equality,
    "waits": waits,
    "decoding": decoding,
    "update": update,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["0.5B", "7B"])
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so many")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device(options.device)
    report = Report(options.out, device, options.minutes)
    tokenizer = load_base(BUNDLED_MODEL).tokenizer
    report.part("bundled model", lambda: bundled(options.device))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    for name in options.shapes:
        subject = random_subject(name, options.device, dtype, tokenizer)
        for part, measure in PARTS.items():
            report.part(f"{name} {part}", lambda measure=measure, subject=subject: measure(subject))
        del subject
        if name == options.shapes[0] and dtype != torch.float32:
            exact = random_subject(name, options.device, torch.float32, tokenizer)
            report.part(f"{name} equality in float32", lambda exact=exact: equality(exact))
            del exact
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
