"""All options of a run: the parts joined, by words from the command line, from TOML or from Python."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from evolora.distributed.options import WorkersOptions
from evolora.engine.options import CompletionOptions, EngineOptions
from evolora.environment import references, resolved, unset
from evolora.errors import InputError, check_text
from evolora.evolution.options import LoopConfig
from evolora.fitness.registry import builtin_fitness, judges_whole, names_drift
from evolora.human.options import HumanOptions
from evolora.masking import conceal, keys_in
from evolora.models.options import LoraOptions, ModelOptions
from evolora.options import DRAFT, RUN, Options, can_do_without, extra, in_python, own_fields, told_fields
from evolora.refiners.options import RefinerOptions
from evolora.rewards.options import HUMAN, RewardOptions, checked_weights
from evolora.runs.parts import (
    PARTS,
    RESUMABLE,
    TRL_ELSEWHERE,
    AmbiguousWordError,
    BudgetOptions,
    FolderOptions,
    Place,
    UnknownWordError,
    Vocabulary,
    by_its_type,
    is_part,
    owner_of,
    trl_name,
)
from evolora.runs.speech import Speech
from evolora.strategies.options import StrategyOptions
from evolora.tasks.options import TaskOptions

KEY_NOTE = (
    "Found what looks like a key: it is shown as ***, and kept in config.toml, which only you can read; env:NAME, the "
    "name of an environment variable in its place, keeps it out of all files."
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run, part by part. `make_options` makes them from words.

    >>> make_options({"gens": 5, "pop": 4}).evolution.elites
    2
    >>> make_options({"strategy": "es", "strategy.scale": 0.02, "lora": {"r": 4}}).strategy.scale
    0.02
    """

    model: ModelOptions
    lora: LoraOptions
    engine: EngineOptions
    workers: WorkersOptions
    task: TaskOptions
    reward: RewardOptions
    human: HumanOptions
    completion: CompletionOptions
    evolution: LoopConfig
    strategy: StrategyOptions
    refiner: RefinerOptions
    budget: BudgetOptions
    run: FolderOptions
    # What the log says of the words that were used.
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def most_gens(self) -> int | None:
        """After how many generations a run ends; None when only its budget ends it.

        >>> [make_options(words).most_gens for words in ({}, {"budget_flops": 1e15}, {"gens": 5, "budget_flops": 1})]
        [20, None, 5]
        """
        budget, gens = self.budget, self.evolution.gens
        limits = (budget.tokens, budget.seconds, budget.flops)
        return 20 if gens is None and all(limit is None for limit in limits) else gens

    @property
    def asks_people(self) -> bool:
        """Whether people judge."""
        return HUMAN in (self.reward.name, self.evolution.fitness)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words for these options."""
        return Vocabulary({"strategy": self.strategy.type, "refiner": self.refiner.type})

    def parts(self) -> dict[str, dict[str, Any]]:
        """Every option, by the part that it is written in."""
        return {
            part: {name: getattr(getattr(self, part), name) for name in own_fields(model, part)}
            for part, model in self.vocabulary.models.items()
        }

    def texts(self) -> Iterator[tuple[Place, str | list[str]]]:
        """The options that are text, but for the texts that a model reads: in those `env:NAME` means nothing."""
        for (part, name), described in self.vocabulary.fields.items():
            value = getattr(getattr(self, part), name)
            if isinstance(value, str | list) and not extra(described)["free_text"]:
                yield (part, name), value

    def used(self) -> "RunOptions":
        """The same with the values of the variables that its texts name, but for the reward's and the fitness's, which
        are looked up where these are made. What is written and shown is made of the options themselves."""
        changes: dict[str, dict[str, Any]] = {}
        for (part, name), value in self.texts():
            if _references(value) and (part, name) not in (("reward", "name"), ("evolution", "fitness")):
                found = resolved(value) if isinstance(value, str) else [resolved(each) for each in value]
                changes.setdefault(part, {})[name] = found
        return self.replaced(changes)

    def replaced(self, changes: Mapping[str, Mapping[str, Any]]) -> "RunOptions":
        """The same with other values of some parts' options, which those know that are told them. Unchecked."""
        models: dict[str, Options] = {part: getattr(self, part) for part in PARTS}
        models |= {part: models[part].model_copy(update=dict(values)) for part, values in changes.items()}
        told = _told(models)
        told_models: dict[str, Any] = {part: models[part].model_copy(update=told[part]) for part in models}
        return replace(self, **told_models)


