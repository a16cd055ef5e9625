"""The study: the hybrid, its parts and other methods on eight tasks, at the same seconds on one thread each.

    python benchmarks/run_study.py                      the whole study; run it again to go on where it stopped
    python benchmarks/run_study.py --quick              a look at everything, in under 15 minutes
    python benchmarks/run_study.py --report-only        tables, plots and claims anew from the raw rows, in seconds
    python benchmarks/run_study.py --methods hybrid ppo-alone --tasks sparse --seeds 0 1 2

Each finished run is one JSON line in --out. What is there is not made again, unless a task or the options that a method
resolves to have changed since, or it was made on another processor, where the same seconds are another cost. A run that
fails leaves a line with its error, and is tried again the next time.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from speed.machine import cpu_model
from study.base_rates import base_rates
from study.budget import Budget
from study.methods import METHODS, QUICK_METHODS
from study.report import PAGE, table, write_report
from study.runner import Runner, missing_jobs, of_processor, read_rows, search_jobs, study_jobs
from study.tasks import TASKS

from evolora import InputError
from evolora.runs.options import make_options

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "study.jsonl"
QUICK_FOLDER = HERE.parent / "runs" / "study-quick"
QUICK_SECONDS, QUICK_SEEDS = 4.0, 2


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, help="default 0 to 7")
    parser.add_argument("--budget-seconds", type=float, help="seconds of a run's loop (default 20)")
    parser.add_argument("--gens", type=int, help="generations instead of seconds, for a trial of the study itself")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (default 2)")
    parser.add_argument("--out", type=Path, help="file of the raw rows (default benchmarks/results/study.jsonl)")
    parser.add_argument("--report", type=Path, help="folder of study.md and its plots (default docs/log/study)")
    parser.add_argument("--no-search", action="store_true", help="PPO and GRPO alone with the default settings")
    parser.add_argument("--no-report", action="store_true", help="only make the runs")
    parser.add_argument("--report-only", action="store_true", help="only write the report")
    parser.add_argument("--base-rates", action="store_true", help="only measure what the untouched base earns")
    parser.add_argument("--quick", action="store_true", help="main methods, 4 s, two seeds, no search; kept apart")
    options = parser.parse_args(arguments)
    if options.gens is not None and options.budget_seconds is not None:
        parser.error("--gens with --budget-seconds: expected one of them")
    quick = options.quick
    options.methods = options.methods or list(QUICK_METHODS if quick else METHODS)
    options.tasks = options.tasks or list(TASKS)
    options.seeds = options.seeds or list(range(QUICK_SEEDS if quick else 8))
    seconds = options.budget_seconds or (QUICK_SECONDS if quick else 20.0)
    options.budget = Budget(gens=options.gens) if options.gens else Budget(seconds=seconds)
    options.search = not (quick or options.no_search)
    # A quick look must not take the place of the study's own results.
    options.out = options.out or (QUICK_FOLDER / "study.jsonl" if quick else RESULTS)
    options.report = options.report or (QUICK_FOLDER if quick else HERE.parent / "docs" / "log" / "study")
    return options


def show_base_rates(tasks: list[str]) -> None:
    """A table of what the untouched base earns on each split of the tasks."""
    rows = []
    for name in tasks:
        task = TASKS[name]
        examples = task.load()
        for split in ("train", "validation", "test"):
            rates = base_rates(task, getattr(examples, split))
            figures = (rates.greedy, rates.sampled, rates.right, rates.declined)
            rows.append([name, split, *(f"{figure:.3f}" for figure in figures)])
    print(table(["task", "split", "greedy reward", "sampled reward", "samples right", "samples that decline"], rows))


def main() -> int:
    options = parse()
    if options.base_rates:
        show_base_rates(options.tasks)
        return 0
    if not options.report_only:
        try:
            make_options(options.budget.options())
        except InputError as error:
            print(f"{options.budget.name}: this version refuses that budget: {error}")
            return 2
    runner = Runner(options.out, options.jobs, lambda text: print(text, flush=True))
    if not options.report_only:
        try:
            if options.search:
                jobs = search_jobs(options.tasks, options.methods, options.budget)
                runner.run(missing_jobs(jobs, read_rows(options.out), runner.say))
            rows = of_processor(read_rows(options.out), cpu_model())
            jobs = study_jobs(
                rows,
                options.tasks,
                options.methods,
                options.seeds,
                options.budget,
                search=options.search,
                say=runner.say,
            )
            runner.run(missing_jobs(jobs, rows, runner.say))
        except KeyboardInterrupt:
            print(f"\nStopped. What is finished is in {options.out}; the same command goes on from there.")
            return 130
    for failure in runner.failures:
        print(f"failed: {failure}")
    if not options.no_report:
        write_report(read_rows(options.out), options.budget, options.report)
        print(f"written: {options.report / PAGE}, with its plots and claims.json")
    return 1 if runner.failures else 0


if __name__ == "__main__":
    sys.exit(main())
