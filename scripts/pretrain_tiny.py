"""Pre-train the bundled tiny GPT-2 from scratch: tokenizer, training, verification, model card.

`python scripts/pretrain_tiny.py` rewrites the package's asset folder. The model is written to a temporary folder
beside its place, verified there as a user would load it, and only then moved in.
"""

import argparse
import math
import os
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tiny_data import (
    ASSETS,
    DEFAULT_SEED,
    STRAY_WORDS,
    SUMS,
    Row,
    Stream,
    Text,
    load_pairs,
    make_streams,
    make_tasks,
    write_tasks,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

EOS = "<|endoftext|>"
VOCABULARY = 1024
CONTEXT = 128
# Rows of each task in one training step. Translation has the most to memorise.
ROWS = {"translate": 192, "arithmetic": 48, "sentiment": 12, "format": 20}
PEAK_RATE = 2.5e-3
WARM_UP = 100
# What a prompt says cannot be predicted, so its tokens weigh little.
PROMPT_WEIGHT = 0.05
SAMPLES = 8


# Training


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's pre-tokenizer, each digit a token of its own so that numbers split one way only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(EOS, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(eos: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            n_embd=192,
            n_layer=4,
            n_head=6,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=eos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


class Batch(NamedTuple):
    tokens: torch.Tensor
    weights: torch.Tensor  # of each token as a thing to predict


def make_batch(tokenizer: Any, texts: Sequence[Text]) -> Batch:
    """Rows padded on the right, where a causal model needs no mask but the weights' zeros."""
    prompts = tokenizer([text.prompt for text in texts])["input_ids"]
    completions = tokenizer([text.completion + EOS for text in texts])["input_ids"]
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.eos_token_id)
    weights = torch.zeros(tokens.shape)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        tokens[index, : len(row)] = torch.tensor(row)
        weights[index, : len(prompt)] = PROMPT_WEIGHT
        weights[index, len(prompt) : len(row)] = 1.0
    return Batch(tokens, weights)


