"""The test bed: what evolution earns on a real model, run by run from the list that was fixed before.

    python benchmarks/run_testbed.py                    the whole list; run it again to go on where it stopped
    python benchmarks/run_testbed.py --report-only      the page and the claims anew from the raw rows, in seconds
    python benchmarks/run_testbed.py --tasks sums --arms hybrid grpo-terms --seeds 0
    python benchmarks/run_testbed.py --tiny before      the tiny model's study and the demo, before a change, or after

Each finished run is one JSON line in --out. What is there is not made again, unless a task, the base model or what an
arm is told has changed since, or it was made on another processor. A run that fails leaves a line with its error, and
is tried again the next time.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from study.budget import Budget
from study.measure import Job, measure
from study.runner import Runner, missing_jobs, read_rows
from study.tasks import TASKS as TINY_TASKS
from testbed.arms import ARMS, BUDGET_SECONDS
from testbed.base_rates import read_rates, unmeasured
from testbed.claims import DEMO_GENS, TINY_SECONDS, TINY_SEEDS
from testbed.measure import BedJob, measure_run
from testbed.model import base_model
from testbed.plan import ELSEWHERE, PHASE, read_plan
from testbed.report import PAGE, write_report
from testbed.tasks import TASKS

from evolora.runs.options import make_options

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "testbed.jsonl"
TINY = {name: HERE / "results" / f"tiny_{name}.jsonl" for name in ("before", "after")}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default all of the list")
    parser.add_argument("--model", help="the base model's folder (default: that of scripts/smollm2.py)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=BUDGET_SECONDS,
        help="another budget: of a trial, which counts for nothing, or with --elsewhere",
    )
    parser.add_argument(
        "--elsewhere",
        action="store_true",
        help="a task and seed that the list lacks, all arms, on another processor, in float32: they count as its runs",
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the raw rows")
    parser.add_argument("--report", type=Path, default=HERE.parent / "docs" / "results", help="folder of the page")
    parser.add_argument("--report-only", action="store_true", help="only write the report")
    parser.add_argument("--tiny", choices=list(TINY), help="only make the tiny model's runs, for the last claim")
    return parser.parse_args(arguments)


def tiny_jobs() -> list[Job]:
    """The hybrid on the study's eight tasks, and the demo."""
    demo = [Job("translate", "hybrid", seed, Budget(gens=DEMO_GENS)) for seed in range(TINY_SEEDS)]
    study = [
        Job(task, "hybrid", seed, Budget(seconds=TINY_SECONDS)) for seed in range(TINY_SEEDS) for task in TINY_TASKS
    ]
    return demo + study


def bed_jobs(options: argparse.Namespace) -> list[BedJob]:
    """The runs of the list that were asked for. Raises InputError where this version refuses an arm's options."""
    model = options.model or base_model()
    runs = [
        run
        for run in read_plan()
        if (options.arms is None or run["arm"] in options.arms)
        and (options.tasks is None or run["task"] in options.tasks)
        and (options.seeds is None or run["seed"] in options.seeds)
    ]
    jobs = [BedJob.of(run, model, options.seconds, ELSEWHERE if options.elsewhere else PHASE) for run in runs]
    for job in jobs:
        if ARMS[job.method].kind != "supervised":
            make_options({**job.options, "model": model, "task": "translate"})
    return jobs


def main() -> int:
    options = parse()
    failures: list[str] = []
    if not options.report_only:
        try:
            if options.tiny:
                runner = Runner(TINY[options.tiny], options.jobs, _say, measure)
                runner.run(missing_jobs(tiny_jobs(), read_rows(runner.out), runner.say))
            else:
                if tasks := unmeasured(options.tasks or TASKS):
                    print(f"{', '.join(tasks)}: not measured as it is now, run benchmarks/testbed/base_rates.py first")
                    return 2
                runner = Runner(options.out, options.jobs, _say, measure_run)
                runner.run(missing_jobs(bed_jobs(options), read_rows(runner.out), runner.say))
            failures = runner.failures
        except KeyboardInterrupt:
            print("\nStopped. What is finished is in the file; the same command goes on from there.")
            return 130
    for failure in failures:
        print(f"failed: {failure}")
    tiny = {name: read_rows(path) for name, path in TINY.items()}
    write_report(read_rows(options.out), read_plan(), read_rates(), options.report, tiny["before"], tiny["after"])
    print(f"written: {options.report / PAGE}, with the claims' figures")
    return 1 if failures else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
