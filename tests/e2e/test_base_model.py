"""Which base model a run has: its revision, its attention, and whether code that comes with it is run."""

import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evolora.models.base import load_base

FIRST, SECOND = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
HUB_NAME = "some-org/tiny"
PROMPT = "Translate 'chat' to English:"
ONE_GENERATION = ["--gens", "1", "--pop", "2", "--elites", "1", "--refiner", "none", "--mutation-scale", "0.1"]


def hub(root: Path, commits: dict[str, Path], refs: dict[str, str]) -> None:
    """A cache as huggingface_hub lays it out."""
    repository = root / f"models--{HUB_NAME.replace('/', '--')}"
    for commit, folder in commits.items():
        shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for name, commit in refs.items():
        (repository / "refs" / name).write_text(commit)


@pytest.fixture(scope="module")
def cached(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two revisions of a model, with different weights."""
    root = tmp_path_factory.mktemp("hub")
    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    other = Path(shutil.copytree(llama, root / "other"))
    model.save_pretrained(other)
    hub(root / "hub", {FIRST: llama, SECOND: other}, {"main": FIRST, "v2": SECOND})
    return root / "hub"


@pytest.fixture
def offered(cached: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cached))
    return cached


@pytest.fixture(scope="module")
def revised(toy: Any, cached: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the second revision, by its name, with attention of its own."""
    out = tmp_path_factory.mktemp("revised") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cached))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        from evolora.cli import main

        words = ["--data", str(toy.data), "--reward", toy.reward, *ONE_GENERATION, "--out", str(out)]
        options = ["--model", HUB_NAME, "--revision", "v2", "--attn-implementation", "eager", "--merge"]
        assert main(["train", *words, *options]) == 0
    return out


def test_a_run_names_the_commit_that_its_revision_came_to(revised: Path) -> None:
    options = tomllib.loads((revised / "config.toml").read_text())["model"]
    assert (options["revision"], options["attn_implementation"]) == (SECOND, "eager")
    assert json.loads((revised / "summary.json").read_text())["revision"] == SECOND
    adapter = json.loads((revised / "best" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (HUB_NAME, SECOND)
    card = (revised / "best" / "README.md").read_text()
    assert f"`{HUB_NAME}` at revision `{SECOND}`" in card and 'attn_implementation="eager"' in card


def test_what_is_done_with_it_takes_the_same_commit_although_its_branch_moved_on(
    revised: Path, offered: Path, evolora: Any, tmp_path: Path
) -> None:
    ref = offered / f"models--{HUB_NAME.replace('/', '--')}" / "refs" / "v2"
    ref.write_text(FIRST)
    try:
        assert evolora("evaluate", revised, "--no-base")[0] == 0
        code, said, _ = evolora("generate", revised, PROMPT, "--max-new-tokens", "8")
        assert code == 0 and evolora("generate", revised / "best", PROMPT, "--max-new-tokens", "8")[:2] == (0, said)
        assert evolora("export", revised, "--to", tmp_path / "merged", "--merge")[0] == 0
        merged = [folder / "model.safetensors" for folder in (tmp_path / "merged", revised / "merged")]
        assert merged[0].read_bytes() == merged[1].read_bytes()
        code, _, errors = evolora("generate", revised, PROMPT, "--revision", "main")
        assert code == 0, errors  # the user's own word
        copied = Path(shutil.copytree(revised, tmp_path / "run"))
        assert evolora("resume", copied, "--gens", "2", "--trust-reward")[0] == 0
    finally:
        ref.write_text(SECOND)


def test_an_exported_adapter_names_the_revision_that_it_is_given(revised: Path, evolora: Any, tmp_path: Path) -> None:
    for words, revision in (([], SECOND), (["--base", "a/b"], None), (["--base", "a/b", "--revision", "v1"], "v1")):
        to = tmp_path / f"adapter{len(words)}"
        assert evolora("export", revised, "--to", to, *words)[0] == 0
        assert json.loads((to / "adapter_config.json").read_text())["revision"] == revision
    code, _, errors = evolora("export", revised, "--to", tmp_path / "other", "--revision", "v1")
    assert (code, errors.count("\n")) == (2, 1) and "--revision v1: expected --base beside it" in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", HUB_NAME, "--revision", "v3"], f"--model {HUB_NAME} --revision v3: cannot be loaded"),
        (["--revision", "main"], "--revision main with --model tiny-gpt2: a folder has none, expected a hub name"),
        (
            ["--attn-implementation", "own/kernels"],
            "--attn-implementation own/kernels: input should be 'eager'",
        ),
        (["--attn-implementation", "flash_attention_2"], "--model tiny-gpt2: cannot be loaded: "),
    ],
)
def test_what_is_not_there_is_refused(words: list[str], said: str, offered: Path, evolora: Any, tmp_path: Path) -> None:
    code, _, errors = evolora("train", "--task", "translate", "--out", tmp_path / "run", *words)
    assert (code, errors.count("\n")) == (2, 1) and f"evolora: {said}" in errors
    assert not (tmp_path / "run").exists()


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()

class Config(LlamaConfig):
    model_type = "mine"

