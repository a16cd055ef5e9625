"""Options: the same on all three ways, what is refused and in whose words, and that what is written reads back."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import evolora
from evolora import ESConfig, GRPOConfig
from evolora.errors import InputError
from evolora.evolution.options import LoopConfig
from evolora.options import can_do_without, extra, own_fields
from evolora.refiners.options import REFINERS
from evolora.runs.config_file import config_toml, read_config, read_run_config
from evolora.runs.help import full_help, short_help
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.parts import PARTS, TRL_ELSEWHERE, TRL_WORDS, Vocabulary
from evolora.runs.typed import typed_words
from evolora.strategies.operators import CROSSOVERS, MUTATIONS, SELECTIONS
from evolora.strategies.options import ABSOLUTE_MUTATIONS, STRATEGIES, CrossoverName, MutationName, SelectionName

TYPES = [(strategy, refiner) for strategy in STRATEGIES for refiner in REFINERS]
TYPES = [types for types in TYPES if types not in (("none", "none"), ("pbt", "none"))]


def typed(*words: str) -> RunOptions:
    """As `evolora train` reads them."""
    found = typed_words(words)
    return make_options(*(read_config(Path(path)) for path in found.files), found.source)


def from_toml(text: str, folder: Path) -> RunOptions:
    path = folder / "run.toml"
    path.write_text(text)
    return make_options(read_config(path))


def as_typed(words: dict[str, Any]) -> list[str]:
    """Python's words as the command line has them."""
    found = []
    for word, value in words.items():
        flag = "--" + word.replace("_", "-")
        if isinstance(value, bool):
            found += [flag if value else f"--no-{flag[2:]}"]
        elif isinstance(value, list):
            found += [flag, *map(str, value)]
        else:
            found += [flag, "none" if value is None else str(value)]
    return found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gens": "x"}, ["--gens", "x", "integer"]),
        ({"gens": 0}, ["--gens", "0", "1"]),
        ({"gens": 2.5}, ["--gens", "2.5", "integer"]),
        ({"refine_whom": "lineage", "refine": 2}, ["--refine-whom lineage", "--refine 2", "--refine 1"]),
        ({"replay": -1}, ["--replay -1"]),
        ({"budget_tokens": 0}, ["--budget-tokens", "0", "1"]),
        ({"budget_seconds": 0}, ["--budget-seconds", "0", "greater than 0"]),
        ({"budget_flops": -1e15}, ["--budget-flops", "-1", "greater than 0"]),
        ({"budget_flops": "many"}, ["--budget-flops many", "number"]),
        ({"budget_seconds": float("inf")}, ["--budget-seconds inf", "finite"]),
        ({"pop": 1}, ["--pop", "1", "2"]),
        ({"pop": 4, "elites": 4}, ["--elites 4", "--pop 4"]),
        ({"pop": 4, "refine": 5}, ["--refine 5", "--pop 4"]),
        ({"lr": -1}, ["--lr", "-1"]),
        ({"strategy": "foo"}, ["--strategy", "foo", "'ga'"]),
        ({"strategy": "none", "refiner": "none"}, ["--strategy none", "--refiner none"]),
        ({"refiner": "grpo", "rollout_samples": 1}, ["--rollout-samples 1", "--refiner grpo", "at least 2"]),
        ({"refiner": "rloo", "rollout_samples": 0}, ["--rollout-samples 0"]),
        ({"equal_groups": "skip", "rollout_samples": 1}, ["--equal-groups skip", "--rollout-samples", "at least 2"]),
        ({"update_kl": 0.1, "epochs": 1}, ["--update-kl 0.1", "--epochs", "at least 2"]),
        ({"lr_decay": 0.5}, ["--lr-decay 0.5"]),
        ({"equal_groups": "skip", "strategy": "none"}, ["--equal-groups skip", "--rollout-samples", "at least 2"]),
        ({"mutation": "other"}, ["--mutation", "other", "'svd'"]),
        ({"replacement": "steady-state", "children": 7}, ["--children 7", "--pop 8", "--elites 2"]),
        ({"islands": 5}, ["--islands 5", "found 1", "elites, 1"]),
        ({"max_age": 0}, ["--max-age", "0"]),
        (
            {"replacement": "steady-state", "children": 6, "islands": 4},
            ["--children 6", "at most 4", "--islands 4"],
        ),
        ({"refined_scale": "step", "mutation": "svd"}, ["--refined-scale step", "--mutation svd", "gaussian"]),
        ({"strategy": "pbt", "refine": 2}, ["--refine 2", "--strategy pbt", "--pop, 8"]),
        ({"strategy": "pbt", "refiner": "none"}, ["--refiner none", "--strategy pbt"]),
        ({"strategy": "pbt", "kl_target": 2}, ["--kl-target 2", "--strategy pbt"]),
        ({"strategy": "pbt", "share": 0.6}, ["--share", "0.6", "0.5"]),
        ({"strategy": "pbt", "spread": 0.5}, ["--spread", "0.5", "1"]),
        ({"strategy": "pbt", "elites": 0}, ["--elites", "0", "1"]),
        ({"kl_target": 2, "kl_weight": 0}, ["--kl-target 2", "--kl-weight 0", "positive"]),
        ({"target": "x"}, ["--target", "--prompt"]),
        ({"prompt_column": "x"}, ["--prompt-column", "expected --data"]),
        ({"data_split": "x", "task": "translate"}, ["--data-split", "expected --data"]),
        ({"chat_template_kwargs": "thinking"}, ["--chat-template-kwargs thinking", "expected name=value"]),
        ({"chat_template_kwargs": "[1]"}, ["--chat-template-kwargs [1]", "JSON object"]),
        ({"chat_template_kwargs": '{"a": NaN}'}, ["--chat-template-kwargs", "JSON object"]),
        ({"chat_template_kwargs": "=1"}, ["--chat-template-kwargs =1", "expected name=value"]),
        ({"task": "translate", "data": "x.jsonl"}, ["--task", "--data"]),
        ({"population": 8}, ["--population", "unknown"]),
        ({"mutation_scale": "automatic"}, ["--mutation-scale automatic", "number", "or 'auto'"]),
        ({"genes": ["speed"]}, ["--genes speed", "'lr'", "or none"]),
    ],
)
def test_bad_options_are_refused_by_name_in_one_sentence(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        typed(*as_typed(options))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "gens": st.none() | st.integers(1, 99),
            "budget_seconds": st.none() | st.floats(1e-3, 1e6),
            "budget_flops": st.none() | st.floats(1, 1e21),
            "lr": st.floats(1e-6, 1, exclude_min=True),
            "target_kl": st.none() | st.floats(1e-6, 1),
            "niche_radius": st.floats(0.01, 2),
            "max_age": st.none() | st.integers(1, 9),
            "target_modules": st.none() | st.lists(st.sampled_from(["c_attn", "c_proj"]), min_size=1),
            "refine": st.integers(1, 8),
            "prompt": st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=5),
            "merge": st.booleans(),
        },
    )
)
def test_a_written_configuration_reads_back_the_same(options: dict[str, Any]) -> None:
    config = make_options(options)
    assert make_options(tomllib.loads(config_toml(config))) == config


