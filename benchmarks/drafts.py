"""Where drafts pay: completions with drafts of which some share is right to the end, against none.

    python benchmarks/drafts.py [--repeats 5]

A draft that is not right is right up to a random place. Prints a table of milliseconds and writes
benchmarks/results/drafts.json.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from speed import machine
from speed.subjects import load_subject, subjects_folder
from speed.timing import alternate, median

from evolora.engine.base import Completions, Decoding, Prompts
from evolora.engine.choose import choose_engine

SHARES = (1.0, 0.9, 0.7, 0.5, 0.0)
ROWS = {"tiny": (1, 8, 32, 128), "124M": (1, 8, 32)}
LENGTH = 20


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    """Median milliseconds by the number of rows and the share of right drafts."""
    rows_found = []
    with subjects_folder() as folder:
        subject = load_subject(name, folder)
        torch.set_num_threads(subject.threads_an_operation)
        engine, genome = choose_engine(subject.own(), subject.layout).engine, subject.genomes(1)
        generator, draw = torch.Generator().manual_seed(0), random.Random(0)
        for rows in ROWS[name]:
            prompts = torch.randint(1, subject.vocabulary, (rows, 10), generator=generator).tolist()

            def complete(drafts: list[list[int]] | None = None, prompts: Prompts = prompts) -> Completions:
                how = Decoding(max_new_tokens=LENGTH, ends=[subject.never], pad=0, drafts=drafts)
                return engine.generate(genome, prompts, how)

            right = complete().rows()
            sides: dict[str, Any] = {"none": complete}
            for share in SHARES:
                drafts = list(right)
                for row in draw.sample(range(rows), round(rows * (1 - share))):
                    drafts[row] = right[row][: draw.randrange(LENGTH)]
                    drafts[row] += [1] * (LENGTH - len(drafts[row]))
                assert complete(drafts).rows() == right
                sides[f"{share:.0%}"] = lambda drafts=drafts: complete(drafts)
            times = alternate(sides, repeats)
            rows_found.append({"model": name, "rows": rows, **{k: 1000 * median(v) for k, v in times.items()}})
    return rows_found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "drafts.json")
    options = parser.parse_args()
    rows = [row for name in ROWS for row in measure(name, options.repeats)]
    options.out.write_text(json.dumps({"machine": machine.describe(), "milliseconds": rows}, indent=1) + "\n")
    names = [name for name in rows[0] if name not in ("model", "rows")]
    print("| model | rows | " + " | ".join("no drafts" if name == "none" else name for name in names) + " |")
    print("|" + "---|" * (2 + len(names)))
    for row in rows:
        print(f"| {row['model']} | {row['rows']} | " + " | ".join(f"{row[name]:.0f}" for name in names) + " |")


if __name__ == "__main__":
    main()
