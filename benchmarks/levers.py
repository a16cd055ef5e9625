"""What each lever of speed is worth: the same work with all of them, and with one taken away.

    python benchmarks/levers.py [--repeats 5] [--only tiny] [--profile]

Three kinds of work: GPT-2 124M (random weights), 8 individuals x 8 prompts x 20 tokens; the fitness of 8 individuals on
32 prompts of the bundled translation task; one PPO refinement on 64 of its prompts. In one process, in turn, medians.
Each turn has an engine of its own, warm, and alone: panels of a large model's weights are kept only where there is
memory for them. Writes benchmarks/results/levers.json.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

import torch
from speed import machine
from speed.subjects import PAD, PROMPTS, Subject, load_subject, subjects_folder
from speed.timing import median, seconds_of
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from evolora import PPOConfig
from evolora.engine.base import Decoding, Engine
from evolora.engine.calibration import is_small
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul.choice import fastest_products
from evolora.engine.split import MOST_ROWS_DECODED, SplitEngine
from evolora.engine.text import Text
from evolora.models.base import BUNDLED_MODEL, BaseModel, load_base
from evolora.population.evaluation import LocalEvaluator
from evolora.refiners import PPORefiner
from evolora.rewards import RewardScorer, load_reward
from evolora.tasks.task import load_task

Run = Callable[[], object]


@dataclass(frozen=True)
class Without:
    """An engine that lacks something."""

    levers: Levers = field(default_factory=Levers)
    own_products: bool = True
    parts: bool = True

    def engine(self, model: PreTrainedModel, subject: Subject) -> Engine:
        products = fastest_products() if self.own_products else "torch"
        engine = CpuEngine(model, subject.layout, products=products, levers=self.levers)
        if subject.threads == 1 or not self.parts:
            return engine
        most = None if is_small(model) else MOST_ROWS_DECODED
        return SplitEngine(engine, engine.replica, threads=subject.threads, most_rows=most)


ALL = Without()
NONE = Without(Levers(**{lever.name: False for lever in fields(Levers)}), own_products=False, parts=False)
GENERATION: dict[str, Without] = {
    "products in panels": Without(own_products=False),
    # Each panel is arranged when its turn comes, in every product.
    "the panels kept": Without(Levers(arranged_weights=False)),
    # Whole layers and passes over whole texts know no other: they are then the model's own, too.
    "GELU in one pass": Without(Levers(gelu=False, whole_layers=False, train=False)),
    "whole layers compiled": Without(Levers(whole_layers=False)),
    "several steps at a time": Without(Levers(multi_step=False)),
    "a step compiled": Without(Levers(step=False)),
    # Nothing of GPT-2's is compiled on attention of another kind.
    "attention over the cache compiled, and by plain products": Without(Levers(attention=False)),
    "whole texts between their products compiled": Without(Levers(prefill=False, train=False)),
    "that, and adapters and their dropout compiled": Without(Levers(prefill=False, train=False, adapters=False)),
    "packed prompts": Without(Levers(packs=False)),
    "finished rows leave": Without(Levers(leave=False)),
    "GPT-2's pass with less Python": Without(Levers(forward=False)),
    "parts side by side": Without(parts=False),
}
REFINEMENT: dict[str, Without] = {
    **GENERATION,
    # Which several steps at a time have within them.
    "sampling compiled": Without(Levers(sampling=False, multi_step=False)),
    "log-probabilities compiled": Without(Levers(log_probs=False)),
}


def generation(subject: Subject) -> tuple[BaseModel, Callable[[Engine], Run]]:
    genomes, prompts = subject.genomes(8), subject.prompts()
    how = Decoding(max_new_tokens=20, ends=[subject.never], pad=PAD)
    return load_base(subject.folder), lambda engine: lambda: engine.generate(genomes, prompts, how)


def evaluation(subject: Subject) -> tuple[BaseModel, Callable[[Engine], Run]]:
    base, task = load_base(BUNDLED_MODEL), load_task(task="translate")
    scorer = RewardScorer(load_reward(task.reward))
    genomes = subject.founder + 0.1 * subject.genomes(8)

    def on(engine: Engine) -> Run:
        evaluator = LocalEvaluator(engine, Text.of(base.model, base.tokenizer), scorer, max_new_tokens=11)
        return lambda: evaluator.evaluate(genomes, task.train[:32])

    return base, on


def refinement(subject: Subject) -> tuple[BaseModel, Callable[[Engine], Run]]:
    base, task = load_base(BUNDLED_MODEL), load_task(task="translate")
    scorer = RewardScorer(load_reward(task.reward))
    config = PPOConfig(max_new_tokens=11, target_kl=None)

    def on(engine: Engine) -> Run:
        refiner = PPORefiner(engine, Text.of(base.model, base.tokenizer), scorer, config, seed=0, dropout=0.05)
        return lambda: refiner.refine(subject.founder[None], task.train[:64], key=[(0, 0)])

    return base, on


def measure(
    subject: Subject,
    make: Callable[[Subject], tuple[BaseModel, Callable[[Engine], Run]]],
    levers: dict[str, Without],
    repeats: int,
) -> dict[str, Any]:
    """Median seconds with everything, without each lever, and without any."""
    base, on = make(subject)
    sides = {"all": ALL, **levers, "none": NONE}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in Random(turn).sample(list(sides), len(sides)):
            with closing(sides[name].engine(base.model, subject)) as engine:
                run = on(engine)
                run()
                seconds[name].append(seconds_of(run))
    return {name: median(times) for name, times in seconds.items()}


def profile_of(run: Callable[[], object], rows: int = 8) -> dict[str, float]:
    """The share of the time that each of torch's operations takes by itself; the rest is Python and small ones."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:rows]
    return {event.key: round(event.self_cpu_time_total / total, 3) for event in largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["tiny", "124M"])
    parser.add_argument("--profile", action="store_true", help="only show where the time goes, with all levers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "levers.json")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = machine.describe()
    work: list[tuple[str, str, Callable[[Subject], Any], dict[str, Without]]] = [
        (f"generation, 124M, 8 x {PROMPTS} x 20", "124M", generation, GENERATION),
        ("fitness, tiny, 8 x 32 prompts of translate", "tiny", evaluation, GENERATION),
        ("PPO, tiny, 64 prompts of translate", "tiny", refinement, REFINEMENT),
    ]
    for title, name, make, levers in work:
        if options.only not in (None, name):
            continue
        with subjects_folder() as folder:
            subject = load_subject(name, folder)
            torch.set_num_threads(subject.threads_an_operation)
            if options.profile:
                base, on = make(subject)
                with closing(ALL.engine(base.model, subject)) as engine:
                    print(title, json.dumps(profile_of(on(engine)), indent=1))
                continue
            results[title] = measure(subject, make, levers, options.repeats)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    for title, seconds in results.items():
        if title == "machine" or options.profile:
            continue
        print(f"\n{title}: {seconds['all']:.3f} s\n\n| without | seconds | times |\n|---|---|---|")
        for lever, value in seconds.items():
            if lever != "all":
                print(f"| {'any of them' if lever == 'none' else lever} | {value:.3f} | {value / seconds['all']:.2f} |")


if __name__ == "__main__":
    main()