@pytest.mark.parametrize(
    ("options", "samples", "prompts"),
    [
        ({}, 4, 16),
        ({"rollout_samples": 1}, 1, 64),
        ({"refiner": "grpo"}, 4, 16),
        ({"strategy": "none"}, 1, 64),
        ({"strategy": "none", "rollout_samples": 2}, 2, 32),
        ({"strategy": "none", "refiner": "grpo"}, 8, 8),
        ({"refiner": "rloo", "rollout_samples": 4}, 4, 16),
        ({"refiner": "grpo", "rollout_samples": 100}, 100, 1),
        ({"refiner": "grpo", "rollout_samples": 4, "rollout_prompts": 5}, 4, 5),
    ],
)
def test_a_rollout_has_64_completions_unless_told_otherwise(
    options: dict[str, Any], samples: int, prompts: int
) -> None:
    config = make_options(options)
    assert (config.refiner.rollout_samples, config.refiner.rollout_prompts) == (samples, prompts)
    # What a run writes down as resolved is accepted again.
    assert config.refiner.equal_groups == ("skip" if config.strategy.type == "ga" and samples > 1 else "keep")
    resolved = {**options, "rollout_samples": samples, "equal_groups": config.refiner.equal_groups}
    assert make_options(resolved) == config


@pytest.mark.parametrize(
    ("options", "kl"),
    [
        ({}, 0.1),
        ({"refiner": "grpo"}, 0.1),
        ({"epochs": 1}, 0),
        ({"epochs": 1, "minibatches": 2}, 0.1),
        ({"strategy": "none"}, 0),
        ({"strategy": "pbt"}, 0),
        ({"strategy": "none", "update_kl": 0.3}, 0.3),
        ({"update_kl": 0}, 0),
    ],
)
def test_the_learning_rate_is_led_where_there_is_a_population(options: dict[str, Any], kl: float) -> None:
    config = make_options(options)
    assert config.refiner.update_kl == kl
    # What a run writes down as resolved is accepted again.
    assert make_options({**options, "update_kl": kl}).refiner.update_kl == kl


