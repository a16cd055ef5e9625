"""Build the wheel, install it outside of the checkout and let it make a run.

python scripts/smoke_wheel.py [lowest newest] [--python python3.14] [--extra fast] [--pin torch==2.13.0]
    [--environment DIR]

`lowest` has every dependency at the lowest version that pyproject.toml allows, `newest` what pip takes by itself; each
`--pin` says otherwise of one. `--python` is the interpreter of the environments. Each is made anew in a temporary
folder, or kept in DIR, by its kind. Exits with 1 where something could not be installed or a command failed, and says
what it said.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROMPT = "Translate 'chat' to English:"
# No module of the checkout, and no hub.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


class FailedError(Exception):
    """A command that did not exit with 0."""


def call(*command: str | Path, cwd: Path) -> str:
    """A command's output. Raises FailedError with its last lines."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines()[-15:]
        raise FailedError("\n".join([f"{' '.join(map(str, command))}: exit code {done.returncode}", *lines]))
    return done.stdout.strip()


def lowest(extras: Sequence[str]) -> dict[str, str]:
    """By name the dependencies, those of some extras too, each at its lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    pins: dict[str, str] = {}
    for wanted in map(Requirement, texts):
        floors = [one.version for one in wanted.specifier if one.operator in (">=", "==", "~=")]
        pins[canonicalize_name(wanted.name)] = f"{wanted.name}=={floors[0]}" if floors else wanted.name
    return pins


def smoke(which: str, options: argparse.Namespace, folder: Path) -> None:
    """Install the wheel into an environment in `folder`, and run the commands. Raises FailedError."""
    call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", ROOT, cwd=folder)
    wheel = next((folder / "dist").glob("*.whl"))
    environment = (options.environment or folder / "environment").absolute() / which
    if not environment.exists():
        call(options.python, "-m", "venv", environment, cwd=folder)
    python, evolora = environment / "bin" / "python", environment / "bin" / "evolora"
    known = lowest(options.extra)
    pins = known if which == "lowest" else {}
    pins = pins | {canonicalize_name(Requirement(pin).name): pin for pin in options.pin}
    extras = f"[{','.join(options.extra)}]" if options.extra else ""
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call(*install, "--upgrade", "--upgrade-strategy", "only-if-needed", f"{wheel}{extras}", *pins.values(), cwd=folder)
    call(*install, "--no-deps", "--force-reinstall", wheel, cwd=folder)  # of the same version, from an earlier time
    installed = call(python, "-m", "pip", "list", "--format", "freeze", cwd=folder).split()
    versions = [each for each in installed if canonicalize_name(each.partition("==")[0]) in known]
    print(f"{which}: {call(python, '--version', cwd=folder)},", *versions)
    where = Path(call(python, "-c", "import evolora; print(evolora.__file__)", cwd=folder))
    if not where.is_relative_to(environment):
        raise FailedError(f"evolora is imported from {where}, expected from {environment}")
    for words in (
        ["--version"],
        ["train", "--gens", "1", "--pop", "4", "--out", "run"],
        ["evaluate", "run", "--no-base"],
        ["generate", "run", PROMPT],
    ):
        said = call(evolora, *words, cwd=folder).splitlines()
        print(f"  evolora {' '.join(words)}: {said[-1]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=["lowest", "newest"])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--extra", action="append", default=[])
    parser.add_argument("--pin", action="append", default=[])
    parser.add_argument("--environment", type=Path)
    options = parser.parse_args()
    failed = 0
    for which in options.which or ["lowest", "newest"]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                smoke(which, options, Path(folder))
            except FailedError as failure:
                print(f"{which}: {failure}")
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
