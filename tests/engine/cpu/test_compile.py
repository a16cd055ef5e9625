"""Kernels are kept where the next environment finds them, and compiled ahead of a run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evolora.engine.cpu import cache, compile, gelu, jit
from evolora.engine.cpu.compile import Version, prepare

PACKAGE = Path(jit.__file__).parents[2]

# The kernels' modules without the package around them, which takes seconds to import. What a process compiled, by
# numba's own events, is a part of its last line.
LIGHT = """
import json, os, sys, types
package = types.ModuleType("evolora")
package.__path__ = [os.path.join(os.environ["PYTHONPATH"], "evolora")]
sys.modules["evolora"] = package
"""
EVENTS = (
    LIGHT
    + """
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, event): compiled.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event): pass
event.register("numba:compile", Listener())
"""
)
SHOW = (
    EVENTS
    + """
import torch
from evolora.engine.cpu.gelu import gelu
print(json.dumps([float(gelu(torch.tensor([-1.0]))), compiled]))
"""
)
PREPARE = (
    EVENTS
    + """
from evolora.engine.cpu import gelu, jit
from evolora.engine.cpu.compile import Version, prepare
told = []
class Told:
    def say(self, text): told.append(text)
    def progress(self, what, done, total): told.append([done, total])
versions = [Version.declared(kernel) for kernel in (gelu.gelu_block, jit.exponentials, jit.highest)]
prepare(versions, Told(), workers=int(sys.argv[1]))
print(json.dumps([told, compiled]))
"""
)
# In whichever order and place kernels are compiled, which numba decides by what is called first.
BITS = (
    LIGHT
    + """
import hashlib
import torch
from evolora.engine.cpu import gelu, jit, log_probs, sampling
from evolora.engine.cpu.attention import decode, train
from evolora.engine.cpu.compile import Version, prepare
class Silence:
    def say(self, text): pass
    def progress(self, what, done, total): pass
generator = torch.Generator().manual_seed(0)
def normal(*shape): return torch.randn(*shape, generator=generator)
if sys.argv[1] == "prepared":
    kernels = gelu.gelu_block, sampling.sample_rows, log_probs.forward_rows, decode.attend_rows, jit.exponentials
    kernels += jit.highest, train.attend_heads, decode.add_low_rank, train.multiply_tiles, train.whole_vectors
    prepare([Version.declared(kernel) for kernel in kernels], Silence(), workers=2)
with torch.no_grad():
    made = [gelu.gelu(3 * normal(37, 1000))]
    logits, tokens = 4 * normal(50, 2051), torch.arange(50)
    made += log_probs.token_log_probs(logits, tokens, temperature=0.7, entropy_gradient=False)
    made += sampling.sample(logits, torch.rand(50, generator=generator, dtype=torch.float64), 0.8)
    made.append(train.attend_along(normal(90, 3 * 64), train.Paths.seen(None, 2, 45), 4, 0.25))
    states, keys, values = normal(7, 1, 3, 4, 16), normal(7, 40, 4, 16), normal(7, 40, 4, 16)
    made.append(decode.extend(states, keys, values, 29, torch.zeros(7, 1, 30), 0.25))
print(json.dumps([hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in made]))
"""
)
# What is sampled is chosen within the steps of a batch, but for the first tokens. Greedy steps load those without it.
LOADED = """
import hashlib, json, sys
import numpy as np
import torch
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout
torch.set_num_threads(1)
base = load_base("tiny-gpt2")
layout, founder = lora_layout(base.model, lora_config(base.model, r=8), seed=0)
engine, text = choose_engine(base.model, layout, products="compiled").one, Text.of(base.model, base.tokenizer)
prompts = text.encode([f"The sum of {i} and 3 is" for i in range(40)])
if sys.argv[1] == "greedy first":
    engine.generate(founder[None], prompts, text.decoding(6))
found = engine.generate(founder[None], prompts, text.decoding(6, seeds=np.arange(40, dtype=np.uint64)))
print(json.dumps([hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in (found.ids, found.log_probs)]))
"""
# What is called from Python, with which types, that was not prepared for.
COMPLETE = """
import json, sys
from numba.core.dispatcher import Dispatcher
from evolora import evolve
from evolora.engine.cpu import engine
prepared, called, own, call = set(), set(), engine.prepare, Dispatcher._compile_for_args
def prepare(versions, *rest, **more):
    prepared.update((version.kernel, version.types) for version in versions)
    own(versions, *rest, **more)
def compile_for_args(self, *arguments):
    called.add((self, tuple(map(self.typeof_pyval, arguments))))
    return call(self, *arguments)
