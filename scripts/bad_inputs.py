"""Bad inputs from a seed: options, TOML, data, rewards, templates, models, adapters and run folders, each spoilt."""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from evolora.rewards.registry import BUILTIN_REWARDS
from evolora.runs.parts import PARTS, Vocabulary

# What takes long where it is large, and is no fault: nobody can say beforehand that a run may not take years.
_LONG = ("gens rl_steps epochs refine finalists rollout_prompts rollout_samples batch_size votes replay").split()
_NUMBERS = [
    "0", "-1", "1", "2", "0.5", "1.5", "-0.0", "1e8", "100000000", "1000000000", "9" * 30, "9" * 5000, "1e308",
    "1e999", "-1e999", "nan", "inf", "-inf", "1e-320", "1_000", "0x10", "٣", "1,5", "1.0.0", "--1", "+3",
]  # fmt: skip
_TEXTS = [
    "", " ", "\t", "\n", "none", "None", "true", "false", "auto", "é", "日本", "\udcff", "a\ud800b", "\x00", "a\x00b",
    "x" * 300, "y" * 5000, "z/" * 3000, "~", ".", "..", "/", "/dev/null", "/dev/zero", "/dev/stdin", "/dev/full",
    "/proc/self/mem", "fifo", "zero", "loop", "socket", "missing", "folder", "-", "--", "-x", "=", "[1, 2]", "{}",
    "a b", "(" * 5000, "[" * 5000, "%s%n", "${HOME}", "$(id)", "../../../etc/passwd", "cuda:9", "meta", "mps",
    "http://localhost:1",
]  # fmt: skip
_JSON: list[Any] = [
    None, True, False, 0, -1, 1, 7, 10**8, 10**12, 2**70, -(2**63), 0.5, 1e308, float("nan"), float("inf"), "", "8",
    "x", "\x00", "\ud800", "x" * 5000, [], [1, 2], ["x"], [[]], {}, {"a": 1}, {"x": {"y": []}}, [None],
]  # fmt: skip
_EXPRESSIONS = [
    "bleu(order=100000000)", "chrf(char_order=100000000)", "chrf(word_order=100000000)", "chrf(beta=100000000)",
    "rouge(type=rouge9)", "rouge(type=rouge99)", "length(1e18)", "length(-1)", "regex(pattern='(')",
    "regex(pattern='(a+)+$')", "json-schema(schema='{')", "json-schema(schema=missing.json)",
    "json-schema(schema='fifo')", "json-schema(schema='zero')", "contains(text='')",
    "command(command='missing-program')", "command(command='')", "command(command=\"'\")",
    "command(command='sleep 100', timeout=0.2, restarts=0)", "http(url='file:///etc/passwd')",
    "http(url='http://')", "http(url='http://[::1')", "http(url='http://localhost:99999/')",
    "http(url='http://localhost:1/', timeout=0.2)", "classifier(model=model)", "reward-model(model=missing)",
    "perplexity", "perplexity(model=folder)", "cosine(model=model)", "verifiable",
    "python(function='own.py:missing')", "python(function='missing.py:one')", "own.py:one", "own.py:number",
    "own.py:missing", "broken.py:one", "leaves.py:one", "exits.py:one", "folder.py:one", "fifo.py:one",
    "latin.py:one", "deep.py:one", "os:getcwd", "os:sep", "missing.module:one", "1e400 * exact", "exact * nan", "0",
    "-exact", "--exact", "exact + ", "exact >", "(exact > 0.5", "((((exact))))", "exact exact",
    "diversity(n=100000000)", "diversity", "similarity", "human + exact", "edit(x=1)", "exact(strip=maybe)",
    "brevity(limit=0)", "brevity(limit=100000000000000000000)", "sentiment", "json", "exact",
]  # fmt: skip
_TEMPLATES = [
    "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages[0]['content'] }}", "", "plain", "{{ 1/0 }}",
    "{% for", "{{ undefined.x.y }}", "{{ raise_exception('no') }}", "{% for i in range(1000000000) %}x{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include 'x' %}", "{{ 'x' * 100000000000 }}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if true %}" * 3000 + "{% endif %}" * 3000, "{{ messages | tojson }}" * 3, "\x00",
    "{{ messages[99].content }}",
]  # fmt: skip
_DEEP = "[" * 50_000 + "]" * 50_000
_TOML = [
    "x = " + "[" * 20_000, "x = " + "{a=" * 5_000, "a" + ".a" * 20_000 + " = 1", "[[reward]]\nterm = 1\n",
    "[reward]\n" * 2, "gens = 1979-05-27", 'out = "a\\u0000b"', "data = \"a\\u0000b\"\nreward='exact'",
    'model = "a\\u0000b"', "gens = 9" + "9" * 5000, "[[reward]]\nterm = 'exact'\nweight = nan\n",
    "[[reward]]\nterm = '" + "(" * 5000 + "'\n", "\ufeffgens = 1", "pop = 100000000",
]  # fmt: skip
_CSV_ROWS = [
    "", '"', "a", "a,b,c", "\x00,b", "x" * 200_000 + ",y", '"a\nb",c', ",", "é,\udcff", "prompt,prompt",
]  # fmt: skip
_JSON_ROWS = [
    _DEEP, '{"prompt": "a", "target": ' + _DEEP + "}", '{"a":' * 3000, "9" * 5000,
    '{"prompt": "' + "word " * 10_000 + '", "target": "x"}', '{"prompt": "\\ud800", "target": "x"}',
    '{"prompt": "a", "target": "\\ud800"}', '{"prompt": "\\u0000", "target": "x"}', "NaN",
]  # fmt: skip
_REWARD_OPTIONS = [
    "", "order=", "limit=", "model=", "text=", "type=", "pattern=", "schema=", "timeout=", "batch_size=",
    "unknown=",
]  # fmt: skip
_WAYS = [
    "flip", "flip", "cut", "cut", "insert", "empty", "double", "utf-16", "nul", "missing", "folder", "fifo", "zero",
    "loop", "socket", "random",
]  # fmt: skip
_FILES = {
    "own.py": "def one(completions, **kwargs):\n    return [1.0 for _ in completions]\nnumber = 3\n",
    "broken.py": "def one(:\n",
    "leaves.py": "import os\nos._exit(0)\n",
    "exits.py": "import sys\nsys.exit()\n",
    "deep.py": "one = " + "(" * 500 + "1" + ")" * 500 + "\n",
}


