"""Policy-gradient refinement of k individuals side by side: rollouts, credit, clipped updates on their own rows.

The loop is one; the algorithms (`ppo`, `grpo`, `rloo`) differ in what a token is credited with and in the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from evolora.engine.base import Completions, Engine, Scoring, differentiable_scores, lengths_read
from evolora.engine.progress import NOBODY, Reporter
from evolora.engine.text import Text
from evolora.fitness.base import Fitness
from evolora.models.cost import Cost, Costs
from evolora.population.evaluation import Evaluation
from evolora.population.population import Hyperparameters, Individual
from evolora.population.writing import Writer
from evolora.refiners.advantages import fitness_first, unequal_groups
from evolora.refiners.base import Refinement, Sampled, joined
from evolora.refiners.carried import Carried, CarriedStates
from evolora.refiners.imitation import Imitation
from evolora.refiners.kl_control import adapted_kl_weight
from evolora.refiners.learning_rate import FAR, LedRate, Move, decayed
from evolora.refiners.losses import masked_mean
from evolora.refiners.optimiser import RowAdam, clip_rows
from evolora.refiners.options import PolicyGradientConfig
from evolora.refiners.rollouts import Rollout, Settings, Share, collect, statistics
from evolora.rewards import Scorer
from evolora.rng import keyed_generator, keyed_seed
from evolora.tasks.task import Example

# Of a rollout's rows, for less of which a pass of their own is cheaper than that back through all.
_TRACED_SHARE = 1 / 2

# What every algorithm's updates report.
_UPDATE_STATS = ("policy_loss", "entropy", "clip_fraction", "approx_kl", "grad_norm")

Config = TypeVar("Config", bound=PolicyGradientConfig)


@dataclass(frozen=True)
class Minibatch:
    """Some rows of a rollout under the present policy: tensors [k, rows, time], but `advantages` as `credit` gave them.

    `whole_log_probs` are of the whole distribution, where what was sampled from was truncated, and only where the KL
    needs them. `batch_tokens` [k] is the number of the tokens that count in the rollout times the share of its rows
    that are here; `kl_weight` [k].
    """

    log_probs: Tensor
    whole_log_probs: Tensor | None
    old_log_probs: Tensor
    reference_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    batch_tokens: Tensor
    kl_weight: Tensor


class PolicyGradientRefiner(ABC, Generic[Config]):
    """Policy-gradient refinement of LoRA genomes against a Python reward, for k individuals in one batch.

    Each step samples completions from every individual, credits their tokens, and makes clipped updates of the
    individuals' rows by Adam. Individuals share the batch and nothing else: advantages, losses, gradient clipping and
    early stopping are each individual's own, and so may be the learning rate and the weights of KL and entropy. With
    `keep_optimiser` an individual's Adam goes on where that of its ancestors ended, and with `kl_target` so does its KL
    weight, which follows that target (see `adapted_kl_weight`). With `update_kl` the learning rate is led by how far
    updates move the policy (see `evolora.refiners.learning_rate`).

    An individual comes out the same in any company, up to rounding: all draws are by its own key, and what individuals
    learn from each other, in generations to come, is told when a generation is over (`settle`).

    An algorithm is a subclass with a `name`, `credit` and `policy_loss`; it sets `keep_features` if its rollouts must
    hold the policy's last hidden states.
    """

    name: str
    keep_features = False

    def __init__(
        self,
        engine: Engine,
        text: Text,
        scorer: Scorer,
        config: Config,
        *,
        seed: int,
        dropout: float = 0.0,
        reporter: Reporter = NOBODY,
        fitness: Fitness | None = None,
    ) -> None:
        self.engine = engine
        self.fitness = fitness
        self.writer = Writer(engine, text)
        self.dropout = dropout
        self.reporter = reporter
        self.scorer = scorer
        self.config = config
        self.seed = seed
        self.carried = CarriedStates()
        self.imitation: Imitation | None = None
        if config.replay:
            self.imitation = Imitation(
                engine,
                text,
                most=config.replay,
                group_size=config.rollout_samples,
                temperature=config.temperature,
                max_grad_norm=config.max_grad_norm,
                seed=seed,
                dropout=dropout,
            )
        self.led_rate = LedRate()
        self.reference: Tensor | None = None
        self._generation: int | None = None
        # How far updates have moved the individuals of this generation, by their keys.
        self._moves: dict[tuple[int, ...], list[Move]] = {}
        self.calls = 0
        # Of scores, advantages and losses: half precision would lose them.
        self.dtype = engine.dtype

    @abstractmethod
    def credit(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The advantages of a rollout, [k, rows] or [k, rows, time], and their statistics, each [k]."""

    @abstractmethod
    def policy_loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to be minimised, [k], and its statistics, each [k] and without gradient.

        Among them is `approx_kl`, half the mean squared log-ratio over tokens, which the early stop reads.
        """

    def keep_to(self, reference: Tensor) -> None:
        self.reference = reference.to(self.engine.device)

    def begin(self, carried: Sequence[Carried]) -> None:
        """Called before individuals are refined, with what each carries."""

    def end(self, key: Sequence[tuple[int, ...]]) -> None:
        """Called after."""

    def settle(self) -> None:
        """Let what the refinements of a generation have found out be known to those to come: in the order of their
        keys, whoever was refined beside whom. Called when a generation is over."""
        for key in sorted(self._moves):
            self.led_rate.learn(self._moves[key])
        self._moves.clear()
        if self.imitation is not None:
            self.imitation.settle()

    def handed_on(self, row: int) -> dict[str, Tensor]:  # noqa: ARG002 - most algorithms have nothing
        """What the algorithm lets the refined individual of a row carry."""
        return {}

    def refine(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        *,
        key: Sequence[tuple[int, ...]] | None = None,
        children: Sequence[int] | None = None,
        hyperparameters: Sequence[Hyperparameters | None] | None = None,
        steps: int | None = None,
        progress: float = 0.0,
    ) -> Refinement:
        """Refine `genomes` [k, genome_length] on the prompts of `examples`; see `Refiner.refine`. Without a `key`, a
        call's draws are those of its number among the calls.

        Raises RewardError when the reward fails.
        """
        if key is None:
            key = [(self.calls, row) for row in range(len(genomes))]
        self.calls += 1
        for name, given in (("keys", key), ("children", children), ("hyperparameters", hyperparameters)):
            if given is not None and len(given) != genomes.shape[0]:
                raise ValueError(f"{genomes.shape[0]} genomes with {len(given)} {name}")
        if key[0][0] != self._generation:
            self.settle()
            self._generation = key[0][0]
        own = hyperparameters or [None] * len(key)
        # A call of an engine has one temperature.
        together: dict[float, list[int]] = {}
        for row, each in enumerate(own):
            together.setdefault(self._temperature(each), []).append(row)
        parts = [
            self._refine(
                genomes[rows],
                examples,
                key=[key[row] for row in rows],
                children=None if children is None else [children[row] for row in rows],
                hyperparameters=[own[row] for row in rows],
                steps=steps,
                progress=progress,
            )
            for rows in together.values()
        ]
        return joined(parts, [row for rows in together.values() for row in rows])

    def _temperature(self, own: Hyperparameters | None) -> float:
        return self.config.temperature if own is None or own.temperature is None else own.temperature

    def _refine(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        *,
        key: Sequence[tuple[int, ...]],
        children: Sequence[int] | None,
        hyperparameters: Sequence[Hyperparameters | None],
        steps: int | None,
        progress: float,
    ) -> Refinement:
        """The same of individuals of one temperature."""
        config, size = self.config, len(examples) // (steps or 1)
        start = genomes.detach().to(self.engine.device)
        rows = start.clone().requires_grad_()
        carried = [self.carried.of(individual) for _, individual, *_ in key]
        settings = self._settings(hyperparameters, carried)
        decay = decayed(config.lr_decay, progress)
        lr = settings.lr * decay
        optimiser = RowAdam(rows, lr * self.led_rate.factor, carried if config.keep_optimiser else [{}] * len(key))
        rates = [LedRate(self.led_rate) for _ in key]
        pupils = [] if self.imitation is None else self.imitation.pupils(len(key))
        stopped = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
        stats: list[dict[str, float]] = [{} for _ in key]
        trajectory = []
        costs, failed, earned, sampled = Costs(), 0, list[float](), list[Sampled]()
        self.begin(carried)
        count = steps or config.rl_steps
        for step in range(count):
            self.reporter.begin(f"rollout {step + 1} of {count}")
            of_step = [(*each, step) for each in key]
            with costs.timed("rollout"):
                part = examples if steps is None else examples[step * size : (step + 1) * size]
                rollout = self.collect(rows.detach(), part, of_step, settings)
            costs.add("rollout", self._rollout_cost(rollout))
            failed += rollout.failed
            earned += rollout.earned
            sampled += self._sampled(rollout, part, costs.generated_tokens)
            if self.imitation is not None:
                self.imitation.remember(pupils, part, rollout.completions.rows(), rollout.worth)
            with costs.timed("update"):
                self.reporter.begin("update", count * config.updates, done=step * config.updates)
                advantages, credit_stats = self.credit(rollout)
                # An early stop ends the updates on one rollout: the next rollout starts from a policy on target.
                stopped.zero_()
                update_stats = self._update(rows, optimiser, rollout, advantages, stopped, of_step, costs)
                rate_stats = self._lead_rates(rates, optimiser, start, lr, update_stats, config.update_kl * decay**2)
                learned = {}
                if self.imitation is not None:
                    learned = self.imitation.teach(pupils, rows, optimiser, rollout.worth, of_step, costs)
            rollout_stats = {**statistics(rollout), **learned}
            measured = {**rollout_stats, **update_stats, **credit_stats}
            if any(own is not None for own in hyperparameters):
                measured |= {name: getattr(settings, name) for name in ("lr", "kl_weight", "entropy_weight")}
            elif config.kl_target is not None:
                measured["kl_weight"] = settings.kl_weight
            measured |= rate_stats
            table = torch.stack([value.to(rows.device, torch.float64) for value in measured.values()], -1)
            stats = [dict(zip(measured, values, strict=True)) for values in table.tolist()]
            trajectory.append(rows.detach().to(genomes.device, copy=True))
            if config.kl_target is not None:
                weight = adapted_kl_weight(
                    settings.kl_weight,
                    rollout_stats["kl"],
                    rollout.scored.sum(-1),
                    target=config.kl_target,
                    horizon=config.kl_horizon,
                )
                settings = replace(settings, kl_weight=weight)
        self.end(key)
        # The run's rate is that of the option; an individual's own may be so many times as high.
        times = (settings.lr / config.lr).tolist()
        self._moves |= {
            own: [move._replace(factor=move.factor * times[row]) for move in rates[row].moves]
            for row, own in enumerate(key)
        }
        if self.imitation is not None:
            self.imitation.keep(key, pupils)
        for row, child in enumerate(children or ()):
            state = self.handed_on(row)
            if config.keep_optimiser:
                state |= optimiser.state(row)
            if config.kl_target is not None:
                state["kl_weight"] = settings.kl_weight[row]
            self.carried.give(child, state)
        extremes = (min(earned), max(earned)) if earned else ()
        refined = rows.detach().to(genomes.device)
        return Refinement(refined, stats, costs, failed, torch.stack(trajectory), extremes, sampled)

    def _sampled(self, rollout: Rollout, examples: Sequence[Example], tokens: int) -> Iterator[Sampled]:
        ids, samples, each = rollout.completions.rows(), self.config.rollout_samples, rollout.scores.shape[1]
        for place, (text, worth) in enumerate(zip(rollout.texts, rollout.worth.flatten().tolist(), strict=True)):
            row, column = divmod(place, each)
            yield Sampled(row, examples[column // samples].prompt, text, ids[place], worth, tokens)

    def observe(self, examples: Sequence[Example], evaluation: Evaluation) -> None:
        self.settle()
        if self.imitation is not None:
            self.imitation.observe(examples, evaluation)

    def keep(self, individuals: Sequence[Individual]) -> None:
        self.settle()
        self.carried.keep(individuals)

    def starts_from_nothing(self) -> None:
        if self.imitation is not None:
            self.imitation.replay.fewest = 1

    def settings(self, rollout: Rollout) -> Settings:
        """What each individual of a rollout is refined with."""
        return rollout.settings or self._default_settings(len(rollout.scores))

    def _default_settings(self, count: int) -> Settings:
        return self._settings([None] * count, [{}] * count)

    def _settings(self, hyperparameters: Sequence[Hyperparameters | None], carried: Sequence[Carried]) -> Settings:
        """The individuals' own, else the options'; a KL weight that was adapted before goes on from there."""
        config = self.config
        default = Hyperparameters(config.lr, config.kl_weight, config.entropy_weight)
        each = [own or default for own in hyperparameters]

        def weights(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=self.dtype, device=self.engine.device)

        return Settings(
            lr=torch.tensor([own.lr for own in each], dtype=torch.float64),
            kl_weight=weights(
                [
                    float(state["kl_weight"]) if "kl_weight" in state else own.kl_weight
                    for own, state in zip(each, carried, strict=True)
                ]
            ),
            entropy_weight=weights([own.entropy_weight for own in each]),
            temperature=self._temperature(each[0]),
            reward_weights=np.array([own.reward_weights for own in each]) if each[0].reward_weights else None,
        )

    def collect(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        key: Sequence[tuple[int, ...]],
        settings: Settings | None = None,
    ) -> Rollout:
        """Sample and score completions of `genomes` [k, genome_length]; `key` is the refinement's, and the step."""
        given = settings or self._default_settings(len(genomes))
        rollout = collect(
            self.writer,
            self.scorer,
            genomes,
            examples,
            [keyed_seed(self.seed, "rollout", *each) for each in key],
            samples=self.config.rollout_samples,
            max_new_tokens=self.config.longest,
            temperature=given.temperature,
            truncation=self.config.truncation,
            keep_features=self.keep_features,
            # An update in several minibatches, or with dropout, computes other things than decoding did.
            keep_trace=self.config.minibatches == 1 and not self.dropout,
            reference=self.reference,
            with_reference=bool(given.kl_weight.any()),
            settings=settings,
            dtype=self.dtype,
            reporter=self.reporter,
            fitness=self._pays(),
        )
        if not self.config.fitness_first or rollout.paid is None:
            return rollout
        known = torch.inf if self.imitation is None else self.imitation.replay.lowest
        least = rollout.paid.nan_to_num(nan=torch.inf).amin(-1).clamp(max=known)
        followed = fitness_first(
            rollout.scores, rollout.scored, rollout.paid, group_size=self.config.rollout_samples, least=least
        )
        return replace(rollout, scores=followed)

    def _pays(self) -> Scorer | None:
        """What says what a completion is truly worth, where that is another than the reward."""
        pays = None if self.fitness is None else self.fitness.pays
        return None if pays is self.scorer else pays

    def _update(
        self,
        rows: Tensor,
        optimiser: RowAdam,
        rollout: Rollout,
        advantages: Tensor,
        stopped: Tensor,
        key: Sequence[tuple[int, ...]],
        costs: Costs,
    ) -> dict[str, Tensor]:
        """Clipped updates of `rows` [k, genome_length], in place; the means of their statistics, each [k]. What they
        take is added to `costs`. An individual that has stopped is in no later pass, and one whose rows make fewer
        minibatches than others' is not in the last."""
        updates = torch.zeros(rollout.scores.shape[0], device=rows.device, dtype=torch.float32)
        before, moved = rows.detach().clone(), torch.zeros_like(updates)
        # Without a single update there is nothing else to report.
        sums = {name: torch.zeros_like(updates) for name in _UPDATE_STATS}
        apart = self.told_apart(rollout)
        told = [own.nonzero()[:, 0] for own in apart.cpu()]
        traced = sum(map(len, told)) > apart.numel() * _TRACED_SHARE
        if not traced:
            rollout.completions.release()
        for epoch in range(self.config.epochs):
            going = [own[:0] if over else own for own, over in zip(told, stopped.tolist(), strict=True)]
            if not any(map(len, going)):
                break
            costs.add("update", self._pass_cost(rollout, going))
            for index, parts in enumerate(self._minibatches(going, [(*each, epoch) for each in key])):
                share = Share.of(parts, rows.device)
                seeds = [keyed_seed(self.seed, "dropout", *each, epoch, index) for each in key]
                # Until their first step the policies are those that sampled.
                first = epoch == index == 0
                losses = self.losses(rows, rollout, advantages, share, seeds, traced=traced and first)
                moved = torch.maximum(moved, losses["approx_kl"].detach().nan_to_num(nan=torch.inf))
                over = losses["approx_kl"] > (self.config.target_kl or torch.inf)
                stopped |= over
                rows.grad = None
                losses.pop("loss").sum().backward()
                assert rows.grad is not None
                losses["grad_norm"] = clip_rows(rows.grad, self.config.max_grad_norm)
                self.reporter.step()
                learning = share.there.any(1) & ~stopped
                # A diverged row stops too.
                stopped |= ~optimiser.step(rows.grad, learning)
                learning &= ~stopped
                updates += learning
                for name, value in losses.items():
                    sums[name] = sums.get(name, torch.zeros_like(updates)) + value.detach().where(learning, 0.0)
        means = {name: value / updates.clamp(min=1) for name, value in sums.items()}
        stats = {**means, "updates": updates, "stopped": stopped.float()}
        if self.config.update_kl:
            far = moved > FAR
            optimiser.take_back(before, far)
            counted = rollout.mask & apart[..., None]
            length = counted.sum((-1, -2)) / counted.any(-1).sum(-1).clamp(min=1)
            stats |= {"update_kl": moved * length, "taken_back": far.to(moved)}
        return stats

    def _lead_rates(
        self,
        rates: Sequence[LedRate],
        optimiser: RowAdam,
        start: Tensor,
        lr: Tensor,
        updates: Mapping[str, Tensor],
        target: float,
    ) -> dict[str, Tensor]:
        """Let the learning rates of `optimiser`, the individuals' own `lr` [k] times the factors of `rates`, follow how
        far `updates` have moved each policy; one whose updates have only been far too large so far begins anew from
        `start` [k, genome_length]. The learning rates before, [k], where they are not the same throughout."""
        if not target and self.config.lr_decay == 1:
            return {}
        before = torch.tensor(optimiser.lr, dtype=torch.float64)
        if target:
            kls, far = updates["update_kl"].tolist(), updates["taken_back"].tolist()
            anew = [
                rate.follow(kl, target=target, taken_back=bool(back))
                for rate, kl, back in zip(rates, kls, far, strict=True)
            ]
            if any(anew):
                optimiser.take_back(start, torch.tensor(anew, device=start.device))
            optimiser.lr = (lr * torch.tensor([rate.factor for rate in rates], dtype=lr.dtype)).tolist()
        return {"lr": before}

    def told_apart(self, rollout: Rollout) -> Tensor:
        """Which completions updates are made of, [k, rows]: with `--equal-groups skip` those whose group's rewards
        differ, with `--mask-truncated` those that were not cut at the longest length, else all (dynamic sampling and
        overlong filtering: DAPO, Yu et al., 2025, arXiv 2503.14476)."""
        told = rollout.ended if self.config.mask_truncated else torch.ones_like(rollout.ended)
        if self.config.equal_groups == "keep" or self.config.rollout_samples == 1:
            return told
        return told & unequal_groups(rollout.scores, rollout.scored, group_size=self.config.rollout_samples)

    def losses(
        self,
        rows: Tensor,
        rollout: Rollout,
        advantages: Tensor,
        share: Share,
        seeds: Sequence[int],
        *,
        traced: bool = False,
    ) -> dict[str, Tensor]:
        """The loss and its statistics, each [k], of genomes `rows` [k, genome_length] on their `share` of a rollout, 0
        where they have none; differentiable. `seeds` are those of the dropout. With `traced`, genomes that sampled the
        rollout use its trace, if there is any."""
        traced = traced and rollout.completions.trace is not None
        told, settings = self.told_apart(rollout), self.settings(rollout)
        counted = rollout.mask & told[..., None]
        mask = share.of_all(counted) & share.there[..., None]
        here = (share.counts.to(self.dtype) / told.sum(1)).where(share.there.any(1), 1.0)
        how = Scoring(
            temperature=settings.temperature,
            entropy_gradient=bool(settings.entropy_weight.any()),
            dropout=self.dropout,
            dropout_seeds=np.array(seeds, np.uint64),
        )
        if traced or share.all_of(rollout):  # a trace has all rows
            prompts, owners = rollout.prompts, None
            completions = rollout.completions if traced else replace(rollout.completions, features=None, trace=None)
        else:
            (prompts, completions), owners = share.texts(rollout), share.owners()

        def scored(completions: Completions, how: Scoring) -> Iterator[Tensor]:
            for each in differentiable_scores(self.engine, rows, prompts, completions, how, owners=owners):
                yield share.of_all(each.unflatten(0, told.shape)) if owners is None else share.of_texts(each)

        log_probs, entropy = scored(completions, how)
        whole = None
        if completions.kept is not None and rollout.kl_measured:
            whole, _ = scored(replace(completions, kept=None), replace(how, entropy_gradient=False))
        policy_loss, policy_stats = self.policy_loss(
            Minibatch(
                log_probs=log_probs,
                whole_log_probs=whole,
                old_log_probs=share.of_all(rollout.log_probs),
                reference_log_probs=share.of_all(rollout.reference_log_probs),
                advantages=share.of_all(advantages),
                mask=mask,
                batch_tokens=counted.sum((-1, -2)).clamp(min=1) * here,
                kl_weight=settings.kl_weight,
            )
        )
        mean_entropy = masked_mean(entropy, mask)
        loss = policy_loss - settings.entropy_weight * mean_entropy
        return {"loss": loss, "policy_loss": policy_loss, "entropy": mean_entropy, **policy_stats}

    def _rollout_cost(self, rollout: Rollout) -> Cost:
        """Of sampling, and of the passes that the KL takes where it is measured."""
        size, lengths = self.engine.size, lengths_read(rollout.prompts, rollout.completions)
        passes = size.forward(lengths) * (2 if rollout.kl_measured and rollout.completions.kept is not None else 1)
        if rollout.kl_measured:
            passes += size.forward(lengths, adapted=self.reference is not None)
        return Cost(rollout.completions.tokens, passes)

    def _minibatches(self, rows: Sequence[Tensor], key: Sequence[tuple[int, ...]]) -> Iterator[list[Tensor]]:
        """Each individual's `rows` in an order of its own, in parts; some have fewer, or none."""
        if self.config.minibatches == 1:  # whose order says nothing
            yield [*rows]
            return
        drawn = [keyed_generator(self.seed, "minibatch", *each) for each in key]
        orders = [own[torch.randperm(len(own), generator=each)] for own, each in zip(rows, drawn, strict=True)]
        # Rows that are too few are chunked into fewer parts, and none into empty ones.
        chunks = [order.chunk(self.config.minibatches) if len(order) else () for order in orders]
        for parts in zip_longest(*chunks):
            yield [own[:0] if part is None else part for own, part in zip(rows, parts, strict=True)]

    def _pass_cost(self, rollout: Rollout, rows: Sequence[Tensor]) -> Cost:
        """Of one pass of updates over each individual's `rows` of a rollout."""
        prompts, completions = Share.of(rows, rollout.mask.device).texts(rollout)
        size, lengths = self.engine.size, lengths_read(prompts, completions)
        return Cost(completions.tokens, size.forward(lengths) + size.backward(lengths))

    def state_dict(self) -> dict[str, Any]:
        """What the next generation's refinements need to know."""
        self.settle()
        replay = {} if self.imitation is None else {"replay": self.imitation.state_dict()}
        rate = {"led_rate": self.led_rate.state_dict()} if self.config.update_kl else {}
        return {**self.carried.state_dict(), **replay, **rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.carried.load_state_dict(state)
        if self.imitation is not None:
            self.imitation.load_state_dict(state["replay"])
        if self.config.update_kl:
            self.led_rate.load_state_dict(state["led_rate"])
