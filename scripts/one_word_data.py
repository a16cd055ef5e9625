"""The bundled chat task `one-word`, for instruction-tuned models: questions with one right word as the answer, which a
small model knows and wraps in a sentence.

Run as a script, this writes the task's files: `python scripts/one_word_data.py [--seed N] [--out FOLDER]`.
"""

import argparse
import json
from pathlib import Path

from tiny_data import ASSETS, DEFAULT_SEED, Row, split_rows

FACTS_FILE = Path(__file__).resolve().parent / "data" / "one_word.tsv"
QUESTIONS = {
    "capital": "What is the capital of {}?",
    "opposite": 'What is the opposite of "{}"?',
    "plural": 'What is the plural of "{}"?',
    "past": 'What is the past tense of "{}"?',
}
SIZES = (140, 44)  # of train and validation; the rest is test


def load_rows() -> list[Row]:
    """A question, its one right word, and what kind of question it is."""
    lines = FACTS_FILE.read_text(encoding="utf-8").splitlines()[1:]
    return [
        {"prompt": f"{QUESTIONS[kind].format(asked)} Answer with one word.", "target": answer, "kind": kind}
        for kind, asked, answer in (line.split("\t") for line in lines)
    ]


def write_task(out: Path, seed: int) -> None:
    """Write `<out>/<split>.jsonl` for every split, with chat messages as prompts."""
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in split_rows(load_rows(), SIZES, seed).items():
        chats = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        lines = "".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)
        (out / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        print(split, len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files of the task one-word.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--out", type=Path, default=ASSETS / "tasks" / "one-word")
    options = parser.parse_args()
    write_task(options.out, options.seed)


if __name__ == "__main__":
    main()
