"""What a run says is there is there, whole, and its own; what is not is named, and made again where it can be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_digit(path: Path, name: str) -> None:
    """Another figure, in a file that can be read as well as before."""
    text, count = re.subn(
        rf'("{name}": -?[0-9]*\.?)([0-9])', lambda m: m[1] + str((int(m[2]) + 1) % 10), path.read_text(), count=1
    )
    assert count == 1
    json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
    path.write_text(text)


def deleted(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("step", ["export_adapter", "merge_winner", "write_summary"])
def test_an_extension_that_was_killed_at_its_end_is_finished(
    step: str, copied: Path, evolora: Any, facts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = facts(copied)
    with monkeypatch.context() as patched:
        patched.setattr(f"evolora.runs.finish.{step}", killed)
        assert evolora("resume", copied, "--gens", "7")[0] == 130
    code, out, _ = evolora("resume", copied)
    after = facts(copied)
    assert code == 0 and "\n7 generations in" in out and "resumed after generation 7" in out
    assert after.summary["generations"] == 7 and after.summary != before.summary
    assert after.metrics[:6] == before.metrics and len(after.metrics) == 7
    assert f"winner      {after.summary['winner']['test']['reward']:.3f}" in out
    assert (
        evolora("evaluate", copied)[1]
        .splitlines()[-1]
        .startswith(f"test reward {after.summary['winner']['test']['reward']:.4f}")
    )


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("best", deleted),
        ("best/adapter_model.safetensors", flip),
        ("best/adapter_config.json", flip),
        ("best/tokenizer.json", flip),
        ("best/manifest.json", deleted),
        ("merged/model.safetensors", flip),
        ("merged", deleted),
        ("summary.json", lambda path: other_digit(path, "reward")),
        ("summary.json", flip),
    ],
)
def test_what_a_finished_run_lacks_is_named_and_made_again(
    name: str, damage: Callable[[Path], None], finished: Path, copied: Path, evolora: Any, facts: Any, digest: Any
) -> None:
    damage(copied / name)
    code, out, _ = evolora("resume", copied)
    assert code == 0 and str(copied / name) in out and "made again" in out
    assert facts(copied) == facts(finished)
    weights = ("best/adapter_model.safetensors", "merged/model.safetensors")
    assert [digest(copied)[each] for each in weights] == [digest(finished)[each] for each in weights]
    assert "made again" not in evolora("resume", copied)[1]


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "manifest.json"])
def test_an_altered_adapter_is_not_used(file: str, copied: Path, evolora: Any, tmp_path: Path) -> None:
    flip(copied / "best" / file)
    flip(copied / "checkpoints" / "gen0004" / file)
    for run, damaged in (
        ([copied], copied / "best"),
        ([copied, "--checkpoint", "gen0004"], copied / "checkpoints" / "gen0004"),
        ([copied / "best"], copied / "best"),
    ):
        for more in (
            ["evaluate"],
            ["generate", "hello"],
            ["export", "--to", tmp_path / "to"],
            ["export", "--merge", "--to", tmp_path / "to"],
        ):
            code, out, errors = evolora(more[0], *run, *more[1:])
            assert code == 1 and out == "" and str(damaged) in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "to").exists()
    shutil.copytree(copied / "checkpoints" / "gen0002", copied / "best", dirs_exist_ok=True)
    code, _, errors = evolora("evaluate", copied)
    assert code == 1 and "is not of the same winner as" in errors


def test_what_is_copied_out_is_plain_and_its_card_may_be_edited(copied: Path, evolora: Any, tmp_path: Path) -> None:
    (copied / "best" / "README.md").write_text("mine")
    assert "made again" not in evolora("resume", copied)[1]
    for more in ([], ["--merge"]):
        to = tmp_path / f"to{len(more)}"
        assert evolora("export", copied, "--to", to, *more)[0] == 0
        assert not (to / "manifest.json").exists()
    assert (tmp_path / "to0" / "README.md").read_text() == "mine"
    assert evolora("generate", tmp_path / "to0", "hello")[0] == 0


def test_a_merged_model_of_an_earlier_winner_is_not_announced(copied: Path, evolora: Any) -> None:
    code, out, _ = evolora("resume", copied, "--gens", "7", "--no-merge")
    assert code == 0 and "is of an earlier winner" in out and "\nmerged: " not in out
    code, out, _ = evolora("resume", copied, "--merge")
    assert code == 0 and "\nmerged: " in out


def test_what_cannot_be_made_again_is_named(copied: Path, evolora: Any, digest: Any) -> None:
    flip(copied / "best" / "adapter_model.safetensors")
    shutil.rmtree(copied / "checkpoints")
    before = digest(copied)
    code, _, errors = evolora("resume", copied)
    assert code == 1 and str(copied / "best") in errors and "no checkpoint to make it again from" in errors
    assert digest(copied) == before


FILES = [
    "identity.json", "config.toml", "checkpoints/gen0002", "checkpoints/gen0004", "checkpoints/gen0006", "summary.json",
    "best", "merged", "metrics.jsonl", "lineage.sqlite", "report.html",
]  # fmt: skip


def test_verify_finds_every_file_whole(finished: Path, evolora: Any, digest: Any) -> None:
    before = digest(finished)
    code, out, _ = evolora("verify", finished)
    assert code == 0 and out.splitlines() == [f"{name}: whole" for name in FILES]
    assert digest(finished) == before


def test_verify_names_each_flipped_bit(copied: Path, evolora: Any) -> None:
    for path in sorted(path for path in copied.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 3)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
            code, out, _ = evolora("verify", copied)
            if path.suffix == ".sqlite" and code == 0:
                continue  # an unused byte
            assert code == 1 and str(path.parent if path.name == "manifest.json" else path) in out, (path, at)
        path.write_bytes(whole)
    assert evolora("verify", copied)[0] == 0


def test_verify_finds_what_is_missing(copied: Path, evolora: Any, tmp_path: Path) -> None:
    for name in FILES:
        if name.startswith("checkpoints") or name in ("summary.json", "report.html"):
            continue  # they come and go
        (copied / name).rename(tmp_path / "kept")
        code, out, _ = evolora("verify", copied)
        assert code == 1 and ("found no identity.json" if name == "identity.json" else str(copied / name)) in out
        (tmp_path / "kept").rename(copied / name)
    code, _, errors = evolora("verify", tmp_path)
    assert code == 2 and "expected the folder of a run" in errors


def test_a_base_with_made_up_or_broken_weights_is_not_used(
    toy: Any, finished: Path, evolora: Any, tmp_path: Path
) -> None:
    """`finished` stands on a model that is damaged meanwhile."""
    path, name = toy.model / "model.safetensors", "transformer.h.1.mlp.c_proj.weight"
    kept, tensors = path.read_bytes(), load_file(path)
    try:
        for bad in ({}, {name: tensors[name] * torch.nan}):
            save_file({key: tensors[key] for key in tensors if key != name} | bad, path, metadata={"format": "pt"})
            for arguments in (
                ["train", *toy.options(tmp_path / "run")],
                ["generate", finished, "hello"],
                ["export", finished, "--merge", "--to", tmp_path / "to"],
                ["evaluate", finished],
            ):
                code, _, errors = evolora(*arguments)
                assert code == 2 and name in errors and len(errors.splitlines()) == 1
    finally:
        path.write_bytes(kept)
    assert not (tmp_path / "run").exists() and not (tmp_path / "to").exists()


def test_what_is_no_checkpoint_is_left_alone(copied: Path, evolora: Any) -> None:
    """Somebody's copy of one."""
    shutil.copytree(copied / "checkpoints" / "gen0004", copied / "checkpoints" / "gen0004_backup")
    (copied / "checkpoints" / "gen0002.txt").write_text("")
    code, out, _ = evolora("resume", copied, "--gens", "7")
    assert code == 0 and "resumed after generation 6" in out
    assert (copied / "checkpoints" / "gen0004_backup").is_dir()
    assert evolora("verify", copied)[0] == 0
    for checkpoint in (copied / "checkpoints").glob("gen000?"):
        shutil.rmtree(checkpoint)
    code, out, _ = evolora("verify", copied)
    assert code == 1 and f"{copied / 'checkpoints'}: has none" in out
