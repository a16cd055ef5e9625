"""What dealing a batch to workers costs, and how it scales on this machine.

    python benchmarks/workers.py [--repeats 5] [--only tiny] [--most 2] [--rows 256] [--new-tokens 20] [--dealt]

The fitness of 8 individuals (256 rows of 20 tokens), and a rollout of 2 with its update (256 rows): by threads as a run
without workers cuts them, unless only what is `--dealt` is asked for; in slices in this process; and by Ray's workers,
1, 2 and so on to the most. In one process, in turn, medians; one thread each. Also the processors' seconds, this
process's and its workers', and the bytes that went to them and back.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import machine
from speed.subjects import PAD, Subject, load_subject, subjects_folder
from speed.timing import alternate, median

from evolora.distributed.choose import deal
from evolora.distributed.cluster import connect, leave
from evolora.distributed.engine import DealtEngine
from evolora.distributed.options import WorkersOptions
from evolora.distributed.ray_crew import RayCrew
from evolora.distributed.remote import EngineSpec
from evolora.engine.base import Decoding, Engine, Scoring
from evolora.engine.budget import Budget
from evolora.engine.calibration import available_cores
from evolora.engine.choose import choose_engine, resolved
from evolora.models.checksums import weights_sha256
from evolora.models.options import ModelOptions

INDIVIDUALS, LEARNERS = 8, 2


@dataclass(frozen=True)
class Size:
    """Rows of a batch, and tokens that are written in each."""

    rows: int
    new_tokens: int


def fitness(subject: Subject, engine: Engine, size: Size) -> Callable[[], object]:
    genomes = subject.genomes(INDIVIDUALS)
    prompts = subject.prompts() * (size.rows // INDIVIDUALS // len(subject.prompts()))
    how = Decoding(max_new_tokens=size.new_tokens, ends=(subject.never,), pad=PAD)
    turn = iter(range(10**9))
    # Other genomes each time, as in a run: workers are sent them.
    return lambda: engine.generate(genomes + 1e-6 * next(turn), prompts, how)


def update(subject: Subject, engine: Engine, size: Size) -> Callable[[], object]:
    genomes = subject.genomes(LEARNERS)
    prompts = subject.prompts() * (size.rows // LEARNERS // len(subject.prompts()))
    seeds = np.arange(size.rows, dtype=np.uint64)
    how = Decoding(max_new_tokens=size.new_tokens, ends=(subject.never,), pad=PAD, seeds=seeds)
    turn = iter(range(1, 10**9))  # and others than for the fitness

    def learn() -> None:
        own = genomes - 1e-6 * next(turn)
        written = engine.generate(own, prompts, how)
        seeds = np.arange(LEARNERS, dtype=np.uint64)
        scoring = Scoring(gradient=True, dropout=0.05, dropout_seeds=seeds)
        scored = engine.score(own, prompts, replace(written, trace=None), scoring)
        scored.backward(torch.ones_like(scored.log_probs))

    return learn


def engines(subject: Subject, most: int, *, dealt_only: bool) -> dict[str, Engine]:
    model = subject.own()
    kind, products = resolved(model, subject.layout, "auto", "auto")

    def one() -> Engine:
        return choose_engine(model, subject.layout, kind=kind, products=products).one

    def spec(device: str) -> EngineSpec:
        return EngineSpec(
            model=ModelOptions(name=subject.folder, dtype="float32"),
            weights_sha256=weights_sha256(model), layout=subject.layout, device=device, kind=kind, products=products,
            checkpointing="off", threads=1, learns=True, dropout=0.05,
        )  # fmt: skip

    def dealt(**options: Any) -> DealtEngine:
        asked = WorkersOptions(**options)
        rows = 64 if subject.name == "tiny" else 48
        found = deal(
            one(), spec, asked, tolerance=2e-3, rows=rows, threads=1, budget=Budget(10**9), say=lambda text: print(text)
        )
        found.start()
        return found

    cores = available_cores()
    threads = choose_engine(model, subject.layout, threads=cores, kind=kind, products=products).engine
    connect(None, cpus=sum(range(most + 1)))
    found: dict[str, Engine] = {
        **({} if dealt_only else {f"{cores} threads, as without workers": threads}),
        "slices in this process (--workers 0)": dealt(count=0),
    }
    for count in range(1, most + 1):
        found[f"{count} worker{'s' * (count > 1)}"] = dealt(count=count)
    return found


def processor_seconds(engine: Engine) -> float:
    """Of this process so far, and of the engine's workers: what another load leaves as it is, more or less."""
    found = time.process_time()
    if isinstance(engine, DealtEngine) and isinstance(engine.crew, RayCrew):
        for member in engine.crew._members.values():
            assert member.about is not None
            fields = Path(f"/proc/{member.about['pid']}/stat").read_text().rpartition(")")[2].split()
            found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def counting(engine: Engine, run: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    def counted() -> None:
        before = processor_seconds(engine)
        run()
        seconds.append(processor_seconds(engine) - before)

    return counted


def measured(subject: Subject, repeats: int, most: int, size: Size, *, dealt_only: bool) -> None:
    sides = engines(subject, most, dealt_only=dealt_only)
    for name, work in (("fitness", fitness), ("rollout and update", update)):
        runs = {side: work(subject, engine, size) for side, engine in sides.items()}
        for run in runs.values():
            run()
        for engine in sides.values():
            if isinstance(engine, DealtEngine):
                engine.metrics()
        busy: dict[str, list[float]] = {side: [] for side in sides}
        seconds = alternate({side: counting(sides[side], run, busy[side]) for side, run in runs.items()}, repeats)
        for side, found in seconds.items():
            engine = sides[side]
            counts = engine.metrics() if isinstance(engine, DealtEngine) else {}
            sent, got = (counts.get(f"workers.{way}_bytes", 0) / repeats / 1e6 for way in ("sent", "received"))
            slices = counts.get("workers.slices", 0) / repeats
            told = f", {slices:.0f} slices, {sent:.2f} MB sent, {got:.2f} MB back" if slices else ""
            print(
                f"{subject.name}, {name}, {side}: {median(found):.3f} s ({min(found):.3f} to {max(found):.3f}), "
                f"{median(busy[side]):.3f} s of processors{told}"
            )
    for engine in sides.values():
        engine.close()
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=2)
    parser.add_argument("--rows", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--dealt", action="store_true", help="only what is dealt in slices")
    parser.add_argument("--only", nargs="*", default=["tiny", "124M"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine.describe())
    with subjects_folder() as folder:
        for name in options.only:
            size = Size(options.rows, options.new_tokens)
            measured(load_subject(name, folder), options.repeats, options.most, size, dealt_only=options.dealt)


if __name__ == "__main__":
    main()