engine.prepare, Dispatcher._compile_for_args = prepare, compile_for_args
evolve(gens=2, pop=4, threads=2, **json.loads(sys.argv[1]))
assert len(called) > 5
print(json.dumps([f"{kernel.__name__}{types}" for kernel, types in called - prepared]))
"""


def run(
    script: str, *arguments: str, folder: Path | None = None, package: Path = PACKAGE, **environment: str
) -> list[Any]:
    """The last line that a process with its own cache folder writes."""
    own = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    own |= {"PYTHONPATH": str(package.parent), **({} if folder is None else {"EVOLORA_CACHE": str(folder)})}
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=own | environment, capture_output=True, text=True, check=False
    )
    assert not found.returncode, found.stderr
    last: list[Any] = json.loads(found.stdout.splitlines()[-1])
    return last


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kernel"))


def test_copies_of_one_version_share_what_is_kept_and_a_changed_source_compiles_again(tmp_path: Path) -> None:
    first, second, folder = tmp_path / "a" / "evolora", tmp_path / "b" / "evolora", tmp_path / "kept"
    for copy in (first, second):
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for path in copy.rglob("*.py"):
            os.utime(path, (0, 0) if copy == second else None)
    shown, compiled = run(SHOW, folder=folder, package=first)
    assert shown == pytest.approx(-0.158808, abs=1e-5)
    assert {"gelu_block", "_exponentials", "exponentials"} <= set(compiled)
    assert run(SHOW, folder=folder, package=second) == [shown, []]
    files = kept(folder)
    assert len({path.parent for path in files}) == 1 and not list(folder.rglob("*.part"))

    for path in files:  # what is not whole is as good as not there
        path.write_bytes(path.read_bytes()[:-1])
    again, compiled = run(SHOW, folder=folder, package=first)
    assert again == shown and "gelu_block" in compiled
    assert run(SHOW, folder=folder, package=second) == [shown, []]

    shared = second / "engine" / "cpu" / "jit.py"
    old, new = "result[i] *= as_float[i]", "result[i] *= as_float[i] * np.float32(2)"
    assert old in shared.read_text()
    shared.write_text(shared.read_text().replace(old, new))
    changed, compiled = run(SHOW, folder=folder, package=second)
    assert changed < -0.2 and "gelu_block" in compiled
    assert len({path.parent for path in kept(folder)}) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_each_kernel_is_counted_and_nothing_is_compiled_twice(tmp_path: Path, workers: int) -> None:
    told, compiled = run(PREPARE, str(workers), folder=tmp_path)
    assert told[0] == [0, 3] and told[-1] == [3, 3]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {done for done, _ in told} == {0, 1, 2, 3} and {total for _, total in told} == {3}
    assert bool(compiled) == (workers == 1), "other processes compile, where there are several"
    assert run(PREPARE, str(workers), folder=tmp_path) == [[], []]


def test_where_nothing_can_be_kept_it_is_said_once_and_compiled(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (said, *told), compiled = run(PREPARE, "2", folder=tmp_path / "file")
    assert said.startswith("The compiled CPU kernels cannot be kept") and "gelu_block" in compiled
    assert told[0] == [0, 3] and told[-1] == [3, 3]
    assert run(SHOW, folder=tmp_path / "file")[0] == pytest.approx(-0.158808, abs=1e-5)


@pytest.mark.skipif(os.name != "posix", reason="by permissions")
def test_a_folder_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    shown, _ = run(SHOW, folder=tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert run(SHOW, folder=tmp_path) == [shown, []]
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_the_bits_do_not_depend_on_where_and_in_which_order_is_compiled(tmp_path: Path) -> None:
    assert run(BITS, "prepared", folder=tmp_path / "a") == run(BITS, "lazily", folder=tmp_path / "b")


def test_the_bits_do_not_depend_on_what_was_loaded_before() -> None:
    """A kernel's copy within another one may round differently: on AVX2 sampling's did, in one value of sixteen."""
    # Here a process that compiles uses the kernels themselves, too.
    assert run(LOADED, "sampled first", HF_HUB_OFFLINE="1") == run(LOADED, "greedy first", HF_HUB_OFFLINE="1")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_dropout": 0.0},
        {"refiner": "grpo"},
        {"strategy": "es", "refiner": "none"},
        {"products": "torch"},
    ],
    ids=str,
)
def test_a_run_of_the_bundled_model_calls_nothing_that_is_not_prepared(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"products": "compiled", **options, "out": str(tmp_path / "run")}
    assert run(COMPLETE, json.dumps(options), HF_HUB_OFFLINE="1") == []


def test_a_new_version_takes_away_what_has_not_been_used_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("EVOLORA_CACHE", str(tmp_path))
    old, recent = tmp_path / "kernels" / "old", tmp_path / "kernels" / "recent"
    for folder, days in ((old, 31), (recent, 29)):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - days * 24 * 3600,) * 2)
    assert cache.unwritable() is None
    assert recent.is_dir() and cache.folder().is_dir() and not old.exists()


def test_where_things_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("EVOLORA_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "evolora" / "kernels" / cache.key()
    monkeypatch.setenv("EVOLORA_CACHE", str(tmp_path / "own"))
    assert cache.folder() == tmp_path / "own" / "kernels" / cache.key()
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert cache.folder() == tmp_path / "numba" / "evolora" / cache.key()


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.lines.append(f"{done} of {total}")


def test_without_other_processes_this_one_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError("no processes")

    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile.subprocess, "Popen", refused)
    kernel = jit.compiled()(lambda x: x + 1)
    kernel._cache = cache.KernelCache(kernel.py_func)
    told, types = Told(), cache.numba.int64
    prepare([Version(kernel, (types,)), Version(kernel, (cache.numba.float64,))], told, workers=2)
    assert told.lines == ["0 of 2", "1 of 2", "2 of 2"] and len(kernel.overloads) == 2
    assert kernel(2) == 3


def test_what_was_not_foreseen_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", str(tmp_path))
    told = Told()
    prepare([], told, workers=2)
    try:
        again = jit.compiled()(gelu._exponentials.py_func)
        again.compile((gelu.F32_1,) * 3 + (jit.I32_1,))
    finally:
        compile._telling.begin(None)
    assert told.lines == ["compiling the CPU kernel _exponentials, once per installation"]
