"""How long the phases of a run take in a fresh process, and how long its screen stands still.

`python scripts/silence.py [OPTIONS]`, with the options of `evolora train`, by default the demo's.
"""

import json
import os
import pty
import subprocess
import sys
import tempfile
import time

DEMO = ["--gens", "20", "--pop", "8"]


def phases(options: list[str]) -> dict[str, float]:
    """Seconds by phase, in their order, by the events of `--json-lines`; rollouts and updates are one phase each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "evolora", "train", *options, "--json-lines", "--out", f"{folder}/run"]
        began, spent, phase = time.perf_counter(), dict[str, float](), "until the first sign"
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        before = began
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] not in ("progress", "end"):
                continue
            now = time.perf_counter()
            spent[phase] = spent.get(phase, 0.0) + now - before
            before = now
            phase = event.get("what", "ending").partition(":")[0]
            phase = "rollouts" if phase.startswith("rollout ") else phase
        process.wait()
        spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - before
    return spent


def silences(options: list[str]) -> tuple[float, float]:
    """Seconds until something is on a terminal's screen, and the longest afterwards in which nothing there changed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "evolora", "train", *options, "--out", f"{folder}/run"]
        before = time.perf_counter()
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
            os.execv(command[0], command)
        found = []
        while True:
            try:
                said = os.read(terminal, 65536)
            except OSError:  # Linux's way to say that it has ended
                break
            if not said:
                break
            now = time.perf_counter()
            found.append(now - before)
            before = now
        os.waitpid(pid, 0)
    return found[0], max(found[1:])


if __name__ == "__main__":
    options = sys.argv[1:] or DEMO
    for name, seconds in phases(options).items():
        print(f"{name:<60} {seconds:6.1f} s")
    first, longest = silences(options)
    print(f"{'first sign on a terminal':<60} {first:6.1f} s\n{'longest silence after it':<60} {longest:6.1f} s")
