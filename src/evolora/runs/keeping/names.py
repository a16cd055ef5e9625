"""What runs are called. A folder in `runs/` begins with the time, so that it is sorted, and ends with the name."""

import os
import re
import secrets
import time
from pathlib import Path

from evolora.errors import InputError
from evolora.runs.identity import SEEDS

RUNS = Path("runs")

_TIME = re.compile(r"(\d{8}-\d{6})-(.+)")
_NAME = re.compile(r"[^\W_][\w.-]{0,49}")
_FIRST = """
    amber bold brave brisk bronze calm clever cosy crisp curious dapper deft eager early fair fancy fleet fond frosty
    gentle glad golden grand happy hardy honest humble icy jolly keen kind lively lucky mellow merry mild misty modest
    neat nimble noble patient placid plucky polite proud quick quiet rapid rosy rustic shy silent silver sleek snowy
    steady sturdy sunny swift tidy tiny vivid warm wise witty zesty
""".split()
_SECOND = """
    badger beaver bison bobcat camel condor cougar crane cricket curlew dingo dolphin eagle egret falcon ferret finch
    fox gannet gecko gibbon heron hornet ibex ibis iguana jackal jaguar kestrel koala lemur linnet llama lynx magpie
    marmot marten merlin mole moose newt ocelot oriole osprey otter owl panda petrel pigeon plover puffin quail rabbit
    raven robin salmon seal shrike skylark sparrow squid stoat stork swan tapir tern thrush toad trout turtle walrus
    weasel whale wombat wren yak zebra
""".split()


def run_name(folder: Path) -> str:
    """The name of the run in `folder`; of one under several seeds with the run's own behind it.

    >>> run_name(Path("runs/20261130-041000-quiet-otter")), run_name(Path("/somewhere/baseline"))
    ('quiet-otter', 'baseline')
    """
    if folder.name.startswith("seed-") and (folder.parent / SEEDS).is_file():
        return f"{run_name(folder.parent)}/{folder.name}"
    found = _TIME.fullmatch(folder.name)
    return found[2] if found else folder.name


def named_time(folder: Path) -> time.struct_time | None:
    """The local time that a folder's name begins with."""
    found = _TIME.fullmatch(folder.name)
    try:
        return time.strptime(found[1], "%Y%m%d-%H%M%S") if found else None
    except ValueError:
        return None


def new_folder(name: str | None) -> Path:
    """A new folder in `runs/`, for a run that is called so, or by two words that no other is called by. Raises
    InputError for a name that is no name, or is taken."""
    taken = {run_name(folder): folder for folder in _folders()}
    if name is None:
        while (name := f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}") in taken:
            pass
    elif _NAME.fullmatch(name) is None:
        raise InputError(
            f"--name {name}: expected at most 50 letters, digits, '.', '-' and '_', a letter or a digit first"
        )
    elif name in taken:
        raise InputError(f"--name {name}: {taken[name]} has that name, expected one that no other run has")
    return RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def find_run(text: str | os.PathLike[str]) -> Path:
    """The folder that is meant by its path, or by the name of a run in `runs/`; the path where there is neither."""
    path = Path(text)
    if path.exists() or path.is_symlink() or path.is_absolute() or not path.parts:
        return path
    first, *rest = path.parts
    found = [folder for folder in _folders() if first in (folder.name, run_name(folder))]
    if len(found) > 1:
        listed = " and ".join(map(str, found))
        raise InputError(f"{text}: {listed} have that name, expected the folder of one of them")
    return found[0].joinpath(*rest) if found else path


def _folders() -> list[Path]:
    try:
        return sorted(path for path in RUNS.iterdir() if path.is_dir())
    except OSError:
        return []