class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.fixture
def with_code(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that comes with code of its own, which leaves a mark beside it when it is run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = Path(shutil.copytree(llama, tmp_path / "mine"))
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config |= {"model_type": "mine", "architectures": ["Model"], "auto_map": own}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    return model


def test_code_of_a_model_is_run_by_who_trusts_it_and_by_nobody_else(
    with_code: Path, toy: Any, evolora: Any, tmp_path: Path
) -> None:
    mark, run, trusted = tmp_path / "ran", tmp_path / "run", "--trust-remote-code"
    words = ["--model", with_code, "--data", toy.data, "--reward", toy.reward, *ONE_GENERATION, "--out", run]
    refused = f"--model {with_code}: config.json has an auto_map, code of its own, which is not run, expected {trusted}"

    def is_refused(*command: str | Path) -> None:
        mark.unlink(missing_ok=True)
        code, _, errors = evolora(*command)
        assert (code, errors.count("\n")) == (2, 1) and refused in errors, errors
        assert not mark.exists()

    is_refused("train", *words)
    assert evolora("train", *words, trusted)[0] == 0 and mark.exists()
    merge = ["--to", tmp_path / "merged", "--merge"]
    resume = ["resume", run, "--gens", "2"]
    for command in (["evaluate", run], ["generate", run, PROMPT], ["export", run, *merge], resume):
        is_refused(*command)
    # The run's own word is not enough, however it is written.
    config = (run / "config.toml").read_text()
    assert "trust_remote_code = true" in config
    (run / "config.toml").write_text(config.replace("trust_remote_code", "trust-remote-code"))
    is_refused(*resume, "--accept-changes")
    (run / "config.toml").write_text(config)
    assert evolora("evaluate", run, "--no-base", trusted)[0] == 0
    assert evolora("generate", run, PROMPT, trusted)[0] == 0
    assert evolora("export", run, *merge, trusted)[0] == 0
    assert evolora(*resume, trusted)[0] == 0
    assert "trust_remote_code=True" in (run / "best" / "README.md").read_text()
    # What the code says is part of what the adapter was made for.
    (with_code / "own.py").write_text((with_code / "own.py").read_text() + "\nCHANGED = True\n")
    code, _, errors = evolora("resume", run, "--gens", "3", trusted)
    assert code == 2 and "model code" in errors


def test_a_run_on_a_base_that_was_quantised_before(llama: Path, toy: Any, evolora: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    quantised, run = tmp_path / "quantised", tmp_path / "run"
    base = load_base(str(llama), quantization="nf4")
    base.model.save_pretrained(quantised)
    base.tokenizer.save_pretrained(quantised)
    words = ["--model", quantised, "--data", toy.data, "--out", run]
    for more, said in (
        (["--reward", toy.reward, "--merge"], f"--merge with --model {quantised}: found weights quantised by bitsandb"),
        (["--reward", "human"], f"--reward human with --model {quantised}: found weights quantised by bitsandbytes"),
    ):
        code, _, errors = evolora("train", *words, *more)
        assert (code, errors.count("\n")) == (2, 1) and said in errors and not run.exists()
    assert evolora("train", *words, "--reward", toy.reward, "--pop", "3", "--gens", "1", "--rl-steps", "1")[0] == 0
    code, _, errors = evolora("export", run, "--to", tmp_path / "merged", "--merge")
    assert code == 2 and f"{run}: its base was quantised (bitsandbytes), and nothing is merged into that" in errors
    assert evolora("export", run, "--to", tmp_path / "merged", "--merge", "--base", llama)[0] == 0


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_on_a_quantised_base(kind: str, llama: Path, toy: Any, evolora: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["--model", llama, "--data", toy.data, "--reward", toy.reward, "--pop", "3", "--rl-steps", "1"]
    words += ["--quantization", kind]
    code, _, errors = evolora("train", *words, "--merge", "--out", run)
    assert (code, errors.count("\n")) == (2, 1)
    assert f"evolora: --merge with --quantization {kind}: expected none" in errors and not run.exists()
    assert evolora("train", *words, "--gens", "1", "--out", run)[0] == 0
    assert f'quantization = "{kind}"' in (run / "config.toml").read_text()
    card = (run / "best" / "README.md").read_text()
    assert f"quantised to {kind}" in card and "quantization_config=BitsAndBytesConfig(load_in_" in card
    assert evolora("generate", run, PROMPT)[0] == 0
    assert evolora("export", run, "--to", tmp_path / "adapter")[0] == 0
    code, _, errors = evolora("export", run, "--to", tmp_path / "merged", "--merge")
    assert (code, errors.count("\n")) == (2, 1)
    assert f"{run}: its base was quantised ({kind}), and nothing is merged into that, expected --base NAME" in errors
    assert evolora("export", run, "--to", tmp_path / "merged", "--merge", "--base", llama)[0] == 0
    assert "quantization" not in (tmp_path / "merged" / "config.json").read_text()
    # Gone on with, it comes to the same bits; on another base it is another run.
    assert evolora("resume", run, "--gens", "2")[0] == 0
    assert evolora("train", *words, "--gens", "2", "--out", whole)[0] == 0
    winners = [json.loads((folder / "summary.json").read_text())["winner"] for folder in (run, whole)]
    assert winners[0]["genome_sha256"] == winners[1]["genome_sha256"]
    (run / "config.toml").write_text((run / "config.toml").read_text().replace(f'quantization = "{kind}"\n', ""))
    code, _, errors = evolora("resume", run, "--gens", "3")
    assert code == 2 and f"--quantization {kind} -> none" in errors
