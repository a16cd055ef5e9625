"""Kill runs, damage their files, end them in every other way, and let one run for long: is anything lost or wrong?

python scripts/drill.py [--seed 0] [--kills 50] [--corruptions 250] [--soak 500]
    [--worker-kills 20] [--only kills faults ...]

Everything is done to the real command on the bundled model. A run that was killed and resumed must end with the bits of
one that was not. A damaged file must be named, or make no difference. Exits with 1 where anything was silently wrong,
lost, or said by a traceback; each such case is printed with what repeats it.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

KINDS = ("faults", "corruptions", "endings", "soak", "kills", "worker-kills", "workers")
SMALL = (
    "--pop", "4", "--elites", "1", "--eval-prompts", "4", "--validation-prompts", "8", "--max-validation-prompts", "16",
    "--max-test-prompts", "16", "--threads", "1", "--task", "arithmetic",
)  # fmt: skip
LEARNS = ("--rl-steps", "1", "--rollout-prompts", "4")
SETTINGS: tuple[tuple[str, ...], ...] = (
    *(("--strategy", strategy, "--refiner", "ppo") for strategy in ("ga", "es", "eggroll", "sep-cmaes", "pbt", "none")),
    *(("--strategy", "ga", "--refiner", refiner) for refiner in ("grpo", "rloo", "none")),
    ("--strategy", "random", "--refiner", "none"),
    ("--strategy", "es", "--refiner", "grpo"),
    ("--strategy", "ga", "--refiner", "ppo", "--lora-dropout", "0"),
    ("--strategy", "ga", "--refiner", "grpo", "--rollout-samples", "4", "--racing", "0.05", "--racing-block", "2"),
)
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# Faults that earlier drills found, and the tests that try each: here in processes of their own, as users meet them.
FAULTS = {
    "one run, one owner, one identity": ("test_ownership.py", "test_same_run.py", "test_whole.py"),
    "whatever ends a run": ("test_endings.py",),
    "other people's code, and secrets": ("test_trust.py", "test_secrets.py"),
    "a reward that fails": ("test_reward_errors.py",),
    "bad input": ("test_bad_input.py",),
}
# The first three replace parts of the process that they run in; the last is what "corruptions" does.
LEFT_OUT = (
    "not test_what_the_machine_lacks_is_a_sentence and not test_an_error_of_our_own_keeps_its_traceback "
    "and not test_an_extension_that_was_killed_at_its_end and not test_verify_names_each_flipped_bit"
)
# What a reward may do to the process that calls it.
MISBEHAVING = {
    "default dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "gradients off": "import torch; torch.set_grad_enabled(False)",
    "threads": "import torch; torch.set_num_threads(3)",
    "seeds": "import random, numpy, torch; random.seed(1); numpy.random.seed(1); torch.manual_seed(1)",
    "a thread left behind": "import threading, time; threading.Thread(target=time.sleep, args=[60]).start()",
    "os._exit": "import os; calls = globals().setdefault('calls', []); calls.append(1); len(calls) < 9 or os._exit(0)",
}
# What a run may differ in from its repetition, and what says whose it is.
_OWN = ("run", "name", "check", "seconds", "time", "sealed", "sha256", "changed")


@dataclass
class Tally:
    """What came of the cases of one kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def good(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def fault(self, what: str) -> None:
        self.outcomes["FAULT"] += 1
        self.faults.append(what)
        print(f"  FAULT: {what}", flush=True)

    def report(self) -> str:
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.kind}: {sum(self.outcomes.values())} cases: {said}"


def words(out: Path, setting: tuple[str, ...], gens: int = 5) -> list[str]:
    learns = () if setting[setting.index("--refiner") + 1] == "none" else LEARNS
    return ["train", *SMALL, *learns, *setting, "--gens", str(gens), "--save-every", "2", "--out", str(out)]


