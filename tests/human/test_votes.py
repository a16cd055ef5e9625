"""The vote store: no vote is lost or counted twice, whatever raters, reloads and kills do."""

import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from evolora.human.preferences import Preference
from evolora.human.votes import Pair, Question, VoteStore


def pairs(count: int, *, first: int = 0) -> list[Pair]:
    return [Pair(f"prompt {n}", 0, f"a {n}", 1, f"b {n}") for n in range(first, first + count)]


@pytest.fixture
def store(tmp_path: Path) -> VoteStore:
    return VoteStore(tmp_path / "votes.sqlite")


def shown(store: VoteStore, rater: str) -> Question:
    question = store.next_question(rater)
    assert question is not None
    return question


def test_questions_come_in_the_order_asked_until_none_is_left(store: VoteStore) -> None:
    assert store.next_question("me") is None
    assert store.generation is None
    ids = store.ask(3, pairs(3))
    assert store.generation == 3
    for identifier in ids:
        assert shown(store, "me").id == identifier
        assert store.vote(identifier, "me", "a") == "accepted"
    assert store.next_question("me") is None
    assert store.count(3) == store.count() == store.asked(3) == 3


def test_the_place_of_a_is_random_and_kept(store: VoteStore) -> None:
    ids = store.ask(1, pairs(200))
    before = [store.question(identifier) for identifier in ids]
    left = sum(question.a_is_left for question in before)
    assert 60 < left < 140
    for n, question in enumerate(before):
        assert (question.left, question.right) == ((f"a {n}", f"b {n}") if question.a_is_left else (f"b {n}", f"a {n}"))
    assert [store.question(identifier) for identifier in ids] == before
    assert len(set(ids)) == 200


def test_a_repeated_vote_counts_once_and_the_first_choice_stays(store: VoteStore) -> None:
    (identifier,) = store.ask(1, pairs(1))
    assert store.vote(identifier, "me", "b") == "accepted"
    assert store.vote(identifier, "me", "b") == "already"
    assert store.vote(identifier, "me", "a") == "already"
    assert store.vote(identifier, "me", "skip") == "already"
    assert [vote.outcome for vote in store.decided(1)] == ["b"]


def test_two_raters_at_once_get_different_questions_and_the_first_answer_counts(store: VoteStore) -> None:
    store.ask(1, pairs(2))
    mine, yours = shown(store, "me"), shown(store, "you")
    assert mine.id != yours.id
    assert store.next_question("third") is None
    assert store.vote(mine.id, "you", "a") == "accepted"  # from a stale page, and first
    assert store.vote(mine.id, "me", "b") == "taken"
    assert [vote.outcome for vote in store.decided()] == ["a"]


def test_a_reload_shows_the_same_question_and_a_lease_ends(tmp_path: Path) -> None:
    now = [1000.0]
    store = VoteStore(tmp_path / "votes.sqlite", lease=60, clock=lambda: now[0])
    store.ask(1, pairs(2))
    mine, yours = shown(store, "me"), shown(store, "you")
    for _ in range(10):  # renewed by being shown
        now[0] += 40
        assert shown(store, "me").id == mine.id
    now[0] += 50
    assert shown(store, "you").id != mine.id
    assert store.next_question("third") is None
    now[0] += 20  # mine has ended, yours has not
    assert shown(store, "you").id == yours.id
    assert shown(store, "third").id == mine.id
    assert store.next_question("me") is None
    assert store.vote(mine.id, "me", "tie") == "accepted"
    assert store.vote(mine.id, "third", "a") == "taken"


def test_undo_takes_back_the_last_vote_and_shows_its_question_again(store: VoteStore) -> None:
    first, second = store.ask(1, pairs(2))
    store.vote(first, "me", "a")
    store.vote(second, "me", "bad")
    assert store.can_undo("me")
    assert store.undo("me") == second
    assert shown(store, "me").id == second
    assert store.next_question("you") is None
    assert [vote.prompt for vote in store.decided()] == ["prompt 0"]
    assert store.undo("me") == first
    assert store.undo("me") is None
    assert not store.can_undo("me")
    assert store.vote(first, "me", "b") == "accepted"
    assert [vote.outcome for vote in store.decided()] == ["b"]


def test_undo_gives_back_the_question_that_was_shown_meanwhile(store: VoteStore) -> None:
    first, second = store.ask(1, pairs(2))
    store.vote(shown(store, "me").id, "me", "a")
    assert shown(store, "me").id == second
    store.undo("me")
    assert shown(store, "me").id == first
    assert shown(store, "you").id == second


def test_undo_reaches_neither_another_rater_nor_another_generation(store: VoteStore) -> None:
    (first,) = store.ask(1, pairs(1))
    store.vote(first, "me", "a")
    assert store.undo("you") is None
    store.ask(2, pairs(1))
    assert store.undo("me") is None
    assert store.count() == 1


def test_a_skip_puts_a_question_away_for_that_rater_only(store: VoteStore) -> None:
    first, second = store.ask(1, pairs(2))
    assert store.vote(first, "me", "skip") == "accepted"
    assert store.vote(first, "me", "skip") == "already"
    assert shown(store, "me").id == second
    assert shown(store, "you").id == first
    store.vote(second, "me", "skip")
    assert store.next_question("me") is None
    assert (store.count(), store.decided(), store.skipped("me")) == (0, [], 2)
    assert store.undo("me") == second
    assert shown(store, "me").id == second
    store.vote(first, "you", "a")
    assert store.vote(first, "me", "b") == "taken"


