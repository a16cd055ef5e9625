"""The public door: `evolve` and `resume`, which take names or objects."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.errors import InputError, names_refused
from evolora.models.base import check_given
from evolora.options import Options
from evolora.runs.callbacks import Callback, Function, checked_callbacks
from evolora.runs.given import Given, Rewards, given_reward
from evolora.runs.keeping.names import find_run
from evolora.runs.options import RunOptions, Source, check_resumable, make_options, python_words, trl_note
from evolora.runs.parts import Vocabulary, trl_name
from evolora.runs.quiet import quietened
from evolora.runs.run import Result, go_on, start
from evolora.runs.seeds.folder import is_seeds
from evolora.runs.seeds.run import go_on_seeds, start_seeds
from evolora.runs.tracking.choice import choose_view
from evolora.runs.tracking.view import Silence, View
from evolora.tasks.objects import rows_of

_VIEWED = [name for name in vars(Silence) if not name.startswith("_")]

Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Mapping[str, Any]


def evolve(
    *,
    model: str | os.PathLike[str] | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    peft_config: LoraConfig | None = None,
    data: Data | None = None,
    task: str | None = None,
    prompt: str | None = None,
    target: str | None = None,
    reward: Rewards | Options | Mapping[str, Any] | None = None,
    reward_weights: Sequence[float] | None = None,
    fitness: Rewards | None = None,
    strategy: str | Options | Mapping[str, Any] | None = None,
    refiner: str | Options | Mapping[str, Any] | None = None,
    gens: int | None = None,
    pop: int | None = None,
    seed: int | None = None,
    seeds: int | Sequence[int] | None = None,
    out: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback | Function] = (),
    view: View | Literal["auto"] | None = "auto",
    **options: Any,
) -> Result:
    """Evolve and reinforce LoRA adapters, and return the winner.

    `model` is a name (the bundled model by default) or a loaded causal LM with its `tokenizer`, which stay as they are;
    `peft_config` says what to adapt. `data` is a file, a folder, rows with a `prompt` and any further columns, which
    the reward gets by name: a list of dictionaries, a `datasets.Dataset` or `DatasetDict`, a pandas DataFrame; or there
    is a `task`, or one `prompt` with its `target`. Of train and test alone, the validation rows are split off train by
    the seed; of one split, both are.

    `init`, the folder or hub name of a LoRA adapter or several, is what the run starts from in the place of the base.

    `reward` is a function with TRL's signature, the name of one, or a list of both with `reward_weights`; TRL's
    `reward_funcs` is the same. `fitness` is what individuals are judged by, where RL is to follow another reward: the
    same, or a function of all that an individual wrote that returns one number. `strategy` and `refiner` are names or
    options (`GAConfig(mutation_scale=0.01)`). Each of `callbacks` is called after every generation with its metrics,
    and ends the run there when it returns True; one that is a `Callback` hears of start and end, too. What one raises
    ends the run, and `resume` goes on. `report_to` names trackers. All other `options` are those that `evolora train
    --help-all` lists, by their short or full names (`lr=3e-4`, `lora={"r": 4}`, **{"refiner.lr": 3e-4}), and TRL's
    names for them (`learning_rate`, `num_generations`, `max_completion_length`, `beta`, `output_dir`).

    With `seeds`, how many from `seed` on or which, the same run is made under each of them: the `SeedsResult` that is
    returned has each one's result in `runs`, and the means over the seeds, with their intervals, in its summary. With
    `seed_workers` they run side by side, in processes, which have no use for Python's objects.

    It shows what `evolora train` shows, in a notebook too; `view=None` is silent, and a view of one's own (see
    `evolora.runs.tracking.view`) is told all that happens. Inside `torch.no_grad` and `torch.inference_mode` it is the
    same run as outside.

    Raises InputError for bad options and objects before any work, RewardError when the reward fails, `Interrupted`
    after Ctrl-C.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> result = evolve(task="arithmetic", gens=1, pop=2, elites=1, refiner="none", out=folder, view=None)
    >>> sorted(result.summary["winner"])
    ['genome_sha256', 'id', 'operator', 'test', 'validation']
    """
    with _in_python():
        if peft_config is not None and getattr(peft_config, "peft_type", None) != PeftType.LORA:
            found = type(peft_config).__name__
            raise InputError(f"peft_config: found {found}, expected a LoraConfig of PEFT, the one kind that is evolved")
        reward, weights, notes = _rewards(reward, reward_weights, options)
        if data is None and options.get("train_dataset") is not None:
            data = options.pop("train_dataset")
            notes.append("train_dataset, TRL's name, is data here")
        rows = None if data is None or isinstance(data, (str, os.PathLike)) else rows_of(data)
        given = Given(
            **_given_model(model, tokenizer),
            peft_config=peft_config,
            reward=given_reward(reward, weights),
            fitness=given_reward(fitness, said="fitness"),
            rows=rows,
            callbacks=checked_callbacks(callbacks),
            notes=notes,
        )
        named = {
            "model": given.model_name() if given.model is not None else None if model is None else str(model),
            "data": None if data is None else str(data) if rows is None else "data.jsonl",
            "task": task,
            "prompt": prompt,
            "target": target,
            # In brackets, so that a resumed run can take a function for no built-in of the same name.
            "reward": reward if given.reward is None else str(given.reward[0]),
            "fitness": fitness if given.fitness is None else str(given.fitness[0]),
            "strategy": strategy,
            "refiner": refiner,
            "gens": gens,
            "pop": pop,
            "seed": seed,
            "seeds": seeds,
            "out": out,
        }
        words = {name: value for name, value in named.items() if value is not None} | options
        config = make_options(_lora_words(peft_config), words)
        if peft_config is not None:
            _refuse_both(words, config)
        with _shown(view) as shown:
            if config.run.seeds is not None:
                return start_seeds(config, given=given, view=shown, views=lambda: _view(view))
            return start(config, given=given, view=shown)


def resume(
    folder: str | os.PathLike[str],
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    reward: Rewards | None = None,
    reward_weights: Sequence[float] | None = None,
    fitness: Rewards | None = None,
    callbacks: Sequence[Callback | Function] = (),
    view: View | Literal["auto"] | None = "auto",
    trust_reward: bool = False,
    accept_changes: bool = False,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Result:
    """Continue a run from its newest whole checkpoint, to the same bits as if it had never stopped.

    `options`, or keywords, may give a new `gens`, `until`, `patience`, `budget_tokens`, `budget_seconds`,
    `budget_flops`, `save_every`, `keep`, `merge` or `report_to`; None takes a limit away. Budgets count all that the
    run has spent, before it was stopped and after. A run that was given a loaded model or Python functions as its
    reward (or as TRL's `reward_funcs`) or fitness needs them again. One that was not made in this folder by this user,
    and whose options run code or read environment variables, is refused unless `trust_reward`.

    Raises InputError for any other option, and where anything else has changed that the results depend on: data, model,
    tokenizer, reward, options, versions. With `accept_changes` the run goes on, and its summary lists what was
    `changed`.
    """
    with _in_python():
        if not isinstance(folder, (str, os.PathLike)):
            raise InputError(f"folder: found {folder!r:.60}, expected a path")
        if not isinstance(options, Mapping | None):
            raise InputError(f"options: found {options!r:.60}, expected a mapping from names to values")
        given_words = {**(options or {}), **more}
        reward, weights, notes = _rewards(reward, reward_weights, given_words)
        if isinstance(model, (str, os.PathLike)):
            raise InputError(f"model={model!r}: a resumed run keeps its model, expected only a loaded one that it had")
        given = Given(
            **_given_model(model, tokenizer),
            reward=given_reward([reward] if isinstance(reward, str) else reward, weights),
            fitness=given_reward([fitness] if isinstance(fitness, str) else fitness, said="fitness"),
            callbacks=checked_callbacks(callbacks),
            notes=notes,
        )
        words = Source.of_python(given_words)
        check_resumable(words)
        run, how = find_run(folder), {"trust": trust_reward, "accept_changes": accept_changes}
        with _shown(view) as shown:
            if is_seeds(run):
                return go_on_seeds(run, words, given=given, view=shown, views=lambda: _view(view), **how)
            return go_on(run, words, given=given, view=shown, **how)


def _given_model(
    model: str | os.PathLike[str] | PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, Any]:
    """A loaded model and its tokenizer, which come together; nothing for a name."""
    if model is None or isinstance(model, (str, os.PathLike)):
        if tokenizer is not None:
            raise InputError("tokenizer: found one without a loaded model, expected model= beside it")
        return {}
    check_given(model, tokenizer)
    return {"model": model, "tokenizer": tokenizer}


def _rewards(
    reward: Rewards | Options | Mapping[str, Any] | None, weights: Sequence[float] | None, options: dict[str, Any]
) -> tuple[Rewards | None, Sequence[float] | None, list[str]]:
    """The rewards and their weights, which are taken out of the `options` where they are there under another name, and
    what is said of TRL's names for them."""
    part = isinstance(reward, Options | Mapping)
    options |= dict(Source.of_python({"reward": reward}).words) if part else {}
    words = Vocabulary({})
    said: dict[str, tuple[str, Any]] = {
        "rewards": ("reward", None if part else reward),
        "weights": ("reward_weights", weights),
    }
    for word in [word for word in options if words.words.get(word.replace("-", "_")) == ("reward", "name")]:
        kind = "weights" if trl_name(word) == "reward_weights" else "rewards"
        if (value := options.pop(word)) is not None:
            if said[kind][1] is not None:
                raise InputError(f"{said[kind][0]} and {word}: found both, expected one of them")
            said[kind] = (word, value)
    notes = [
        trl_note(trl, word, Source([]), words)
        for word, value in said.values()
        if value is not None and (trl := trl_name(word)) is not None
    ]
    return said["rewards"][1], said["weights"][1], notes


def _lora_words(config: LoraConfig | None) -> dict[str, Any]:
    """What a `peft_config` says, in the options' words."""
    if config is None:
        return {}
    return {"lora.r": config.r, "lora.alpha": config.lora_alpha, "lora.dropout": config.lora_dropout}


def _refuse_both(words: Mapping[str, Any], config: RunOptions) -> None:
    """Raise InputError for an option of the adapters, by whatever name, beside a `peft_config`."""
    for word, value in Source.of_python(words).words:
        place = config.vocabulary.words.get(word.replace("-", "_"))
        if place is not None and place[0] == "lora" and value is not None:
            raise InputError(f"peft_config and {word}: found both, expected one of them")


@contextmanager
def _shown(view: View | Literal["auto"] | None) -> Iterator[View]:
    """What is asked for as a view, which is closed in the end."""
    missing = [name for name in _VIEWED if view not in ("auto", None) and not callable(getattr(view, name, None))]
    if missing:
        raise InputError(
            f"view: found {view!r:.60} without {missing[0]}, expected 'auto', None or an object with "
            f"{', '.join(_VIEWED[:-1])} and {_VIEWED[-1]}"
        )
    with closing(_view(view)) as shown:
        yield shown


def _view(view: View | Literal["auto"] | None) -> View:
    return choose_view() if view == "auto" else Silence() if view is None else view


@contextmanager
def _in_python() -> Iterator[None]:
    """Faults inside name options as Python does, and libraries are silent. A caller's `torch.inference_mode` or
    `no_grad` is left inside: what is refined needs gradients."""
    try:
        # Entered where it is needed alone: it sets autograd's threads, too.
        learning = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        with names_refused(), quietened(), learning, torch.enable_grad():
            yield
    except InputError as error:
        raise python_words(error) from None