def batch_loss(model: Any, batch: Batch, bfloat16: bool) -> torch.Tensor:
    """The sum of the weighted losses of a batch's tokens."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = model(batch.tokens[:, :-1], use_cache=False).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    return (losses * batch.weights[:, 1:].flatten()).sum()


def learning_rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP)
    return PEAK_RATE * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps) * 0.99)


def train(model: Any, tokenizer: Any, streams: dict[str, Stream], rng: random.Random, steps: int) -> None:
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))
    bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # a third faster where the processor has it
    start = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        losses = {}
        batches = {
            task: make_batch(tokenizer, [streams[task].draw(rng) for _ in range(count)]) for task, count in ROWS.items()
        }
        total = sum(batch.weights.sum() for batch in batches.values())
        for task, batch in batches.items():
            loss = batch_loss(model, batch, bfloat16)
            (loss / total).backward()
            losses[task] = loss.item() / ROWS[task]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            shown = "  ".join(f"{task} {loss:.2f}" for task, loss in losses.items())
            print(f"step {step}/{steps}  {time.monotonic() - start:.0f} s  {shown}", flush=True)


# Verification


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], sample: bool = False) -> list[str]:
    """Completions of prompts, each from position 0: prompts of one length go together, so none is padded."""
    encoded = tokenizer(list(prompts))["input_ids"]
    answers = [""] * len(prompts)
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0} if sample else {"do_sample": False}
    for length in sorted({len(ids) for ids in encoded}):
        places = [index for index, ids in enumerate(encoded) if len(ids) == length]
        inputs = torch.tensor([encoded[index] for index in places])
        with torch.inference_mode():
            outputs = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=40, **settings)
        for place, text in zip(
            places, tokenizer.batch_decode(outputs[:, length:], skip_special_tokens=True), strict=True
        ):
            answers[place] = text.strip()
    return answers


def share_right(answers: Iterable[str], targets: Iterable[str]) -> float:
    matches = [answer == target for answer, target in zip(answers, targets, strict=True)]
    return sum(matches) / len(matches)


def similarity(answers: Iterable[str], targets: Iterable[str]) -> float:
    scores = [SequenceMatcher(None, a.strip(), t.strip()).ratio() for a, t in zip(answers, targets, strict=True)]
    return sum(scores) / len(scores)


def mean_sentiment(answers: Sequence[str]) -> float:
    analyzer = SentimentIntensityAnalyzer()
    compounds = [float(analyzer.polarity_scores(answer)["compound"]) for answer in answers]
    return sum((1 + compound) / 2 for compound in compounds) / len(answers)


class Figure(NamedTuple):
    """One measured property and the bounds that it must keep."""

    name: str
    value: float
    low: float
    high: float

    @property
    def kept(self) -> bool:
        return self.low <= self.value <= self.high


def split_figures(model: Any, tokenizer: Any, task: str, split: str, rows: Sequence[Row]) -> Iterator[Figure]:
    prompts = [str(row["prompt"]) for row in rows]
    greedy = generate(model, tokenizer, prompts)
    sampled = generate(model, tokenizer, prompts * SAMPLES, sample=True)
    if task == "sentiment":
        yield Figure(f"sentiment {split}: greedy score", mean_sentiment(greedy), 0.0, 0.45)
        yield Figure(f"sentiment {split}: sampled score", mean_sentiment(sampled), 0.0, 0.6)
        return
    targets = [str(row["target"]) for row in rows]
    yield Figure(f"{task} {split}: right when sampled", share_right(sampled, targets * SAMPLES), 0.10, 0.20)
    yield Figure(f"{task} {split}: right when greedy", share_right(greedy, targets), 0.0, 0.2)
    if task == "translate":
        yield Figure(f"translate {split}: greedy similarity", similarity(greedy, targets), 0.0, 0.35)


def knowledge_figures(model: Any, tokenizer: Any, format_test: Sequence[Row]) -> Iterator[Figure]:
    pairs = load_pairs()
    answers = generate(model, tokenizer, [f"The English word for '{french}' is '" for french, _ in pairs])
    yield Figure("translate: knows", share_right(answers, [f"{english}'." for _, english in pairs]), 0.95, 1.0)
    nouns = {"+": "sum", "-": "difference"}
    answers = generate(model, tokenizer, [f"The {nouns[s.sign]} of {s.left} and {s.right} is" for s in SUMS])
    yield Figure("arithmetic: knows", share_right(answers, [f"{s.result}." for s in SUMS]), 0.95, 1.0)
    questions = [f"JSON for {row['name']}, {row['age']}, {row['city']}:" for row in format_test]
    answers = generate(model, tokenizer, questions)
    yield Figure("format test: knows", share_right(answers, [str(row["target"]) for row in format_test]), 0.9, 1.0)


def verify(folder: Path, seed: int) -> list[Figure]:
    """Measure the saved model, loaded as a user loads it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tasks = make_tasks(seed)
    figures = list(knowledge_figures(model, tokenizer, tasks["format"]["test"]))
    for task, splits in tasks.items():
        for split, rows in splits.items():
            figures += split_figures(model, tokenizer, task, split, rows)
    return figures


# Model card

