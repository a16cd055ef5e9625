"""Options: what is refused, in whose name, and that a written configuration reads back the same."""

import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolora.errors import InputError
from evolora.runs.config import RunConfig, make_config, option_name
from evolora.runs.config_file import config_toml, read_config
from evolora.strategies.operators import ABSOLUTE_MUTATIONS, CROSSOVERS, MUTATIONS, CrossoverName, MutationName


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
        ({"pbt_share": 0.6}, ["--pbt-share", "0.6", "0.5"]),
        ({"pbt_spread": 0.5}, ["--pbt-spread", "0.5", "1"]),
        ({"kl_target": 2, "kl_weight": 0}, ["--kl-target 2", "--kl-weight 0", "positive"]),
        ({"target": "x"}, ["--target", "--prompt"]),
        ({"task": "translate", "data": "x.jsonl"}, ["--task", "--data"]),
        ({"population": 8}, ["--population", "unknown"]),
    ],
)
def test_bad_options_are_refused_by_name_in_one_sentence(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        make_config(options)
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
    config = make_config(options)
    assert make_config(tomllib.loads(config_toml(config))) == config


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
    config = make_config(options)
    assert (config.samples_a_prompt, config.prompts_a_rollout) == (samples, prompts)
    # What a run writes down as resolved is accepted again.
    assert config.equal_group_rule == ("skip" if config.strategy == "ga" and samples > 1 else "keep")
    resolved = {**options, "rollout_samples": samples, "equal_groups": config.equal_group_rule}
    assert make_config(resolved).equal_group_rule == config.equal_group_rule


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
    config = make_config(options)
    assert config.led_update_kl == kl
    # What a run writes down as resolved is accepted again.
    assert make_config({**options, "update_kl": kl}).led_update_kl == kl


@pytest.mark.parametrize(
    ("options", "rollouts"),
    [({}, 6), ({"strategy": "none"}, 3), ({"strategy": "pbt"}, 3), ({"rl_steps": 2}, 2)],
)
def test_a_refinement_is_longer_where_a_population_waits(options: dict[str, Any], rollouts: int) -> None:
    config = make_config(options)
    assert config.rollouts_a_refinement == rollouts
    # What a run writes down as resolved is accepted again.
    assert make_config({**options, "rl_steps": rollouts}).rollouts_a_refinement == rollouts


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
    config = make_config(options)
    assert config.finalists_in_soup == finalists
    # What a run writes down as resolved is accepted again.
    assert make_config({**options, "soup": finalists}).finalists_in_soup == finalists


@pytest.mark.parametrize("soup", [1, 5])
def test_a_soup_has_from_two_to_all_finalists(soup: int) -> None:
    with pytest.raises(InputError, match=f"^--soup {soup}: expected 0, or from 2 to --finalists 4$"):
        make_config({"soup": soup})


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
    config = make_config(options)
    assert config.kl_penalty == weight
    # What a run writes down as resolved is accepted again.
    assert make_config({**options, "kl_weight": weight}).kl_penalty == weight


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
    config = make_config(options)
    assert config.most_gens == gens
    assert make_config(tomllib.loads(config_toml(config))).most_gens == gens


def test_scaling_by_nobody_is_a_value() -> None:
    """The word `none` means no value for options that can do without one; this is not such an option."""
    assert make_config({"scale_rewards": "none"}).scale_rewards == "none"


def test_options_as_text_mean_the_same() -> None:
    """What the command line hands over is text."""
    text = {"gens": "5", "lr": "1e-3", "target_kl": "none", "merge": "true", "elites": "1"}
    assert make_config(text) == make_config({"gens": 5, "lr": 1e-3, "target_kl": None, "merge": True, "elites": 1})


def test_configuration_files_are_named_when_they_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    with pytest.raises(InputError, match=r"run\.toml"):
        read_config(path)
    path.write_text("gens = = 3")
    with pytest.raises(InputError, match=r"run\.toml.*TOML.*line 1"):
        read_config(path)


def test_every_option_has_a_help_text_and_a_group() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["group"], name
        assert option_name(name).startswith("--")


def test_the_names_of_operators_are_those_of_the_registries() -> None:
    assert list(get_args(MutationName)) == list(MUTATIONS)
    assert set(ABSOLUTE_MUTATIONS) < set(MUTATIONS)
    assert list(get_args(CrossoverName)) == list(CROSSOVERS)


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
    config = make_config(options)
    assert (config.refined_individuals, config.accept_rule) == (refined, accept)