def test_skipped_questions_can_be_asked_again(store: VoteStore) -> None:
    first, second = store.ask(1, pairs(2))
    for identifier in (first, second):
        store.vote(identifier, "me", "skip")
    assert store.unskip("me") == 2
    assert shown(store, "me").id == first
    store.vote(second, "me", "skip")
    assert store.vote(second, "me", "a") == "accepted"  # a page that still shows it
    assert [vote.prompt for vote in store.decided()] == ["prompt 1"]


def test_asking_again_keeps_questions_and_votes(store: VoteStore) -> None:
    ids = store.ask(1, pairs(3))
    store.vote(ids[0], "me", "a")
    swapped = [Pair(pair.prompt, pair.individual_b, pair.text_b, pair.individual_a, pair.text_a) for pair in pairs(3)]
    assert store.ask(1, swapped) == ids
    assert (store.count(1), store.asked(1)) == (1, 3)
    assert store.ask(2, pairs(3)) != ids
    assert shown(store, "me").generation == 2
    assert store.ask(1, []) == []  # a run that went back
    assert shown(store, "me").id == ids[1]


def test_votes_that_are_in_use_stay_as_they_are(store: VoteStore) -> None:
    """A resumed run must find of a generation what the run had found."""
    given, late = store.ask(1, pairs(2))
    assert store.vote(given, "me", "a") == "accepted"
    store.close_generation()
    assert store.next_question("me") is None
    assert store.vote(late, "me", "a") == "closed"
    assert store.vote(given, "me", "a") == "already"
    assert store.undo("me") is None
    store.ask(2, pairs(1))
    assert store.vote(late, "me", "a") == "closed"
    assert (store.count(1), store.count(2)) == (1, 0)


def test_an_unknown_question_and_an_unknown_choice_are_refused(store: VoteStore) -> None:
    (identifier,) = store.ask(1, pairs(1))
    with pytest.raises(KeyError):
        store.vote("forged", "me", "a")
    with pytest.raises(ValueError, match="left"):
        store.vote(identifier, "me", "left")  # type: ignore[arg-type]
    assert store.count() == 0


def test_preferences_go_out_and_come_in_once(store: VoteStore, tmp_path: Path) -> None:
    ids = store.ask(1, pairs(4))
    for identifier, choice in zip(ids, ("a", "b", "tie", "bad"), strict=True):
        store.vote(identifier, "me", choice)  # type: ignore[arg-type]
    rows = store.preferences()
    assert rows == [
        Preference("prompt 0", "a 0", "b 0", False),
        Preference("prompt 1", "b 1", "a 1", False),
        Preference("prompt 2", "a 2", "b 2", True),
        Preference("prompt 3", "a 3", "b 3", True),
    ]
    assert store.add_preferences(rows) == 0  # its own
    other = VoteStore(tmp_path / "other.sqlite")
    file = [*rows, rows[0], Preference("prompt 2", "b 2", "a 2", True)]  # two people said the same
    assert other.add_preferences(file) == 6
    assert other.add_preferences(file) == 0
    assert other.add_preferences([Preference("prompt 1", "a 1", "b 1", False)]) == 1  # somebody disagrees
    assert Counter(other.preferences())[rows[0]] == 2
    assert other.count() == 7
    assert {(vote.generation, vote.individual_a, vote.individual_b) for vote in other.decided()} == {(None, None, None)}
    assert other.next_question("me") is None


def test_texts_of_any_kind_come_back_as_they_were(store: VoteStore) -> None:
    odd = "\x00 tab\t 'quote' \"; DROP TABLE votes; -- \u202e \xe9 \U0001f600 \r\n "
    (identifier,) = store.ask(1, [Pair(odd, 0, odd + "a", 1, "")])
    store.vote(identifier, "me", "b")
    (vote,) = store.decided()
    assert (vote.prompt, vote.text_a, vote.text_b) == (odd, odd + "a", "")


def test_many_threads_decide_each_question_once(tmp_path: Path) -> None:
    store = VoteStore(tmp_path / "votes.sqlite")
    second = VoteStore(tmp_path / "votes.sqlite")  # as another process would
    store.ask(1, pairs(40))
    accepted: list[str] = []
    errors: list[BaseException] = []

    def rate(mine: VoteStore, rater: str) -> None:
        try:
            while (question := mine.next_question(rater)) is not None:
                for _ in range(2):
                    if mine.vote(question.id, rater, "a") == "accepted":
                        accepted.append(question.id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=rate, args=(mine, f"rater {n}")) for n, mine in enumerate([store, second] * 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(accepted) == len(set(accepted)) == store.count(1) == len(store.decided()) == 40


VOTER = """
import sys
from evolora.human.votes import VoteStore
store = VoteStore(sys.argv[1])
while (question := store.next_question("me")) is not None:
    store.vote(question.id, "me", "a")
    print(question.id, flush=True)
"""


def test_no_vote_is_lost_or_doubled_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    ids = VoteStore(path).ask(1, pairs(5000))
    said: list[str] = []
    for kill_after in (1, 30):
        process = subprocess.Popen([sys.executable, "-c", VOTER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(kill_after):
            said.append(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        said.extend(line.strip() for line in process.stdout if line.endswith("\n"))
        process.wait()
        store = VoteStore(path)
        counted = [vote.prompt for vote in store.decided()]
        assert len(counted) == len(set(counted)) < 5000
        # Votes were given in the order asked; each kill may have come between a commit and what was said of it.
        assert counted == [f"prompt {n}" for n in range(len(counted))]
        assert set(said) <= set(ids[: len(counted)])
        assert store._one("PRAGMA integrity_check") == "ok"
        assert store.next_question("me") is not None
        assert store.next_question("me").id == ids[len(counted)]  # type: ignore[union-attr]
        store.close()
    assert len(said) >= 31