@pytest.mark.parametrize(
    ("options", "rollouts"),
    [({}, 6), ({"strategy": "none"}, 3), ({"strategy": "pbt"}, 3), ({"rl_steps": 2}, 2)],
)
def test_a_refinement_is_longer_where_a_population_waits(options: dict[str, Any], rollouts: int) -> None:
    config = make_options(options)
    assert config.refiner.rl_steps == rollouts
    # What a run writes down as resolved is accepted again.
    assert make_options({**options, "rl_steps": rollouts}).refiner.rl_steps == rollouts


@pytest.mark.parametrize(
    ("options", "finalists"),
    [
        ({}, 4),
        ({"finalists": 3}, 3),
        ({"finalists": 1}, 0),
        ({"soup": 2}, 2),
        ({"soup": 0}, 0),
        ({"refine_whom": "best"}, 0),
        ({"refiner": "none"}, 0),
        ({"strategy": "none"}, 0),
        ({"strategy": "none", "soup": 4}, 4),
    ],
)
def test_the_finalists_of_one_lineage_make_a_soup(options: dict[str, Any], finalists: int) -> None:
    config = make_options(options)
    assert config.evolution.soup == finalists
    # What a run writes down as resolved is accepted again.
    assert make_options({**options, "soup": finalists}).evolution.soup == finalists


@pytest.mark.parametrize("soup", [1, 5])
def test_a_soup_has_from_two_to_all_finalists(soup: int) -> None:
    with pytest.raises(InputError, match=f"^--soup {soup}: expected 0, or from 2 to --finalists 4$"):
        typed("--soup", str(soup))
    with pytest.raises(InputError, match=f"^soup={soup}: expected 0, or from 2 to finalists=4$"):
        make_options({"soup": soup})


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, 0),
        ({"refiner": "grpo"}, 0),
        ({"kl_target": 3}, 0.02),
        ({"kl_weight": 0.1}, 0.1),
        ({"strategy": "none"}, 0.02),
        ({"strategy": "pbt"}, 0.02),
        ({"strategy": "none", "kl_weight": 0}, 0),
    ],
)
def test_a_population_needs_no_kl_penalty_unless_it_is_asked_for(options: dict[str, Any], weight: float) -> None:
    config = make_options(options)
    assert config.refiner.kl_weight == weight
    # What a run writes down as resolved is accepted again.
    assert make_options({**options, "kl_weight": weight}).refiner.kl_weight == weight


@pytest.mark.parametrize(
    ("options", "gens"),
    [
        ({}, 20),
        ({"gens": "none"}, 20),
        ({"gens": 5}, 5),
        ({"budget_tokens": "1000"}, None),
        ({"budget_seconds": "30"}, None),
        ({"budget_flops": "1e15"}, None),
        ({"gens": "none", "budget_flops": "1e15"}, None),
        ({"gens": 5, "budget_flops": 1e15}, 5),
    ],
)
def test_a_budget_takes_the_place_of_the_default_number_of_generations(
    options: dict[str, Any], gens: int | None
) -> None:
    config = make_options(options)
    assert config.most_gens == gens
    assert make_options(tomllib.loads(config_toml(config))).most_gens == gens


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("enable_thinking=false", {"enable_thinking": False}),
        ("a=True, b = x,c=[1]", {"a": True, "b": "x", "c": [1]}),
        ('{"enable_thinking": false, "a": {"b": null}}', {"enable_thinking": False, "a": {"b": None}}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
    ],
)
def test_variables_of_the_template_are_a_mapping_however_they_are_written(
    value: Any, written: dict[str, Any], tmp_path: Path
) -> None:
    options = make_options({"chat_template_kwargs": value})
    assert options.task.template_variables() == written
    assert make_options(tomllib.loads(config_toml(options))) == options
    if isinstance(value, dict):
        for table in ("chat_template_kwargs", "task.chat_template_kwargs"):
            assert from_toml(f"[{table}]\nenable_thinking = false\n", tmp_path) == options
    else:
        assert typed("--chat-template-kwargs", value) == options


