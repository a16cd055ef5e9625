"""A run's parts, loaded and checked before any work: task, reward, base model, layout, evaluator."""

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from evolora.distributed.choose import ROWS_AT_ONCE, slice_rows
from evolora.distributed.engine import DealtEngine
from evolora.engine.base import Engine
from evolora.engine.budget import Budget
from evolora.engine.calibration import (
    available_cores,
    choose_rows,
    choose_threads,
    choose_update_tokens,
    parameters_of,
    slowdown,
    threads_an_operation,
)
from evolora.engine.choose import check_writer, kept_prefix, resolved, resolved_checkpointing
from evolora.engine.progress import Reporter
from evolora.engine.self_check import check_engine, checked
from evolora.engine.text import Text
from evolora.environment import references
from evolora.errors import InputError
from evolora.human.feedback import check_page
from evolora.masking import mask
from evolora.models.base import BaseModel
from evolora.models.foreign import own_code
from evolora.population.evaluation import LocalEvaluator
from evolora.rewards.expression import Expression
from evolora.runs.adapted import Adapted, adapt, loaded_base
from evolora.runs.assembled import Parts
from evolora.runs.engines import devices_of, make_engines
from evolora.runs.given import Given
from evolora.runs.initial import Initial
from evolora.runs.lengths import longest_prompt, room_for_targets
from evolora.runs.memory import rows_of_an_update
from evolora.runs.options import RunOptions
from evolora.runs.tracking.view import View, warn
from evolora.runs.wanted import Wanted
from evolora.tasks.chat import Chat, with_prompts
from evolora.tasks.task import Task, capped, load_task

_UNSCORED = "none"


def assemble(
    config: RunOptions,
    given: Given,
    view: View,
    adapter: Path | None = None,
    *,
    scores: bool = True,
    own_tokenizer: bool = False,
) -> Parts:
    """Load and check everything, so that bad input is refused before any work. What was `given` is not loaded.

    With an `adapter`, its configuration is used instead of the options, and its genome is the founder; with its
    `own_tokenizer` that of its folder, where there is one. Unless it
    `scores`, the reward is not made, and no code of it is imported: nothing that is written has a score.
    """
    with ExitStack() as unless_done:
        found = _assembled(
            config, given, view, adapter, scores=scores, own_tokenizer=own_tokenizer, unless_done=unless_done
        )
        unless_done.pop_all()
        return found


