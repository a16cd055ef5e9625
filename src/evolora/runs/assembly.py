"""A run's parts, loaded and checked before any work: task, reward, base model, layout, evaluator."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

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
    threads_an_operation,
)
from evolora.engine.choose import check_writer, kept_prefix, resolved, resolved_checkpointing
from evolora.engine.options import NO_TARGETS
from evolora.engine.progress import Reporter
from evolora.engine.self_check import check_engine, checked
from evolora.engine.text import Text
from evolora.environment import references
from evolora.errors import InputError
from evolora.fitness.base import Fitness, FitnessContext
from evolora.fitness.judging import ByCompletion, WithDrift
from evolora.fitness.loading import make_fitness, parse_fitness
from evolora.human.exchange import run_votes
from evolora.human.feedback import VotedScorer, check_page
from evolora.masking import mask
from evolora.models.base import BaseModel, given_base, load_chosen, with_tokenizer_of
from evolora.models.cost import Cost
from evolora.models.foreign import own_code, reason_of
from evolora.models.genome import GenomeLayout
from evolora.models.lora import for_causal_lm, lora_config, lora_layout
from evolora.models.quantization import quantised_by
from evolora.population.drift import Drift
from evolora.population.evaluation import Evaluator, LocalEvaluator
from evolora.population.judging import JudgingEvaluator
from evolora.rewards import (
    CombinedScorer,
    RewardContext,
    Scorer,
    ScoringOptions,
    make_scorer,
    parse_reward,
)
from evolora.rewards.base import Reward
from evolora.rewards.expression import Expression
from evolora.rewards.options import HUMAN
from evolora.rewards.registry import ANY_LENGTH
from evolora.rewards.scoring import function_scorer
from evolora.rng import keyed_seed
from evolora.runs.engines import devices_of, make_engines
from evolora.runs.given import Given, refuse_forgotten
from evolora.runs.initial import Initial, load_founder
from evolora.runs.memory import check_memory, check_population, rows_of_an_update
from evolora.runs.options import RunOptions
from evolora.runs.recovery import REWARD_LOG
from evolora.runs.tracking.view import View
from evolora.tasks.chat import Chat, use_template, with_prompts
from evolora.tasks.task import Task, capped, load_task

_UNSCORED = "none"


@dataclass(frozen=True)
class Parts:
    """All that a run is made of. `initial` are the genomes [adapters, genome_length] that it starts from, the founder
    first; None where it starts from the base. `fitness` judges individuals, where the mean of what their greedy
    completions earn does not."""

    config: RunOptions
    base: BaseModel
    lora: LoraConfig
    layout: GenomeLayout
    founder: Tensor
    task: Task
    scorer: Scorer
    engine: Engine
    budget: Budget
    text: Text
    evaluator: LocalEvaluator
    max_new_tokens: int
    copies: tuple[int, int]
    """Bytes of further copies of the weights: of those that there are now, and at most."""
    view: View
    reporter: Reporter
    initial: Tensor | None = None
    fitness: Fitness | None = None
    kept_prefix: int = 0
    """Tokens that texts have in common where the engine finds again what it computed of them."""
    before: Cost = field(default_factory=Cost)
    """What was spent on the run before its first generation."""

    @property
    def summands(self) -> tuple[str, ...]:
        """What the reward is a sum of, by name."""
        return self.scorer.expression.summands if isinstance(self.scorer, CombinedScorer) else ()

    @property
    def scorers(self) -> list[Scorer]:
        """That of the reward, and that of the fitness, where it is another."""
        if self.fitness is None or self.fitness.scorer is self.scorer:
            return [self.scorer]
        return [self.scorer, self.fitness.scorer]

    @property
    def voted(self) -> VotedScorer | None:
        """What scores by people's votes, where they are asked."""
        return next((scorer for scorer in self.scorers if isinstance(scorer, VotedScorer)), None)

    def at(self, generation: int) -> None:
        """So many generations are over."""
        for scorer in self.scorers:
            scorer.at(generation)

    def close(self) -> None:
        """Release what reward and fitness hold."""
        with ExitStack() as stack:  # both, whichever of them fails
            for scorer in self.scorers:
                stack.callback(scorer.close)

    def judging(self, evaluator: Evaluator) -> Evaluator:
        """An evaluator that judges by the run's fitness, if that is not the mean of what completions earn."""
        if self.fitness is None:
            return evaluator
        weight = self.fitness.drift.weight if isinstance(self.fitness, WithDrift) else 0.0
        samples = self.config.evolution.fitness_samples
        return JudgingEvaluator(evaluator, self.fitness, samples=samples, drift=self.drift(), weight=weight)

    def drift(self, sentences: int | None = None) -> Drift | None:
        """What measures the drift from where the run began, on so many sentences, or on as many as the fitness says;
        None where that says none. Raises InputError where the fitness has one that cannot be measured."""
        of_fitness = self.fitness.drift.sentences if isinstance(self.fitness, WithDrift) else None
        count = of_fitness if sentences is None else sentences
        if count is None:
            return None
        base = torch.zeros_like(self.founder) if self.initial is None else self.initial[0]
        made = Drift.made(self.engine, self.base.model, self.layout, self.text, base, count)
        if made is None and sentences is None:
            raise InputError(
                f"--fitness {self.config.evolution.fitness}: drift cannot be measured here, expected another engine "
                "or an output embedding that is not adapted"
            )
        return made


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
    data_seed = used.run.seed if used.task.split_seed is None else used.task.split_seed
    reporter.begin("reading the data")
    task = load_task(
        task=used.task.name,
        data=used.task.data,
        data_config=used.task.data_config,
        data_split=used.task.data_split,
        prompt_column=used.task.prompt_column,
        target_column=used.task.target_column,
        prompt=used.task.prompt,
        target=used.task.target,
        reward=used.reward.name if scores else _UNSCORED,
        seed=data_seed,
    )
    whole = task
    task = capped(
        whole, validation=config.task.max_validation_prompts, test=config.task.max_test_prompts, seed=data_seed
    )
    refuse_forgotten(config.model.name, task.reward, config.evolution.fitness, given)
    asks = scores and config.evolution.fitness == HUMAN
    wanted = _wanted(config, given) if scores and not asks else None
    expression, functions = given.reward or (None, {})
    human = expression is None and task.reward == HUMAN
    if expression is None and not human and scores:
        expression = parse_reward(task.reward)
    if adapter is None:
        config = _with_genes(config, expression)
    if (human or asks) and adapter is None:
        check_page(used.human.host, used.human.port)
    devices = devices_of(used) if given.model is None else [str(given.model.device)]
    device = devices[0]
    if adapter is None:
        config.strategy.need()
    reporter.begin("loading the model")
    base = _base(used, given, device)
    if adapter is not None and own_tokenizer:
        base = with_tokenizer_of(base, adapter)
    if used.model.chat_template is not None:
        use_template(base.tokenizer, Path(used.model.chat_template))
    task = with_prompts(task, base.tokenizer, chat_of(used), source=_source(config))
    # What was tuned is asked by this process alone.
    dealt = slice_rows(config.workers, base.model, devices=len(devices)) if adapter is None else None
    asked = config.engine.threads
    # What a worker computes rounds by its threads, which must not follow from how many workers there are.
    threads = asked or (choose_threads(base.model, available_cores()) if dealt is None else 1)
    an_operation = threads_an_operation(base.model, threads)
    torch.set_num_threads(an_operation)
    if adapter is not None:
        lora, layout, founder = load_founder(base, adapter, used.model.name)
    elif initial is not None:
        lora, layout, genomes = initial.genomes(base, config)
        founder = genomes[0]
        check_population(used, layout.genome_length)
    else:
        lora = _lora(base, used) if given.peft_config is None else for_causal_lm(base.model, given.peft_config)
        layout, founder = _layout(base, lora, used, given.peft_config)
        check_population(used, layout.genome_length)
    engine, products = resolved(base.model, layout, config.engine.type, config.engine.products)
    if engine == "vllm":
        check_writer(
            devices,
            truncation=config.completion.truncation,
            temperature=config.completion.temperature,
            sleeps=config.engine.vllm_sleep,
        )
    max_new_tokens = config.completion.max_new_tokens or _longest_target(base, task, expression, wanted)
    scoring = _scoring(used, conversational=task.conversational)
    reporter.begin("loading the reward")
    scorer: Scorer
    if human:
        scorer = _voted_scorer(used, base, device, finished=adapter is not None)
    elif expression is None:
        scorer = function_scorer(_no_score, task.columns, ScoringOptions())
    else:
        scorer = make_scorer(expression, task.columns, scoring, RewardContext(base), functions)
    samples = config.evolution.fitness_samples
    fitness: Fitness | None = None
    if wanted is not None:
        context = FitnessContext(samples, task.columns, used.evolution.group_column, RewardContext(base))
        fitness = make_fitness(wanted[0], scoring, context, wanted[1])
    elif asks:
        fitness = ByCompletion(_voted_scorer(used, base, device, finished=adapter is not None), samples=samples)
    elif samples > 1 and scores:
        fitness = ByCompletion(scorer, samples=samples)
    longest_prompt = _check_lengths(base, task, max_new_tokens)
    rows_per_slice = config.engine.rows_per_slice or (
        choose_rows(base.model, longest_prompt + max_new_tokens) if dealt is None else ROWS_AT_ONCE
    )
    longest = longest_prompt + max_new_tokens
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
    # What was resolved is written down, so that a resumed run cannot resolve it otherwise.
    own = config.task.data is not None or config.task.prompt is not None
    config = config.replaced(
        {
            "model": {
                "dtype": str(base.model.dtype).removeprefix("torch."),
                **({} if references(config.model.revision or "") else {"revision": base.revision}),
            },
            "task": {"name": config.task.name or (None if own else task.name)},
            "reward": {"name": str(expression) if expression is not None else config.reward.name or task.reward},
            "evolution": {
                "remember": config.evolution.remember and not scorer.varies and not (fitness and fitness.varies),
                "fitness": config.evolution.fitness if wanted is None else str(wanted[0]),
            },
            "engine": {
                "type": engine,
                "device": config.engine.device if references(config.engine.device) else ",".join(devices),
                "threads": threads,
                "products": products,
                "rows_per_slice": rows_per_slice,
                "update_tokens": update_tokens,
                "gradient_checkpointing": checkpointing,
            },
            "workers": {"slice_rows": config.workers.slice_rows if dealt is None else dealt},
            "completion": {"max_new_tokens": max_new_tokens},
        }
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
    named = mask(config.model.name.strip("<>")) + (f" at {base.revision[:12]}" if base.revision else "")
    view.say(
        f"{named}: {parameters_of(base.model) / 1e6:.1f}M parameters on {' and '.join(devices)}, "
        f"{threads} thread{'s' * (threads > 1)} ({'as asked' if asked else 'chosen'}), {engines.words}; "
        f"LoRA r={config.lora.r} on {len(layout.modules)} layers: {layout.genome_length:,} weights an individual"
    )
    if initial is not None:
        view.say(f"starts from {mask(', '.join(initial.names))}, with which it is compared, not from the base model")
    named_fitness = "" if config.evolution.fitness is None or fitness is None else f"fitness {fitness.name}; "
    view.say(
        f"{mask(task.name)}: {len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test "
        f"prompts; reward {scorer.name}; {named_fitness}at most {max_new_tokens} new tokens"
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
    chosen.prepare(view, learns=learns, dropout=lora.lora_dropout)
    reporter.begin("checking the engine")
    # Of a loaded one nobody knows what was done to it, nor what code of its own does.
    known = given.model is None and not own_code(base.model)
    plain = Text.of(base.model, base.tokenizer)
    check = functools.partial(
        check_engine,
        chosen.one,
        base.model,
        lora,
        founder,
        plain,
        name=config.model.name,
        writes="vllm" if engine == "vllm" else None,
    )
    found = checked(chosen.one, base.model, lora, check) if known else check()
    if found is not None:
        view.say(f"self-check: log-probabilities within {found.largest:.1g} of a plain pass and of PEFT's adapter")
    if isinstance(asked_engine, DealtEngine):
        reporter.begin("starting the workers")
        asked_engine.start()
        view.say(asked_engine.words())
    return Parts(
        config,
        base,
        lora,
        layout,
        founder,
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
        initial=None if initial is None else genomes,
        fitness=fitness,
        kept_prefix=kept_prefix(engine, longest),
    )


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


def _no_score(completions: Sequence[str]) -> list[None]:
    return [None] * len(completions)


def _scoring(config: RunOptions, *, conversational: bool) -> ScoringOptions:
    folder = None if config.run.out is None else Path(config.run.out)
    return ScoringOptions(
        on_error="skip" if config.reward.on_error == "skip" else "raise",
        failed_reward=config.reward.failed,
        workers=config.reward.workers,
        timeout=config.reward.timeout,
        # A reward that varies is not to be kept.
        cache=folder / "rewards.sqlite" if folder and config.reward.cache and config.evolution.remember else None,
        log=folder / REWARD_LOG if folder else None,
        conversational=conversational,
    )


def _voted_scorer(config: RunOptions, base: BaseModel, device: str, *, finished: bool) -> VotedScorer:
    """Rewards by the votes of the run. An adapter that is done is scored by all of them."""
    scorer = VotedScorer(base.folder, device=device, seed=config.run.seed)
    if finished:
        scorer.learn_when_asked(run_votes(Path(config.run.out or "")))
    return scorer


def _base(config: RunOptions, given: Given, device: str) -> BaseModel:
    if given.model is not None and given.tokenizer is not None:
        return given_base(given.model, given.tokenizer)

    def check(model: Any) -> None:
        check_memory(config, model)
        if (method := quantised_by(model)) is not None:
            _refuse_beside_quantised(config, method)

    return load_chosen(config.model, device=device, check=check)


def _refuse_beside_quantised(config: RunOptions, method: str) -> None:
    """Raise InputError for what a base whose weights were quantised before cannot have."""
    name = config.model.name
    if config.run.merge:
        raise InputError(
            f"--merge with --model {name}: found weights quantised by {method}, expected none, 'evolora export RUN "
            "--to MODEL --merge --base NAME' merges into the weights before they were quantised"
        )
    if config.asks_people:
        raise InputError(
            f"--{'reward' if config.reward.name == HUMAN else 'fitness'} {HUMAN} with --model {name}: found weights "
            f"quantised by {method}, expected unquantised ones, on "
            "which a reward model can be fitted"
        )


def _lora(base: BaseModel, config: RunOptions) -> LoraConfig:
    return lora_config(
        base.model,
        r=config.lora.r,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        exclude_modules=config.lora.exclude_modules,
        use_rslora=config.lora.rslora,
    )


def _layout(
    base: BaseModel, lora: LoraConfig, config: RunOptions, given: LoraConfig | None
) -> tuple[GenomeLayout, Tensor]:
    try:
        return lora_layout(base.model, lora, seed=keyed_seed(config.run.seed, "initial A"))
    except InputError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"--lora-r {config.lora.r}: cannot be laid out: {reason_of(error)}") from None
    except (ValueError, TypeError, AttributeError, re.error) as error:
        # PEFT's own words: no module has such a name, or it knows no default for this architecture.
        if given is not None:
            named = sorted(given.target_modules) if isinstance(given.target_modules, set) else given.target_modules
            raise InputError(f"peft_config: target_modules={named!r}: {reason_of(error)}") from None
        modules = config.lora.target_modules or "(default)"
        said = modules if isinstance(modules, str) else " ".join(modules)
        raise InputError(f"--target-modules {said}: {reason_of(error)}") from None


def _wanted(config: RunOptions, given: Given) -> tuple[Expression, Mapping[str, Reward]] | None:
    """What `--fitness` says, with Python's functions in it. Raises InputError."""
    if given.fitness is not None:
        return given.fitness
    if config.evolution.fitness is None:
        return None
    return parse_fitness(config.evolution.fitness), {}


def _longest_target(
    base: BaseModel, task: Task, reward: Expression | None, wanted: tuple[Expression, object] | None
) -> int:
    """Room for the longest training target and a quarter more, with its end; `NO_TARGETS` where there are none, and at
    least these where neither reward nor fitness compares with them."""
    targets = [str(example.columns["target"]) for example in task.train if "target" in example.columns]
    if not targets:
        return NO_TARGETS
    longest = max(len(ids) for ids in base.tokenizer([f" {target}" for target in targets])["input_ids"])
    room = math.ceil(1.25 * longest) + 2
    terms = [*([] if reward is None else reward.terms), *(() if wanted is None else wanted[0].terms)]
    compared = reward is None or any(term.is_function or term.name not in ANY_LENGTH for term in terms)
    return room if compared else max(room, NO_TARGETS)


def _check_lengths(base: BaseModel, task: Task, max_new_tokens: int) -> int:
    splits = (task.train, task.validation, task.test)
    return max(check_prompts(base, [example.prompt for example in split], max_new_tokens) for split in splits)


def check_prompts(base: BaseModel, prompts: Sequence[str], max_new_tokens: int) -> int:
    """The length of the longest prompt, in tokens.

    Raises InputError for a prompt that has no tokens, or more than the model has room for.
    """
    room = getattr(base.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    known = base.model.get_input_embeddings().weight.shape[0]
    longest = 0
    for prompt, ids in zip(prompts, base.tokenizer(list(prompts))["input_ids"], strict=True):
        if not ids:
            raise InputError(f"prompt {prompt!r}: has no tokens, expected at least one")
        if (last := max(ids)) >= known:
            raise InputError(
                f"prompt {prompt[:60]!r}: its token {base.tokenizer.convert_ids_to_tokens(last)!r} has the id {last}, "
                f"expected ids below {known}, those that --model has an embedding for"
            )
        if room is not None and len(ids) + max_new_tokens > room:
            raise InputError(
                f"prompt {prompt[:60]!r}: {len(ids)} tokens and {max_new_tokens} new ones "
                f"(--max-new-tokens), expected at most the model's {room} in all"
            )
        longest = max(longest, len(ids))
    return longest
