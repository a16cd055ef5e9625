import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolora.runs.report.inspection import Inspection, copies, inspect_completions, is_repeated, repetition

PROMPTS = [f"Say something kind about number {i}:" for i in range(10)]
KIND = [f"Number {i} is a fine one, round and {'very ' * (i % 3)}useful." for i in range(10)]
NOTHING = [0.1] * 10


def found(winner: list[str], rewards: list[float] | None = None, base: list[str] = KIND) -> Inspection:
    rewards = [0.9] * len(winner) if rewards is None else rewards
    return inspect_completions(PROMPTS, (base, NOTHING), (winner, rewards))


# --- what counts as degenerate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("", 4, 0.0),
        ("a b c", 4, 0.0),
        ("a b c d", 4, 0.0),
        ("a a a a a", 4, 0.5),
        ("a a a a", 1, 0.75),
        ("a, a!", 1, 0.25),
    ],
)
def test_repetition_counts_repeated_ngrams(text: str, n: int, expected: float) -> None:
    assert repetition(text, n) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_repetition_is_the_published_measure(words: list[str], n: int) -> None:
    text = " ".join(words)
    total = max(0, len(words) - n + 1)
    different = len({tuple(words[i : i + n]) for i in range(total)})
    assert repetition(text, n) == pytest.approx(1 - different / total if total else 0.0)


@pytest.mark.parametrize("text", ["good good good", "!!!!!!!!", "so nice " * 6, "yes, yes, yes, yes"])
def test_repeated_texts(text: str) -> None:
    assert is_repeated(text)


@pytest.mark.parametrize(
    "text", ["", "good", "no no", "the cat sat on the mat", '{"a": 1, "b": 2, "c": 3}', "4 + 3 = 7", *KIND]
)
def test_texts_that_are_not_repeated(text: str) -> None:
    assert not is_repeated(text)


def test_a_copied_prompt_is_one_piece_of_it() -> None:
    assert copies("What is a cat?", "what is a cat?") and copies("What is a cat?", "Well: what is a dog?")
    assert not copies("What is a cat?", "An animal: a cat.") and not copies("What is a cat?", "")
    assert not copies("...", "no") and not copies("Translate 'chat' to English:", "chat")


# --- shares, lengths, warnings -----------------------------------------------------------------------------------


def test_an_honest_winner_is_not_warned_of() -> None:
    assert found([text.replace("fine", "good") for text in KIND]).warnings == ()


@pytest.mark.parametrize(
    ("winner", "share", "said"),
    [
        ([" \n"] * 3 + KIND[3:], "empty", "30% of the winner's completions are empty"),
        (["great great great"] * 2 + KIND[2:], "repeated", "20% of the winner's completions are mostly repetition"),
        (PROMPTS[:5] + KIND[5:], "copied", "50% of the winner's completions are copies of their prompt"),
    ],
)
def test_degenerate_completions_are_warned_of(winner: list[str], share: str, said: str) -> None:
    inspection = found(winner)
    assert getattr(inspection.base, share) == 0
    assert getattr(inspection.winner, share) == inspection.winner.degenerate == float(said[:2]) / 100
    assert any(warning.startswith(said) for warning in inspection.warnings)
    # They are not, where the base was no better.
    assert found(winner, base=winner).warnings == ()


def test_a_reward_that_prefers_degenerate_texts_is_named() -> None:
    winner = ["good good good good"] * 5 + KIND[5:]
    hacked, honest = found(winner, [1.0] * 5 + [0.2] * 5), found(winner, [0.2] * 5 + [1.0] * 5)
    assert any("can be had for nothing" in warning for warning in hacked.warnings)
    assert not any("can be had for nothing" in warning for warning in honest.warnings)
    assert (hacked.winner.degenerate_reward, hacked.winner.other_reward) == pytest.approx((1.0, 0.2))


