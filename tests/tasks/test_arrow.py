"""Parquet files, and data sets of the hub as its library keeps them."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from evolora.errors import InputError
from evolora.tasks.arrow import is_hub_name
from evolora.tasks.task import load_task

ROWS = [{"prompt": f"{a} + 2 =", "target": str(a + 2), "number": a} for a in range(20)]


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_parquet_is_the_same_task_as_jsonl(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert load_task(data=parquet(tmp_path / "d.parquet", ROWS)) == load_task(data=tmp_path / "d.jsonl")
    messages = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "c"}]
    rows = [{"messages": messages, "day": datetime.date(2026, 1, 2), "x": float("nan")}]
    example = load_task(data=parquet(tmp_path / "e.parquet", rows)).train[0]
    assert example.messages == ({"role": "user", "content": "a"},)
    assert example.columns == {"day": "2026-01-02", "x": None, "target": "b"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "d.parquet has no rows"),
        ([{"prompt": "a", "target": "b"}, {"prompt": "", "target": "b"}], "d.parquet row 2 has the prompt ''"),
        (
            [{"prompt": "a", "picture": {"bytes": b"\x89"}}],
            "row 1 has in the column 'picture' a value of",
        ),
    ],
)
def test_bad_parquet_is_refused_with_its_row(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_task(data=parquet(tmp_path / "d.parquet", rows))


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "whole.parquet", ROWS).read_bytes()
    for place in range(4, len(whole), 97):
        path = tmp_path / "d.parquet"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_task(data=path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


Publish = Callable[..., None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Puts data sets where the library keeps those of the hub that it has loaded, which is all that it can reach."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name: str, config: str, **splits: list[dict[str, Any]]) -> None:
        files = {split: str(tmp_path / f"{split}.jsonl") for split in splits}
        for split, rows in splits.items():
            Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        made = tmp_path / "made"
        datasets.load_dataset("json", data_files=files, name=config, cache_dir=str(made))
        found = next(path.parent for path in made.rglob("dataset_info.json"))
        place = cache / name.replace("/", "___") / config / "0.0.0" / "abc"
        place.parent.mkdir(parents=True)
        found.rename(place)
        info = json.loads((place / "dataset_info.json").read_text())
        (place / "dataset_info.json").write_text(json.dumps({**info, "config_name": config}))
        for file in place.glob("json-*"):
            file.rename(file.with_name(file.name.replace("json", name.split("/")[1], 1)))

    return put


def test_a_data_set_of_the_hub(publish: Publish) -> None:
    publish("some-org/sums", "main", train=ROWS, test=ROWS[:2])
    task = load_task(data="some-org/sums")
    assert (task.name, len(task.test), task.split_off) == ("sums", 2, ("validation",))
    assert {e.prompt for e in (*task.train, *task.validation)} == {row["prompt"] for row in ROWS}
    one = load_task(data="some-org/sums", data_config="main", data_split="train[:10]")
    assert len(one.train) + len(one.validation) + len(one.test) == 10 and one.held_out and not one.split_off


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data_config": "other"}, "--data some-org/sums is no file or folder, and no data set .*other"),
        ({"data_split": "dev"}, '--data some-org/sums .*Unknown split "dev"'),
        ({}, r"--data some-org/sums has the splits train, extra, .*--data-split with one of them"),
        ({"data_split": "train", "prompt_column": "x"}, "--data some-org/sums train row 1 has no column 'x'"),
        ({"data_split": "train[:0]"}, "corresponds to no data"),
    ],
)
def test_what_the_hub_has_not_is_refused_by_name(publish: Publish, options: dict[str, str], words: str) -> None:
    publish("some-org/sums", "main", train=ROWS, extra=ROWS)
    with pytest.raises(InputError, match=words) as caught:
        load_task(data="some-org/sums", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_network_or_library_a_sentence_says_so(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--data some-org/none is no file or folder, and no data set of the hub that"):
        load_task(data="some-org/none")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"finds no package datasets, expected it: pip install 'evolora\[data\]'"):
        load_task(data="some-org/none")


def test_only_what_is_not_here_can_be_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("own/words")
    Path("own").mkdir()
    Path("own/words").mkdir()
    for data in ("own/words", "words", "./own/word", "../own", "own/a/b", "/own/words", "own/", ""):
        assert not is_hub_name(data)
    (tmp_path / "d.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(InputError, match=r"--data d\.jsonl is given with --data-split, expected a data set of the hub"):
        load_task(data="d.jsonl", data_split="train")