def launch(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    run = next((word for word in arguments if word.startswith("/")), "")
    environment = {**ENVIRONMENT, "EVOLORA_DRILL": run}  # by which what it leaves behind is known
    return subprocess.Popen([sys.executable, "-m", "evolora", *arguments], env=environment, **options)


def finished(arguments: list[str]) -> tuple[int, str]:
    process = launch(arguments)
    out, errors = process.communicate(timeout=600)
    return process.returncode, (out + errors).decode(errors="replace")


def called(arguments: list[str]) -> tuple[int, str]:
    """The command in this process, which saves its start."""
    from evolora.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except Exception as error:  # what the command would show as a traceback
            return 99, f"Traceback: {type(error).__name__}: {error}"
    return code, said.getvalue()


def facts(run: Path) -> dict[str, Any]:
    """What must be the same in every repetition of a run."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    with contextlib.closing(sqlite3.connect(run / "lineage.sqlite")) as database:
        lineage = [
            sorted(map(repr, database.execute(f"SELECT * FROM {table}")))
            for table in ("individuals", "parents", "fitness", "samples")
        ]
    return {
        "metrics": [
            {
                name: value
                for name, value in line.items()
                if not name.startswith(("time.", "workers.")) and name not in _OWN
            }
            for line in metrics
        ],
        "summary": {name: value for name, value in summary.items() if name not in _OWN},
        "lineage": lineage,
        "adapter": hashlib.sha256((run / "best" / "adapter_model.safetensors").read_bytes()).hexdigest(),
    }


def kills(work: Path, rng: random.Random, count: int) -> Tally:
    """SIGKILL at random moments, then resume, or begin again where there was no run yet."""
    tally = Tally("killed and resumed")
    references: dict[tuple[str, ...], tuple[dict[str, Any], float]] = {}
    for number in range(count):
        setting = SETTINGS[number % len(SETTINGS)]
        if setting not in references:
            start = time.perf_counter()
            code, said = finished(words(work / f"reference{number}", setting))
            if code:
                tally.fault(f"{' '.join(setting)}: exit {code}: {said[-300:]}")
                continue
            references[setting] = facts(work / f"reference{number}"), time.perf_counter() - start
        expected, seconds = references[setting]
        run = work / f"killed{number}"
        moments = [rng.uniform(0.2, 1.05) * seconds for _ in range(rng.randint(1, 3))]
        for moment in [*moments, None]:
            begun = (run / "config.toml").exists()
            process = launch(["resume", str(run)] if begun else words(run, setting))
            try:
                out, errors = process.communicate(timeout=moment or 600)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                continue
            if process.returncode:
                tally.fault(f"{' '.join(setting)}, killed after {moments}: {(out + errors).decode()[-300:]}")
                break
        else:
            if facts(run) == expected:
                tally.good("the same bits")
            else:
                tally.fault(f"{' '.join(setting)}, killed after {moments}: other bits")
        shutil.rmtree(run, ignore_errors=True)
    return tally


# Several slices a batch, of which each worker has some.
SLICED = ("--slice-rows", "3")


def worker_kills(work: Path, rng: random.Random, count: int) -> Tally:
    """So many workers killed in one run, beside the same slices in one process."""
    tally = Tally("workers killed in one run")
    setting, gens = SETTINGS[0], 8 * count  # long enough for all of them
    code, said = finished([*words(work / "unharmed", setting, gens), *SLICED, "--workers", "0"])
    if code:
        tally.fault(f"exit {code}: {said[-300:]}")
        return tally
    run, hit, seen = work / "harmed", 0, dict[int, float]()
    process = launch([*words(run, setting, gens), *SLICED, "--workers", "2"], stdout=subprocess.DEVNULL)
    while process.poll() is None and hit < count:
        time.sleep(rng.uniform(0.2, 3))
        for pid, name in descendants(process.pid).items():
            if name.startswith("ray::RemoteWorker"):
                seen.setdefault(pid, time.monotonic())
        # Most of those that were seen so long ago are ready.
        if alive := [
            pid for pid, since in seen.items() if time.monotonic() - since > 6 and Path(f"/proc/{pid}").exists()
        ]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(alive), signal.SIGKILL)
                hit += 1
    _, errors = process.communicate(timeout=1200)
    if hit < count:
        tally.fault(f"the run ended after {hit} of {count} kills: {errors.decode()[-300:]}")
    same_bits(tally, f"{hit} workers killed", run, facts(work / "unharmed"), process.returncode, errors.decode())
    return tally


def workers(work: Path) -> Tally:
    """Runs whose slices go to worker processes, beside the same slices in one process: over all settings; and with the
    driver killed, and resumed with another number of workers, and with none."""
    tally = Tally("workers")
    code: int | None
    for number, setting in enumerate(SETTINGS):
        alone, run, workers = work / f"alone{number}", work / f"dealt{number}", (1, 2, 4)[number % 3]
        code, said = finished([*words(alone, setting), *SLICED, "--workers", "0"])
        if code:
            tally.fault(f"{' '.join(setting)}: exit {code}: {said[-300:]}")
            continue
        code, said = finished([*words(run, setting), *SLICED, "--workers", str(workers)])
        same_bits(tally, f"{' '.join(setting)} --workers {workers}", run, facts(alone), code, said)
        if number == 0:
            killed = work / "driver"
            for after, more in ((2.0, "2"), (4.0, "1"), (None, "0")):
                begun = (killed / "config.toml").exists()
                resumed = ["resume", str(killed), "--workers", more]
                process = launch(resumed if begun else [*words(killed, setting), *SLICED, "--workers", more])
                code, said = ended(process, killed, after)
            same_bits(tally, "the driver killed, with 2 workers, 1 and none", killed, facts(alone), code, said)
    return tally


def one_thread(work: Path) -> Tally:
    """Runs on one thread that know nothing of slices, beside the same in slices of the usual size."""
    tally = Tally("without workers, on one thread")
    for number, setting in enumerate(SETTINGS):
        plain, sliced = work / f"plain{number}", work / f"sliced{number}"
        for run, more in ((plain, ()), (sliced, ("--workers", "0"))):
            code, said = called([*words(run, setting, gens=3), *more])
            if code:
                break
        same_bits(tally, " ".join(setting), sliced, {} if code else facts(plain), code, said)
    return tally


def same_bits(tally: Tally, name: str, run: Path, expected: dict[str, Any], code: int | None, said: str) -> None:
    """Whether a run ended as it should, and left nothing behind."""
    if code:
        tally.fault(f"{name}: exit {code}: {said[-300:]}")
    elif facts(run) != expected:
        tally.fault(f"{name}: other bits")
    elif left := ray_processes(run):
        tally.fault(f"{name}: left processes {left}")
    else:
        tally.good("the same bits")
        print(f"  {name}: the same bits", flush=True)


def ended(process: subprocess.Popen[bytes], run: Path, after: float | None) -> tuple[int | None, str]:
    """The exit code of a run and what it said; killed so many seconds after its first generation."""
    while after is not None and process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.1)
    try:
        out, errors = process.communicate(timeout=after or 600)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, ""
    return process.returncode, (out + errors).decode(errors="replace")


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, and their command lines."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: names.get(child, "") for child in found - {pid}}


def ray_processes(run: Path) -> list[str]:
    """Those of Ray that have the environment of a run that is over: none, some seconds after it."""
    for _ in range(600):  # two of them take a minute or more to see that a driver was killed
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"EVOLORA_DRILL={run}\0".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text()[:80].replace("\0", " "))
        if not found:
            return []
        time.sleep(0.2)
    return found


def flip(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data) * 8)
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return f"bit {place} flipped"


def cut(path: Path, rng: random.Random) -> str:
    length = rng.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"cut to {length} bytes"


def corruptions(work: Path, rng: random.Random, count: int) -> Tally:
    """One flipped bit, a cut, or another run's file, in each kind of file of a finished run and of one that was
    stopped: then verify, generate and resume."""
    tally = Tally("files damaged")
    setting = SETTINGS[0]
    whole, stopped, other = work / "whole", work / "stopped", work / "other"
    for run, more in ((whole, []), (other, ["--seed", "7", "--pop", "5"])):
        code, said = called([*words(run, setting), *more])
        if code:
            tally.fault(said[-300:])
            return tally
    expected = facts(whole)
    shutil.copytree(whole, stopped)  # as if it had been killed after its fourth generation
    shutil.rmtree(stopped / "checkpoints" / "gen0005")
    shutil.rmtree(stopped / "best")
    (stopped / "summary.json").unlink()
    prompt = "The sum of 4 and 3 is"
    answer = called(["generate", str(whole), prompt])
    kinds = sorted({path.relative_to(run) for run in (whole, stopped) for path in run.rglob("*") if path.is_file()})
    for number in range(count):
        kind, origin = kinds[number % len(kinds)], rng.choice((whole, stopped))
        if not (origin / kind).is_file():
            origin = whole if origin is stopped else stopped
        run = work / "damaged"
        shutil.copytree(origin, run)
        path, donor = run / kind, other / kind
        if rng.random() < 0.2 and donor.is_file() and donor.read_bytes() != path.read_bytes():
            shutil.copyfile(donor, path)
            what = "another run's"
        else:
            what = rng.choice((flip, cut))(path, rng) if path.stat().st_size else "empty"
        case = f"{origin.name}/{kind}: {what} (case {number})"
        verdict, verified = called(["verify", str(run)])
        written = called(["generate", str(run), prompt]) if (run / "best").is_dir() else None
        code, said = called(["resume", str(run)])
        if any("Traceback" in each for each in (verified, said, *(written or ("",))[1:])):
            tally.fault(f"{case}: traceback: {(verified + said)[-300:]}")
        elif written is not None and written[0] == 0 and written != answer:
            tally.fault(f"{case}: generate wrote something else")
        elif code == 0 and facts(run) != expected and kind.name not in said:
            tally.fault(f"{case}: resumed to another result")
        elif code:
            tally.good("refused by name" if verdict else "refused by resume alone")
        elif facts(run) != expected:
            tally.good("named, and what is lost is said")
        else:
            tally.good("named, and made again" if verdict else "harmless")
        shutil.rmtree(run)
    return tally


def endings(work: Path, rng: random.Random) -> Tally:
    """Signals, pipes that close, a disk that is full: the run can be resumed to the bits of one that was not ended."""
    tally = Tally("ended otherwise")
    setting = SETTINGS[0]
    code, said = finished(words(work / "unended", setting, gens=8))
    if code:
        tally.fault(said[-300:])
        return tally
    expected = facts(work / "unended")

    def ended_by(number: int) -> Callable[[Path], tuple[int, str]]:
        def end(run: Path) -> tuple[int, str]:
            process = launch(words(run, setting, gens=8))
            while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_bytes().splitlines()) < 2:
                if process.poll() is not None:
                    break
                time.sleep(0.01)
            process.send_signal(number)
            out, errors = process.communicate(timeout=600)
            return process.returncode, (out + errors).decode()

        return end

    def with_output(target: str) -> Callable[[Path], tuple[int, str]]:
        def end(run: Path) -> tuple[int, str]:
            command = f"{sys.executable} -m evolora {' '.join(words(run, setting, gens=8))} {target}"
            done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, check=False)
            return done.returncode, (done.stdout + done.stderr).decode(errors="replace")

        return end

    def with_file_limit(run: Path) -> tuple[int, str]:
        def limit() -> None:
            size = rng.randrange(20_000, 200_000)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        process = launch(words(run, setting, gens=8), preexec_fn=limit)
        out, errors = process.communicate(timeout=600)
        return process.returncode, (out + errors).decode()

    ways: dict[str, tuple[Callable[[Path], tuple[int, str]], tuple[int, ...]]] = {
        "SIGINT": (ended_by(signal.SIGINT), (130, 0)),
        "SIGTERM": (ended_by(signal.SIGTERM), (143, 0)),
        "SIGHUP": (ended_by(signal.SIGHUP), (129, 0)),
        "| head -n 1": (with_output("| head -n 1"), (0,)),
        "> /dev/full": (with_output("> /dev/full"), (0,)),
        "closed output": (with_output(">&- 2>&-"), (0,)),
        "ascii output": (with_output("| PYTHONIOENCODING=ascii cat"), (0,)),
        "a file size limit": (with_file_limit, (0, 1, 2)),
    }
    for way, (end, codes) in ways.items():
        run = work / "ended"
        code, said = end(run)
        if code not in codes or "Traceback" in said:
            tally.fault(f"{way}: exit {code}, expected {codes}: {said[-300:]}")
        elif (run / "config.toml").exists():
            again, resumed = finished(["resume", str(run)])
            if again or facts(run) != expected:
                tally.fault(f"{way}: not resumed to the same bits: exit {again}: {resumed[-300:]}")
            else:
                tally.good("the same bits")
        else:
            tally.good("refused before the run began")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def faults(work: Path) -> Iterator[Tally]:
    """Each fault that was found and mended, once more against the real command."""
    root = Path(__file__).resolve().parent.parent
    for kind, files in FAULTS.items():
        tally = Tally(kind)
        report = work / "report.xml"
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--numprocesses=auto",
            "--dist=load",
        ]
        tests = [str(root / "tests" / "e2e" / name) for name in files]
        done = subprocess.run(
            [*pytest, "-k", LEFT_OUT, f"--junitxml={report}", *tests],
            env={**ENVIRONMENT, "EVOLORA_REAL": "1"}, cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not report.exists():
            tally.fault(f"no test ran: {(done.stdout + done.stderr)[-300:]}")
        else:
            for case in ElementTree.parse(report).iter("testcase"):
                kinds = {each.tag for each in case}
                if kinds & {"failure", "error"}:
                    tally.fault(f"{case.get('classname')}::{case.get('name')}")
                else:
                    tally.good("not tried here" if "skipped" in kinds else "as it should be")
            report.unlink()
        yield tally
    yield misbehaving(work)


def misbehaving(work: Path) -> Tally:
    """Rewards that change their process: the same bits as without that, or a sentence."""
    tally = Tally("a reward that changes its process")
    expected: dict[str, Any] | None = None
    for name, deed in {"nothing": "pass", **MISBEHAVING}.items():
        reward, run = work / "misbehaving.py", work / "misbehaved"
        reward.write_text(
            f"def score(completions, **_):\n    {deed}\n    return [len(set(text)) / 10 for text in completions]\n"
        )
        code, said = finished([*words(run, SETTINGS[0]), "--reward", f"{reward}:score"])
        if name == "os._exit":  # a reward that fails: a sentence, and where in the reward it was
            told = code == 1 and "evolora: reward score left Python with os._exit(0)\n" in said
            tally.good("a sentence") if told else tally.fault(f"{name}: exit {code}: {said[-300:]}")
        elif code or "Traceback" in said:
            tally.fault(f"{name}: exit {code}: {said[-300:]}")
        else:
            found = facts(run)
            expected = expected or found
            tally.good("the same bits") if found == expected else tally.fault(f"{name}: other bits")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def soak(work: Path, generations: int) -> Tally:
    """A long run: memory, seconds a generation and files."""
    tally = Tally(f"a soak of {generations} generations")
    run = work / "soak"
    process = launch(words(run, SETTINGS[0], gens=generations), stdout=subprocess.DEVNULL)
    seen: list[tuple[int, int, int]] = []  # generation, resident bytes, bytes of the folder
    page = os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None:
        time.sleep(0.5)
        with contextlib.suppress(OSError, IndexError, ValueError):
            memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * page
            done = (run / "metrics.jsonl").read_bytes().count(b"\n")
            seen.append((done, memory, sum(path.stat().st_size for path in run.rglob("*") if path.is_file())))
    errors = process.communicate()[1].decode()
    if process.returncode:
        tally.fault(f"exit {process.returncode}: {errors[-300:]}")
        return tally
    fifth = generations // 5

    def median(of: int, first: int, last: int) -> float:
        return statistics.median([each[of] for each in seen if first < each[0] <= last] or [0])

    grown = median(1, 4 * fifth, generations) / max(median(1, fifth, 2 * fifth), 1)
    total = [json.loads(line)["time.total"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    early = total[2 * fifth - 1] - total[fifth - 1]
    seconds = (total[-1] - total[4 * fifth - 1]) / early
    files = len([path for path in run.rglob("*") if path.is_file()])
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    print(
        f"  last fifth over second fifth: memory {grown:.3f}, seconds a generation {seconds:.3f}; at the end "
        f"{files} files, {size / 1e6:.1f} MB, {len(list((run / 'checkpoints').iterdir()))} checkpoints",
        flush=True,
    )
    for name, ratio, most in (("memory", grown, 1.05), ("seconds a generation", seconds, 1.25)):
        (tally.good(f"{name} flat") if ratio <= most else tally.fault(f"{name} grew {ratio:.3f} times"))
    return tally


def chosen(options: argparse.Namespace, work: Path, rng: random.Random) -> Iterator[Tally]:
    kinds: dict[str, Callable[[], Iterable[Tally]]] = {
        "faults": lambda: faults(work),
        "corruptions": lambda: [corruptions(work, rng, options.corruptions)],
        "endings": lambda: [endings(work, rng)],
        "soak": lambda: [soak(work, options.soak)],
        "kills": lambda: [kills(work, rng, options.kills)],
        "worker-kills": lambda: [worker_kills(work, rng, options.worker_kills)],
        "workers": lambda: [one_thread(work), workers(work)],
    }
    for name in options.only or KINDS:
        print(f"{name} ...", flush=True)
        yield from kinds[name]()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--corruptions", type=int, default=250)
    parser.add_argument("--soak", type=int, default=500)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=KINDS)
    options = parser.parse_args()
    start, faults = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        ENVIRONMENT["XDG_STATE_HOME"] = os.environ["XDG_STATE_HOME"] = f"{folder}/state"
        for tally in chosen(options, Path(folder), random.Random(options.seed)):
            print(tally.report(), flush=True)
            faults += len(tally.faults)
    print(f"{faults} faults in {(time.perf_counter() - start) / 60:.1f} minutes, seed {options.seed}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