def _told(models: Mapping[str, Options]) -> dict[str, dict[str, Any]]:
    """What each part is told by the others, as far as they have it."""
    return {
        part: {
            name: getattr(models[source], name)
            for name, source in told_fields(type(model), part).items()
            if name in type(models[source]).model_fields
        }
        for part, model in models.items()
    }


@dataclass(frozen=True)
class Source:
    """Words of one origin, and how faults in them are told. `shown` has words as they were written, where that is
    another way than `speech` would write them."""

    words: Sequence[tuple[str, Any]]
    speech: Speech = field(default_factory=lambda: Speech("python"))
    shown: Mapping[str, str] = field(default_factory=dict)

    def said(self, word: str, value: Any) -> str:
        """How an option and its value are named to the user."""
        return self.speech.valued(self.shown.get(word, word), value)

    def named(self, word: str) -> str:
        return self.speech.name(self.shown.get(word, word))

    @classmethod
    def of_python(cls, words: Mapping[str, Any]) -> "Source":
        """Keyword arguments: a part may be a mapping of its options, or a model of them."""
        flat: list[tuple[str, Any]] = []
        for word, value in words.items():
            if isinstance(value, Options):
                told = told_fields(type(value), word)
                said = value.model_fields_set | ({"type"} & type(value).model_fields.keys())
                flat += [(f"{told.get(name, word)}.{name}", getattr(value, name)) for name in said]
            elif isinstance(value, Mapping) and is_part(word):
                flat += [(f"{word}.{name}", each) for name, each in value.items()]
            else:
                flat.append((word, value))
        return cls(flat)


