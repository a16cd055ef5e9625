"""Hits: what counts as one, what is kept of them, and what is said of the first."""

import json
import math

import numpy as np
import pytest

from evolora.evolution.hits import FirstHit, Hits


def where(prompt: str = "2 + 2 =", *, generation: int = 1, stage: str = "rollout", tokens: int = 100) -> FirstHit:
    return FirstHit(generation, stage, 7, prompt, " 4", tokens)


@pytest.mark.parametrize(
    ("worth", "beside", "floor"),
    [
        ([0.0] * 40, False, 0.0),
        ([0.3, math.nan, 0.3, 0.3, 0.3], False, 0.3),
        ([0.3, 0.3], False, None),  # too few to say it, but where they are paid nothing
        ([0.0], False, 0.0),
        ([0.0] * 39 + [1.0], False, None),
        ([0.0] * 39 + [1.0], True, 0.0),
        ([0.0] * 9 + [1.0], True, None),
        ([math.nan], True, None),
    ],
)
def test_a_run_starts_from_nothing_where_the_base_is_paid_alike(
    worth: list[float], beside: bool, floor: float | None
) -> None:
    hits = Hits()
    assert hits.begin(np.array(worth), beside=beside) == (floor is not None) and hits.floor == floor


def test_nothing_is_a_hit_where_the_base_is_paid_from_the_start() -> None:
    hits = Hits()
    hits.begin(np.array([0.0, 1.0]), beside=False)
    hits.add(where(), [5], 1.0)
    assert len(hits) == 0 and hits.first is None and hits.metrics(1) == {} and hits.summary() == {}


def test_the_first_stays_the_first_and_what_led_to_it_is_counted() -> None:
    hits = Hits(floor=0.0)
    for worth in (0.0, math.nan, 0.0):
        hits.add(where(), [4], worth)
    hits.add(where(stage="population"), [4], 0.0)  # greedy: no sample
    hits.add(where(tokens=100), [5], 1.0)
    hits.add(where("3 + 3 =", generation=2, tokens=200), [6], 0.5)
    hits.add(where(), [4], 0.0)
    assert hits.in_vain == 3 and hits.first == where(tokens=100)
    assert [(hit.prompt, hit.completion_ids, hit.worth) for hit in hits] == [
        ("2 + 2 =", (5,), 1.0),
        ("3 + 3 =", (6,), 0.5),
    ]
    assert hits.metrics(1)["first_hit.completion"] == " 4" and hits.metrics(2) == {"hits": 2}
    for validation, tokens in ((0.4, 500), (0.6, 700), (0.9, 900)):
        hits.reached(validation, tokens=tokens)
    assert hits.summary()["first_hit"]["tokens_to_half"] == 600
    assert "the first hit, after 100 tokens, by individual 7 (rollout): '4' to '2 + 2 ='" in hits.news(1)[0]
    assert hits.news(2) == []


def test_no_more_are_kept_than_can_be_scored() -> None:
    hits = Hits(floor=0.0)
    for prompt in range(20):
        for token in range(20):
            hits.add(where(str(prompt)), [token], 1.0)
            hits.add(where(str(prompt)), [token], 1.0)  # once more
    assert len(hits) == 64 and max(map(len, hits.known.values())) == 8


def test_they_survive_a_checkpoint() -> None:
    hits = Hits(floor=0.1)
    hits.add(where(), [4], 0.1)
    hits.add(where(), [5, 0], 1.0)
    hits.too_rare = (1, 20, 0.25)
    again = Hits.from_state_dict(json.loads(json.dumps(hits.state_dict())))
    assert again == hits and again.state_dict() == hits.state_dict()
