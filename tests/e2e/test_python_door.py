"""`evolve` and `resume` with objects: what people have in hand."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from datasets import Dataset
from peft import AdaLoraConfig, AutoPeftModelForCausalLM, IA3Config, LoraConfig
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from evolora import Callback, GAConfig, InputError, evolve, resume
from evolora.files import checkpoint_folder
from evolora.models.base import model_path
from evolora.models.options import LoraOptions
from evolora.runs.callbacks import Run
from evolora.runs.parts import Vocabulary
from evolora.runs.tracking.view import Silence

ROWS = [{"prompt": f"{a} + {b} =", "target": str(a + b)} for a in range(4) for b in range(3)]
SMALL: dict[str, Any] = {"gens": 2, "pop": 3, "elites": 1, "eval_prompts": 4, "threads": 1, "max_new_tokens": 3}
SMALL |= {"rollout_prompts": 4, "rl_steps": 1, "validation_prompts": 4}


def near(completions: list[str], target: list[str], **_: Any) -> list[float]:
    return [1 / (1 + abs(len(text.strip()) - len(right))) for text, right in zip(completions, target, strict=True)]


class Heard(Silence):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def loaded() -> dict[str, Any]:
    path = model_path("tiny-gpt2")
    return {"model": AutoModelForCausalLM.from_pretrained(path), "tokenizer": AutoTokenizer.from_pretrained(path)}


def state(model: Any) -> dict[str, Any]:
    """All of a model that a run could change."""
    return {
        "weights": {
            name: (weight.data_ptr(), weight._version, weight.requires_grad)
            for name, weight in model.named_parameters()
        },
        "modules": {
            name: (type(module), sorted(vars(module)), module.training) for name, module in model.named_modules()
        },
        "hooks": [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks],
        "config": model.config.to_json_string(use_diff=False),
        "attention": model.config._attn_implementation,
    }


def test_a_loaded_model_stays_as_it_is_and_gives_what_its_name_gives(loaded: dict[str, Any], tmp_path: Path) -> None:
    loaded["model"].train()
    loaded["tokenizer"].padding_side = "right"
    seen: list[bool] = []
    before = state(loaded["model"])

    def watching(completions: list[str], target: list[str], **_: Any) -> list[float]:
        seen.append(state(loaded["model"]) == before)
        return near(completions, target)

    watching.__name__ = "near"
    by_object = evolve(**loaded, data=ROWS, reward=watching, out=tmp_path / "object", merge=True, **SMALL)
    assert seen and all(seen) and state(loaded["model"]) == before, "during the run and after it"
    assert loaded["tokenizer"].padding_side == "right"
    by_name = evolve(model="tiny-gpt2", data=ROWS, reward=near, out=tmp_path / "name", **SMALL)
    assert by_object.summary["winner"]["genome_sha256"] == by_name.summary["winner"]["genome_sha256"]
    assert AutoPeftModelForCausalLM.from_pretrained(by_object.adapter) is not None
    assert by_object.merged is not None and AutoModelForCausalLM.from_pretrained(by_object.merged) is not None


def test_a_run_on_objects_resumes_with_them_to_the_same_bits(
    loaded: dict[str, Any], evolora: Any, tmp_path: Path
) -> None:
    whole = evolve(
        **loaded, data=ROWS, reward=[near, "exact"], reward_weights=[1.0, 0.5], out=tmp_path / "whole", **SMALL
    )
    less = {**SMALL, "gens": 1}
    half = evolve(**loaded, data=ROWS, reward=[near, "exact"], reward_weights=[1.0, 0.5], out=tmp_path / "half", **less)
    code, _, errors = evolora("resume", half.folder, "--gens", 2)
    assert code == 2 and "evolora.resume(run, model=..., tokenizer=...)" in errors, "the command line says how"
    with pytest.raises(InputError, match=r"function near.*reward="):
        resume(half.folder, **loaded, gens=2)
    heard = Heard()
    again = resume(
        half.folder,
        **loaded,
        reward_funcs=[near, "exact"],
        reward_weights=[1.0, 0.5],
        evolution={"gens": 2},
        view=heard,
    )
    assert heard.lines.count("reward_funcs, TRL's name, is reward here") == 1
    assert again.summary["winner"]["genome_sha256"] == whole.summary["winner"]["genome_sha256"]


def test_a_peft_config_says_what_is_adapted_also_after_a_resume(tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=8, lora_dropout=0.0, target_modules=r".*\.c_fc", task_type="CAUSAL_LM")
    first = evolve(peft_config=config, data=ROWS, reward=near, out=tmp_path / "run", **{**SMALL, "gens": 1})
    again = resume(first.folder, reward=near, gens=2)
    saved = json.loads((again.adapter / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["target_modules"]) == (2, 8, r".*\.c_fc")
    assert saved["fan_in_fan_out"], "which GPT-2's layers need"


LORA = [word for word, (part, _) in Vocabulary({}).words.items() if part == "lora"]


@pytest.mark.parametrize("options", [*({word: 1} for word in LORA), {"lora": {"r": 4}}, {"lora": LoraOptions(r=4)}])
def test_a_peft_config_stands_alone_under_every_name_of_what_it_says(options: dict[str, Any], tmp_path: Path) -> None:
    values = {"modules": ["c_attn"], "dropout": 0.1, "rslora": True, "init": "adapter"}
    options = {
        word: next((one for end, one in values.items() if word.endswith(end)), value) for word, value in options.items()
    }
    with pytest.raises(
        InputError, match=f"^peft_config and {next(iter(options))}.*: found both, expected one of them$"
    ):
        evolve(peft_config=LoraConfig(r=4), **options, data=ROWS, reward=near, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_callbacks_hear_of_every_generation_and_one_that_raises_loses_nothing(tmp_path: Path) -> None:
    heard: list[float] = []
    result = evolve(
        data=Dataset.from_list(ROWS),
        reward=near,
        out=tmp_path / "run",
        callbacks=[lambda metrics: heard.append(metrics["fitness.best"])],
        **SMALL,
    )
    assert heard == [row["fitness.best"] for row in result.history]

    def enough(metrics: dict[str, Any]) -> None:
        if metrics["generation"] == 1:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        evolve(data=ROWS, reward=near, out=tmp_path / "stopped", callbacks=[enough], **SMALL)
    assert checkpoint_folder(tmp_path / "stopped", 1).is_dir(), "the generation that it was called after is kept"
    again = resume(tmp_path / "stopped", reward=near)
    assert again.summary["winner"]["genome_sha256"] == result.summary["winner"]["genome_sha256"]
    assert len(again.history) == 2


def test_a_callback_hears_of_start_and_end_saves_the_best_and_ends_the_run(tmp_path: Path) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_start(self, run: Any) -> None:
            self.heard.append(("start", run.name, run.generation, run.generations))

        def on_generation(self, run: Any, metrics: Any) -> bool:
            self.heard.append((run.generation, metrics["fitness.best"]))
            run.save_best(tmp_path / "so far")
            return run.generation == 1 and len(self.heard) == 2

        def on_end(self, run: Any, summary: Any) -> None:
            self.heard.append(("end", summary["generations"], (run.folder / "summary.json").is_file()))

    watch, view = Watch(), Heard()
    stopped = evolve(data=ROWS, reward=near, out=tmp_path / "run", callbacks=[watch], view=view, **SMALL)
    best = stopped.history[0]["fitness.best"]
    assert watch.heard == [("start", "run", 0, 2), (1, best), ("end", 1, True)]
    assert "generation 1: a callback ends the run" in view.lines
    assert stopped.summary["generations"] == 1 and stopped.adapter.is_dir()
    saved = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "so far")
    assert any("lora" in name for name, _ in saved.named_parameters())
    with pytest.raises(InputError, match=r"^save_best: found .*, which is no adapter, expected a new folder"):
        Run(tmp_path, "run", 2, None, None).save_best(tmp_path)  # type: ignore[arg-type]

    went_on = resume(tmp_path / "run", reward=near, callbacks=[watch])
    whole = evolve(data=ROWS, reward=near, out=tmp_path / "whole", **SMALL)
    assert watch.heard[3:] == [("start", "run", 1, 2), (2, whole.history[1]["fitness.best"]), ("end", 2, True)]
    assert went_on.summary["winner"]["genome_sha256"] == whole.summary["winner"]["genome_sha256"]


@pytest.mark.parametrize(("answer", "generations"), [(True, 1), (numpy.True_, 1), (1, 2), ("stop", 2), (None, 2)])
def test_only_true_ends_a_run(answer: object, generations: int, tmp_path: Path) -> None:
    result = evolve(data=ROWS, reward=near, out=tmp_path / "run", callbacks=[lambda _: answer], **SMALL)
    assert result.summary["generations"] == generations


def test_a_resumed_run_is_given_nothing_that_it_would_not_use(tmp_path: Path) -> None:
    run = evolve(data=ROWS, out=tmp_path / "run", **{**SMALL, "gens": 1}).folder
    for options in (
        {"out": "elsewhere"}, {"output_dir": "elsewhere"}, {"learning_rate": 9}, {"gens": 1, "seed": 5}, {"genz": 2},
        {"strategy": {"mutation_scale": 1}}, {"data": ROWS}, {"options": {"pop": 9}},
        {"seed": 5, "accept_changes": True},
    ):  # fmt: skip
        with pytest.raises(
            InputError, match=r"with resume: a resumed run keeps .*, expected only gens, until, patience"
        ):
            resume(run, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^model='gpt2': a resumed run keeps its model"):
        resume(run, model="gpt2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^reward=chrf: this run's was similarity, expected the same"):
        resume(run, reward="chrf")
    for options, words in (
        ({"folder": 3}, "^folder: found 3, expected a path"),
        ({"options": 3}, "^options: found 3, expected a mapping"),
        ({"callbacks": 3}, "^callbacks: found 3"),
    ):
        with pytest.raises(InputError, match=words):
            resume(**{"folder": run, **options})  # type: ignore[arg-type]
    assert resume(run, gens=1, reward="similarity", keep=None).summary["generations"] == 1


def test_ppo_alone_on_one_adapter_is_five_lines(loaded: dict[str, Any], tmp_path: Path) -> None:
    heard = Heard()
    # fmt: off
    result = evolve(
        **loaded, data=pandas.DataFrame(ROWS), reward_funcs=near, strategy="none", refiner="ppo",
        learning_rate=3e-3, max_completion_length=3, gens=2, threads=1, output_dir=tmp_path / "run", view=heard,
    )
    tuned = AutoPeftModelForCausalLM.from_pretrained(result.adapter)
    # fmt: on
    moved = max(float(weight.abs().max()) for name, weight in tuned.named_parameters() if "lora_B" in name)
    assert moved > 0 or result.summary["winner"]["operator"] != "ppo", "B is zero in the base alone"
    assert result.history[-1]["ppo.reward"] > 0
    for trl in ("reward_funcs", "learning_rate", "max_completion_length", "output_dir"):
        assert sum(line.startswith(f"{trl}, TRL's name, ") for line in heard.lines) == 1


def test_options_as_objects_and_as_words_are_the_same_run(tmp_path: Path) -> None:
    by_object = evolve(data=ROWS, reward=near, strategy=GAConfig(mutation_scale=0.05), out=tmp_path / "a", **SMALL)
    by_word = evolve(data=ROWS, reward=near, mutation_scale=0.05, out=tmp_path / "b", **SMALL)
    assert by_object.summary["winner"]["genome_sha256"] == by_word.summary["winner"]["genome_sha256"]


def test_a_run_inside_inference_mode_is_the_same_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": ROWS, "reward": near, **SMALL, "gens": 1}
    outside = evolve(**options, out=tmp_path / "outside")
    with torch.inference_mode():
        inside = evolve(**options, out=tmp_path / "inside")
        assert torch.is_inference_mode_enabled()
    assert inside.summary["winner"] == outside.summary["winner"] and "ppo.reward" in inside.history[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda model: AutoModel.from_pretrained(model_path("tiny-gpt2")),
            "^model: found GPT2Model, which has no head",
        ),
        (lambda model: model.to("meta"), "^model: found weights on the device meta, which are none"),
        (lambda model: 3, "^model: found int, expected a name or a causal LM"),
        (lambda model: torch.nn.Linear(2, 2), "^model: found Linear, expected"),
    ],
)
def test_a_model_that_can_train_nothing_is_refused_at_once(
    make: Any, words: str, loaded: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        evolve(model=make(loaded["model"]), tokenizer=loaded["tokenizer"], data=ROWS, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_made_in_inference_mode_are_refused(loaded: dict[str, Any], tmp_path: Path) -> None:
    with torch.inference_mode():
        model = copy.deepcopy(loaded["model"])
        with pytest.raises(InputError, match=r"^model: found weights made inside torch\.inference_mode"):
            evolve(model=model, tokenizer=loaded["tokenizer"], data=ROWS, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "loaded"}, "tokenizer"),
        ({"model": 3}, "^model: found int, expected a name"),
        ({"peft_config": IA3Config()}, "^peft_config: found IA3Config, expected a LoraConfig"),
        ({"peft_config": AdaLoraConfig(total_step=9)}, "^peft_config: found AdaLoraConfig, expected a LoraConfig"),
        ({"peft_config": {"r": 4}}, "^peft_config: found dict, expected a LoraConfig"),
        (
            {"peft_config": LoraConfig(target_modules=["nothing"])},
            r"^peft_config: target_modules=\['nothing'\]: Target",
        ),
        ({"peft_config": LoraConfig(target_modules=3)}, "^peft_config: target_modules=3: "),
        ({"reward": 3}, "^reward: found 3, expected a function, the name of a reward or a list of these"),
        ({"reward": near, "reward_weights": ["a"]}, "^reward_weights: found 'a', expected a finite number"),
        ({"reward": near, "reward_weights": 3j}, "^reward_weights: found 3j, expected a finite number"),
        ({"callbacks": print}, "^callbacks: found <built-in function print>, expected a list of functions"),
        ({"callbacks": [print, 3]}, "^callbacks: found 3, expected a list of functions"),
        ({"callbacks": [Callback]}, "^callbacks: found <class .*Callback'>, expected .* or Callback objects"),
        (
            {"view": 3},
            "^view: found 3 without say, expected 'auto', None or an object with say, progress, wrote,",
        ),
        ({"tokenizer": object()}, "model= beside it"),
        ({"reward": near, "reward_funcs": [near]}, "reward and reward_funcs"),
        ({"reward": {"name": near, "reward_funcs": near}}, r"reward\.name and reward\.reward_funcs: found both"),
        ({"output_dir": "elsewhere"}, "out and output_dir: found both"),
        ({"reward_weights": [1.0]}, "reward_weights"),
        ({"data": {"train": ROWS, "dev": ROWS}}, "the splits train, dev"),
        ({"data": [*ROWS, {**ROWS[0], "target": 1j}]}, r"^data\[12\] has in the column 'target' .*complex, expected"),
        ({"learning_rat": 1e-3}, "learning_rate"),
        ({"pop": 0}, "pop=0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    options: dict[str, Any], words: str, loaded: dict[str, Any], tmp_path: Path
) -> None:
    if options.get("model") == "loaded":
        options = {"model": loaded["model"]}
    with pytest.raises(InputError, match=words) as refused:
        evolve(**{"data": ROWS, **options}, out=tmp_path / "run")
    assert "--" not in str(refused.value), "from Python in Python's words"
    assert not (tmp_path / "run").exists()