@dataclass
class _Given:
    """What the words say, by part and option, and the word and the source of each."""

    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {part: {} for part in PARTS})
    origin: dict[Place, tuple[str, Source]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make_options(*sources: Source | Mapping[str, Any]) -> RunOptions:
    """The options that the words of all `sources` say, later ones winning, and every other's default under the chosen
    strategy. Raises InputError, one sentence by the option's name, for the first fault."""
    read = [source if isinstance(source, Source) else Source.of_python(source) for source in sources]
    given = _Given()
    types: dict[str, str] = {}
    for source in read:
        before, types = types, types | _types(source)
        for part, model in Vocabulary(types).models.items():
            if before.get(part) != types.get(part):
                # What was said to another type.
                known = own_fields(model, part)
                given.values[part] = {name: each for name, each in given.values[part].items() if name in known}
        _hear(source, Vocabulary(types), given)
    _one_is_both(given.values)
    _until_solved(given.values)
    last = read[-1] if read else Source([])
    vocabulary = Vocabulary(types)

    def spoken(message: str) -> InputError:
        written = {place: source.shown.get(word, "") for place, (word, source) in given.origin.items()}
        return InputError(last.speech.spoken(message, vocabulary, written))

    def validated(values: Mapping[str, Mapping[str, Any]], context: str) -> dict[str, Any]:
        built = {}
        for part, model in vocabulary.models.items():
            try:
                built[part] = model.model_validate(values[part], context=context)
            except ValidationError as error:
                fault = error.errors()[0]
                if not fault["loc"]:
                    raise spoken(str(fault["msg"]).removeprefix("Value error, ")) from None
                raise _fault(part, error.errors(), given, vocabulary, last) from None
        return built

    drafts = RunOptions(**validated(given.values, DRAFT))
    recommended = drafts.strategy.recommends(drafts)
    values: dict[str, dict[str, Any]] = {
        part: {**recommended.get(part, {}), **given.values[part]} for part in vocabulary.models
    }
    told = _told(validated(values, DRAFT))
    built = validated({part: {**values[part], **told[part]} for part in values}, RUN)
    options = RunOptions(**built, notes=tuple(dict.fromkeys(given.notes)))
    try:
        options.strategy.check(options)
        asked = "reward" if options.reward.name == HUMAN else "fitness"
        if options.evolution.racing is not None and options.asks_people:
            raise ValueError(
                f"--racing {options.evolution.racing} with --{asked} human: expected none, votes come once all have "
                "written"
            )
        if options.evolution.fitness_samples > 1 and options.asks_people:
            raise ValueError(
                f"--fitness-samples {options.evolution.fitness_samples} with --{asked} human: expected 1, people "
                "compare greedy completions"
            )
        if options.evolution.racing is not None and judges_whole(options.evolution.fitness or ""):
            raise ValueError(
                f"--racing {options.evolution.racing} with --fitness {options.evolution.fitness}: expected none, it "
                "judges the whole and says nothing of the first prompts alone"
            )
        if options.evolution.racing is not None and names_drift(options.evolution.fitness or ""):
            raise ValueError(
                f"--racing {options.evolution.racing} with --fitness {options.evolution.fitness}: expected none, the "
                "drift is no prompt's"
            )
        if options.run.seeds is not None and options.asks_people:
            raise ValueError(f"--seeds with --{asked} human: expected none, people would have to judge every run")
        if options.model.quantization is not None and options.run.merge:
            raise ValueError(
                f"--merge with --quantization {options.model.quantization}: expected none, 'evolora export RUN --to "
                "MODEL --merge --base NAME' merges into the weights before they were quantised"
            )
    except ValueError as error:
        raise spoken(str(error)) from None
    return _with_checked_texts(options, given)


def _one_is_both(values: dict[str, dict[str, Any]]) -> None:
    """A fitness that pays completions, too, is the reward where no other is said."""
    fitness, reward = values["evolution"].get("fitness"), values["reward"].get("name")
    if isinstance(fitness, str) and names_drift(fitness):
        if reward in (None, fitness) and builtin_fitness(rest := rest_of(fitness)) is None:
            values["reward"]["name"] = rest
    elif isinstance(fitness, str) and builtin_fitness(fitness) is None and reward in (None, fitness):
        values["reward"]["name"] = values["evolution"].pop("fitness")


def rest_of(fitness: str) -> str:
    """A fitness without its drift, which no completion can be paid for. Raises InputError."""
    from evolora.fitness.drift import without_drift  # with numpy, which most runs' options do without
    from evolora.rewards.expression import parse

    return str(without_drift(parse(fitness))[0])


def _until_solved(values: dict[str, dict[str, Any]]) -> None:
    """A single pair is solved when its prompt is answered by its target, which earns 1 by the reward that it has."""
    task, evolution = values["task"], values["evolution"]
    single = task.get("prompt") is not None and task.get("target") is not None
    if single and values["reward"].get("name") is None and evolution.get("fitness") is None:
        evolution.setdefault("until", 1.0)


def _with_checked_texts(options: RunOptions, given: _Given) -> RunOptions:
    """Raise InputError for a variable that a text names and that is not set; note a key that is written out."""
    for place, value in options.texts():
        for text in [value] if isinstance(value, str) else value:
            if (missing := unset(text)) is not None:
                word, source = given.origin[place]
                raise InputError(
                    f"{source.said(word, value)}: the environment variable {missing} is not set, expected a value in it"
                )
            for key in keys_in(text):
                conceal(key)
                options = replace(options, notes=tuple(dict.fromkeys((KEY_NOTE, *options.notes))))
    return options


def _references(value: str | list[str]) -> list[str]:
    return [name for text in ([value] if isinstance(value, str) else value) for name in references(text)]


def _types(source: Source) -> dict[str, str]:
    """The types that a source chooses. Raises InputError for one that is not there."""
    chosen = {}
    for word, value in source.words:
        part = word.replace("-", "_").replace("_type", ".type").removesuffix(".type")
        if part not in ("strategy", "refiner"):
            continue
        kinds = list(PARTS[part])
        if value not in kinds:
            listed = f"{', '.join(map(repr, kinds[:-1]))} or {kinds[-1]!r}"
            raise InputError(f"{source.said(word, value)}: input should be {listed}")
        chosen[part] = str(value)
    return chosen


def _hear(source: Source, vocabulary: Vocabulary, given: _Given) -> None:
    """Note what the words of a source say."""
    weights: tuple[str, Any] | None = None
    heard: dict[Place, tuple[str, Any]] = {}
    for word, value in source.words:
        try:
            part, name = vocabulary.place(word)
        except UnknownWordError as error:
            raise InputError(_unknown(word, value, error.nearest, source, vocabulary)) from None
        except AmbiguousWordError as error:
            ways = " or ".join(source.speech.name(f"{part}.{name}") for part, name in error.places)
            raise InputError(f"{source.said(word, value)}: found options of that name, expected {ways}") from None
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_text(f"{source.speech.where}: {word}" if source.speech.where else source.named(word), text)
        trl = trl_name(word)
        if trl is not None:
            given.notes.append(trl_note(trl, source.named(word), source, vocabulary))
        if trl == "reward_weights":
            weights = (word, value)
            continue
        if trl == "reward_funcs":
            value = [value] if isinstance(value, str) else value
        if value is None and not can_do_without(vocabulary.fields[part, name]):
            continue  # Python's way to say nothing
        before, other = heard.setdefault((part, name), (word, value))
        if source.speech.kind != "cli" and other != value:
            raise InputError(f"{source.named(before)} and {source.named(word)}: found both, expected one of them")
        given.values[part][name] = value
        given.origin[part, name] = (word, source)
    terms = given.values["reward"].get("name")
    if weights is not None or isinstance(terms, list | tuple):
        given.values["reward"]["name"] = _weighted(terms, weights, source)


def check_resumable(source: Source) -> None:
    """Raise InputError for what a resumed run cannot be given anew."""
    words = Vocabulary({})
    places = [words.place(word) for word in RESUMABLE]
    for word, _ in source.words:
        if words.words.get(word.replace("-", "_")) not in places:
            allowed = ", ".join(source.speech.name(words.word(*place)) for place in places)
            raise InputError(
                f"{source.named(word)} with --resume: a resumed run keeps its options, expected only {allowed}"
            )


def trl_note(trl: str, said: str, source: Source, vocabulary: Vocabulary) -> str:
    """What is said of a name of TRL's."""
    own = Speech("cli" if source.speech.kind == "cli" else "python").name(vocabulary.word(*vocabulary.words[trl]))
    return f"{said}, TRL's name, {'are factors in' if trl == 'reward_weights' else 'is'} {own} here"


def _weighted(terms: Any, weights: tuple[str, Any] | None, source: Source) -> Any:
    """Several rewards as one expression, as TRL sums them."""
    terms = [terms] if isinstance(terms, str) else list(terms or ())
    word, value = weights or ("reward_funcs", terms)
    said = source.said(word, value)
    if not terms:
        raise InputError(f"{said}: found no reward, expected at least one")
    factors = checked_weights([1] * len(terms) if weights is None else value, len(terms), said)
    if not all(isinstance(term, str) for term in terms):
        return terms  # refused by the field
    if len(terms) == 1 and weights is None:
        return terms[0]
    return " + ".join(
        f"({term})" if weights is None else f"{w} * ({term})" for w, term in zip(factors, terms, strict=True)
    )


def _unknown(word: str, value: Any, nearest: str | None, source: Source, vocabulary: Vocabulary) -> str:
    said = source.said(word, value)
    if (owner := owner_of(word)) is not None and owner[1] != vocabulary.types.get(owner[0]):
        part, kind = owner
        chosen = vocabulary.models[part].model_fields["type"].default
        return f"{said}: found an option of {part} {kind}, expected one of {part} {chosen}, which is chosen"
    if (older := by_its_type(word)) is not None:
        part, kind, name = older
        of = "" if vocabulary.models[part] is PARTS[part][kind] else f" of {part} {kind}"
        return f"{said}: found an unknown option, expected {source.speech.name(f'{part}.{name}')}{of}"
    if word.replace("-", "_") in TRL_ELSEWHERE:  # of which a script that is moved over has several
        found = [each for each, _ in source.words if each.replace("-", "_") in TRL_ELSEWHERE]
        expected = [(source.named(each), TRL_ELSEWHERE[each.replace("-", "_")]) for each in found]
        if len(found) == 1:
            return f"{expected[0][0]}: found an option of TRL's that is not taken here, expected {expected[0][1]}"
        listed = "; ".join(f"for {each} {here}" for each, here in expected)
        words = ", ".join(each for each, _ in expected)
        return f"{words}: found options of TRL's that are not taken here, expected {listed}"
    if nearest is not None:
        if source.speech.kind == "cli":
            nearest = nearest if "." in nearest else nearest.replace("_", "-")
        return f"{said}: found an unknown option, expected a known one, such as {source.speech.name(nearest)}"
    return f"{said}: found an unknown option, expected one of those that 'evolora train --help-all' lists"


def _fault(part: str, faults: Sequence[Any], given: _Given, vocabulary: Vocabulary, last: Source) -> InputError:
    """The first field's fault in pydantic's words, by the word that was used; with what else it might be."""
    fault, *others = faults
    name = str(fault["loc"][0])
    default = (vocabulary.word(part, name), last)
    word, source = given.origin.get((part, name), default)
    message = str(fault["msg"])
    # Of an option of several kinds pydantic says a fault for each.
    words = [str(other["ctx"]["expected"]) for other in others if other["loc"][0] == name and _is_no_word(other)]
    if _is_no_word(fault) and can_do_without(vocabulary.models[part].model_fields[name]):
        words.append("none")
    rest = f", or {' or '.join(words)}" if words else ""
    return InputError(f"{source.said(word, fault['input'])}: {message[0].lower()}{message[1:]}{rest}")


def _is_no_word(fault: Any) -> bool:
    return bool(fault["type"] == "literal_error")


def python_words(error: InputError) -> InputError:
    """The same fault, its options named as Python names them."""
    return type(error)(in_python(str(error)))
