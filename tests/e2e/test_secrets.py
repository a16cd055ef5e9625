"""Keys in a run's options: they reach who they are for, and nobody else."""

import json
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM

from evolora.runs.config_file import read_run_config
from evolora.runs.options import make_options

KEY = "Zq7! x&9+K2/w=4%v"
PATTERN = "[aeiou]q9?"
WRITTEN = (KEY, "Zq7%21%20x%269%2BK2%2Fw%3D4%25v", PATTERN)

SCORE = """
import json, sys
key = sys.argv[sys.argv.index("--key") + 1]
for part in ("called with ", key[:5], key[5:], "; no line's end"):
    print(part, end="", file=sys.stderr, flush=True)
for line in sys.stdin:
    print(len(key))
"""


class Endpoint:
    """Scores every completion by its different characters, and says the query's words back when it `fails`."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.fails = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.add(self.path)
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                scores = [len(set(text)) / 10 for text in request["completions"]]
                answer = json.dumps(scores if not outer.fails else f"no: {self.path} {KEY} {'.' * 110} {KEY}").encode()
                self.send_response(200 if not outer.fails else 403)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy: Any) -> None:
    (tmp_path / "score.py").write_text(SCORE)
    for name, value in {"KEY": KEY, "PATTERN": PATTERN, "FOLDER": str(tmp_path), "MODEL": str(toy.model)}.items():
        monkeypatch.setenv(f"EVOLORA_{name}", value)


def options(toy: Any, out: str | Path, reward: str, *more: str) -> list[str]:
    return [
        "--model", str(toy.model), "--data", str(toy.data), "--reward", reward, "--gens", "1", "--pop", "2",
        "--elites", "1", "--refiner", "none", "--save-every", "1", "--out", str(out), *more,
    ]  # fmt: skip


def contents(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.usefixtures("variables")
def test_what_variables_hold_reaches_the_rewards_and_no_file(
    toy: Any, evolora: Any, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    reward = (
        f"http('{endpoint.url}?api_key=env:EVOLORA_KEY&n=1') "
        f"+ 0.01 * command('{sys.executable} env:EVOLORA_FOLDER/score.py --key env:EVOLORA_KEY') "
        "+ regex('env:EVOLORA_PATTERN')"
    )
    more = ["--model", "env:EVOLORA_MODEL", "--reward-workers", "1", "--device", "cpu"]
    code, out, errors = evolora("train", *options(toy, "env:EVOLORA_FOLDER/run", reward, *more))
    assert code == 0, errors
    assert endpoint.paths == {f"/score?api_key={WRITTEN[1]}&n=1"}
    terms = json.loads((run / "summary.json").read_text())["winner"]["test"]["terms"]
    assert next(value for name, value in terms.items() if name.startswith("command")) == len(KEY)
    code, more_out, more_errors = evolora("resume", run, "--gens", "2")
    assert code == 0, more_errors
    assert "called with env:EVOLORA_KEY" in (run / "reward.log").read_text()
    everything = contents(run) + "\n".join([out, errors, more_out, more_errors]).encode()
    assert b"api_key=env:EVOLORA_KEY" in (run / "config.toml").read_bytes()
    assert b"api_key=env:EVOLORA_KEY" in (run / "best" / "README.md").read_bytes()
    for secret in (*WRITTEN, str(toy.model)):
        assert secret.encode() not in everything
    # Who writes and does not score needs only the model; without their variables rewards are refused before any work.
    monkeypatch.delenv("EVOLORA_KEY")
    assert evolora("generate", run, "Translate 'chat' to English:")[0] == 0
    before = contents(run)
    for command in (["resume", run, "--gens", "3"], ["evaluate", run]):
        code, _, errors = evolora(*command)
        assert code == 2 and errors.count("\n") == 1
        assert "config.toml: reward.name" in errors
        assert errors.endswith("the environment variable EVOLORA_KEY is not set, expected a value in it\n")
    assert contents(run) == before


@pytest.mark.usefixtures("variables")
def test_what_a_server_says_back_is_masked(toy: Any, evolora: Any, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fails = True
    reward = f"http('{endpoint.url}?api_key=env:EVOLORA_KEY')"
    code, out, errors = evolora("train", *options(toy, tmp_path / "run", reward))
    assert code == 1 and "status 403" in errors and "no: /score?api_key=env:EVOLORA_KEY env:EVOLORA_KEY" in errors
    assert not any(secret[:4] in out + errors for secret in WRITTEN)  # nor its beginning, where messages are cut


@pytest.mark.parametrize("where", ["cli", "toml", "python"])
def test_a_variable_that_is_not_set_is_refused_at_once(where: str, toy: Any, evolora: Any, tmp_path: Path) -> None:
    run, reward = tmp_path / "run", "http('https://h/x?api_key=env:EVOLORA_ABSENT')"
    arguments = options(toy, run, reward)
    if where == "toml":
        (tmp_path / "run.toml").write_text(f'reward = "{reward}"\n')
        arguments = [str(tmp_path / "run.toml"), *arguments[:4], *arguments[6:]]
    if where == "python":
        from evolora import InputError, evolve

        with pytest.raises(InputError, match=r"^reward=.*EVOLORA_ABSENT is not set"):
            evolve(data=[{"prompt": "a"}], reward=reward, out=run)
    else:
        code, out, errors = evolora("train", *arguments)
        assert (code, out) == (2, "") and errors.count("\n") == 1
        said = f"{tmp_path}/run.toml: reward = " if where == "toml" else "--reward http("
        assert said in errors and "the environment variable EVOLORA_ABSENT is not set" in errors
    assert not run.exists()


def test_other_text_options_take_variables(
    toy: Any, evolora: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVOLORA_HOST", "no-address.example")
    code, _, errors = evolora("train", *options(toy, tmp_path / "run", "human", "--rating-host", "env:EVOLORA_HOST"))
    assert code == 2 and "the rating page's host is 'env:EVOLORA_HOST', expected an address" in errors
    code, _, errors = evolora("train", *options(toy, tmp_path / "run", "exact", "--device", "env:EVOLORA_ABSENT"))
    assert code == 2 and "--device env:EVOLORA_ABSENT: the environment variable" in errors


def test_a_prompt_is_what_the_model_reads_and_names_no_variable(evolora: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "--prompt",
        "Say env:EVOLORA_ABSENT:",
        "--reward",
        "length(3)",
        "--gens",
        "1",
        "--pop",
        "2",
        "--elites",
        "1",
    ]
    assert evolora("train", *words, "--refiner", "none", "--out", run)[0] == 0
    assert make_options(read_run_config(run)).task.prompt == "Say env:EVOLORA_ABSENT:"


def test_a_key_in_clear_text_is_masked_everywhere_but_in_the_options(
    toy: Any, evolora: Any, endpoint: Endpoint, tmp_path: Path
) -> None:
    run, key = tmp_path / "run", "Cl3arT3xtK3y"
    reward = f"http('{endpoint.url}?api_key={key}')"
    code, out, errors = evolora("train", *options(toy, run, reward))
    assert code == 0, errors
    assert (
        next(line for line in out.splitlines() if line.startswith("Found what looks like a key")).count("env:NAME") == 1
    )
    assert endpoint.paths == {f"/score?api_key={key}"}
    holding = [path.name for path in run.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert holding == ["config.toml"] and stat.S_IMODE((run / "config.toml").stat().st_mode) == 0o600
    code, evaluated, errors = evolora("evaluate", run)
    assert code == 0, errors
    _, dry, _ = evolora("train", *options(toy, tmp_path / "dry", reward), "--dry-run")
    assert "api_key=***" in dry and "api_key=***" in (run / "summary.json").read_text()
    endpoint.fails = True
    code, _, failed = evolora("train", *options(toy, tmp_path / "failed", reward))
    assert code == 1 and "api_key=***" in failed
    refused = evolora("train", *options(toy, tmp_path / "refused", f"htp('{endpoint.url}?api_key={key}')"))
    assert refused[0] == 2
    assert key not in "".join([out, evaluated, dry, failed, *refused[1:]])


def test_options_without_a_key_are_for_all_who_may_read_the_folder(finished: Path) -> None:
    modes = {stat.S_IMODE((finished / name).stat().st_mode) for name in ("config.toml", "summary.json")}
    assert len(modes) == 1 and modes != {0o600}


def test_nothing_that_is_published_says_where_it_was_made(
    toy: Any, finished: Path, evolora: Any, tmp_path: Path
) -> None:
    assert str(toy.folder) not in (finished / "summary.json").read_text()
    local, named = tmp_path / "local", tmp_path / "named"
    code, out, hint = evolora("export", finished, "--to", local)
    assert (code, out) == (0, f"{local}\n")
    assert f"adapter_config.json names {toy.model}, which is only here: --base NAME" in hint
    AutoPeftModelForCausalLM.from_pretrained(local)
    for more in ([], ["--checkpoint", "gen0002"]):
        target = named.with_name(f"named{len(more)}")
        code, out, _ = evolora("export", finished, "--to", target, "--base", "me/model", *more)
        assert (code, out) == (0, f"{target}\n")
        everything = contents(target)
        assert b'"base_model_name_or_path": "me/model"' in everything
        assert not any(str(path).encode() in everything for path in (toy.folder, finished, tmp_path))
    card = (tmp_path / "named0" / "README.md").read_text()
    assert card.startswith("---\nbase_model: me/model\nlibrary_name: peft\n")
    code, _, errors = evolora("export", finished, "--to", tmp_path / "merged", "--merge", "--base", toy.model)
    assert code == 0, errors
    assert str(toy.folder).encode() not in contents(tmp_path / "merged")
