"""The end of a run: the winner, the test, the export, the summary."""

import copy
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evolora.errors import InputError
from evolora.evolution.loop import Evolution
from evolora.evolution.voting import voted_rewards
from evolora.evolution.winner import best_finalists
from evolora.files import verify, without_nan
from evolora.masking import mask
from evolora.models.base import TEMPLATE, given_base, load_chosen
from evolora.models.cards import CARD
from evolora.models.cost import Cost
from evolora.models.export import export_adapter, export_merged, load_adapter, shown_adapter, shown_model
from evolora.models.memory import peak_memory
from evolora.population.evaluation import Evaluation, mean_fitness, term_means
from evolora.population.lineage import Lineage
from evolora.population.population import Population, genome_sha256
from evolora.rng import keyed_seed
from evolora.runs.assembly import Parts
from evolora.runs.fingerprint import weights_sha256
from evolora.runs.given import Given
from evolora.runs.identity import Identity
from evolora.runs.keeping.names import run_name
from evolora.runs.options import RunOptions
from evolora.runs.report.card import model_card
from evolora.runs.report.statistics import bootstrap_interval, compare
from evolora.runs.summary import write_summary
from evolora.tasks.chat import use_template
from evolora.tasks.task import Example

# Of the completions that were cut off, what is worth a warning.
_MANY = 0.5


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

    def of_both(examples: Sequence[Example]) -> list[Evaluation]:
        found = []
        for who, genomes in (("base", parts.founder[None]), ("winner", winner.genomes)):
            parts.reporter.begin(f"testing the {who}")
            found.append(parts.evaluator.evaluate(genomes, examples))
        return found

    with peak_memory() as peak:
        tested, (base_test, winner_test) = evolution.allowance.times(2 / (1 + len(voters))).evaluated(
            of_both, parts.task.test, seed=config.run.seed, split="test"
        )
    taken = Cost(seconds=time.perf_counter() - start, memory=peak.bytes)
    test_cost = base_test.cost + winner_test.cost + taken
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
            [example.prompt for example in tested],
            evaluation.completions[0],
            evaluation.rewards[0],
        )
    lineage.commit()
    vote, vote_cost = _vote(parts, voters, winner_test, tested) if config.evolution.vote > 1 else ({}, Cost())
    costs = {
        **{str(purpose): cost for purpose, cost in evolution.costs.by_purpose.items()},
        "test": test_cost + vote_cost,
    }

    def figures(evaluation: Evaluation) -> dict[str, Any]:
        clipped = {"clipped_ratio": _clipped(evaluation, parts)}
        return _test_figures(evaluation.rewards[0], config.run.seed) | _terms(evaluation) | clipped

    if (warning := cut_warning("the winner's test completions", _clipped(winner_test, parts), parts)) is not None:
        parts.view.say(warning)
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
        **vote,
        **({"changed": identity.changed} if identity.changed else {}),
        **({} if evolution.judge is None else {"votes": evolution.judge.summary()}),
        "inspection": compare([example.prompt for example in tested], base_test, winner_test).as_dict(),
    }
    summary = dict(without_nan(summary))
    examples = list(
        zip(
            (example.prompt for example in tested[:5]),
            winner_test.completions[0],
            map(float, winner_test.rewards[0]),
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
    parts: Parts, voters: Population, winner_test: Evaluation, tested: Sequence[Example]
) -> tuple[dict[str, Any], Cost]:
    """The summary's entry on the vote of the best finalists on the test split, and what it cost."""
    start = time.perf_counter()
    tests = [winner_test, *(parts.evaluator.evaluate(genome[None], tested) for genome in voters.genomes[1:])]
    rewards = voted_rewards([test.completions[0] for test in tests], np.concatenate([test.rewards for test in tests]))
    entry = {
        "voters": [individual.id for individual in voters.individuals],
        "test": _test_figures(rewards, parts.config.run.seed),
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


def _test_figures(rewards: npt.NDArray[np.float64], seed: int) -> dict[str, Any]:
    """The mean of the rewards [prompts] and its interval; NaN where there is none."""
    low, high = bootstrap_interval(rewards, seed=keyed_seed(seed, "bootstrap"))
    return {"reward": float(mean_fitness(rewards[None])[0]), "ci95": [low, high]}


def cut_warning(whose: str, share: float, parts: Parts) -> str | None:
    """What is said where a large share of completions was cut off; None where it was not."""
    if not share > _MANY:  # NaN where there were none
        return None
    return (
        f"Warning: {share:.0%} of {whose} were cut off at {parts.max_new_tokens} tokens; where they should end by "
        "themselves, a larger --max-new-tokens lets them."
    )


def _clipped(evaluation: Evaluation, parts: Parts) -> float:
    """The share of completions that the limit has cut off."""
    written = evaluation.completion_ids[0]
    return sum(map(parts.evaluator.cut, written)) / len(written)


def _terms(evaluation: Evaluation) -> dict[str, Any]:
    """The means of a combined reward's terms."""
    return {"terms": term_means(evaluation, 0)} if evaluation.terms else {}