def test_texts_that_stop_a_completion(tmp_path: Path) -> None:
    options = make_options({"stop": ["\n", "###"]})
    assert typed("--stop", "\\n", "###") == options == from_toml('stop = ["\\n", "###"]', tmp_path)
    assert make_options(tomllib.loads(config_toml(options))) == options
    assert typed("--stop", "none").completion.stop == ["none"] and make_options({"stop": "x"}).completion.stop == ["x"]
    assert options.refiner.stop == ["\n", "###"]
    for bad in ("", ["a", ""], 3):
        with pytest.raises(InputError, match=r"^stop="):
            make_options({"stop": bad})


def test_the_names_of_trl_for_data_are_ours() -> None:
    options = make_options({"dataset_name": "org/name", "dataset_config": "main", "dataset_train_split": "train"})
    assert options == make_options({"data": "org/name", "data_config": "main", "data_split": "train"})


def test_scaling_by_nobody_is_a_value() -> None:
    """The word `none` means no value for options that can do without one; this is not such an option."""
    assert make_options({"refiner": "grpo", "scale_rewards": "none"}).refiner.scale_rewards == "none"


def test_options_as_text_mean_the_same() -> None:
    """What the command line hands over is text."""
    text = {"gens": "5", "lr": "1e-3", "target_kl": "none", "merge": "true", "elites": "1"}
    assert make_options(text) == make_options({"gens": 5, "lr": 1e-3, "target_kl": None, "merge": True, "elites": 1})


def test_configuration_files_are_named_when_they_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    with pytest.raises(InputError, match=r"run\.toml"):
        read_config(path)
    path.write_text("gens = = 3")
    with pytest.raises(InputError, match=r"run\.toml.*TOML.*line 1"):
        read_config(path)


def test_the_names_of_operators_are_those_of_their_functions() -> None:
    for registry, names in ((MUTATIONS, MutationName), (CROSSOVERS, CrossoverName), (SELECTIONS, SelectionName)):
        assert [function.__name__ for function in registry.values()] == list(get_args(names))
    assert set(ABSOLUTE_MUTATIONS) < set(MUTATIONS)


@pytest.mark.parametrize(
    ("options", "refined", "accept"),
    [
        ({}, 1, "always"),
        ({"refine": 3}, 3, "better"),
        ({"strategy": "none"}, 1, "always"),
        ({"strategy": "pbt", "pop": 5}, 5, "always"),
        ({"strategy": "pbt", "pop": 2, "refine": 2, "accept": "better"}, 2, "better"),
    ],
)
def test_everybody_trains_under_pbt_and_is_let_in(options: dict[str, Any], refined: int, accept: str) -> None:
    config = make_options(options)
    assert (config.evolution.refine, config.evolution.accept) == (refined, accept)


@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_every_default_is_the_same_on_all_three_ways(types: tuple[str, str], tmp_path: Path) -> None:
    strategy, refiner = types
    python = make_options({"strategy": strategy, "refiner": refiner})
    assert from_toml(f"strategy = {strategy!r}\n[refiner]\ntype = {refiner!r}\n", tmp_path) == python
    assert typed("--strategy", strategy, "--refiner", refiner) == python
    # Each default once more, by its word: as a keyword, in a table of its part, typed.
    words = python.vocabulary
    free = {"prompt", "target", "system_prompt", "stop"}  # for which `none` is text
    values = {words.word(part, name): value for part, own in python.parts().items() for name, value in own.items()}
    said = {word: value for word, value in values.items() if value is not None}
    assert make_options(said) == python
    assert make_options(python.parts()) == python
    assert from_toml(config_toml(python), tmp_path) == python
    assert typed(*as_typed({word: value for word, value in values.items() if word not in free or value})) == python


@pytest.mark.parametrize("types", TYPES, ids="-".join)
def test_a_part_alone_has_the_defaults_of_a_run(types: tuple[str, str]) -> None:
    """All but what a strategy recommends."""
    run = make_options({"strategy": types[0], "refiner": types[1]})
    recommended = run.strategy.recommends(run)
    for part, kind in (("strategy", STRATEGIES[types[0]]), ("refiner", REFINERS[types[1]]), ("evolution", LoopConfig)):
        alone = kind()
        for name in own_fields(kind, part):
            if name not in {"rollout_prompts", *recommended.get(part, {})}:
                assert getattr(alone, name) == getattr(getattr(run, part), name), (part, name)


