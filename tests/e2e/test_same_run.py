"""A run goes on as the run that it was: what its results depend on has not changed, or the change was accepted."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from evolora import InputError, evolve, resume
from evolora.models.base import load_base
from evolora.runs.identity import read_identity
from evolora.runs.summary import read_summary

REWARD = """
from weighing import WEIGHT

def score(completions, **kwargs):
    return [WEIGHT * len(set(text)) / 10 for text in completions]
"""


@pytest.fixture(scope="module")
def own(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a run depends on, and the `run` of one generation. Read only."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(toy.model, folder / "model")
    shutil.copy(toy.data, folder / "words.jsonl")
    (folder / "reward.py").write_text(REWARD)
    (folder / "weighing.py").write_text("WEIGHT = 1.0\n")
    evolve(
        model=folder / "model", data=folder / "words.jsonl", reward=f"{folder / 'reward.py'}:score", out=folder / "run",
        gens=1, pop=2, elites=1, rl_steps=1, max_new_tokens=4,
    )  # fmt: skip
    return folder


@pytest.fixture
def mine(own: Path) -> Any:
    """The same in its place, which is as it was afterwards."""
    kept = own.with_name(f"{own.name}-kept")
    shutil.copytree(own, kept)
    yield own
    shutil.rmtree(own)
    kept.rename(own)


def scale_embeddings(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("wte.weight"))
    save_file(tensors | {name: tensors[name] * 1.5}, path, metadata={"format": "pt"})


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


CHANGES = {
    "data": (edit("words.jsonl", "cat", "cow"), ["data prompts and columns "]),
    "weights": (scale_embeddings, ["model weights "]),
    "config": (edit("model/config.json", "epsilon\": 1e-05", "epsilon\": 1e-03"), ["model config "]),
    "tokenizer": (edit("model/tokenizer.json", '"content": "<|endoftext|>"', '"content": "<|end|>"'), ["tokenizer "]),
    "reward": (edit("reward.py", "/ 10", "/ 20"), ["reward ", "reward.py "]),
    "its module": (edit("weighing.py", "1.0", "-1.0"), ["reward ", "weighing.py "]),
    "option": (edit("run/config.toml", "rl_steps = 1", "rl_steps = 2"), ["--rl-steps 1 -> 2"]),
}  # fmt: skip


@pytest.mark.parametrize("what", ["data", "weights", "config", "tokenizer", "reward", "its module", "option"])
def test_whatever_has_changed_is_named_and_refused(what: str, mine: Path, evolora: Any, digest: Any) -> None:
    change, named = CHANGES[what]
    change(mine)
    before = digest(mine)
    code, _, errors = evolora("resume", mine / "run", "--gens", "2")
    assert code == 2 and len(errors.splitlines()) == 1 and "--accept-changes" in errors
    assert all(part in errors for part in named), errors
    assert errors.count(" -> ") == 1, "nothing else has changed"
    assert {name: sha for name, sha in digest(mine).items() if "__pycache__" not in name} == {
        name: sha for name, sha in before.items() if "__pycache__" not in name
    }


def test_the_winner_is_merged_into_the_weights_that_it_was_made_for(mine: Path, evolora: Any) -> None:
    scale_embeddings(mine)
    code, _, errors = evolora("resume", mine / "run", "--merge")
    assert code == 2 and f"--model {mine / 'model'}: its weights have changed" in errors
    assert not (mine / "run" / "merged").exists()
    for arguments in (["evaluate", mine / "run"], ["generate", mine / "run", "hello"]):
        code, _, errors = evolora(*arguments)
        assert code == 2 and "has changed: model weights " in errors
        assert evolora(*arguments, "--model", mine / "model")[0] == 0


def test_an_accepted_change_is_said_and_summed_up(mine: Path, evolora: Any, capsys: pytest.CaptureFixture[str]) -> None:
    CHANGES["reward"][0](mine)
    run = mine / "run"
    code, out, _ = evolora("resume", run, "--gens", "2", "--accept-changes")
    assert code == 0 and "changed, as accepted: reward " in out
    (change,) = json.loads((run / "summary.json").read_text())["changed"]
    assert change["generation"] == 1 and "reward.py" in change["what"][0]
    code, out, _ = evolora("resume", run, "--gens", "3")
    assert code == 0 and "accepted" not in out, "it is this run's own now"
    assert json.loads((run / "summary.json").read_text())["changed"] == [change]


def test_an_accepted_change_that_the_checkpoint_does_not_fit_is_a_sentence(
    mine: Path, evolora: Any, digest: Any
) -> None:
    edit("run/config.toml", "[lora]\nr = 8", "[lora]\nr = 4")(mine)
    before = digest(mine / "run")
    code, _, errors = evolora("resume", mine / "run", "--gens", "2", "--accept-changes")
    assert code == 2 and len(errors.splitlines()) == 1 and "gen0001" in errors
    assert digest(mine / "run") == before


def test_other_versions_are_a_change(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolora.runs.fingerprint.platform.python_version", lambda: "3.99.1")
    with pytest.raises(
        InputError, match=r"version python 3\.\d+\.\d+ -> 3\.99\.1; expected the same, or resume's accept_changes"
    ):
        resume(mine / "run", gens=2)
    result = resume(mine / "run", gens=2, accept_changes=True)
    assert result.summary["changed"][0]["what"][0].endswith("-> 3.99.1")


def test_a_function_that_was_given_is_known_by_its_source(toy: Any, tmp_path: Path) -> None:
    def score(completions: list[str], **_: object) -> list[float]:
        return [len(text) / 10 for text in completions]

    first = score

    def score(completions: list[str], **_: object) -> list[float]:  # type: ignore[no-redef]
        return [-len(text) / 10 for text in completions]

    options: dict[str, Any] = {"gens": 1, "pop": 2, "elites": 1, "refiner": "none", "max_new_tokens": 2}
    evolve(model=toy.model, data=toy.data, reward=first, out=tmp_path / "run", **options)
    with pytest.raises(InputError, match="reward score "):
        resume(tmp_path / "run", reward=score, gens=2)
    assert resume(tmp_path / "run", reward=first, gens=2).summary["generations"] == 2


@pytest.mark.parametrize("name", ["data.jsonl", "peft_config.json"])
def test_what_was_given_from_python_is_kept_and_checked(name: str, toy: Any, evolora: Any, tmp_path: Path) -> None:
    base, run = load_base(str(toy.model)), tmp_path / "run"
    evolve(
        model=base.model, tokenizer=base.tokenizer, peft_config=LoraConfig(r=2, target_modules=["c_attn"]),
        data=[{"prompt": f"{number} + 1 =", "target": "2"} for number in range(6)], out=run,
        gens=1, pop=2, elites=1, refiner="none", max_new_tokens=2,
    )  # fmt: skip
    assert f"\n{name}: whole\n" in evolora("verify", run)[1]
    whole = (run / name).read_bytes()
    for at in range(0, len(whole), 7):
        (run / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert evolora("verify", run)[0] == 1
    (run / name).write_bytes(whole[:-3])
    with pytest.raises(InputError, match=re.escape(name)):
        resume(run, model=base.model, tokenizer=base.tokenizer, gens=2)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "lineage.sqlite", "checkpoints/gen0001"])
def test_files_of_another_run_are_refused_by_name(
    name: str, own: Path, evolora: Any, digest: Any, tmp_path: Path
) -> None:
    """Every other file is this run's own: it has the same options, and another id."""
    run, other = tmp_path / "run", own / "run"
    evolve(
        model=own / "model", data=own / "words.jsonl", reward=f"{own / 'reward.py'}:score", out=run,
        gens=1, pop=2, elites=1, rl_steps=1, max_new_tokens=4,
    )  # fmt: skip
    assert evolora("verify", run)[0] == 0
    if (other / name).is_dir():
        shutil.copytree(other / name, run / name, dirs_exist_ok=True)
    else:
        shutil.copy(other / name, run / name)
    before, theirs = digest(run), read_identity(other).run
    for arguments in (["resume", run, "--gens", "2"], ["verify", run]):
        code, out, errors = evolora(*arguments)
        assert code in (1, 2) and f"{run / name}: is of run {theirs}" in out + errors
    assert digest(run) == before


