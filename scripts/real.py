"""A real model from start to end: SmolLM2-135M-Instruct learns to answer with one word, which it is asked for and does
not do; then plain PEFT and transformers, without evolora, load what came out and must score the same.

    python scripts/real.py [--out runs/real] [--seed 0] [more options of `evolora train`]

Its options are real.toml, beside this file. Exits with 1 when the reward is not up from the base's, with intervals that
are apart, or when PEFT's score is another.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from smollm2 import bring

OPTIONS = Path(__file__).resolve().parent / "real.toml"
TASK = "one-word"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="the run's folder (runs/real)")
    options, more = parser.parse_known_args()
    model = bring()
    command = [sys.executable, "-m", "evolora"]
    start = time.perf_counter()
    ran = subprocess.run([*command, "train", str(OPTIONS), "--model", str(model), "--out", str(options.out), *more])
    if ran.returncode:
        return ran.returncode
    unit = 1 if sys.platform == "darwin" else 1024
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30
    summary = json.loads((options.out / "summary.json").read_text())
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    plain = score_by_peft(model, options.out / "best", new_tokens(options.out))
    print(f"\n{seconds:.0f} s and a peak of {peak:.2f} GiB in all")
    print(f"similarity on {summary['test_prompts']} held-out questions: base {base['reward']:.3f}, by evolora")
    print(f"  winner {winner['reward']:.3f}, by evolora; {plain:.3f}, by PEFT and transformers alone")
    learnt = winner["ci95"][0] > base["ci95"][1]
    same = abs(plain - winner["reward"]) < 5e-4
    print(
        "reward up, intervals apart: " + ("yes" if learnt else "NO") + "; the same score: " + ("yes" if same else "NO")
    )
    return 0 if learnt and same else 1


def new_tokens(run: Path) -> int:
    import tomllib

    return int(tomllib.loads((run / "config.toml").read_text())["completion"]["max_new_tokens"])


def score_by_peft(model: Path, adapter: Path, longest: int) -> float:
    """The mean similarity of the adapter's greedy answers to the test questions. Nothing of evolora is used but the
    questions."""
    from difflib import SequenceMatcher
    from importlib.resources import files

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter).eval()
    lines = files("evolora").joinpath("assets", "tasks", TASK, "test.jsonl").read_text(encoding="utf-8").splitlines()
    scores = []
    for row in map(json.loads, lines):
        asked = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            written = tuned.generate(**asked, max_new_tokens=longest, do_sample=False)
        answer = tokenizer.decode(written[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        scores.append(SequenceMatcher(None, answer.strip(), row["target"]).ratio())
    return sum(scores) / len(scores)


if __name__ == "__main__":
    sys.exit(main())
