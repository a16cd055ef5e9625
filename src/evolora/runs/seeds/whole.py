"""Whether every file of a run under several seeds is whole."""

from functools import partial
from pathlib import Path

from evolora.errors import CheckpointError, InputError
from evolora.files import file_sha256
from evolora.runs.identity import SEEDS
from evolora.runs.report.page import REPORT, check_report
from evolora.runs.seeds.folder import read_seeds
from evolora.runs.seeds.summary import check_sealed
from evolora.runs.summary import SUMMARY
from evolora.runs.whole import verify_run


def verify_seeds(folder: Path) -> dict[str, str | None]:
    """`verify_run` for the folder of all seeds: its own files, and those of each seed that is begun."""
    found: dict[str, str | None] = {SEEDS: None}
    files: dict[str, str] = {}
    try:
        files = dict(read_seeds(folder).files)
    except InputError as fault:
        found[SEEDS] = str(fault)
    for name, sha256 in files.items():
        whole = (folder / name).is_file() and file_sha256(folder / name) == sha256
        found[name] = None if whole else f"{folder / name}: missing or altered, its checksum differs"
    checks = {SUMMARY: partial(check_sealed, folder), REPORT: partial(check_report, folder / REPORT)}
    for name in checks:
        if (folder / name).exists():
            try:
                checks[name]()
                found[name] = None
            except CheckpointError as fault:
                found[name] = str(fault)
    # By what lies there: where seeds.json is altered, they are runs all the same.
    runs = sorted(folder.glob("seed-*/config.toml"), key=lambda path: (len(path.parent.name), path))
    for run in (path.parent for path in runs):
        found |= {f"{run.name}/{name}": fault for name, fault in verify_run(run).items()}
    return found
