"""The tables of generation: full length, lengths spread evenly, and cost against the number of individuals."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from speed import machine
from speed.lengths import spread_ends
from speed.populora_side import Populora
from speed.roofline import GemmRate, flops_needed
from speed.sides import Evolora, MixedBatch, OneState, StockFloor, StockGenerate, Work, equal_share, written_lengths
from speed.subjects import PROMPTS, Subject
from speed.timing import alternate, best_threads, median

Row = dict[str, Any]
SPREAD_OVER = 64

EVOLORA = "evolora"
ONE_BY_ONE = "one state, one prompt"
ONE_STATE = "one state, its prompts"
MIXED = "PEFT mixed batch"
POPULORA = "populora"
FLOOR = "floor: evolora, adapters off"
FLOOR_STOCK = "floor: transformers, no adapters"
STOCK = "transformers' generate and layers"
STOCK_ON_OURS = "transformers' generate, evolora's layers"


def full_length(subject: Subject, individuals: int, new_tokens: int, repeats: int, sides: set[str]) -> Row:
    """One row of the main table: `sides` beside evolora, every completion of full length."""
    work = Work(subject, subject.genomes(individuals), subject.prompts(), new_tokens, (subject.never,))
    evolora = Evolora(work)
    runs: dict[str, Callable[[], Tensor]] = {EVOLORA: evolora, FLOOR: evolora.floor}
    makers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        FLOOR_STOCK: lambda: StockFloor(work),
        MIXED: lambda: MixedBatch(work),
        POPULORA: lambda: Populora(work),
        ONE_STATE: lambda: OneState(work, batched=True),
        ONE_BY_ONE: lambda: OneState(work, batched=False),
    }
    runs |= {name: make() for name, make in makers.items() if name in sides}
    return _measured("generation", work, runs, repeats)


def early_ends(subject: Subject, individuals: int, repeats: int) -> Row:
    """Completions whose lengths are spread evenly over 1 .. 64."""
    genomes, prompts = subject.genomes(individuals), subject.prompts()
    in_full = Evolora(Work(subject, genomes, prompts, SPREAD_OVER, (subject.never,)))()
    work = Work(subject, genomes, prompts, SPREAD_OVER, spread_ends(in_full))
    evolora = Evolora(work)
    runs: dict[str, Callable[[], Tensor]] = {
        EVOLORA: evolora,
        STOCK_ON_OURS: evolora.stock,
        STOCK: StockGenerate(work),
        POPULORA: Populora(work),
    }
    return _measured("early", work, runs, repeats)


def _measured(part: str, work: Work, runs: dict[str, Callable[[], Tensor]], repeats: int) -> Row:
    """Warm every side up, compare what it wrote with what evolora wrote, and time them in turn; each with as many
    threads as it is fastest with."""
    subject = work.subject
    threads = dict.fromkeys(runs, subject.threads)
    for name in runs.keys() - {EVOLORA, FLOOR}:
        # evolora has the cores as it chooses; so have the others.
        threads[name], runs[name] = best_threads(runs[name], [subject.threads_an_operation, subject.threads])
    written = {name: run() for name, run in runs.items()}
    # The floors complete other prompts: they are compared with each other.
    against = {FLOOR: FLOOR, FLOOR_STOCK: FLOOR}
    equal = {name: equal_share(ids, written[against.get(name, EVOLORA)], work) for name, ids in written.items()}
    lengths = written_lengths(written[EVOLORA], work)
    gemm = GemmRate(subject.threads)
    seconds = alternate(runs, repeats, between=gemm.sample)
    flops = flops_needed(work, lengths)
    rate = flops / median(seconds[EVOLORA])
    return {
        "part": part,
        "model": work.subject.name,
        "individuals": work.individuals,
        "prompts": PROMPTS,
        "new_tokens": work.new_tokens,
        "repeats": repeats,
        "sides": {
            name: {"median": median(times), "seconds": times, "threads": threads[name], **equal[name]}
            for name, times in seconds.items()
        },
        "lengths": _spread(lengths),
        "ends": len(work.ends),
        "gflop": flops / 1e9,
        "gflop_per_second": rate / 1e9,
        "gemm_gflop_per_second": {name: value / 1e9 for name, value in gemm.rates().items()},
        "gemm_share": {
            "highest": rate / gemm.highest(),
            **{product: rate / gemm.highest(product) for product in gemm.products},
        },
        "machine": machine.describe(),
    }


def _spread(lengths: list[int]) -> dict[str, float]:
    found = torch.tensor(lengths, dtype=torch.float64)
    marks = {f"p{round(100 * q)}": float(found.quantile(q)) for q in (0.1, 0.25, 0.5, 0.75, 0.9)}
    return {"mean": float(found.mean()), "min": float(found.min()), **marks, "max": float(found.max())}


def scaling(subject: Subject, individuals: list[int], new_tokens: int, repeats: int) -> list[Row]:
    """The cost of one `generate` for each number of individuals."""
    works = {n: Work(subject, subject.genomes(n), subject.prompts(), new_tokens, (subject.never,)) for n in individuals}
    first, *others = works.values()
    shared = Evolora(first)
    runs: dict[str, Callable[[], Tensor]] = {str(first.individuals): shared}
    runs |= {str(work.individuals): shared.on(work) for work in others}
    for run in runs.values():
        run()
    seconds = alternate(runs, repeats)
    return [
        {
            "part": "scaling",
            "model": subject.name,
            "individuals": n,
            "prompts": PROMPTS,
            "new_tokens": new_tokens,
            "repeats": repeats,
            "threads": subject.threads,
            "median": median(seconds[str(n)]),
            "seconds": seconds[str(n)],
            "machine": machine.describe(),
        }
        for n in individuals
    ]