def _assembled(
    config: RunOptions,
    given: Given,
    view: View,
    adapter: Path | None,
    *,
    scores: bool,
    own_tokenizer: bool,
    unless_done: ExitStack,
) -> Parts:
    initial = Initial.of(config) if adapter is None else None
    if initial is not None:
        config = initial.followed(config)
    used, reporter = config.used(), Reporter(view)
    reporter.begin("reading the data")
    whole, task = _data(used, scores=scores)
    wanted = Wanted.of(config, given, task.reward, scores=scores)
    if adapter is None:
        config = _with_genes(config, wanted.reward)
        if wanted.asks_people:
            check_page(used.human.host, used.human.port)
    devices = devices_of(used) if given.model is None else [str(given.model.device)]
    device = devices[0]
    if adapter is None:
        config.strategy.need()
    reporter.begin("loading the model")
    base = loaded_base(used, given, device, tokenizer_of=adapter if own_tokenizer else None)
    task = with_prompts(task, base.tokenizer, chat_of(used), source=_source(config))
    # What was tuned is asked by this process alone.
    dealt = slice_rows(config.workers, base.model, devices=len(devices)) if adapter is None else None
    asked = config.engine.threads
    # What a worker computes rounds by its threads, which must not follow from how many workers there are.
    threads = asked or (choose_threads(base.model, available_cores()) if dealt is None else 1)
    an_operation = threads_an_operation(base.model, threads)
    torch.set_num_threads(an_operation)
    adapted = adapt(base, config, given, initial, adapter)
    lora, layout = adapted.lora, adapted.layout
    engine, products = resolved(base.model, layout, config.engine.type, config.engine.products)
    if engine == "vllm":
        check_writer(
            devices,
            truncation=config.completion.truncation,
            temperature=config.completion.temperature,
            sleeps=config.engine.vllm_sleep,
        )
    max_new_tokens = config.completion.max_new_tokens or room_for_targets(
        base, task, wanted.reward, None if wanted.fitness is None else wanted.fitness[0]
    )
    reporter.begin("loading the reward")
    scorer, fitness = wanted.made(used, base, task, device, finished=adapter is not None)
    longest = longest_prompt(base, task, max_new_tokens) + max_new_tokens
    rows_per_slice = config.engine.rows_per_slice or (
        choose_rows(base.model, longest) if dealt is None else ROWS_AT_ONCE
    )
    checkpointing = resolved_checkpointing(
        base.model,
        engine,
        config.engine.gradient_checkpointing,
        length=longest,
        tokens=longest * rows_of_an_update(config),
    )
    side_by_side = threads if dealt is None else max(1, available_cores() // an_operation)
    update_tokens = config.engine.update_tokens or choose_update_tokens(
        base.model, longest, side_by_side if base.model.device.type == "cpu" else 1, checkpointing
    )
    config = _written_down(
        config,
        base,
        wanted,
        task,
        engine={
            "type": engine,
            "device": config.engine.device if references(config.engine.device) else ",".join(devices),
            "threads": threads,
            "products": products,
            "rows_per_slice": rows_per_slice,
            "update_tokens": update_tokens,
            "gradient_checkpointing": checkpointing,
        },
        slice_rows=config.workers.slice_rows if dealt is None else dealt,
        max_new_tokens=max_new_tokens,
        varies=scorer.varies or (fitness is not None and fitness.varies),
    )
    reporter.begin("making the engine")
    budget = Budget(update_tokens)
    learns = adapter is None and config.refiner.type != "none"
    engines = make_engines(
        base,
        layout,
        config,
        own_model=given.model is not None,
        devices=devices,
        dealt=dealt,
        checkpointing=checkpointing,
        an_operation=an_operation,
        length=longest,
        learns=learns,
        dropout=lora.lora_dropout,
        budget=budget,
        say=view.say,
        unless_done=unless_done,
    )
    chosen, asked_engine = engines.chosen, engines.asked
    written = used.completion
    text = Text.of(
        base.model,
        base.tokenizer,
        eos_token=written.eos_token,
        stop=written.stop or (),
        special_tokens=written.special_tokens,
    )
    evaluator = LocalEvaluator(
        asked_engine,
        text,
        scorer,
        max_new_tokens=max_new_tokens,
        rows_per_slice=rows_per_slice,
        draft_rows=config.engine.draft_rows,
        reporter=reporter,
        seed=config.run.seed,
        temperature=written.temperature,
    )
    view.say(
        f"{_named(config.model.name, base)}: {parameters_of(base.model) / 1e6:.1f}M parameters on "
        f"{' and '.join(devices)}, {threads} thread{'s' * (threads > 1)} ({'as asked' if asked else 'chosen'}), "
        f"{engines.words}; LoRA r={config.lora.r} on {len(layout.modules)} layers: {layout.genome_length:,} weights an "
        "individual"
    )
    if (times := slowdown(base.model)) is not None:
        precision = str(base.model.dtype).removeprefix("torch.")
        warn(view, f"{precision}: its products take {times:.0f} times as long as float32's on this processor")
    if initial is not None:
        view.say(f"starts from {mask(', '.join(initial.names))}, with which it is compared, not from the base model")
    named_fitness = "" if config.evolution.fitness is None or fitness is None else f"fitness {fitness.name}; "
    _say_data(view, whole, task, f"reward {scorer.name}; {named_fitness}at most {max_new_tokens} new tokens")
    chosen.prepare(view, learns=learns, dropout=lora.lora_dropout)
    reporter.begin("checking the engine")
    _check_engine(
        view,
        chosen.one,
        base,
        adapted,
        config.model.name,
        given_model=given.model is not None,
        by_vllm=engine == "vllm",
    )
    if isinstance(asked_engine, DealtEngine):
        reporter.begin("starting the workers")
        asked_engine.start()
        view.say(asked_engine.words())
    return Parts(
        config,
        base,
        lora,
        layout,
        adapted.founder,
        task,
        scorer,
        asked_engine,
        budget,
        text,
        evaluator,
        max_new_tokens,
        chosen.copies(),
        view,
        reporter,
        initial=adapted.initial,
        fitness=fitness,
        kept_prefix=kept_prefix(engine, longest),
    )


def _data(used: RunOptions, *, scores: bool) -> tuple[Task, Task]:
    """All of the data, and what of it a run uses. Raises InputError."""
    seed = used.run.seed if used.task.split_seed is None else used.task.split_seed
    whole = load_task(
        task=used.task.name,
        data=used.task.data,
        data_config=used.task.data_config,
        data_split=used.task.data_split,
        prompt_column=used.task.prompt_column,
        target_column=used.task.target_column,
        prompt=used.task.prompt,
        target=used.task.target,
        reward=used.reward.name if scores else _UNSCORED,
        seed=seed,
    )
    most = {"validation": used.task.max_validation_prompts, "test": used.task.max_test_prompts}
    return whole, capped(whole, **most, seed=seed)


def _written_down(
    config: RunOptions,
    base: BaseModel,
    wanted: Wanted,
    task: Task,
    *,
    engine: dict[str, Any],
    slice_rows: int | None,
    max_new_tokens: int,
    varies: bool,
) -> RunOptions:
    """The options with what was resolved, so that a resumed run cannot resolve it otherwise."""
    own = config.task.data is not None or config.task.prompt is not None
    return config.replaced(
        {
            "model": {
                "dtype": str(base.model.dtype).removeprefix("torch."),
                **({} if references(config.model.revision or "") else {"revision": base.revision}),
            },
            "task": {"name": config.task.name or (None if own else task.name)},
            "reward": {"name": str(wanted.reward) if wanted.reward else config.reward.name or task.reward},
            "evolution": {
                "remember": config.evolution.remember and not varies,
                "fitness": str(wanted.fitness[0]) if wanted.fitness else config.evolution.fitness,
            },
            "engine": engine,
            "workers": {"slice_rows": slice_rows},
            "completion": {"max_new_tokens": max_new_tokens},
        }
    )


def _named(name: str, base: BaseModel) -> str:
    """A model, as the log calls it."""
    return mask(name.strip("<>")) + (f" at {base.revision[:12]}" if base.revision else "")


def _say_data(view: View, whole: Task, task: Task, more: str) -> None:
    """What there is to learn from, how much of the `whole` task is used, and what is held out."""
    view.say(
        f"{mask(task.name)}: {len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test "
        f"prompts; {more}"
    )
    for split, all_of_them, drawn in (
        ("validation", whole.validation, task.validation),
        ("test", whole.test, task.test),
    ):
        if len(drawn) < len(all_of_them):
            view.say(
                f"Of {len(all_of_them):,} {split} prompts {len(drawn):,} are drawn by the seed (--max-{split}-prompts)."
            )
    if task.split_off:
        missing = " and no ".join(task.split_off)
        each = " each" if len(task.split_off) > 1 else ""
        view.say(f"The data has no {missing} split: 15% of its training prompts{each} are split off, by the seed.")
    if not task.held_out:
        view.say("Too few prompts to split: validation and test use the training prompts, so nothing is held out.")


def _check_engine(
    view: View, engine: Engine, base: BaseModel, adapted: Adapted, name: str, *, given_model: bool, by_vllm: bool
) -> None:
    """Whether the engine computes what the model and PEFT do, unless that is known. Raises InputError."""
    # Of a loaded one nobody knows what was done to it, nor what code of its own does.
    known = not given_model and not own_code(base.model)
    check = functools.partial(
        check_engine,
        engine,
        base.model,
        adapted.lora,
        adapted.founder,
        Text.of(base.model, base.tokenizer),
        name=name,
        writes="vllm" if by_vllm else None,
    )
    found = checked(engine, base.model, adapted.lora, check) if known else check()
    if found is not None:
        view.say(f"self-check: log-probabilities within {found.largest:.1g} of a plain pass and of PEFT's adapter")


def _with_genes(config: RunOptions, expression: Expression | None) -> RunOptions:
    """With what only the reward decides. Raises InputError where it does not go with the options."""
    summands = 0 if expression is None else len(expression.summands)
    try:
        return config.replaced(config.strategy.resolved(config, str(expression), summands))
    except ValueError as error:
        raise InputError(str(error)) from None


def chat_of(config: RunOptions) -> Chat:
    """What the chat template gets beside messages."""
    return Chat(config.task.system_prompt, config.task.template_variables())


def _source(config: RunOptions) -> str:
    """Where prompts come from, as the user said it."""
    task = config.task
    return f"--data {task.data}" if task.data else "--prompt" if task.prompt else f"--task {task.name}"
