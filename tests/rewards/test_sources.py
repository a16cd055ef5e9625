"""Whether a reward is still the one that it was."""

import functools
from pathlib import Path
from typing import Any

import pytest

from evolora.rewards.expression import Expression, Term
from evolora.rewards.loading import parse_reward
from evolora.rewards.several import weighted
from evolora.rewards.sources import reward_sources


def names(spec: str) -> set[str]:
    return {Path(name).name for name in reward_sources(parse_reward(spec), {})}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "reward.py").write_text(
        "import json, helper\ndef score(completions):\n    from package.inner import deep\n    return helper.f()\n"
    )
    (tmp_path / "helper.py").write_text("import helper, reward, further as f\n")
    (tmp_path / "further.py").write_text("")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner.py").write_text("from . import sibling\n")
    (tmp_path / "package" / "sibling.py").write_text("not python")
    return tmp_path


SOURCES = {"reward.py", "helper.py", "further.py", "__init__.py", "inner.py", "sibling.py"}


def test_a_file_with_all_that_it_imports_from_its_folder(files: Path) -> None:
    spec = f"{files / 'reward.py'}:score"
    assert names(spec) == SOURCES
    assert names(f"2 * python(function='{spec}') + brevity(limit=8)") == SOURCES
    before = reward_sources(parse_reward(spec), {})
    (files / "further.py").write_text("F = 1")
    after = reward_sources(parse_reward(spec), {})
    assert {Path(name).name for name in before if before[name] != after[name]} == {"further.py"}


def test_a_module_of_the_working_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    assert names("package.inner:deep") == {"__init__.py", "inner.py", "sibling.py"}
    assert names("json.decoder:JSONDecoder") == {"decoder.py"}, "what is installed is known by its version"
    assert names("no_such_module:f") == set()


def test_files_and_folders_that_options_name(files: Path) -> None:
    assert names(f"command('python {files / 'helper.py'} --fast')") == {"helper.py"}
    assert names(f"reward-model(model='{files / 'package'}')") == {"__init__.py", "inner.py", "sibling.py"}
    assert names("regex(pattern='(')") == names("brevity(limit=8)") == names("http('https://a.example/b')") == set()


def test_functions_that_were_given() -> None:
    def score(completions: list[str], factor: float = 1.0) -> list[float]:
        return [factor] * len(completions)

    def sums(*rewards: object) -> dict[str, str]:
        return reward_sources(*weighted(list(rewards)))  # type: ignore[arg-type]

    (plain,) = sums(score, "brevity(limit=8)").values()
    twice, thrice = (functools.partial(score, factor=factor) for factor in (2.0, 3.0))
    assert len({plain, *sums(twice).values(), *sums(thrice).values()}) == 3
    typed: dict[str, Any] = {}
    exec("def typed(completions): return [0.0]\ndef other(completions): return list(map(len, completions))", typed)
    typed["other"].__name__ = typed["other"].__qualname__ = "typed"
    assert sums(typed["typed"]) != sums(typed["other"])


_SCALE = 2.0
_CALLS = 0


def _helper(text: str) -> float:
    return _SCALE * len(text)


class _Scorer:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, completions: list[str], **_: object) -> list[float]:
        global _CALLS
        _CALLS += 1
        return [self.weight * _helper(text) for text in completions]


def test_what_a_given_function_calls_and_reads_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def score(completions: list[str], **_: object) -> list[float]:
        seen.extend(completions)
        return [_helper(text) for text in completions]

    def sums() -> list[dict[str, str]]:
        return [
            reward_sources(*weighted([reward]))  # type: ignore[arg-type]
            for reward in (score, _Scorer(1.0), functools.partial(_Scorer(1.0), obj=_Scorer(2.0)))
        ]

    before = sums()
    score(completions=["what is counted and kept is no part of it"])
    _Scorer(1.0)(completions=["neither here"])
    assert sums() == before
    monkeypatch.setitem(globals(), "_SCALE", 3.0)
    assert all(now != then for now, then in zip(sums(), before, strict=True))
    monkeypatch.setitem(globals(), "_SCALE", 2.0)
    assert sums() == before
    monkeypatch.setitem(globals(), "_helper", lambda text: -1.0)
    assert all(now != then for now, then in zip(sums(), before, strict=True))


def test_a_registered_reward_is_known_by_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def shout(completions: list[str], **_: object) -> list[float]:
        return [1.0] * len(completions)

    monkeypatch.setattr("evolora.rewards.loading._registered", {"shout": shout})
    assert set(reward_sources(Expression(Term("shout")), {})) == {"shout"}