def test_every_option_is_described_and_every_word_means_one() -> None:
    for strategy, refiner in TYPES:
        words = Vocabulary({"strategy": strategy, "refiner": refiner})
        for (part, name), field in words.fields.items():
            assert field.description, (part, name)
            for word in (words.word(part, name), f"{part}.{name}", f"{part}_{name}", f"{part}-{name}"):
                assert words.place(word) == (part, name), word


@pytest.mark.parametrize(
    ("words", "part", "name", "value"),
    [
        (["--strategy", "es", "--scale", "0.02"], "strategy", "scale", 0.02),
        (["--strategy", "es", "--strategy.scale", "0.02"], "strategy", "scale", 0.02),
        (["--scale", "0.02", "--strategy", "es"], "strategy", "scale", 0.02),
        (["--lr", "0.02"], "refiner", "lr", 0.02),
        (["--refiner-lr=0.02", "--strategy", "es"], "refiner", "lr", 0.02),
        (["--lora", "4"], "lora", "r", 4),
        (["--lora-r", "4"], "lora", "r", 4),
        (["--engine", "eager"], "engine", "type", "eager"),
        (["--on-reward-error", "skip"], "reward", "on_error", "skip"),
        (["--rating-host", "0.0.0.0"], "human", "host", "0.0.0.0"),
        (["--no-remember"], "evolution", "remember", False),
        (["--merge"], "run", "merge", True),
        (["--reward-workers", "2", "--reward-timeout", "5"], "reward", "timeout", 5),
        (["--learning-rate", "0.02"], "refiner", "lr", 0.02),
        (["--num_generations", "6"], "refiner", "rollout_samples", 6),
        (["--beta", "0.1"], "refiner", "kl_weight", 0.1),
        (["--max-completion-length", "7"], "completion", "max_new_tokens", 7),
        (["--output-dir", "here"], "run", "out", "here"),
        (["--reward-funcs", "exact", "--reward-weights", "2"], "reward", "name", "2 * (exact)"),
        (
            ["--reward-funcs", "exact", "chrf", "--reward-weights", "1", "2"],
            "reward",
            "name",
            "1 * (exact) + 2 * (chrf)",
        ),
        (["--reward", "exact", "--reward=chrf"], "reward", "name", "(exact) + (chrf)"),
        (
            ["--reward", "exact", "--reward", "chrf", "--reward-weights", "1", "2"],
            "reward",
            "name",
            "1 * (exact) + 2 * (chrf)",
        ),
        (["--refiner.learning_rate", "0.02"], "refiner", "lr", 0.02),
        (["--refiner-learning-rate", "0.02"], "refiner", "lr", 0.02),
        (["--target-modules", "all-linear"], "lora", "target_modules", "all-linear"),
        (["--target-modules", ".*attn"], "lora", "target_modules", ".*attn"),
        (["--target-modules", "c_attn"], "lora", "target_modules", ["c_attn"]),
        (["--target-modules", "c_attn", "c_proj", "--gens", "1"], "lora", "target_modules", ["c_attn", "c_proj"]),
        (["--lora.exclude-modules", "mlp"], "lora", "exclude_modules", ["mlp"]),
        (["--target-kl", "none"], "refiner", "target_kl", None),
        (["--prompt", "none", "--target", "-1"], "task", "target", "-1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_ways_to_write_an_option(words: list[str], part: str, name: str, value: Any) -> None:
    assert getattr(getattr(typed(*words), part), name) == value


def test_what_others_are_told() -> None:
    run = make_options({"pop": 5, "strategy": "pbt", "lr": 0.1, "max_new_tokens": 9, "seed": 3, "rl_steps": 4})
    assert (run.strategy.pop, run.strategy.lr, run.refiner.max_new_tokens) == (5, 0.1, 9)  # type: ignore[attr-defined]
    assert (run.evolution.seed, run.evolution.rl_steps) == (3, 4)
    assert run.replaced({"completion": {"max_new_tokens": 4}}).refiner.max_new_tokens == 4  # type: ignore[attr-defined]


def test_options_as_models_and_mappings_in_python() -> None:
    words = {"strategy": "es", "scale": 0.05, "pop": 5, "refiner": "grpo", "loss_type": "grpo", "lora_r": 4}
    models = {"strategy": ESConfig(scale=0.05, pop=5), "refiner": GRPOConfig(loss_type="grpo"), "lora": {"r": 4}}
    assert make_options(models) == make_options(words)


def test_a_name_of_two_parts_names_both() -> None:
    with pytest.raises(InputError, match=r"^--lr 0\.1: .*--strategy\.lr or --refiner\.lr$"):
        typed("--strategy", "es", "--lr", "0.1")
    with pytest.raises(InputError, match=r"^lr=0\.1: .*strategy\.lr or refiner\.lr$"):
        make_options({"strategy": "es", "lr": 0.1})
    # TRL means the trainer's.
    assert typed("--strategy", "es", "--learning-rate", "0.1").refiner.lr == 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("genz", "gens"), ("learning_rat", "learning_rate"), ("strategi", "strategy"), ("lora_rank", "lora_r"),
        ("mutation_scal", "mutation_scale"), ("refiner.lrr", "refiner.lr"),
    ],
)  # fmt: skip
def test_unknown_names_get_the_nearest_known_one(word: str, nearest: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{word}=3: .*unknown.*, such as {nearest}$"):
        make_options({word: 3})
    flag, near = word.replace("_", "-"), nearest.replace("_", "-")
    with pytest.raises(InputError, match=rf"^--{flag} 3: .*unknown.*, such as --{near}$"):
        typed(f"--{flag}", "3")
    with pytest.raises(InputError, match=rf"run\.toml: {word} = 3: .*unknown.*, such as {nearest}$"):
        part, _, name = word.rpartition(".")
        from_toml(f"[{part}]\n{name} = 3\n" if part else f"{word} = 3\n", tmp_path)


def test_an_option_of_another_type_is_no_typing_error() -> None:
    with pytest.raises(InputError, match=r"^--critic-lr 1: found an option of refiner ppo, expected .* grpo"):
        typed("--refiner", "grpo", "--critic-lr", "1")


def test_faults_are_named_as_they_were_written(tmp_path: Path) -> None:
    for words in (["--refiner.lr", "-1"], ["--refiner-lr", "-1"], ["--lr", "-1"], ["--learning-rate", "-1"]):
        with pytest.raises(InputError, match=f"^{words[0]} -1: input should be greater than 0$"):
            typed(*words)
    for python in ({"refiner": {"lr": -1}}, {"refiner.lr": -1}, {"lr": -1}, {"learning_rate": -1}):
        word = "refiner.lr" if "lr" not in python and "learning_rate" not in python else next(iter(python))
        with pytest.raises(InputError, match=f"^{word}=-1: input should be greater than 0$"):
            make_options(python)
    with pytest.raises(InputError, match=r"run\.toml: refiner\.lr = -1: input should be greater than 0$"):
        from_toml("[refiner]\nlr = -1\n", tmp_path)
    with pytest.raises(InputError, match=r"^elites=4: expected fewer than pop=4$"):
        make_options({"pop": 4, "elites": 4})
    with pytest.raises(InputError, match=r"^--evolution\.elites 4: expected fewer than --pop 4$"):
        typed("--pop", "4", "--evolution.elites", "4")
    with pytest.raises(InputError, match=r"^refine=2 with strategy=pbt: expected pop, 8: all train$"):
        make_options({"strategy": "pbt", "refine": 2})


def test_the_functions_of_python_speak_python(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model=nowhere: "):
        evolora.evolve(model="nowhere", out=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"^lr=-1: "):
        evolora.evolve(lr=-1)
    with pytest.raises(InputError, match=r"^task is 'nowhere', expected one of"):
        evolora.evolve(task="nowhere", out=str(tmp_path / "run"))


def test_names_of_trl_are_said_once() -> None:
    assert typed("--beta", "0.1", "--beta", "0.2").notes == ("--beta, TRL's name, is --kl-weight here",)
    assert make_options({"num_generations": 4}).notes == ("num_generations, TRL's name, is rollout_samples here",)
    assert make_options({"lr": 0.1}).notes == ()
    weighted = typed("--reward-funcs", "exact", "--reward-weights", "2")
    assert weighted.notes == (
        "--reward-funcs, TRL's name, is --reward here",
        "--reward-weights, TRL's name, are factors in --reward here",
    )
    assert set(TRL_WORDS) <= set(Vocabulary({}).words)


@pytest.mark.parametrize("trl", TRL_ELSEWHERE)
def test_what_stands_in_the_place_of_other_options_of_trl_is_said(trl: str) -> None:
    with pytest.raises(InputError, match=r"^--[a-z0-9-]+: found an option of TRL's that is not ") as found:
        typed(f"--{trl.replace('_', '-')}", "1")
    here = re.findall(r"--[a-z-]+", str(found.value).partition("expected ")[2])
    assert {"--tokenizer", "--clip-range-high", *map("--{}".format, map(dashed, Vocabulary({}).words))} >= set(here)
    if trl == "train_dataset":
        return  # from Python it is data
    with pytest.raises(InputError, match=f"^{trl}: found an option of TRL's that is not taken here, expected [^-]*$"):
        evolora.evolve(**{trl: 1})


def test_all_of_them_are_said_at_once() -> None:
    with pytest.raises(
        InputError, match=r"^bf16, save_steps: found options of TRL's that are not taken here, expected "
    ):
        evolora.evolve(bf16=True, beta=0.1, save_steps=5)


def test_the_data_may_have_the_name_that_trl_gives_it(tmp_path: Path) -> None:
    rows = [{"prompt": f"Translate '{word}' to English:", "target": word} for word in "abcdefgh"]
    result = evolora.evolve(
        train_dataset=rows, gens=1, pop=2, elites=1, refiner="none", out=str(tmp_path / "run"), view=None
    )
    assert result.summary["test_prompts"] >= 1


def dashed(word: str) -> str:
    return word.replace("_", "-")


@pytest.mark.parametrize("trl", TRL_WORDS)
def test_names_of_trl_are_words_of_their_parts_too(trl: str, tmp_path: Path) -> None:
    part, name = TRL_WORDS[trl]
    values = {"reward_funcs": ["exact", "chrf"], "reward_weights": [2], "output_dir": "here", "beta": 0.5}
    values |= {"mask_truncated_completions": True, "num_iterations": 3}
    values |= {"model_name_or_path": "gpt2", "model_revision": "v1", "lora_target_modules": ["q_proj"]}
    value: Any = values.get(trl, "a/b" if trl.startswith("dataset") else 2)
    needs = {
        "reward_weights": ("name", "exact"),
        "dataset_config": ("data", "a/b"),
        "dataset_train_split": ("data", "a/b"),
    }
    beside = dict([needs[trl]] if trl in needs else [])
    head = "".join(f"{part}.{each} = {said!r}\n" for each, said in beside.items())
    alone = from_toml(f"{trl} = {json.dumps(value)}\n{head}", tmp_path)
    head = "".join(f"{each} = {said!r}\n" for each, said in beside.items())
    inside = from_toml(f"[{part}]\n{head}{trl} = {json.dumps(value)}\n", tmp_path)
    by_mapping = make_options({part: {**beside, trl: value}})
    assert alone == inside == by_mapping
    assert getattr(getattr(inside, part), name) != getattr(getattr(make_options(), part), name)
    assert inside.notes[0].startswith(f"{part}.{trl}, TRL's name, ")
    assert by_mapping.notes == inside.notes


def test_two_words_for_one_option_are_refused_where_both_were_written_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^lr and learning_rate: found both, expected one of them$"):
        make_options({"lr": 0.1, "learning_rate": 0.2})
    with pytest.raises(InputError, match=r"^gens and evolution\.gens: found both"):
        from_toml("gens = 3\n[evolution]\ngens = 4\n", tmp_path)


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("model.target_modules", "lora.target_modules"),
        ("refiner.gens", "evolution.gens"),
        ("model.beta", "refiner.kl_w"),
    ],
)
def test_an_option_in_another_part_s_table_is_named_with_its_own(word: str, right: str, tmp_path: Path) -> None:
    part, name = word.split(".")
    with pytest.raises(InputError, match=f"{word} = 3: found an unknown option, .*, such as {right}"):
        from_toml(f"[{part}]\n{name} = 3\n", tmp_path)


def test_weights_are_finite_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--reward-weights nan: found 'nan', expected a finite number"):
        typed("--reward", "exact", "--reward-weights", "nan")
    with pytest.raises(InputError, match=r"reward_weights = \[1, inf\]: found inf, expected a finite number"):
        from_toml('reward_funcs = ["exact", "chrf"]\nreward_weights = [1, inf]\n', tmp_path)
    with pytest.raises(InputError, match=r"number 1 is .*, expected .*a finite number"):
        from_toml('[[reward]]\nterm = "exact"\nweight = nan\n', tmp_path)


def test_later_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text('gens = 3\npop = 6\n[strategy]\ntype = "es"\nscale = 0.5\n')
    second.write_text("gens = 4\n[lora]\nr = 2\n")
    run = typed("--config", str(first), "--config", str(second), "--r", "3")
    assert (run.evolution.gens, run.evolution.pop, run.lora.r, run.strategy.scale) == (4, 6, 3, 0.5)  # type: ignore[attr-defined]
    assert typed(str(first), str(second), "--r", "3") == run
    assert typed("--gens", "9", str(first)).evolution.gens == 9  # what is typed wins over files
    # What was said to another type is not said to this one.
    assert typed(str(first), "--strategy", "ga").strategy.type == "ga"


def test_older_configurations_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('model = "tiny-gpt2"\ngens = 3\nes_scale = 0.05\npbt_share = 0.25\n')
    for read in (lambda: read_run_config(tmp_path), lambda: read_config(tmp_path / "config.toml")):
        with pytest.raises(InputError, match=r"config\.toml: .* older version of evolora") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("es_scale = 0.05", "strategy.scale of strategy es"),
        ("sep_cmaes_mutation_scale = 0.05", "strategy.mutation_scale of strategy sep-cmaes"),
        ('strategy = "pbt"\npbt_share = 0.25', "strategy.share"),
        ("ppo_critic_lr = 0.25", "refiner.critic_lr"),
    ],
)
def test_names_of_older_versions_get_their_new_ones(line: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"0\.\d+: found an unknown option, expected {expected}$"):
        from_toml(f"{line}\n", tmp_path)


