"""The end of a run: the winner, the test, the export, the summary."""

import copy
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evolora.errors import InputError
from evolora.evolution.loop import Evolution
from evolora.evolution.voting import plurality
from evolora.evolution.winner import best_finalists
from evolora.files import verify, without_nan
from evolora.masking import mask
from evolora.models.base import TEMPLATE, given_base, load_chosen
from evolora.models.cards import CARD
from evolora.models.checksums import weights_sha256
from evolora.models.cost import Cost
from evolora.models.export import export_adapter, export_merged, load_adapter, shown_adapter, shown_model
from evolora.models.memory import peak_memory
from evolora.population.evaluation import Evaluation, Evaluator, term_means
from evolora.population.lineage import Lineage
from evolora.population.population import Individual, Population, genome_sha256
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.runs.given import Given
from evolora.runs.identity import Identity
from evolora.runs.keeping.names import run_name
from evolora.runs.kept import measure_kept
from evolora.runs.options import RunOptions
from evolora.runs.report.card import model_card
from evolora.runs.report.endings import Ending
from evolora.runs.report.statistics import compare, fitness_interval, gain_interval
from evolora.runs.summary import write_summary
from evolora.tasks.chat import use_template
from evolora.tasks.task import Example


def finish(
    folder: Path,
    parts: Parts,
    evolution: Evolution,
    lineage: Lineage,
    seconds: Callable[[], float],
    given: Given,
    identity: Identity,
) -> dict[str, Any]:
    """Choose the winner on validation, score base and winner once on the test split, export, sum up."""
    config = parts.config
    voters, validations, validated = best_finalists(evolution, config.evolution.vote)
    winner, validation = voters.select([0]), float(validations[0])
    base = evolution.base()
    individual, genome = winner.individuals[0], winner.genomes[0]
    start = time.perf_counter()

    evaluator = parts.judging(parts.evaluator)

    def of_both(examples: Sequence[Example]) -> list[Evaluation]:
        found = []
        for who, genomes in (("base", parts.founder[None]), ("winner", winner.genomes)):
            parts.reporter.begin(f"testing the {who}")
            found.append(evaluator.written(genomes, examples))
        return found

    with peak_memory() as peak:
        tested, written = evolution.allowance.times(2 / (1 + len(voters))).evaluated(
            of_both, parts.task.test, seed=config.run.seed, split="test"
        )
        base_test, winner_test = (evaluator.judged(each, tested) for each in written)
    taken = Cost(seconds=time.perf_counter() - start, memory=peak.bytes)
    test_cost = base_test.cost + winner_test.cost + taken
    vote, vote_cost = (
        _vote(parts, evaluator, voters, winner_test, tested) if config.evolution.vote > 1 else ({}, Cost())
    )
    evolution.check_winner(winner, winner_test, tested)  # before anything of it is kept
    for split, met, there in (("validation", validated, parts.task.validation), ("test", len(tested), parts.task.test)):
        if met < len(there):
            parts.view.say(
                f"The budget is enough for {met:,} of {len(there):,} {split} prompts at the end; "
                f"'evolora evaluate {folder} --split {split}' scores all of them."
            )
    if math.isnan(validation) and not individual.history and individual.id == base.id:
        parts.view.say(
            "The reward scored nothing in the whole run: nobody has a fitness, and best/ is the unchanged base."
        )
    elif math.isnan(validation):
        parts.view.say("The reward scored no validation prompt: the winner is who was fittest when last measured.")
    if np.isnan(base_test.rewards).all() and np.isnan(winner_test.rewards).all():
        parts.view.say("The reward scored no test prompt: the winner is exported without a test.")
    # By id: where nothing beats the base, the base is the winner, and is entered once.
    for row, evaluation in {base.id: (base, base_test), individual.id: (individual, winner_test)}.values():
        lineage.measured(evolution.generation, "test", [row], evaluation.fitness)
        lineage.sampled(
            evolution.generation,
            row,
            "test",
            [example.prompt for example in evaluation.examples or tested],
            evaluation.completions[0],
            evaluation.worth(0),
        )
    lineage.commit()
    of_kept, kept_cost = measure_kept(parts, evolution, winner, validation, tested)
    costs = {
        **{str(purpose): cost for purpose, cost in evolution.costs.by_purpose.items()},
        "test": test_cost + vote_cost + kept_cost,
    }

    def figures(evaluation: Evaluation) -> dict[str, Any]:
        clipped = {"clipped_ratio": _clipped(evaluation, parts)}
        return _test_figures(evaluation, config.run.seed) | _terms(evaluation) | clipped

    summary = {
        "run": identity.run,
        "name": run_name(folder),
        "version": importlib.metadata.version("evolora"),
        "seed": config.run.seed,
        "model": shown_model(parts.base.path if given.model is not None else config.model.name),
        **({} if parts.base.revision is None else {"revision": parts.base.revision}),
        **({} if parts.initial is None else {"init": [shown_adapter(name) for name in config.lora.init or ()]}),
        "task": mask(parts.task.name),
        "reward": parts.scorer.name,
        **({} if parts.fitness is None else {"fitness": fitness_name(parts)}),
        "strategy": config.strategy.type,
        "refiner": config.refiner.type,
        "held_out": parts.task.held_out,
        "test_prompts": len(tested),
        "generations": evolution.generation,
        "seconds": seconds(),
        "tokens": {purpose: cost.tokens for purpose, cost in costs.items()},
        "flops": {purpose: cost.flops for purpose, cost in costs.items()},
        "time": {
            **{purpose: cost.seconds for purpose, cost in costs.items()},
            "loop": evolution.seconds,
            "memory.test": taken.memory,
        },
        "base": {"test": figures(base_test)},
        "winner": {
            "id": individual.id,
            "operator": individual.operator,
            "genome_sha256": genome_sha256(genome),
            "validation": validation,
            "test": figures(winner_test),
        },
        **_genes(base, individual, parts),
        **({} if parts.fitness is None else {"gain": _gain(base_test, winner_test, config.run.seed)}),
        **vote,
        **of_kept,
        **({"changed": identity.changed} if identity.changed else {}),
        **evolution.hits.summary(),
        **({} if evolution.judge is None else {"votes": evolution.judge.summary()}),
        "inspection": compare(
            [example.prompt for example in winner_test.examples or tested], base_test, winner_test
        ).as_dict(),
    }
    summary = dict(without_nan(summary))
    fittest = max(evolution.hall_of_fame.fitness, key=lambda value: -math.inf if math.isnan(value) else value)
    ending = Ending(
        summary,
        evolution.earned,
        rarity=evolution.hits.rarity() if evolution.hits.first is None else None,
        fitter=fittest > evolution.hall_of_fame.fitness[0],
        rewards=evolution.rewards,
        has_interval=summary["winner"]["test"]["ci95"][0] is not None,
        max_new_tokens=parts.max_new_tokens,
    )
    summary["endings"] = ending.sentences()
    for sentence in summary["endings"]:
        parts.view.say(sentence)
    examples = list(
        zip(
            (example.prompt for example in (winner_test.examples or tested)[:5]),
            winner_test.completions[0],
            map(float, winner_test.worth(0)),
            strict=False,
        )
    )
    card = model_card(
        summary,
        reward=parts.scorer.name,
        max_new_tokens=parts.max_new_tokens,
        loaded=config.model,
        examples=examples,
        chat=parts.task.conversational,
        system=config.task.system_prompt,
        stop=config.completion.stop or (),
    )
    parts.reporter.begin("saving the winner")
    export_adapter(folder / "best", parts.base, parts.lora, parts.layout, genome, card)
    if config.run.merge:
        parts.reporter.begin("merging the winner")
        merge_winner(folder, config, given, identity)
    elif (folder / "merged").is_dir():
        parts.view.say(f"{folder / 'merged'}: is of an earlier winner; --merge writes it anew")
    summary["seconds"] = seconds()
    return write_summary(folder, summary, ["best", "merged"] if config.run.merge else ["best"])


