"""Runs the command line on bad inputs and says what was not refused in a sentence: `make fuzz`.

Every input is made from the seed and its number, and run in a process that is forked from one that has everything
loaded, with limits of time and memory. What counts as right: exit code 2, one line on stderr, nothing left behind; or
exit code 1 in words; or 0, since some inputs are good by chance.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from bad_inputs import Maker

from evolora.cli import main as evolora

FAULTS = ("traceback", "hang", "killed", "exit code", "words", "left behind")
_SECONDS = 20.0
_BYTES = 4 * 2**30
_ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
TRACEBACK = 99


@dataclass(frozen=True)
class Outcome:
    """What became of an input: its class, and in words what is wrong with it."""

    kind: str
    seconds: float
    words: str = ""


class Case:
    """An input, and the process that it is run in."""

    def __init__(self, materials: Path, folder: Path, seed: int, number: int) -> None:
        self.number, self.folder, self.here = number, folder / str(number), folder / str(number) / "here"
        self.here.mkdir(parents=True)
        self.arguments = Maker(materials, self.here, random.Random(f"{seed}:{number}")).make()
        self.before = _listing(self.here)
        self.began = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            self._run()

    def _run(self) -> None:
        code = TRACEBACK
        try:
            os.setsid()
            for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
                mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_CREAT
                os.dup2(os.open(os.devnull if name == "stdin" else self.folder / name, mode), descriptor)
            os.chdir(self.here)
            limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            try:
                code = evolora(self.arguments)
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def outcome(self) -> Outcome | None:
        """What became of it; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.began
        if not pid and seconds <= _SECONDS:
            return None
        if not pid:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return Outcome("hang", seconds)
        said = (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")
        return judged(os.waitstatus_to_exitcode(status), said, seconds, _listing(self.here) - self.before)


def judged(code: int, said: str, seconds: float, new: set[str]) -> Outcome:
    """What became of an input, by the exit code, what was said on stderr, and the files that are new."""
    lines = said.strip().splitlines()
    last = lines[-1] if lines else ""
    if code == TRACEBACK or (lines and lines[0].startswith("Traceback")):
        return Outcome("traceback", seconds, last)
    if code < 0:
        return Outcome("killed", seconds, signal.Signals(-code).name)
    if code == 0:
        return Outcome("accepted", seconds)
    if code not in (1, 2):
        return Outcome("exit code", seconds, f"{code}: {last}")
    if not any(line.startswith("evolora: ") for line in lines):
        return Outcome("words", seconds, f"exit code {code} without a sentence: {last}")
    if code == 1:
        return Outcome("failed in words", seconds, last)
    if len(lines) > 1:
        return Outcome("words", seconds, f"more than a line: {lines[0]}")
    if new:
        return Outcome("left behind", seconds, min(new))
    return Outcome("refused", seconds, last)


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def make_materials(folder: Path) -> None:
    """Good inputs: two tiny models of random weights, data, preferences, and a run. The run warms this process up."""
    import pyarrow.parquet
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from evolora.models.base import model_path

    disable_progress_bar()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-gpt2"))
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    gpt2 = GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=64, vocab_size=len(tokenizer), **ends)
    GPT2LMHeadModel(gpt2).save_pretrained(folder / "model")
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tokenizer), max_position_embeddings=64, **ends,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    rows = [{"prompt": f"{a} + 1 =", "target": str(a + 1)} for a in range(12)]
    chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    preferences = [{"prompt": row["prompt"], "chosen": row["target"], "rejected": "x"} for row in rows]
    for model in ("model", "llama"):
        tokenizer.save_pretrained(folder / model)
    turns = [{"messages": [*row["prompt"], _ANSWER], "tools": [{"name": "add"}]} for row in chats]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet")
    (folder / "data.json").write_text(json.dumps(rows, indent=1))
    for name, values in (("data", rows), ("chat", chats), ("turns", turns), ("preferences", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    good = Maker(folder, folder, random.Random(0)).train(data=str(folder / "data.jsonl"))
    good[good.index("--out") + 1] = str(folder / "run")
    with contextlib.redirect_stdout(io.StringIO()):
        assert evolora(good) == 0 and evolora(["evaluate", str(folder / "run")]) == 0
    shutil.copy(folder / "run" / "config.toml", folder)


def fuzz(seed: int, numbers: range, jobs: int, out: Path) -> int:
    """Run the inputs of these numbers, print a table, keep the folders of those at fault in `out`: how many."""
    counts: Counter[str] = Counter()
    faults: list[tuple[int, Outcome]] = []
    slowest = (0.0, -1)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=out) as temporary:
        materials, waiting, running = Path(temporary) / "materials", list(reversed(numbers)), list[Case]()
        materials.mkdir()
        make_materials(materials)
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Case(materials, Path(temporary), seed, waiting.pop()))
            time.sleep(0.005)
            for case in list(running):
                outcome = case.outcome()
                if outcome is None:
                    continue
                running.remove(case)
                counts[outcome.kind] += 1
                if outcome.kind == "refused":
                    slowest = max(slowest, (outcome.seconds, case.number))
                if outcome.kind in FAULTS:
                    faults.append((case.number, outcome))
                    print(f"{case.number}: {outcome.kind}: {outcome.words[:160]}", flush=True)
                    kept = out / f"{seed}-{case.number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    (case.folder / "arguments.json").write_text(json.dumps(case.arguments) + "\n")
                    case.folder.rename(kept)
                elif len(numbers) == 1:
                    print(json.dumps(case.arguments), outcome.kind, outcome.words)
                shutil.rmtree(case.folder, ignore_errors=True)
    print(f"\n{len(numbers)} inputs of seed {seed}; the slowest refusal, {slowest[1]}, took {slowest[0]:.1f} s")
    for kind in ("refused", "failed in words", "accepted", *FAULTS):
        print(f"{kind:>16} {counts[kind]:6}")
    for number, _ in faults:
        print(f"repeat: python scripts/fuzz.py --seed {seed} --only {number}    ({out / f'{seed}-{number}'})")
    return len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run one input again")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where inputs at fault are kept")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else range(options.only, options.only + 1)
    return int(fuzz(options.seed, numbers, options.jobs, options.out.absolute()) > 0)


if __name__ == "__main__":
    sys.exit(main())
