"""Programs as rewards: the protocol, and what a broken program can do."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evolora.errors import InputError, RewardError
from evolora.rewards import FailedReward, RewardScorer
from evolora.rewards.command import make_command

Program = Callable[..., Any]
LOOP = """
import json, os, sys, time
for number, line in enumerate(sys.stdin):
    example = json.loads(line)
    text = example["completion"]
    {body}
    print(answer)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """A reward by a Python program with this body, or this whole code."""
    made: list[Any] = []

    def make(body: str = "answer = len(text)", *, code: str | None = None, **options: Any) -> Any:
        path = tmp_path / f"program {len(made)}.py"  # a name that needs quotes
        path.write_text(LOOP.format(body=body) if code is None else code)
        made.append(make_command(command=f"'{sys.executable}' '{path}'", **{"timeout": 20.0, **options}))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def test_it_is_sent_every_column_and_answers_in_each_form(program: Program) -> None:
    reward = program(
        "assert sorted(example) == ['completion', 'prompt', 'target']\n"
        "    answer = {'n': len(text), 's': json.dumps({'score': example['target']}), 'o': 'null',"
        " 'u': text.count('é')}[example['prompt']]"
    )
    scorer = RewardScorer(reward)
    columns = {"target": [0, 0.5, 0, 0]}
    ids = [[1]] * 4
    found = scorer.score(["n", "s", "o", "u"], ["four", "", "", "éé\n\u2028é"], columns, ids).rewards.tolist()
    assert found[:2] == [4.0, 0.5] and found[2] != found[2] and found[3] == 3.0
    assert scorer.unscored == 1


def test_it_is_started_once_and_kept_between_batches(program: Program) -> None:
    reward = program("answer = os.getpid() + number / 100")
    first, second = (reward(prompts=["p"] * 3, completions=["c"] * 3) for _ in range(2))
    assert [round(value % 1, 2) for value in first + second] == [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]
    pid = int(first[0])
    assert os.path.exists(f"/proc/{pid}")  # noqa: PTH110
    reward.close()
    assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("time.sleep(1000)", "took longer than 1 s"),
        ("os._exit(3)", "ended with exit code 3"),
        ("sys.exit(0)", "ended with exit code 0"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("raise KeyError('no such entry')", "KeyError: 'no such entry'"),
        ("print('hello')", "wrote 'hello', expected a number"),
        ("print('')", "wrote '', expected a number"),
        ("print('\"3\"')", "wrote '\"3\"', expected a number"),
        ("print('[1]')", "wrote '[1]', expected a number"),
        ("print('{\"scores\": 1}')", 'expected a number, {"score": number} or null'),
        ("print('1e999')", "returned inf"),
        ("print('NaN')", "returned nan"),
        ("os.close(1); time.sleep(1000)", "was killed by SIGKILL"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n')", "expected a number"),
        ("print('[' * 100000)", "expected a number"),
    ],
)
def test_only_the_completion_at_fault_fails(program: Program, fault: str, said: str) -> None:
    reward = program(f"if text == 'bad': {fault}; continue\n    answer = len(text)", timeout=1.0)
    texts = ["a", "bad", "ccc"]
    scorer = RewardScorer(reward, on_error="skip")
    scores = scorer.score(["p"] * 3, texts, {})
    assert scores.failed.tolist() == [False, True, False] and scores.rewards.tolist() == [1.0, 0.0, 3.0]
    assert scorer.last_error is not None and said in scorer.last_error
    if "sleep" not in fault:
        with pytest.raises(RewardError, match="prompt: 'p1'\ncompletion: 'bad'"):
            RewardScorer(reward).score(["p0", "p1", "p2"], texts, {})


def test_lines_that_nobody_asked_for_are_found(program: Program) -> None:
    """Else every later score would belong to another completion."""
    reward = program("print(len(text)); sys.stdout.flush(); answer = 7")
    first = reward(prompts=["p"], completions=["a"])
    time.sleep(0.5)  # until its second line has come
    second = reward(prompts=["p"], completions=["bb"])
    assert first == [1] and isinstance(second[0], FailedReward)
    assert "wrote a line before it was sent the completion: '7'" in second[0].what


def test_long_lines_both_ways_do_not_block(program: Program) -> None:
    """A program that writes more than a pipe holds before it reads more than a pipe holds."""
    code = (
        "import json, sys\n"
        "while True:\n"
        "    sys.stderr.write('e' * 1_000_000)\n"
        "    sys.stdout.write(' ' * 1_000_000); sys.stdout.flush()\n"
        "    line = sys.stdin.readline()\n"
        "    if not line: break\n"
        "    print(len(json.loads(line)['completion']))\n"
    )
    reward = program(code=code)
    assert reward(prompts=["p"] * 2, completions=["x" * 1_000_000, "y"]) == [1_000_000, 1]


def test_a_program_that_never_stops_writing_does_not_fill_the_memory(program: Program) -> None:
    reward = program(code="while True: print(1)")
    values = reward(prompts=["p"] * 3, completions=["c"] * 3)
    assert any(isinstance(value, FailedReward) for value in values)


def test_a_program_that_always_fails_is_given_up(program: Program, tmp_path: Path) -> None:
    count = tmp_path / "count"
    reward = program(code=f"open({str(count)!r}, 'a').write('x')", restarts=2)
    for batch in (1, 2):
        values = reward(prompts=["p"] * 9, completions=["c"] * 9)
        said = [value.what for value in values]
        assert said[:3] == ["ended with exit code 0"] * 3
        assert set(said[3:]) == {"was not called: the program had failed 3 times in a row"}
        assert len(count.read_text()) == 3 * batch


def test_without_a_log_a_part_of_its_stderr_is_passed_on(program: Program, capfd: pytest.CaptureFixture[str]) -> None:
    reward = program("sys.stderr.write('e' * 2_000_000); answer = 1")
    scorer = RewardScorer(reward)
    assert scorer.score(["p"] * 2, ["c"] * 2, {}).rewards.tolist() == [1.0, 1.0]
    scorer.close()
    err = capfd.readouterr().err
    assert 64_000 <= len(err) < 64_200 and err.count("was dropped") == 1


def test_what_it_writes_to_stderr_goes_to_the_log(
    program: Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reward = program("sys.stderr.write('e' * 2_000_000); answer = 1")
    scorer = RewardScorer(reward, log=tmp_path / "log")
    scorer.score(["p"], ["c"], {})
    scorer.close()
    text = (tmp_path / "log").read_text()
    assert 1_000_000 <= len(text) < 1_000_200 and text.count("was dropped") == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"command": "no-such-program-here --x"}, ("'no-such-program-here'", "not found")),
        ({"command": "/no/such/file"}, ("'/no/such/file'",)),
        ({"command": " "}, ("empty",)),
        ({"command": "sh 'unclosed"}, ("No closing quotation",)),
        ({"command": "sh", "timeout": 0.0}, ("timeout is 0.0",)),
        ({"command": "sh", "timeout": float("inf")}, ("timeout is inf",)),
        ({"command": "sh", "restarts": -1}, ("restarts is -1",)),
    ],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        make_command(**options)
    message = str(error.value)
    assert message.startswith("reward command: ") and message.endswith(".") and "expected" in message
    assert all(name in message for name in named), message