def _vote(
    parts: Parts, evaluator: Evaluator, voters: Population, winner_test: Evaluation, tested: Sequence[Example]
) -> tuple[dict[str, Any], Cost]:
    """The summary's entry on the vote of the best finalists on the test split, and what it cost."""
    start = time.perf_counter()
    tests = [winner_test, *(evaluator.written(genome[None], tested) for genome in voters.genomes[1:])]
    chosen = plurality([test.completions[0] for test in tests])
    voted = replace(
        winner_test,
        rewards=np.array([[tests[voter].rewards[0, place] for place, voter in enumerate(chosen)]]),
        completions=[[tests[voter].completions[0][place] for place, voter in enumerate(chosen)]],
        completion_ids=[[tests[voter].completion_ids[0][place] for place, voter in enumerate(chosen)]],
    )
    entry = {
        "voters": [individual.id for individual in voters.individuals],
        "test": _test_figures(evaluator.judged(voted, tested), parts.config.run.seed),
    }
    cost = sum((test.cost for test in tests[1:]), Cost(seconds=time.perf_counter() - start))
    return {"vote": entry}, cost


def merge_winner(folder: Path, config: RunOptions, given: Given, identity: Identity) -> None:
    """Write the run's winner merged into the base that the run had. Raises InputError for other weights."""
    verify(folder / "best", besides=[CARD])
    lora, state = load_adapter(folder / "best")
    if given.model is None or given.tokenizer is None:
        base = load_chosen(config.used().model)
    else:  # merging changes the weights that it merges into
        base = given_base(copy.deepcopy(given.model), given.tokenizer)
    if (template := folder / "best" / TEMPLATE).is_file():
        use_template(base.tokenizer, template)
    if weights_sha256(base.model) != identity.fingerprint["model"]["weights"]:
        raise InputError(f"--model {config.model.name}: its weights have changed since this run, expected the same")
    card = (folder / "best" / CARD).read_text(encoding="utf-8")
    export_merged(folder / "merged", base, lora, state, card=card, sealed=True)


