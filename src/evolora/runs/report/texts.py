"""What was written: prompt by prompt before and after, and one prompt through the generations."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import escape

from evolora.runs.report.data import RunRecord, Sample

# What bounds the page: rows of prompts, frames of the film, bytes of text in both.
_ROWS, _FRAMES = 400, 100
_ROW_BYTES, _FILM_BYTES = 350_000, 200_000
# So many characters that all prompts have are left out of each.
_SHARED = 20


def sides(run: RunRecord) -> tuple[list[Sample], list[Sample]]:
    """What base and winner wrote on the test split, prompt by prompt; of one whole where the winner is the base."""
    last = max((sample.generation for sample in run.test), default=0)
    base, winner = run.base, (run.summary or {}).get("winner", {}).get("id")
    tested = [sample for sample in run.test if sample.generation == last]
    before = [sample for sample in tested if base is not None and sample.individual == base.id]
    return before, [sample for sample in tested if sample.individual == winner]


def pairs(run: RunRecord) -> list[tuple[Sample, Sample]]:
    """Base and winner on each test prompt, the winner's worst first."""
    both = list(zip(*sides(run), strict=False))
    both.sort(key=lambda pair: (pair[1].reward is None, pair[1].reward or 0.0, -(pair[0].reward or 0.0)))
    return both


def rows(run: RunRecord) -> dict[str, Any]:
    """As many of them as the page has room for."""
    every = pairs(run)
    shown = every[:_ROWS]
    begin, end = shared([a.prompt for a, _ in every])
    asked = [_without(a.prompt, begin, end) for a, _ in shown]
    texts = [*asked, *(text for a, b in shown for text in (a.completion, b.completion))]
    limit = _limit(texts, lambda text: len(escape(text).encode()), _ROW_BYTES)
    return {
        "total": len(every),
        "begin": _cut(begin, 2000),
        "end": _cut(end, 2000),
        "rows": [
            {
                "before": a.reward, "after": b.reward,
                "gain": None if a.reward is None or b.reward is None else b.reward - a.reward,
                "prompt": _cut(prompt, limit), "base": _cut(a.completion, limit), "winner": _cut(b.completion, limit),
            }
            for prompt, (a, b) in zip(asked, shown, strict=True)
        ],
    }  # fmt: skip


def film(run: RunRecord) -> list[dict[str, Any]]:
    """Each validation prompt that was kept, with what was written to it: the base, then generation by generation."""
    prompts: dict[str, list[Sample]] = {}
    base = None if run.base is None else run.base.id
    for sample in sorted(run.validation, key=lambda sample: (sample.generation, sample.individual != base)):
        prompts.setdefault(sample.prompt, []).append(sample)
    thinned = {prompt: _thinned(samples, _FRAMES) for prompt, samples in list(prompts.items())[:12]}
    texts = [text for prompt, samples in thinned.items() for text in (prompt, *(each.completion for each in samples))]
    limit = _limit(texts, lambda text: len(json.dumps(text)), _FILM_BYTES)
    begin, end = shared(list(thinned))
    return [
        {
            "prompt": _cut(prompt, limit),
            "label": _without(prompt, begin, end)[-60:],
            "frames": [
                {
                    "who": "base model" if each.individual == base
                    else f"generation {each.generation}, individual {each.individual}",
                    "text": _cut(each.completion, limit),
                    "reward": "not scored" if each.reward is None else f"{each.reward:.3f}",
                }
                for each in samples
            ],
        }
        for prompt, samples in thinned.items()
    ]  # fmt: skip


def shared(prompts: Sequence[str]) -> tuple[str, str]:
    """What all prompts begin and end with, such as a chat template, where that is so long that it hides the rest; to
    whole words.

    >>> shared(["<|user|> You are an assistant. What is 1? ", "<|user|> You are an assistant. Name 2! "])
    ('<|user|> You are an assistant. ', '')
    """
    if len(set(prompts)) < 2:
        return "", ""
    begin = _common(prompts)
    begin = begin[: max(begin.rfind(" "), begin.rfind("\n")) + 1]
    rest = [prompt[len(begin) :][::-1] for prompt in prompts]
    end = _common(rest)
    end = end[: max(end.rfind(" "), end.rfind("\n")) + 1][::-1]
    return (begin if len(begin) >= _SHARED else ""), (end if len(end) >= _SHARED else "")


def _common(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # between which all others lie
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (a, b) in pairs if a != b), min(len(first), len(last)))]


def _without(prompt: str, begin: str, end: str) -> str:
    return prompt.removeprefix(begin).removesuffix(end).strip() or prompt if begin or end else prompt


def _cut(text: str, limit: int) -> str:
    """Its two ends where it is too long: what matters is seldom in the middle."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} […{len(text) - limit:,} characters…] {text[head - limit :]}"


def _limit(texts: Sequence[str], size: Callable[[str], int], budget: int) -> int:
    """How many characters of each fit into the budget."""
    limit = 4000
    while limit > 30 and sum(size(_cut(text, limit)) for text in texts) > budget:
        limit //= 2
    return limit


def _thinned(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most so many, evenly, the first and the last among them."""
    if len(samples) <= count:
        return list(samples)
    return [samples[round(index * (len(samples) - 1) / (count - 1))] for index in range(count)]