def test_help_is_one_screen_and_all_help_has_every_option() -> None:
    for kind in STRATEGIES:
        lines = short_help(typed_words(["--strategy", kind]).source).splitlines()
        assert len(lines) <= 45 and max(map(len, lines)) <= 100
    everything = full_help(Source([]))
    for part, kinds in PARTS.items():
        for kind, model in kinds.items():
            assert f"[{part}]" in everything
            words = Vocabulary({part: kind} if kind else {})
            for name in own_fields(model, part):
                assert "--" + words.word(part, name).replace("_", "-") in everything
    assert max(map(len, everything.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), ([], 0), (["trian"], 2), (["train", "--genz", "3"], 2),
     (["train", "--help"], 0), (["train", "--help-all"], 0), (["train", "--lr", "-1"], 2),
     (["train", "--pop", "10000000000"], 2), (["train", "--task", "chess"], 2)],
)  # fmt: skip
def test_answers_do_not_wait_for_heavy_imports(arguments: list[str], code: int) -> None:
    program = (
        "import sys\nfrom evolora.cli import main\n"
        f"try:\n    code = main({arguments!r})\nexcept SystemExit as end:\n    code = end.code or 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'numba', 'numpy', 'rich'} & set(sys.modules)\n"
        f"assert not heavy, heavy\nassert code == {code}, code\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "evolora"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: evolora")