class Maker:
    """Makes inputs from the good ones of `materials`, in the folder of a case, by `random`."""

    def __init__(self, materials: Path, folder: Path, chance: random.Random) -> None:
        self.materials, self.folder, self.chance = materials, folder, chance

    def make(self) -> list[str]:
        """The arguments of a command whose input is in the folder; most are bad."""
        self._set_out()
        makers: Sequence[Callable[[], list[str]]] = (
            self.options, self.options, self.commands, self.toml, self.data, self.data, self.reward, self.template,
            self.model, self.model, self.model, self.adapter, self.adapter, self.run, self.preferences,
        )  # fmt: skip
        return self.chance.choice(makers)()

    def _set_out(self) -> None:
        for name, text in _FILES.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        (self.folder / "latin.py").write_bytes(b"one = '\xff\xfe'\n")
        (self.folder / "folder.py").mkdir()
        (self.folder / "folder").mkdir()
        for name in ("fifo", "fifo.py"):
            os.mkfifo(self.folder / name)
        (self.folder / "zero").symlink_to("/dev/zero")
        (self.folder / "loop").symlink_to("loop")
        for name in ("data.jsonl", "chat.jsonl", "turns.jsonl", "preferences.jsonl", "data.json", "data.parquet"):
            shutil.copy(self.materials / name, self.folder)

    # --- kinds ---------------------------------------------------------------------------------------------------

    def train(self, *more: str, data: str = "data.jsonl", model: str | None = None, reward: str = "exact") -> list[str]:
        """A small good command, then `more`."""
        return [
            "train", "--model", model or str(self.materials / "model"), "--data", data, "--reward", reward,
            "--gens", "1", "--pop", "3", "--elites", "1", "--eval-prompts", "4", "--rollout-prompts", "2",
            "--rollout-samples", "2", "--rl-steps", "1", "--max-new-tokens", "2", "--threads", "1", "--out", "out",
            *more,
        ]  # fmt: skip

    def options(self) -> list[str]:
        strategy, refiner = (self.chance.choice(list(PARTS[part])) for part in ("strategy", "refiner"))
        vocabulary = Vocabulary({"strategy": strategy, "refiner": refiner})
        words = ["--strategy", strategy, "--refiner", refiner] if self.chance.random() < 0.3 else []
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            word, (_, name) = self.chance.choice(list(vocabulary.words.items()))
            values = _TEXTS if self.chance.random() < 0.3 else _NUMBERS
            quick = [each for each in values if name not in _LONG or not each.startswith(("1e", "9", "10"))]
            value = self.chance.choice(quick)
            option = f"--{word.replace('_', '-')}"
            if self.chance.random() < 0.1:
                option = self.spoilt_text(option)
            words += self.chance.choice(([option, value], [option, value], [f"{option}={value}"], [option]))
        return self.train(*words, *self.chance.choice(((), ("--dry-run",))))

    def commands(self) -> list[str]:
        run, adapter = str(self.materials / "run"), str(self.materials / "run" / "best")
        text = self.chance.choice([*_TEXTS, *_NUMBERS])
        return self.chance.choice(
            [
                ["resume", text],
                ["resume", run, "--gens", text],
                ["evaluate", adapter, "--data", text, "--reward", "exact"],
                ["evaluate", text],
                ["evaluate", run, "--checkpoint", text],
                ["evaluate", run, "--show", text],
                ["evaluate", run, "--rows-per-slice", text],
                ["generate", run, text],
                [
                    "generate",
                    run,
                    "word",
                    "--samples",
                    self.chance.choice([each for each in _NUMBERS if not each.startswith("10")]),
                ],
                ["generate", run, "word", "--max-new-tokens", text],
                ["generate", run, "word", "--temperature", text, "--samples", "1"],
                ["generate", adapter, "word", "--model", text],
                ["export", adapter, "--to", text],
                ["export", text, "--to", "to"],
                ["votes", "export", text, "--to", "to"],
                ["votes", "import", run, text],
                ["rate", text],
                ["ls", text],
                ["show", text, "--json"],
                ["rm", text, "--yes"],
                ["reward-model", "train", text, "--out", "to"],
                self.reward_model("--" + self.chance.choice(("lr", "r", "alpha", "holdout", "seed")), text),
                [text, text],
                ["train", text],
            ]
        )

    def reward_model(self, *more: str) -> list[str]:
        model = str(self.materials / "model")
        return ["reward-model", "train", "preferences.jsonl", "--out", "to", "--model", model, "--epochs", "1", *more]

    def toml(self) -> list[str]:
        values: dict[str, Any] = {
            "model": {"name": str(self.materials / "model")}, "task": {"data": "data.jsonl"},
            "reward": {"name": "exact"},
            "evolution": {"gens": 1, "pop": 3, "elites": 1, "eval_prompts": 4}, "completion": {"max_new_tokens": 2},
            "refiner": {"type": "ppo", "rl_steps": 1}, "engine": {"threads": 1}, "run": {"out": "out"},
        }  # fmt: skip
        file = self.folder / "config.toml"
        how = self.chance.random()
        if how < 0.4:
            part = self.chance.choice(list(values))
            name = self.chance.choice([*values[part], "unknown", *Vocabulary({}).models[part].model_fields])
            bad = [each for each in _JSON if each is not None and not _holds(each, None) and each != "\ud800"]
            bad = [each for each in bad if name not in _LONG or not isinstance(each, int)]
            values[self.chance.choice((part, "unknown"))] = self.chance.choice(
                ({**values[part], name: self.chance.choice(bad)}, self.chance.choice(bad))
            )
            file.write_text(tomli_w.dumps(values), encoding="utf-8")
        elif how < 0.6:
            file.write_text(self.chance.choice(_TOML), encoding="utf-8")
        else:
            file.write_text(tomli_w.dumps(values), encoding="utf-8")
            self.spoil(file)
        # What is left out of a file is a default, such as twenty generations.
        return ["train", "config.toml", *self.chance.choice((("--dry-run",), ("--budget-seconds", "0.01")))]

    def data(self) -> list[str]:
        more: tuple[str, ...] = ()
        names = ("data.jsonl", "chat.jsonl", "turns.jsonl", "data.csv", "data.json", "data.parquet")
        name, how = self.chance.choice(names), self.chance.random()
        path = self.folder / name
        if name in ("chat.jsonl", "turns.jsonl"):
            (self.folder / "template.jinja").write_text(_TEMPLATES[0] + "{{ tools }}")
            more = ("--chat-template", "template.jinja")
        if name == "data.csv":
            rows = ["prompt,target", *(f"{a} + 1 =,{a + 1}" for a in range(8))]
            for _ in range(self.chance.choice((1, 1, 3))):
                row = self.chance.randrange(len(rows))
                rows[row] = self.chance.choice(_CSV_ROWS)
            path.write_text("\n".join(rows), encoding="utf-8", errors="surrogateescape")
        elif name == "data.json" and how < 0.7:
            self.spoil_json_file(path)
        elif name in ("data.json", "data.parquet"):
            self.spoil(path)
        elif how < 0.5:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for _ in range(self.chance.choice((1, 1, 3))):
                row = self.chance.randrange(len(lines))
                lines[row] = self.spoilt_json(lines[row])
            if self.chance.random() < 0.2:
                lines = [
                    {**one, "target": self.chance.choice(_JSON)} if isinstance(one, dict) else one for one in lines
                ]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        elif how < 0.7:
            bad = self.chance.choice(_JSON_ROWS)
            path.write_text(path.read_text(encoding="utf-8") + bad + "\n", encoding="utf-8")
        else:
            self.spoil(path)
        reward = self.chance.choice(
            ("exact", "similarity", "chrf", "bleu", "contains", "rouge", "verifiable", "own.py:one")
        )
        return self.train(*more, data=name, reward=reward)

    def reward(self) -> list[str]:
        chance = self.chance.random()
        if chance < 0.6:
            text = self.chance.choice(_EXPRESSIONS)
        elif chance < 0.75:
            depth = self.chance.choice((50, 500, 5000, 100_000))
            deep = ("(" * depth + "exact" + ")" * depth, "-" * depth + "exact", "exact + " * depth + "exact")
            text = self.chance.choice((*deep, "(exact > " * depth, "exact * " * min(depth, 500) + "json"))
        else:
            name, value = self.chance.choice(list(BUILTIN_REWARDS)), self.chance.choice([*_TEXTS, *_NUMBERS])
            option = self.chance.choice(_REWARD_OPTIONS)
            text = self.spoilt_text(f"{name}({option}{value})") if chance > 0.9 else f"{name}({option}{value})"
        return self.train(*self.chance.choice(((), ("--dry-run",), ("--reward-workers", "1"))), reward=text)

    def template(self) -> list[str]:
        path = self.folder / "template.jinja"
        path.write_text(self.chance.choice(_TEMPLATES), encoding="utf-8")
        if self.chance.random() < 0.3:
            self.spoil(path)
        return self.train("--chat-template", "template.jinja", data="chat.jsonl")

    def model(self) -> list[str]:
        model = self.folder / "model"
        shutil.copytree(self.materials / self.chance.choice(("model", "model", "llama")), model)
        how = self.chance.random()
        if how < 0.6:
            others = ("generation_config.json", "tokenizer_config.json", "tokenizer.json")
            self.spoil_json_file(model / self.chance.choice(("config.json", "config.json", "config.json", *others)))
        elif how < 0.85:
            self.spoil(self.chance.choice(sorted(model.iterdir())))
        else:
            weights = model / "model.safetensors"
            kind = self.chance.choice(("pickle", "traversal", "absolute", "index", "auto_map", "header"))
            if kind == "pickle":
                weights.rename(model / "pytorch_model.bin")
            elif kind == "auto_map":
                config = json.loads((model / "config.json").read_text())
                config["auto_map"] = {"AutoModelForCausalLM": "own.Own", "AutoConfig": "own.Own"}
                config["model_type"] = self.chance.choice(("own", config["model_type"]))
                (model / "config.json").write_text(json.dumps(config))
                (model / "own.py").write_text("import os\nos._exit(0)\n")
            elif kind == "header":
                header, size = self.chance.choice(
                    ((b"\xff", 2**62), (b"{}", 2**40), (b"[]", 2), (b"[" * 100_000, 100_000))
                )
                weights.write_bytes(size.to_bytes(8, "little") + header)
            else:
                far = self.materials / "model" / "model.safetensors"
                place = {"traversal": os.path.relpath(far, model), "absolute": str(far), "index": weights.name}[kind]
                tensors = ("transformer.wte.weight", "transformer.wpe.weight")
                index: Any = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, place)}
                index = self.spoilt_json(index) if kind == "index" else index
                (model / "model.safetensors.index.json").write_text(json.dumps(index))
                if self.chance.random() < 0.7:
                    weights.unlink()
        if self.chance.random() < 0.2:
            return [
                "generate",
                str(self.materials / "run" / "best"),
                "word",
                "--model",
                "model",
                "--max-new-tokens",
                "2",
            ]
        return self.train(model="model")

    def adapter(self) -> list[str]:
        adapter, model = self.folder / "adapter", str(self.materials / "model")
        shutil.copytree(self.materials / "run" / "best", adapter)
        how = self.chance.random()
        if how < 0.6:
            self.spoil_json_file(adapter / "adapter_config.json")
        elif how < 0.8:
            self.spoil(self.chance.choice([adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]))
        else:
            config = json.loads((adapter / "adapter_config.json").read_text())
            names = (str(self.materials / "llama"), str(adapter), "../model", *_TEXTS)
            config["base_model_name_or_path"] = self.chance.choice(names)
            (adapter / "adapter_config.json").write_text(json.dumps(config))
            model = self.chance.choice((model, str(self.materials / "llama")))
        named = self.chance.choice(((), ("--model", model)))
        return self.chance.choice(
            [
                ["generate", "adapter", "word", "--max-new-tokens", "2", *named],
                ["evaluate", "adapter", "--data", "data.jsonl", "--reward", "exact", "--max-new-tokens", "2", *named],
                ["export", "adapter", "--to", "to", "--merge"],
                ["export", "adapter", "--to", "to"],
            ]
        )

    def run(self) -> list[str]:
        run = self.folder / "run"
        shutil.copytree(self.materials / "run", run)
        if self.chance.random() < 0.3:
            shutil.copy(self.materials / "config.toml", run)  # paths as they are
        files = [path for path in sorted(run.rglob("*")) if path.is_file()]
        file = self.chance.choice([run / "config.toml", run / "summary.json", run / "metrics.jsonl", *files])
        if file.suffix == ".json" and self.chance.random() < 0.6:
            self.spoil_json_file(file)
        else:
            self.spoil(file)
        if self.chance.random() < 0.3:
            (run / "summary.json").unlink(missing_ok=True)
        return self.chance.choice(
            [
                ["resume", "run"],
                ["resume", "run", "--gens", "2"],
                ["evaluate", "run"],
                ["generate", "run", "word"],
                ["export", "run", "--to", "to"],
                ["votes", "export", "run", "--to", "to"],
                ["ls", "."],
                ["show", "run"],
                ["rm", "run", "--yes"],
            ]
        )

    def preferences(self) -> list[str]:
        path = self.folder / "preferences.jsonl"
        if self.chance.random() < 0.5:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            row = self.chance.randrange(len(lines))
            lines[row] = self.spoilt_json(lines[row])
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        else:
            self.spoil(path)
        shutil.copytree(self.materials / "run", self.folder / "run")
        return self.chance.choice((["votes", "import", "run", "preferences.jsonl"], self.reward_model()))

    # --- how a thing is spoilt -----------------------------------------------------------------------------------

    def spoil(self, path: Path) -> None:
        """A file with other bytes, or something else in its place."""
        content = path.read_bytes()
        kind, size = self.chance.choice(_WAYS), len(content)
        if kind in ("missing", "folder", "fifo", "zero", "loop", "socket"):
            path.unlink()
        if kind == "flip":
            found = bytearray(content)
            for _ in range(self.chance.choice((1, 5, 50))):
                if found:
                    place = self.chance.randrange(min(size, self.chance.choice((200, size))))
                    found[place] ^= 1 << self.chance.randrange(8)
            path.write_bytes(found)
        elif kind == "cut":
            path.write_bytes(content[: self.chance.choice((1, 7, 8, 9, self.chance.randrange(size + 1)))])
        elif kind == "insert":
            place = self.chance.randrange(size + 1)
            path.write_bytes(content[:place] + self.chance.randbytes(self.chance.choice((1, 100))) + content[place:])
        elif kind in ("empty", "double", "nul", "random"):
            other = {"empty": b"", "double": content * 2, "nul": b"\x00" * 100, "random": self.chance.randbytes(500)}
            path.write_bytes(other[kind])
        elif kind == "utf-16":
            path.write_bytes(content.decode("utf-8", "replace").encode("utf-16"))
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "zero":
            path.symlink_to("/dev/zero")
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "socket":
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket is at most about a hundred characters
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
            os.chdir(here)

    def spoil_json_file(self, path: Path) -> None:
        if self.chance.random() < 0.1:
            path.write_text(
                self.chance.choice((_DEEP, '{"a":' * 50_000 + "1" + "}" * 50_000, "null", "3", '"x"', "[]", "{}"))
            )
            return
        value = self.spoilt_json(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(value), encoding="utf-8")

    def spoilt_json(self, value: Any) -> Any:
        """A JSON value with one of its inner values replaced, left out or moved to another name."""
        if isinstance(value, dict) and value and self.chance.random() < 0.95:
            name = self.chance.choice(list(value))
            how, inner = self.chance.random(), value[name]
            if isinstance(inner, dict | list) and inner and how < 0.5:
                return {**value, name: self.spoilt_json(inner)}
            if how < 0.85:
                return {**value, name: self.chance.choice(_JSON)}
            rest = {each: one for each, one in value.items() if each != name}
            return rest if how < 0.95 else {**rest, self.chance.choice(("", "x", "\x00", "prompts")): inner}
        if isinstance(value, list) and value and self.chance.random() < 0.9:
            place = self.chance.randrange(len(value))
            return [*value[:place], self.spoilt_json(value[place]), *value[place + 1 :]]
        return self.chance.choice(_JSON)

    def spoilt_text(self, text: str) -> str:
        place = self.chance.randrange(len(text) + 1)
        new = self.chance.choice(("", "x", "(", ")", "'", "\\", "é", "-", "=", "\udcff"))
        return text[:place] + new + text[place + self.chance.randrange(3) :]


def _holds(value: Any, what: Any) -> bool:
    """Whether a list or a dictionary has `what` in it, which TOML has not."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(each is what or _holds(each, what) for each in inner)