def test_free_options_are_given_and_not_edited(mine: Path, evolora: Any) -> None:
    config = mine / "run" / "config.toml"
    config.write_text(config.read_text().replace("gens = 1", "gens = 2"))
    code, _, errors = evolora("resume", mine / "run")
    assert code == 2 and f"{config}: edited" in errors
    assert evolora("resume", mine / "run", "--accept-changes")[0] == 0
    assert json.loads((mine / "run" / "summary.json").read_text())["generations"] == 2
    assert evolora("verify", mine / "run")[0] == 0


def test_a_run_of_an_older_version_is_refused(mine: Path, evolora: Any) -> None:
    identity = mine / "run" / "identity.json"
    identity.write_text('{"run": "' + "0" * 32 + '"}')
    code, _, errors = evolora("resume", mine / "run")
    assert code == 2 and str(identity) in errors and len(errors.splitlines()) == 1
    identity.unlink()
    code, _, errors = evolora("resume", mine / "run")
    assert code == 2 and "found no identity.json" in errors and "this version of evolora" in errors
    code, out, _ = evolora("resume", mine / "run", "--gens", "2", "--accept-changes", "--trust-reward")
    assert code == 0 and "found no identity.json" in out, "its checkpoints know whose they are"
    assert evolora("verify", mine / "run")[0] == 0


def test_the_fingerprint_holds_no_reward_as_written(mine: Path) -> None:
    assert (mine / "run" / "identity.json").read_text().count("reward.py") == 1, "a file, no expression with its keys"
    assert read_summary(mine / "run") is not None


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_other_commands_look_at_the_fingerprint_too(what: str, mine: Path, evolora: Any, tmp_path: Path) -> None:
    if what == "option":
        pytest.skip("what a generation is made with does not matter to them, but for config.toml's checksum")
    CHANGES[what][0](mine)
    code, _, errors = evolora("evaluate", mine / "run", "--no-base")
    assert code in (1, 2) and len(errors.splitlines()) == 1 and "changed" in errors
    written = evolora("generate", mine / "run", "hello")[0]
    assert (written == 0) == (what in ("data", "reward", "its module")), "it uses neither"
    if what == "weights":
        code, _, errors = evolora("export", mine / "run", "--to", tmp_path / "to", "--merge")
        assert code == 2 and "have changed since the run" in errors


def test_an_edited_configuration_is_used_by_nobody(mine: Path, evolora: Any) -> None:
    config = mine / "run" / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 5"))
    for command in (["evaluate", mine / "run"], ["generate", mine / "run", "hello"], ["resume", mine / "run"]):
        code, _, errors = evolora(*command)
        assert code in (1, 2) and ("config.toml: edited or altered" in errors or "--seed 0 -> 5" in errors)