@pytest.mark.parametrize("room", ["", ".strategies", ".refiners", ".rewards", ".human"])
def test_every_public_name_is_found(room: str) -> None:
    module = importlib.import_module(f"evolora{room}")
    for name in module.__all__:
        found = getattr(module, name)
        assert not isinstance(found, type(sys)), name
    program = f"import evolora{room} as room\nassert set(room.__all__) <= set(dir(room)), dir(room)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0, "before any is used"


def test_an_option_of_several_parts_says_where_it_is_written() -> None:
    for kinds in PARTS.values():
        for model in kinds.values():
            for name, field in model.model_fields.items():
                assert extra(field)["of"] in {None, *PARTS}, name
                if extra(field)["free_text"]:
                    assert can_do_without(field)


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        ({}, 0.02),
        ({"model": "some/other"}, "auto"),
        ({"model": "some/other", "mutation_scale": 0.02}, 0.02),
        ({"mutation_scale": "auto"}, "auto"),
        ({"model": "some/other", "strategy": "random"}, 0.02),
    ],
)
def test_the_mutation_scale_is_the_users_or_the_models(words: dict[str, Any], scale: float | str) -> None:
    assert make_options(words).strategy.mutation_scale == scale


@pytest.mark.parametrize("value", [0, -1, "much"])
def test_a_mutation_scale_is_a_number_or_auto(value: Any) -> None:
    with pytest.raises(InputError, match="mutation_scale"):
        make_options({"mutation_scale": value})


def test_a_value_after_a_switch_is_taken_for_a_file_and_said_to_be_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^off: .*expected a configuration file \(what is on or off takes no value"):
        typed("--rare-hits", "off")
    with pytest.raises(InputError, match=r"expected a configuration file$"):
        typed("nothing.toml")
