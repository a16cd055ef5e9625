"""Where completions end, through the real command."""

import json
import sqlite3
from pathlib import Path
from typing import Any


def test_what_stops_a_completion_is_in_no_text(toy: Any, evolora: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = toy.options(run, "--stop", "e", "ou", gens=1, reward="contains")
    code, said, _ = evolora("train", *options)
    assert code == 0 and "reward contains; at most 32 new tokens" in said, "however short the targets are"
    database = sqlite3.connect(run / "lineage.sqlite")
    texts = [text for (text,) in database.execute("SELECT completion FROM samples")]
    database.close()
    assert texts and not [text for text in texts if "e" in text or "ou" in text]
    test = json.loads((run / "summary.json").read_text())["winner"]["test"]
    cut = [json.loads(line)["clipped_ratio"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    warned = "'s completions were cut off at 32 tokens; where they should end"
    assert said.count(warned) == any(share > 0.5 for share in cut), "once, of a generation"
    assert 0 <= test["clipped_ratio"] <= 1
    assert ("the winner's test completions were cut off" in said) == (test["clipped_ratio"] > 0.5)
    _, text, _ = evolora("generate", run, "Translate")
    assert "e" not in text


def test_what_can_end_nothing_is_refused(toy: Any, evolora: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for more, words in (
        (["--eos-token", "<none>"], "--eos-token: the model's tokenizer has no '<none>'"),
        (["--stop", ""], "--stop : expected texts that are not empty"),
    ):
        code, _, said = evolora("train", *toy.options(run, *more))
        assert code == 2 and words in said and said.count("\n") == 1
        assert not run.exists()
