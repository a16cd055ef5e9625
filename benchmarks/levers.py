"""What each lever of speed is worth: the same work with all of them, and with one taken away.

    python benchmarks/levers.py [--repeats 5] [--only tiny] [--profile]

Three kinds of work: GPT-2 124M (random weights), 8 individuals x 8 prompts x 20 tokens; the fitness of 8 individuals on
32 prompts of the bundled translation task; one PPO refinement on 64 of its prompts. In one process, in turn, medians.
Writes benchmarks/results/levers.json.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from speed import machine
from speed.subjects import PROMPTS, Subject, load_subject, subjects_folder
from speed.timing import alternate, median
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from evolora import LocalEvaluator, PopulationModel, PPOConfig, PPORefiner, RewardScorer, load_base, load_task
from evolora.engine.cpu.install import fastest_products, use_kernels
from evolora.engine.cpu.sampling import _sample_torch
from evolora.engine.split import population_generate
from evolora.models.base import BUNDLED_MODEL
from evolora.rewards import load_reward

Off = Callable[[PopulationModel], Any]


def models(population_model: PopulationModel) -> list[PreTrainedModel]:
    """The model and its replicas, which the warm-up has made."""
    return [replica.model for replica in population_model._replicas]


@contextmanager
def products_off(population_model: PopulationModel) -> Iterator[None]:
    """To be the first of several: it sets the other kernels, too."""
    for model in models(population_model):
        use_kernels(model, "torch")
    yield
    for model in models(population_model):
        use_kernels(model, fastest_products())


@contextmanager
def kernels_off(population_model: PopulationModel, *kinds: type[nn.Module]) -> Iterator[None]:
    modules = [module for model in models(population_model) for module in model.modules() if type(module) in kinds]
    kernels = {module: vars(module).pop("forward") for module in modules if "forward" in vars(module)}
    yield
    for module, kernel in kernels.items():
        module.forward = kernel


@contextmanager
def gelu_off(population_model: PopulationModel) -> Iterator[None]:
    """As transformers computes it. Whole layers and passes over whole texts, which have no other, are then the model's
    own, too."""
    with kernels_off(population_model, NewGELUActivation), whole_off(population_model), packs_off(population_model):
        yield


def pass_off(population_model: PopulationModel) -> Any:
    return kernels_off(population_model, GPT2Model)


@contextmanager
def parts_off(population_model: PopulationModel) -> Iterator[None]:
    before, population_model.threads = population_model.threads, 1
    yield
    population_model.threads = before


def step_off(_: PopulationModel) -> Any:
    return patch("evolora.engine.eager.decoder.Gpt2Step.of", lambda *_: None)


def ahead_off(_: PopulationModel) -> Any:
    return patch("evolora.engine.eager.decoder.Gpt2Step.goes_ahead", False)


def read_off(_: PopulationModel) -> Any:
    return patch("evolora.engine.cpu.gpt2.forward.read_packs", lambda *_: None)


@contextmanager
def whole_off(population_model: PopulationModel) -> Iterator[None]:
    with read_off(population_model), patch("evolora.engine.cpu.gpt2.decode.Layer.whole", lambda *_: None):
        yield


@contextmanager
def compiled_off(population_model: PopulationModel) -> Iterator[None]:
    with (
        step_off(population_model),
        patch("evolora.engine.cpu.install._cached_attention", lambda *_: None),
        patch("evolora.engine.eager.kv_cache.RoomyLayer.extends", lambda *_: False),
    ):
        yield


@contextmanager
def panels_off(population_model: PopulationModel) -> Iterator[None]:
    """Each panel arranged when its turn comes, in every product."""
    with (
        whole_off(population_model),
        patch("evolora.engine.cpu.matmul.frozen_linear.WeightPanels.of", lambda *_, **__: None),
    ):
        yield


@contextmanager
def sampling_off(population_model: PopulationModel) -> Iterator[None]:
    """Which several steps at a time have within them."""
    with ahead_off(population_model), patch("evolora.engine.cpu.sampling._sample_compiled", _sample_torch):
        yield


def attention_off(_: PopulationModel) -> Any:
    return patch("evolora.engine.cpu.install._PLAIN_ATTENTION_SCORES", 0)


@contextmanager
def packing_off(_: PopulationModel) -> Iterator[None]:
    with (
        patch("evolora.engine.eager.decoder.can_pack", lambda _: False),
        patch("evolora.engine.eager.generate.can_pack", lambda _: False),
    ):
        yield


def leaving_off(_: PopulationModel) -> Any:
    return patch("evolora.engine.eager.generate._LEAST_FINISHED_SHARE", 2)


@contextmanager
def packs_off(population_model: PopulationModel) -> Iterator[None]:
    with read_off(population_model), patch("evolora.engine.cpu.gpt2.train.Gpt2Packs.of", lambda *_, **__: None):
        yield


@contextmanager
def adapters_off(population_model: PopulationModel) -> Iterator[None]:
    with (
        packs_off(population_model),
        patch("evolora.engine.eager.lora_layers.takes_adapters", lambda *_: False),
        patch("evolora.engine.eager.lora_layers.dropped", lambda x, share, _: F.dropout(x, share)),
    ):
        yield


def log_probs_off(_: PopulationModel) -> Any:
    return patch("evolora.engine.cpu.log_probs.in_float32", lambda _: False)


GENERATION: dict[str, Off] = {
    "products in panels": products_off,
    "the panels kept": panels_off,
    "GELU in one pass": gelu_off,
    "whole layers compiled": whole_off,
    "several steps at a time": ahead_off,
    "a step compiled": step_off,
    "that, and attention over the cache compiled": compiled_off,
    "attention by plain products": attention_off,
    "whole texts between their products compiled": packs_off,
    "that, and adapters and their dropout compiled": adapters_off,
    "packed prompts": packing_off,
    "finished rows leave": leaving_off,
    "GPT-2's pass with less Python": pass_off,
    "parts side by side": parts_off,
}
REFINEMENT: dict[str, Off] = {
    **GENERATION,
    "sampling compiled": sampling_off,
    "log-probabilities compiled": log_probs_off,
}


def generation(subject: Subject) -> tuple[PopulationModel, Callable[[], object]]:
    population_model, n = PopulationModel(subject.own(), subject.layout, threads=subject.threads), 8
    genomes, prompts = subject.genomes(n), subject.prompts().repeat(n)

    def run() -> None:
        population_generate(
            population_model, genomes, prompts, max_new_tokens=20, eos_token_ids=[subject.never], pad_token_id=0
        )

    return population_model, run


def evaluation(subject: Subject) -> tuple[PopulationModel, Callable[[], object]]:
    base, task = load_base(BUNDLED_MODEL), load_task(task="translate")
    population_model = PopulationModel(base.model, subject.layout, threads=subject.threads)
    scorer = RewardScorer(load_reward(task.reward))
    evaluator = LocalEvaluator(population_model, base.tokenizer, scorer, max_new_tokens=11)
    genomes = subject.founder + 0.1 * subject.genomes(8)
    return population_model, lambda: evaluator.evaluate(genomes, task.train[:32])


def refinement(subject: Subject) -> tuple[PopulationModel, Callable[[], object]]:
    base, task = load_base(BUNDLED_MODEL), load_task(task="translate")
    scorer = RewardScorer(load_reward(task.reward))
    config = PPOConfig(max_new_tokens=11, target_kl=None)
    population_model = PopulationModel(base.model, subject.layout, dropout=0.05, threads=subject.threads)
    refiner = PPORefiner(population_model, base.tokenizer, scorer, config, seed=0)
    return population_model, lambda: refiner.refine(subject.founder[None], task.train[:64], key=[(0, 0)])


def measure(
    population_model: PopulationModel, run: Callable[[], object], levers: dict[str, Off], repeats: int
) -> dict[str, Any]:
    """Median seconds with everything, without each lever, and without any."""

    def without(names: list[str]) -> Callable[[], None]:
        def once() -> None:
            if not names:
                run()
                return
            with levers[names[0]](population_model):
                without(names[1:])()

        return once

    sides = {"all": without([]), **{name: without([name]) for name in levers}, "none": without(list(levers))}
    for side in sides.values():
        side()
    return {name: median(times) for name, times in alternate(sides, repeats).items()}


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
    work: list[tuple[str, str, Callable[[Subject], Any], dict[str, Off]]] = [
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
            population_model, run = make(subject)
            if options.profile:
                print(title, json.dumps(profile_of(run), indent=1))
                continue
            results[title] = measure(population_model, run, levers, options.repeats)
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