def _test_figures(evaluation: Evaluation, seed: int) -> dict[str, Any]:
    """An individual's mean reward, its fitness where that is another, and the interval of the latter; NaN where there
    is none."""
    own = evaluation.of(0)
    low, high = fitness_interval(own, seed=keyed_seed(seed, "bootstrap"))
    beside = {"fitness": own.fitness} if evaluation.judged else {}
    return {"reward": float(evaluation.mean_rewards[0]), **beside, "ci95": [low, high]}


def _gain(base: Evaluation, winner: Evaluation, seed: int) -> dict[str, Any]:
    """How much fitter the winner is, by a fitness beside the reward, and the interval."""
    low, high = gain_interval(winner.of(0), base.of(0), seed=keyed_seed(seed, "bootstrap"))
    return {"fitness": winner.of(0).fitness - base.of(0).fitness, "ci95": [low, high]}


def fitness_name(parts: Parts) -> str:
    """What judges individuals: its name, and how many samples, where they are several."""
    samples = parts.config.evolution.fitness_samples
    name = parts.scorer.name if parts.fitness is None else parts.fitness.name
    return f"{name} of {samples} samples" if samples > 1 else name


def _clipped(evaluation: Evaluation, parts: Parts) -> float:
    """The share of completions that the limit has cut off."""
    written = evaluation.completion_ids[0]
    return sum(map(parts.evaluator.cut, written)) / len(written)


def _genes(base: Individual, winner: Individual, parts: Parts) -> dict[str, Any]:
    """What the run began with and what the winner has of its own beside its weights, where individuals have."""
    began, won = base.hyperparameters, winner.hyperparameters
    if began is None or won is None:
        return {}
    return {"genes": {"begun": began.named(parts.summands), "winner": won.named(parts.summands)}}


def _terms(evaluation: Evaluation) -> dict[str, Any]:
    """The means of a combined reward's terms."""
    return {"terms": term_means(evaluation, 0)} if evaluation.terms else {}