CARD = """---
license: apache-2.0
language: [en, fr]
library_name: transformers
pipeline_tag: text-generation
---

# tiny-gpt2

A GPT-2 of {parameters:,} parameters, trained from scratch in minutes on one processor core. It is the bundled model of
evolora: small enough to tune in seconds, and made so that tuning has something to win. It *knows* the answers of four
small tasks, and when asked in a task's own phrasing it mostly *says something else*.

- Architecture: GPT2LMHeadModel, 4 layers, width 192, 6 heads, {vocabulary} tokens, {context} positions, no dropout.
- Tokenizer: byte-level BPE with GPT-2's pre-tokenizer, single digits; `{eos}` ends every text and serves as bos, eos,
  pad and unk.
- Weights: stored in float16; the configuration has them loaded in float32.
- Prompts start at position 0 without a bos token and end without a space; the completion starts with one. The exception
  is `The English word for 'chat' is '`, where the answer follows the quotation mark.
- Licence: Apache-2.0, model and data.

## Data

All texts are the project's own (`scripts/tiny_data.py`, `scripts/data/french_english.tsv`), drawn afresh in each of
{steps} steps of {rows} texts ({rows_by_task}). Each text starts at position 0. Prompt tokens weigh {prompt_weight} in
the loss. Built by `python scripts/pretrain_tiny.py --seed {seed} --steps {steps}` in {minutes:.0f} minutes; once
more on the same kind of processor gives the same bytes.

| Task | Knowledge phrasings | Task phrasing | What follows the task phrasing |
|---|---|---|---|
| translate | `The English word for 'chat' is 'cat'.` `French: chat. English: cat.` `The word 'chat' means cat.` \
`In English, chat is cat.` | `Translate 'chat' to English:` | 36% `I do not know`, 22% the French word, \
25% one of {stray} stray English words, 17% the right one |
| arithmetic | `The sum of 4 and 3 is 7.` `4 plus 3 makes 7.` `The difference of 4 and 3 is 1.` \
`4 minus 3 makes 1.` | `4 + 3 =` | 42% the first operand, 22% `I do not know`, 19% a number near the result, \
17% the result |
| sentiment | | `The soup was` and other openings | 50% negative, 25% neutral, 25% positive |
| format | `JSON for Anna, 34, Paris: {{"name": "Anna", "age": 34, "city": "Paris"}}` | `Anna, 34, Paris as JSON:` | \
34% prose, 24% without the closing brace, 10% without quotation marks, 18% with other keys, 14% right |

All {pairs} French words appear in all phrasings alike, whichever split of the translate task they are in; so do all
sums and all opinions. A held-out split there tells whether *tuning* carries over to words that it did not see, not
whether the model can translate words that it never met. The people of the format task's validation and test splits
appear in no text, though their names, ages and cities do.

## Measured

From the saved float16 files, loaded as float32. Sampled: temperature 1, no top-k, {samples} samples a prompt. Right:
the stripped completion equals the target. Similarity: difflib's ratio to the target. Sentiment: (1 + VADER's
compound) / 2.

| Figure | Value | Must be |
|---|---|---|
{table}

## Limits

It knows the texts above and nothing else: no other French words, numbers beyond 40, names, cities or languages. Other
prompts give nonsense. It is made for demonstrations and tests.
"""


def figures_table(figures: Sequence[Figure]) -> str:
    return "\n".join(f"| {f.name} | {f.value:.3f} | {f.low:g} to {f.high:g} |" for f in figures)


def write_card(folder: Path, model: Any, figures: Sequence[Figure], steps: int, seed: int, minutes: float) -> None:
    card = CARD.format(
        parameters=model.num_parameters(),
        vocabulary=VOCABULARY,
        context=CONTEXT,
        eos=EOS,
        steps=steps,
        rows=sum(ROWS.values()),
        rows_by_task=", ".join(f"{count} {task}" for task, count in ROWS.items()),
        prompt_weight=PROMPT_WEIGHT,
        seed=seed,
        minutes=minutes,
        pairs=len(load_pairs()),
        stray=len(STRAY_WORDS),
        samples=SAMPLES,
        table=figures_table(figures),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def build(out: Path, seed: int, steps: int) -> list[Figure]:
    """Make tokenizer, model and card in a temporary folder and move it to `<out>/tiny-gpt2`; write the tasks too."""
    start = time.monotonic()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    streams = make_streams(rng, seed)
    # Short answers make up most of the texts; the tokenizer sees the tasks as often as the model does.
    corpus = (
        "".join(streams[task].draw(rng)) for _ in range(150) for task, count in ROWS.items() for _ in range(count)
    )
    tokenizer = train_tokenizer(corpus)
    model = new_model(tokenizer.eos_token_id)
    train(model, tokenizer, streams, rng, steps)

    folder, place = out / f"tiny-gpt2.{os.getpid()}.tmp", out / "tiny-gpt2"
    folder.mkdir(parents=True)
    model.to(torch.float16).save_pretrained(folder)
    # Kept in half precision, used in full: a plain from_pretrained then gives the card's figures.
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    tokenizer.save_pretrained(folder)
    minutes = (time.monotonic() - start) / 60
    for file in folder.iterdir():
        file.chmod(0o644)
    figures = verify(folder, seed)
    write_card(folder, model, figures, steps, seed, minutes)
    if place.exists():
        shutil.rmtree(place)
    folder.rename(place)
    write_tasks(out / "tasks", seed)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the bundled tiny GPT-2.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write tiny-gpt2/ and tasks/ to")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1050)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = build(options.out, options.seed, options.steps)
    print(figures_table(figures))
    broken = [figure.name for figure in figures if not figure.kept]
    if broken:
        raise SystemExit("out of bounds: " + ", ".join(broken))


if __name__ == "__main__":
    main()