def test_mode_collapse_is_the_share_of_the_commonest_text() -> None:
    inspection = found(["I love it here, all of it"] * 4 + [" I love it here, all of it\n"] * 3 + KIND[7:])
    assert (inspection.winner.same_text, inspection.base.same_text) == (0.7, 0.0)
    assert any("'I love it here, all of it'" in warning and "70%" in warning for warning in inspection.warnings)
    # The same prompt twice may well get the same text.
    twice = inspect_completions(["p", "p"], (["a", "a"], [0.0, 0.0]), (["b", "b"], [1.0, 1.0]))
    assert twice.winner.same_text == 0


def test_length_drift() -> None:
    longer = found([f"{text} {text[:-1]} {i}" for i, text in enumerate(KIND)])
    assert any("much longer" in warning for warning in longer.warnings)
    assert any("much shorter" in warning for warning in found([f"Yes {i}" for i in range(10)]).warnings)
    ids = [[1, 2, 3]] * 10, [[1]] * 9 + [[1] * 11]
    inspection = inspect_completions(PROMPTS, (KIND, NOTHING), (KIND, NOTHING), ids=ids)
    assert (inspection.base.mean_tokens, inspection.winner.mean_tokens) == (3.0, 2.0)
    assert (inspection.base.median_tokens, inspection.winner.median_tokens) == (3.0, 1.0)
    words = sorted(len(text.split()) for text in KIND)
    assert inspection.base.mean_words == sum(words) / 10 and inspection.base.median_words == (words[4] + words[5]) / 2


# --- the best-rewarded -------------------------------------------------------------------------------------------


def test_the_best_rewarded_come_first_and_unscored_ones_never() -> None:
    rewards = [math.nan, 0.5, 0.9, 0.7, 0.1, 0.2, 0.3, 0.4, 0.0, math.nan]
    best = found(KIND, rewards).best
    assert [pair.winner_reward for pair in best] == [0.9, 0.7, 0.5]
    assert best[0].prompt == PROMPTS[2] and best[0].base == KIND[2] and best[0].base_reward == 0.1
    assert found(KIND, [math.nan] * 10).best == ()


def test_equal_rewards_show_the_largest_gains_and_different_texts() -> None:
    base_rewards = [0.9] * 5 + [0.1] * 5
    winner = ["the same"] * 9 + ["another"]
    best = inspect_completions(PROMPTS, (KIND, base_rewards), (winner, [1.0] * 10)).best
    assert [pair.winner for pair in best] == ["the same", "another", "the same"]
    assert [pair.base_reward for pair in best] == [0.1, 0.1, 0.1]


# --- as text and JSON --------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.text(), st.text(), st.text(), st.floats(0, 1) | st.just(math.nan), st.floats(0, 1)),
        min_size=1,
        max_size=8,
    )
)
def test_any_texts_are_inspected_and_survive_json(rows: list[tuple[str, str, str, float, float]]) -> None:
    prompts, base, winner, before, after = (list(column) for column in zip(*rows, strict=True))
    inspection = inspect_completions(prompts, (base, before), (winner, after))
    text = json.dumps(inspection.as_dict(), allow_nan=False)
    assert Inspection.from_dict(json.loads(text)) == inspection
    assert all("\n" not in line and len(line) < 500 for line in inspection.lines())
    for side in (inspection.base, inspection.winner):
        shares = (side.empty, side.repeated, side.copied, side.same_text)
        assert all(0 <= share <= 1 for share in shares)
        assert max(side.empty, side.repeated, side.copied) <= side.degenerate <= 1


def test_the_lines_tell_everything() -> None:
    inspection = found(["good good good"] * 10)
    text = "\n".join(inspection.lines())
    assert "repeated 0% -> 100%" in text and "same text 0% -> 100%" in text and "'good good good'" in text
    assert text.count("warning: ") == len(inspection.warnings) == 3
    assert "0.100" in text and "0.900" in text


def test_lists_of_different_lengths_are_refused() -> None:
    for arguments in (([], ([], []), ([], [])), (["p"], (["a"], [0.0]), (["b", "c"], [0.0, 0.0]))):
        with pytest.raises(ValueError, match="expected"):
            inspect_completions(*arguments)
