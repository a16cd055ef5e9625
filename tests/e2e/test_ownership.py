"""A run's folder has one owner: whoever else would write in it is refused at once."""

import time
from pathlib import Path
from typing import Any

from evolora.lock import LOCK


def _lasting(toy: Any, tmp_path: Path) -> str:
    path = tmp_path / "lasting.py"
    path.write_text(
        "import time\ndef lasting(completions, **kw):\n    print('in', flush=True)\n    time.sleep(60)\n    return []\n"
    )
    return f"{path}:lasting"


def test_while_a_run_works_nobody_else_may(toy: Any, launch: Any, evolora: Any, digest: Any, tmp_path: Path) -> None:
    run, votes = tmp_path / "run", tmp_path / "votes.jsonl"
    votes.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    options = toy.options(run, reward=_lasting(toy, tmp_path))
    both = [launch("-m", "evolora", "train", *options) for _ in range(2)]
    deadline = time.monotonic() + 60
    while all(process.poll() is None for process in both):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (loser,) = (process for process in both if process.poll() is not None)
    (winner,) = (process for process in both if process is not loser)
    out, errors = loser.communicate()
    assert loser.returncode == 2 and out in ("", "loading torch and transformers\n")
    assert errors.startswith(f"evolora: {run}: in use by pid {winner.pid} on ") and len(errors.splitlines()) == 1
    while not (run / "reward.log").exists():
        assert time.monotonic() < deadline and winner.poll() is None
        time.sleep(0.05)
    before = digest(run)
    for arguments in (["train", *options], ["resume", run], ["votes", "import", run, votes]):
        code, _, errors = evolora(*arguments)
        assert code == 2 and f"{run}: in use by pid {winner.pid} on " in errors
    assert digest(run) == before
    winner.kill()
    winner.communicate()
    assert (run / LOCK).exists()
    code, _, _ = evolora("votes", "import", run, votes)
    assert code == 0 and not (run / LOCK).exists()


def test_a_run_that_is_refused_leaves_no_folder(toy: Any, evolora: Any, tmp_path: Path) -> None:
    code, _, errors = evolora("train", *toy.options(tmp_path / "new" / "run", reward="nothing.py:nothing"))
    assert code == 2 and "nothing.py" in errors
    assert list(tmp_path.iterdir()) == []
