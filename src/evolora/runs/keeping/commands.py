"""`evolora ls`, `show` and `rm`: their words, and what they do."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from evolora.errors import InputError
from evolora.masking import mask
from evolora.runs.keeping.names import RUNS, find_run
from evolora.screen import asked

AddCommand = Callable[[str, str, Callable[[dict[str, Any]], int]], argparse.ArgumentParser]


def add_commands(add: AddCommand) -> None:
    listed = add("ls", "list the runs in a folder, the newest last", _list)
    listed.add_argument("folder", metavar="DIR", nargs="?", help=f"default: {RUNS}")
    shown = add("show", "show one run: its settings, its result, its files, and what to do next", _show)
    shown.add_argument("run", metavar="RUN", help="the run's folder or name")
    for parser in (listed, shown):
        parser.add_argument("--json", action="store_true", help="for other programs")
    removed = add("rm", "remove runs, when asked whether to", _remove)
    removed.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder or name")
    removed.add_argument("--yes", action="store_true", help="do not ask")


def _list(options: dict[str, Any]) -> int:
    from evolora.runs.keeping.entry import read_entries
    from evolora.runs.keeping.listing import table

    folder = find_run(options["folder"]) if options["folder"] else RUNS
    entries = read_entries(folder) if options["folder"] or RUNS.is_dir() else []
    if options["json"]:
        print(json.dumps([entry.as_dict() for entry in entries], indent=1))
    elif entries:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(table(entries, width)))
    else:
        print(f"{folder}: no runs there; 'evolora train' makes one in {RUNS}/")
    return 0


def _show(options: dict[str, Any]) -> int:
    from evolora.runs.keeping.entry import read_entry
    from evolora.runs.keeping.listing import shown, table

    folder = find_run(options["run"])
    entry = read_entry(folder) if folder.is_dir() else None
    if entry is None:
        raise InputError(
            f"{folder}: found no run there, expected the folder or the name of one; 'evolora ls' lists them"
        )
    if options["json"]:
        own = {} if entry.seeds else {"options": _masked(entry.options), "summary": dict(entry.summary)}
        print(json.dumps({**entry.as_dict(), **own}, indent=1))
    else:
        print("\n".join(table([entry], None) if entry.seeds else shown(entry)))
    return 0


def _masked(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mask(value) if isinstance(value, str) else value for name, value in options.items()}


def _remove(options: dict[str, Any]) -> int:
    from evolora.runs.keeping.listing import megabytes
    from evolora.runs.keeping.removal import removable, remove

    folders = dict.fromkeys(find_run(run) for run in options["runs"])
    entries = [removable(folder) for folder in folders]  # all of them, before any goes
    if not options["yes"]:
        if sys.stdin is None or not sys.stdin.isatty():
            raise InputError("rm: found no terminal to ask on, expected --yes")
        for entry in entries:
            print(f"{entry.folder}  {megabytes(entry.size)}", file=sys.stderr)
        try:
            if not asked(f"Remove {'this run' if len(entries) == 1 else f'these {len(entries)} runs'}?"):
                return 1
        except KeyboardInterrupt:
            print("\nnothing was removed", file=sys.stderr)
            return 130
    for entry in entries:
        left = remove(entry, print)
        print(f"removed {entry.folder}" + (f", but for what is no part of a run: {', '.join(left)}" if left else ""))
    return 0
