"""The tutorials: each page's blocks run as they are printed, in order and in a new folder, and say what is shown."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from voter import Voter

from evolora.rewards import sentiment

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "120",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT / "src"),
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}
# What the bundled model cannot play is played by a tiny made-up one, in a folder of the same name.
LARGE = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-7B-Instruct")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BLOCK = re.compile(r'^(?P<free><!-- [^\n]*not compared -->\n)?```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n'
                    r"(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)  # fmt: skip
_RUNS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
# What depends on the machine, and what stands for it.
_MASKS = (
    (re.compile(r"^(\s+(?:[\d.]+|-)?\s*)([\"']).*\2$"), r"\1#"),  # a prompt or completion among the most rewarded
    (re.compile(r"\bby [\w+]+$"), "by #"),
    (re.compile(r"(?<=token=)\S+"), "#"),
    (re.compile(r"(?:\d+[dhm] )*\d+s left"), "# left"),
    (re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"), "#"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block: what runs (bash, python), a file (with a title), or what the block before it says (text)."""

    kind: str
    title: str | None
    text: str
    compared: bool


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(page):
        yield Block(found["kind"], found["title"], found["text"], found["free"] is None)


def run_page(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Each block with what it said."""
    for block in blocks(page):
        if block.title is not None:
            (folder / block.title).write_text(block.text)
        runs = block.kind in _RUNS and block.title is None
        yield block, said_by([*_RUNS[block.kind], block.text], folder) if runs else ""


def said_by(command: list[str], folder: Path) -> str:
    """What a block says, on both streams, while somebody votes at any page that it opens."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT, cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines, voters = [], []
    for line in process.stdout or ():
        lines.append(line)
        if (page := re.search(r"Rate completions at (\S+)", line)) is not None:
            voters.append(Voter(page[1], lambda text: sentiment([text])[0], process))
    assert process.wait() == 0, command[-1] + "".join(lines)
    assert all(voter.votes() for voter in voters)
    return "".join(lines)


def masked(text: str) -> list[str]:
    """Its lines without what depends on the machine."""
    lines = [line for line in text.splitlines() if line.strip() and " parameters on " not in line]
    for pattern, instead in _MASKS:
        lines = [pattern.sub(instead, line) for line in lines]
    return [" ".join(line.split()) for line in lines]


def missing(shown: str, said: str) -> list[str]:
    """The lines that a page shows and that were not said, in this order, whatever was said between."""
    said_lines = iter(masked(said))
    return [line for line in masked(shown) if line != "..." and line not in said_lines]


def test_what_is_shown_and_not_said_is_found() -> None:
    said = "gen 1/2  best 0.5  by ppo\ngen 2/2  best 0.75  by uniform+gaussian\nend: cat\n"
    assert missing("gen 1/2  best 0.3  by average\n...\nend: cat\n", said) == []
    assert missing("end: dog\n", said) == ["end: dog"]
    assert missing("end: cat\ngen 1/2  best 0.5  by ppo\n", said) == ["gen #/# best # by #"]


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny random Llama with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def gains(folder: Path, name: str) -> float:
    """How much better the winner of the run of this name is than what it started from, on the test prompts."""
    (run,) = folder.glob(f"runs/*-{name}")
    summary = json.loads((run / "summary.json").read_text())
    return float(summary["winner"]["test"]["reward"] - summary["base"]["test"]["reward"])


# What a page claims beside what it shows.
CLAIMS: dict[str, Callable[[Path], bool]] = {
    "own-data.md": lambda folder: gains(folder, "words") > 0.3,
    "write-a-reward.md": lambda folder: gains(folder, "polite") > 0.3,
    "chat-model.md": lambda folder: (folder / "my-model" / "chat_template.jinja").is_file(),
    "reward-model.md": lambda folder: gains(folder, "pleased") > 0.1,
    "human-feedback.md": lambda folder: gains(folder, "voted") > 0.05,
    "start-from-an-adapter.md": lambda folder: gains(folder, "further") > 0.03,
    "bigger-model-on-a-gpu.md": lambda folder: not (folder / "runs").exists(),
}


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_page_does_what_it_says(name: str, chat_model: Path, tmp_path: Path) -> None:
    page = (PAGES / name).read_text(encoding="utf-8")
    for large in LARGE:
        (tmp_path / large).parent.mkdir()
        (tmp_path / large).symlink_to(chat_model)
    last = ""
    for block, said in run_page(page, tmp_path):
        if block.kind != "text":
            last = said
        elif block.compared:
            assert missing(block.text, last) == [], last
    assert CLAIMS[name](tmp_path)


def test_every_page_is_tried() -> None:
    assert sorted(path.name for path in PAGES.glob("*.md")) == sorted(CLAIMS)


def test_the_notebook_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    shown = nbformat.read(PAGES / "notebook.ipynb", as_version=4)
    done = nbclient.NotebookClient(
        nbformat.from_dict(shown), timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for before, after in zip(shown["cells"], done["cells"], strict=True):
        assert missing(printed(before), printed(after).replace(str(tmp_path), ".")) == [], printed(after)
    assert gains(tmp_path, "notebook") > 0.3


def printed(cell: Any) -> str:
    """What a cell printed, and the plain text of what it came to."""
    outputs = cell.get("outputs", [])
    texts = [output["text"] for output in outputs if output.get("name") == "stdout"]
    texts += [output["data"]["text/plain"] for output in outputs if output["output_type"] == "execute_result"]
    return "".join(texts)
