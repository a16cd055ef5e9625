"""The built-in fitnesses, against values that sklearn and sacrebleu give."""

import math
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from evolora.errors import InputError
from evolora.fitness.agreement import make_agreement
from evolora.fitness.base import FitnessContext
from evolora.fitness.corpus_bleu import make_corpus_bleu
from evolora.fitness.loading import make_fitness, parse_fitness, parse_followed
from evolora.fitness.macro_f1 import make_macro_f1
from evolora.fitness.pass_at_k import make_pass_at_k
from evolora.fitness.worst_group import make_worst_group
from evolora.rewards import RewardContext, ScoringOptions
from evolora.tasks.task import Example

TARGETS = ["good", "good", "good", "good", "bad", "bad", "neutral", "good"]
SAID = [" good", "bad", "Good ", "so-so", "bad", "good", "bad", "good"]


def context(samples: int = 1, group: str | None = None, columns: tuple[str, ...] = ("target",)) -> FitnessContext:
    return FitnessContext(samples, columns, group, RewardContext())


def test_macro_f1_is_what_sklearn_says() -> None:
    # sklearn 1.9.1: f1_score(TARGETS, said, labels=["bad", "good", "neutral"], average="macro", zero_division=0), the
    # texts without blanks and case; of the first four rows with labels=["good"].
    value = make_macro_f1()(completions=SAID, target=TARGETS)
    assert value(np.arange(8)) == pytest.approx(0.35555555555555557, abs=1e-12)
    assert value(np.arange(4)) == pytest.approx(0.6666666666666666, abs=1e-12)
    # One label rare, never said: a third of the whole, however few rows.
    assert value(np.array([6])) == 0.0


def test_case_may_count_for_a_label_and_a_target_may_be_missing() -> None:
    strict = make_macro_f1(ignore_case=False)(completions=SAID, target=TARGETS)
    assert strict(np.array([2])) == 0.0 and strict(np.array([0])) == 1.0
    assert math.isnan(make_macro_f1()(completions=["a"], target=[None])(np.arange(1)))


@pytest.mark.parametrize("order", [2, 4])
def test_corpus_bleu_is_sacrebleus_on_any_rows(order: int) -> None:
    said = ["the cat sat on the mat", "a dog", "", "there is no one here at all"]
    wanted = ["the cat sat on a mat", "a cat", "nothing", ["there is nobody here at all", "no one is here at all"]]
    value = make_corpus_bleu(order=order)(completions=said, target=wanted)
    oracle = BLEU(max_ngram_order=order)
    for rows in ([0, 1, 2, 3], [0, 0, 3], [3]):
        references = [wanted[row] if isinstance(wanted[row], list) else [wanted[row]] for row in rows]
        streams = [[own[min(place, len(own) - 1)] for own in references] for place in range(2)]
        expected = oracle.corpus_score([said[row] for row in rows], streams).score / 100
        assert value(np.array(rows)) == pytest.approx(expected, abs=1e-9)


def test_the_worst_group_is_the_one_that_earns_least() -> None:
    judge = make_worst_group(reward="exact", context=context(group="kind", columns=("target", "kind")))
    value = judge(completions=["a", "b", "x", "d"], target=["a", "b", "c", "d"], kind=["one", "one", "two", "two"])
    assert value(np.arange(4)) == 0.5
    assert value(np.array([0, 1])) == 1.0 and value(np.array([0, 2, 2])) == 0.0


def test_the_worst_group_needs_a_column() -> None:
    with pytest.raises(InputError, match="expected --group-column beside it"):
        make_worst_group(context=context())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_is_the_share_of_choices_with_a_hit(k: int) -> None:
    completions, target = ["a", "x", "y", "x", "x", "y"], ["a"] * 3 + ["b"] * 3
    found = make_pass_at_k(k=k, context=context(samples=3))(completions=completions, target=target)
    hits = [any(completions[row] == "a" for row in chosen) for chosen in combinations(range(3), k)]
    assert found == pytest.approx([np.mean(hits)] * 3 + [0.0] * 3)


def test_agreement_is_the_chance_that_two_samples_are_the_same() -> None:
    judge = make_agreement(context=context(samples=3))
    assert judge(completions=["a", "A ", "b", "c", "c", "c"]) == pytest.approx([1 / 3] * 3 + [1.0] * 3)


@pytest.mark.parametrize("name", ["pass-at-k", "agreement"])
def test_some_need_several_samples(name: str) -> None:
    with pytest.raises(InputError, match=f"--fitness-samples 1 with --fitness {name}: expected at least 2"):
        make_fitness(parse_fitness(name), ScoringOptions(), context())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("macro-f2", "--fitness is 'macro-f2', expected one of"),
        ("macro-f1(beta=2)", "--fitness macro-f1(beta=2): the option beta is unknown"),
        ("macro-f1 + exact", "--fitness is 'macro-f1', expected one of"),
        ("worst-group(reward=exakt)", "fitness worst-group: --reward is 'exakt'"),
        ("program(command=nowhere-to-be-found)", "fitness program: 'nowhere-to-be-found' is not found"),
    ],
)
def test_bad_ones_are_refused_in_one_sentence(spec: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        make_fitness(parse_fitness(spec), ScoringOptions(), context(group="kind", columns=("target", "kind")))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["macro-f1", "exact + drift", "macro-f2"])
def test_what_a_fitness_may_be_besides_is_said_where_a_name_is_no_reward(spec: str) -> None:
    for parsed in (parse_followed, parse_fitness):
        if parsed is parse_followed or spec == "macro-f2":
            with pytest.raises(InputError, match=r"expected one of similarity, .* --fitness may also be macro-f1, "):
                parsed(spec)
    with pytest.raises(InputError) as error:
        parse_fitness("macro-f2 - 0.5 * drift")
    assert str(error.value).count("may also be") == 1
    with pytest.raises(InputError, match=r"option beta is unknown[^-]*$"):
        parse_followed("exact(beta=2)")


def test_a_program_judges_the_whole_and_is_not_asked_again(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(
        "import json\nwhile True:\n    print(len(set(json.loads(input())['completions'])), flush=True)\n"
    )
    spec = f"program('{sys.executable} {tmp_path / 'judge.py'}')"
    judge = make_fitness(parse_fitness(spec), ScoringOptions(), context())
    examples = [Example(f"p{n}", {"target": "t"}) for n in range(3)]
    try:
        found = judge.judged(examples, [["a", "a", "b"], ["a", "b", "c"]], [[[1]] * 3] * 2)
    finally:
        judge.scorer.close()
    assert [own.fitness for own in found] == [2.0, 3.0]
    assert all(own.by_prompt is None and own.value is None for own in found)
