"""What an adapter is worth on the test rows, and what it has kept: from the adapter alone, whoever made it."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor

from evolora.engine.base import Completions, Scoring
from evolora.fitness.macro_f1 import make_macro_f1
from evolora.population.writing import Writer, Written, rewarded
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.runs.assembly import assemble
from evolora.runs.given import Given
from evolora.runs.options import make_options
from evolora.runs.tracking.view import Silence
from evolora.tasks.task import Example, columns_of
from testbed.tasks import MAX_NEW_TOKENS, BedTask

SAMPLES = 16  # of a test prompt, for pass@16
KL_SAMPLES = 2  # of them, for the KL on the task's prompts
ROWS = 512
AT_ONCE = 20  # neutral sentences

_SUBJECTS = (
    "The ferry to the island", "A train from the coast", "The library on the corner", "An old stone bridge",
    "The market in the square", "A small bakery", "The road along the river", "The school near the park",
    "A painter from the south", "The museum of science", "A farmer in the valley", "The orchestra of the town",
    "The garden behind the house", "A group of hikers", "The clock on the tower", "The first snow of the year",
    "A ship with red sails", "The lamp in the hall", "The teacher of the class", "A cloud over the hills",
)  # fmt: skip
_REST = (
    "was seen by many people last week.", "is known for its long history.", "will be there again in the spring.",
    "has changed little in the past ten years.", "is described in a book from 1920.",
    "was the subject of a short film.",
    "can be reached on foot in an hour.", "made everybody smile that morning.", "is one of three of its kind.",
    "was quieter than usual on Monday.",
)  # fmt: skip


def neutral_sentences() -> list[str]:
    """200 sentences of no task, on which nothing should change."""
    return [f"{subject} {rest}" for subject, rest in product(_SUBJECTS, _REST)]


@contextmanager
def assembled(task: BedTask, model: str, reward: str, adapter: Path | None) -> Iterator[Parts]:
    """The parts of a run on a task, with the adapter, or the untouched base, as the founder."""
    with tempfile.TemporaryDirectory(prefix="evolora-testbed-") as folder:
        data = Path(folder) / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in task.rows), encoding="utf-8")
        words = {"model": model, "data": str(data), "reward": reward, "threads": 1, **task.run_options}
        parts = assemble(make_options(words), Given(), Silence(), adapter)
        try:
            yield parts
        finally:
            parts.close()


def fitness_of(task: BedTask, texts: Sequence[str], examples: Sequence[Example]) -> float:
    """What one individual's completions are worth, one of each example."""
    columns = columns_of(list(examples))
    if task.by_completion:
        return float(np.mean(task.hits(texts, columns)))
    return float(make_macro_f1()(completions=texts, target=columns["target"])(np.arange(len(texts))))


def judge(task: BedTask, model: str, reward: str, adapter: Path | None, seed: int) -> dict[str, Any]:
    """An adapter on the test rows: its fitness and its `reward`'s mean, greedily; pass@1 and pass@16 at temperature 1;
    KL from the base, in nats a token, on what it writes there (`kl`) and on neutral sentences (`drift`)."""
    with assembled(task, model, reward, adapter) as parts:
        examples = list(parts.task.test)
        genome = torch.zeros_like(parts.founder) if adapter is None else parts.founder
        writer = Writer(parts.engine, parts.text)
        greedy = writer.write_in_slices(genome[None], examples, MAX_NEW_TOKENS, rows=ROWS)
        hits, written = sampled(task, writer, genome, examples, seed)
        rows = written.ids
        few = [number for number in range(len(rows)) if number % SAMPLES < KL_SAMPLES]
        prompts = parts.text.encode([examples[number // SAMPLES].prompt for number in few])
        found: dict[str, Any] = {
            "fitness": fitness_of(task, greedy.texts, examples),
            "reward": float(np.nanmean(rewarded(parts.scorer, greedy).rewards)),
            "pass_1": float(hits.mean()),
            "pass_16": float(hits.any(1).mean()),
            "kl": _kl_of_samples(parts, genome, prompts, [rows[number] for number in few]),
        }
        found["drift"] = 0.0 if adapter is None else drift(parts, adapter)
        found["texts"] = greedy.texts[:4]
        return found


def sampled(
    task: BedTask, writer: Writer, genome: Tensor, examples: Sequence[Example], seed: int
) -> tuple[npt.NDArray[np.bool_], Written]:
    """Which of a prompt's 16 samples hit, [prompts, samples], and all that was written, prompt by prompt."""
    often = [example for example in examples for _ in range(SAMPLES)]
    draws = np.random.default_rng(keyed_seed(seed, "testbed samples"))
    seeds = draws.integers(0, 2**63, len(often)).astype(np.uint64)
    written = writer.write_in_slices(genome[None], often, MAX_NEW_TOKENS, rows=ROWS, seeds=seeds)
    hits = np.array(task.hits(written.texts, columns_of(often)), dtype=bool)
    return hits.reshape(len(examples), SAMPLES), written


def _kl_of_samples(parts: Parts, genome: Tensor, prompts: list[list[int]], rows: list[list[int]]) -> float:
    """The mean of Schulman's k3, q / p - 1 - log(q / p), over the tokens that the adapter wrote with probability p and
    the base would have with q."""
    total, tokens = 0.0, 0
    for start in range(0, len(rows), 64):
        part = slice(start, start + 64)
        written = Completions.of_ids(rows[part], parts.text.pad)
        own, base = (
            parts.engine.score(who, prompts[part], written, Scoring()).log_probs.detach().double()
            for who in (genome[None], None)
        )
        ratio = (base - own)[written.mask]
        total += float((ratio.exp() - 1 - ratio).sum())
        tokens += written.tokens
    return total / max(tokens, 1)


def drift(parts: Parts, adapter: Path) -> float:
    """KL(adapter || base) over the whole vocabulary, the mean over the tokens of the neutral sentences, by PEFT."""
    rows = sorted(parts.text.encode(neutral_sentences()), key=len)
    model = PeftModel.from_pretrained(parts.base.model, adapter).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), AT_ONCE):
            some = Completions.of_ids(rows[start : start + AT_ONCE], parts.text.pad)
            # What is padded on the right is seen by nobody before it.
            own = torch.log_softmax(model(input_ids=some.ids).logits.float(), -1)
            with model.disable_adapter():
                base = torch.log_softmax(model(input_ids=some.ids).logits.float(), -1)
            total += float((own.exp() * (own - base)).sum(-1)[some.mask].sum())
            count += some.tokens
    return total / count
