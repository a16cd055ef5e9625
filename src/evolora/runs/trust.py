"""Whose run a folder is. What other people's options can do beyond a model's arithmetic, somebody here has to allow."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from evolora.environment import references
from evolora.errors import InputError
from evolora.files import write_text
from evolora.fitness.loading import parse_fitness
from evolora.fitness.registry import BUILTIN_FITNESS
from evolora.masking import mask
from evolora.rewards.options import HUMAN
from evolora.runs.identity import run_id
from evolora.runs.options import RunOptions, Source
from evolora.runs.parts import Place

Trust = bool | Callable[[str], bool]
"""Whether a run that was not made here may do what its options say, or who is asked that question."""


def note_made_here(folder: Path, run: str) -> str | None:
    """Note in the user's own state folder that the run of that id was made in `folder`; why not, where that fails."""
    try:
        note = _note(run)
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = note.read_text(encoding="utf-8") if note.exists() else ""
        write_text(note, f"{known}{folder.resolve()}\n")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return f"The run cannot be noted as made here ({error}): later commands may ask for --trust-reward."
    return None


def made_here(folder: Path) -> bool:
    """Whether the run in `folder` was made there by this user on this machine."""
    run = run_id(folder)
    if run is None or not re.fullmatch("[0-9a-f]{32}", run):
        return False
    try:
        return str(folder.resolve()) in _note(run).read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, ValueError):
        return False


def check_trust(
    folder: Path, known: Source, options: RunOptions, trust: Trust, *, own: set[Place | None], wanted: str
) -> None:
    """Raise InputError, expecting what is `wanted`, where the run in `folder` was not made here, is not trusted, and
    what is `known` from its files runs code or reads variables. `own` options are those that the user said."""
    if trust is True or made_here(folder):
        return
    places = said_places(known, options) - own
    found = "; ".join(dict.fromkeys(_powers(options, places)))
    if not found or (callable(trust) and trust(mask(f"{folder} was not made here, and {found}. Go on?"))):
        return
    raise InputError(f"{folder}: was not made here, and {found}: expected {wanted}")


def said_places(words: Source, options: RunOptions) -> set[Place | None]:
    """The options that somebody said."""
    return {options.vocabulary.words.get(word.replace("-", "_")) for word, _ in words.words}


def _powers(options: RunOptions, places: set[Place | None]) -> Iterator[str]:
    """What the options in these places can do to whoever uses them."""
    variables = [name for place, value in options.texts() if place in places for name in references(value)]
    code = list[str]()
    for place, what, text in (
        (("reward", "name"), "reward", options.reward.name),
        (("evolution", "fitness"), "fitness", options.evolution.fitness),
    ):
        if place in places and text is not None and text != HUMAN:
            with contextlib.suppress(InputError):  # it will not be made either
                _judges(text, what, code, variables)
    yield from code
    if variables:
        yield f"it reads the environment variable {', '.join(dict.fromkeys(variables))}"


def _judges(text: str, what: str, code: list[str], variables: list[str]) -> None:
    """What a reward or a fitness can do."""
    for term in parse_fitness(text).terms:
        said = dict(term.options)
        if term.is_function or term.name == "python":
            code.append(f"its {what} is the code of {said.get('function', term.name)}")
        elif term.name in ("command", "program"):
            code.append(f"its {what} starts the program {said['command']!r}")
        elif term.name in BUILTIN_FITNESS and said.get("reward") is not None:
            _judges(str(said["reward"]), what, code, variables)
        elif said.get("token_env") is not None:
            variables.append(str(said["token_env"]))


def _note(run: str) -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "evolora" / "runs" / run
