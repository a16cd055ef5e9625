"""GRPO's and RLOO's formulas against two oracles: plain Python loops written out by hand, and TRL's own trainers.

TRL's GRPOTrainer and RLOOTrainer run in a process of their own (this file, as a script), on the same model, adapter,
completions and rewards; what is compared is the gradient of every LoRA weight.
"""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from evolora.engine.base import Engine, Scoring
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.refiners import GRPOConfig, GRPORefiner, PolicyGradientRefiner, RLOOConfig, RLOORefiner
from evolora.refiners.advantages import equal_groups, group_advantages, leave_one_out_advantages
from evolora.refiners.losses import grpo_loss, sequence_policy_loss
from evolora.refiners.rollouts import Rollout, Share
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example, load_task

torch.set_num_threads(1)

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo")
SCALES = ("group", "batch", "none")


# --- the oracle written out by hand -----------------------------------------------------------------------------------


def agree(mine: Tensor, oracle: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(mine, torch.as_tensor(oracle, dtype=torch.float64), rtol=0, atol=tolerance)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    return math.sqrt(math.fsum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


Scores = list[list[float | None]]  # one individual: [groups][size]


def loop_group_advantages(groups: Scores, scale: str) -> list[float]:
    everyone = [score for group in groups for score in group if score is not None]
    out = []
    for group in groups:
        known = [score for score in group if score is not None]
        divisor = {"group": deviation(known) + 1e-4, "batch": deviation(everyone) + 1e-4, "none": 1.0}[scale]
        out += [0.0 if score is None else (score - mean(known)) / divisor for score in group]
    return out


def loop_leave_one_out(groups: Scores, normalize: bool) -> list[float]:
    out: list[float | None] = []
    for group in groups:
        for index, score in enumerate(group):
            others = [other for place, other in enumerate(group) if other is not None and place != index]
            out.append(score - mean(others) if score is not None and others else None)
    known = [advantage for advantage in out if advantage is not None]
    if normalize:
        out = [None if a is None else (a - mean(known)) / (deviation(known) + 1e-4) for a in out]
    return [0.0 if advantage is None else advantage for advantage in out]


def loop_equal_groups(groups: Scores) -> float:
    return mean([float(len({score for score in group if score is not None}) < 2) for group in groups])


def as_tensors(individuals: list[Scores]) -> tuple[Tensor, Tensor]:
    """Scores, NaN where there is none, and whether there is one."""
    rows = [[math.nan if score is None else score for group in groups for score in group] for groups in individuals]
    scores = torch.tensor(rows, dtype=torch.float64)
    return scores, ~scores.isnan()


@st.composite
def populations(draw: st.DrawFn) -> tuple[int, list[Scores]]:
    """The group size, and the scores of some individuals: ties, missing scores and lonely scores among them."""
    k, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    score = st.none() | st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-3, 3, allow_subnormal=False)
    row = st.lists(score, min_size=size, max_size=size)
    return size, draw(st.lists(st.lists(row, min_size=groups, max_size=groups), min_size=k, max_size=k))


@settings(deadline=None)
@given(populations())
def test_advantages_equal_the_loops(population: tuple[int, list[Scores]]) -> None:
    size, individuals = population
    scores, scored = as_tensors(individuals)
    for scale in SCALES:
        mine = group_advantages(scores, scored, group_size=size, scale=scale)  # type: ignore[arg-type]
        agree(mine, [loop_group_advantages(groups, scale) for groups in individuals], tolerance=1e-9)
    for normalize in (False, True):
        mine = leave_one_out_advantages(scores, scored, group_size=size, normalize=normalize)
        agree(mine, [loop_leave_one_out(groups, normalize) for groups in individuals], tolerance=1e-9)
    agree(equal_groups(scores, scored, group_size=size), [loop_equal_groups(groups) for groups in individuals])


class Case:
    """Random inputs for k individuals, rows of mixed lengths, one token and none among them."""

    def __init__(self, seed: int, k: int = 2, rows: int = 6, time: int = 5) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.k, self.rows = k, rows
        self.lengths = torch.randint(0, time + 1, (k, rows), generator=draw)
        self.lengths[:, :2] = torch.tensor([1, time])
        self.mask = torch.arange(time) < self.lengths[..., None]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.old_logp = -normal(k, rows, time).abs() - 0.1
        self.logp = self.old_logp + 0.3 * normal(k, rows, time)
        self.ref_logp = self.old_logp + 0.5 * normal(k, rows, time)
        self.advantages = normal(k, rows)
        self.batch_tokens = self.mask.sum((-1, -2)) * 1.5  # as if these were two thirds of the rollout

    def grpo(self, at: slice, loss_type: str, garbage: float = 0.0) -> list[Tensor]:
        mask = self.mask[at]
        logp, old_logp, ref_logp = (
            torch.where(mask, x[at], garbage) for x in (self.logp, self.old_logp, self.ref_logp)
        )
        logp.requires_grad_()
        loss, stats = grpo_loss(
            logp, old_logp, ref_logp, self.advantages[at], mask, loss_type=loss_type,  # type: ignore[arg-type]
            clip_range=0.2, clip_range_high=0.3, kl_weight=0.1, max_length=7, batch_tokens=self.batch_tokens[at],
        )  # fmt: skip
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert logp.grad is not None
        return [loss.detach(), *stats.values(), logp.grad]

    def sequence(self, at: slice, garbage: float = 0.0) -> list[Tensor]:
        mask = self.mask[at]
        logp, old_logp = (torch.where(mask, x[at], garbage) for x in (self.logp, self.old_logp))
        logp.requires_grad_()
        loss, stats = sequence_policy_loss(
            logp, old_logp, self.advantages[at], mask, clip_range=0.2, clip_range_high=0.3
        )
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert logp.grad is not None
        return [loss.detach(), *stats.values(), logp.grad]


CASES = [Case(seed) for seed in range(5)]


def clipped(ratio: float, advantage: float) -> float:
    return -min(advantage * ratio, advantage * min(max(ratio, 0.8), 1.3))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_grpo_losses_equal_the_loops(loss_type: str) -> None:
    for case in CASES:
        expected, over, drift = [], [], []
        for i in range(case.k):
            rows, ends, moves = [], [], []
            for row in range(case.rows):
                tokens = []
                for t in range(int(case.lengths[i, row])):
                    advantage, new = float(case.advantages[i, row]), float(case.logp[i, row, t])
                    ratio = math.exp(new - float(case.old_logp[i, row, t]))
                    away = float(case.ref_logp[i, row, t]) - new
                    tokens.append(clipped(ratio, advantage) + 0.1 * ratio * (math.exp(away) - away - 1))
                    ends.append(float((advantage > 0 and ratio > 1.3) or (advantage < 0 and ratio < 0.8)))
                    moves.append(math.log(ratio) ** 2 / 2)
                if tokens:
                    rows.append(tokens)
            total, count = math.fsum(map(math.fsum, rows)), sum(map(len, rows))
            expected.append(
                {
                    "grpo": mean([mean(tokens) for tokens in rows]),
                    "bnpo": total / count,
                    "dr_grpo": total / (7 * len(rows)),
                    "dapo": total / float(case.batch_tokens[i]),
                }[loss_type]
            )
            over.append(mean(ends))
            drift.append(mean(moves))
        loss, clip_fraction, approx_kl, _ = case.grpo(slice(None), loss_type)
        agree(loss, expected)
        agree(clip_fraction, over)
        agree(approx_kl, drift)


def test_the_sequence_loss_equals_the_loops() -> None:
    for case in CASES:
        expected, over = [], []
        for i in range(case.k):
            rows = [row for row in range(case.rows) if case.lengths[i, row]]
            ratios = [
                math.exp(float((case.logp - case.old_logp)[i, row, : case.lengths[i, row]].sum())) for row in rows
            ]
            advantages = [float(case.advantages[i, row]) for row in rows]
            pairs = list(zip(ratios, advantages, strict=True))
            expected.append(mean([clipped(ratio, advantage) for ratio, advantage in pairs]))
            over.append(mean([float((a > 0 and r > 1.3) or (a < 0 and r < 0.8)) for r, a in pairs]))
        loss, clip_fraction, *_ = case.sequence(slice(None))
        agree(loss, expected)
        agree(clip_fraction, over)


@pytest.mark.parametrize("loss_type", [*LOSS_TYPES, "sequence"])
def test_individuals_do_not_mix_and_what_is_masked_changes_nothing(loss_type: str) -> None:
    def compute(case: Case, at: slice, garbage: float = 0.0) -> list[Tensor]:
        return case.sequence(at, garbage) if loss_type == "sequence" else case.grpo(at, loss_type, garbage)

    for case in CASES:
        together = compute(case, slice(None))
        for i in range(case.k):
            for mine, ours in zip(compute(case, slice(i, i + 1)), together, strict=True):
                agree(mine[0], ours[i], tolerance=1e-14)
        for garbage in (math.nan, math.inf, 1e300):
            for mine, ours in zip(compute(case, slice(None), garbage), together, strict=True):
                assert torch.equal(mine, ours)


def test_an_individual_without_completions_gets_zeros() -> None:
    x, nothing, zero = torch.full((1, 2, 3), math.nan), torch.zeros(1, 2, 3), torch.zeros(1)
    for loss_type in LOSS_TYPES:
        loss, _ = grpo_loss(
            x, x, x, torch.zeros(1, 2), nothing, loss_type=loss_type,  # type: ignore[arg-type]
            clip_range=0.2, clip_range_high=0.2, kl_weight=0.1, max_length=3, batch_tokens=torch.ones(1),
        )  # fmt: skip
        assert torch.equal(loss, zero)
    loss, _ = sequence_policy_loss(x, x, torch.zeros(1, 2), nothing, clip_range=0.2, clip_range_high=0.2)
    assert torch.equal(loss, zero)


# --- TRL's own trainers -----------------------------------------------------------------------------------------------

SAMPLES, PROMPTS, LENGTH = 4, 5, 8
HIGH = 0.5  # far enough from 0.2 that some ratio lies between


@dataclass(frozen=True)
class Setting:
    """One configuration of one trainer; `kind` is the loss type or whether RLOO's advantages are normalised."""

    algorithm: str
    kind: str
    scale: str = ""
    beta: float = 0.0
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.kind}-{self.scale}-{self.beta}-{self.high}"


GRPO = [Setting("grpo", *rest) for rest in itertools.product(LOSS_TYPES, SCALES, (0.0, 0.04), (None, HIGH))]
RLOO = [
    Setting("rloo", kind, "", *rest)
    for kind in ("plain", "normal")
    for rest in itertools.product((0.0, 0.04), (None, HIGH))
]
SETTINGS = GRPO + RLOO


@dataclass(frozen=True)
class Shared:
    """What both sides run on."""

    base: BaseModel
    lora: LoraConfig
    layout: GenomeLayout
    genomes: Tensor  # the policy that sampled, and the one after an update; float64
    examples: list[Example]


def shared() -> Shared:
    """The bundled model in float64, an adapter away from the base, another one further on, and prompts.

    The prompts have the same number of tokens: TRL passes no positions, so that GPT-2 would count the left padding.
    """
    base = load_base("tiny-gpt2", dtype=torch.float64)
    lora = lora_config(base.model, r=2, dropout=0.0)
    layout, founder = lora_layout(base.model, lora, seed=0)

    def noise(seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(layout.genome_length, generator=draw, dtype=torch.float64)

    sampler = founder.double() + 0.02 * noise(5)
    later = sampler + 0.03 * noise(13)  # of a few seeds one that reaches both limits of the clipping
    train = load_task(task="translate").train
    lengths = [len(base.tokenizer(example.prompt)["input_ids"]) for example in train]
    examples = [example for example, length in zip(train, lengths, strict=True) if length == lengths[0]][:PROMPTS]
    assert len(examples) == PROMPTS
    return Shared(base, lora, layout, torch.stack([sampler, later]), examples)


def scores_of(full: bool) -> list[float | None]:
    """Scores that TRL's float32 holds exactly, one group of equal ones among them; half of them missing unless `full`,
    in one group all, in one all but one."""
    scores: list[float | None] = [((7 * row * row + 3 * row) % 16) / 16 for row in range(PROMPTS * SAMPLES)]
    scores[SAMPLES : 2 * SAMPLES] = [0.25] * SAMPLES
    if not full:
        missing = [
            0,
            2 * SAMPLES + 1,
            2 * SAMPLES + 2,
            *range(3 * SAMPLES, 4 * SAMPLES),
            *range(4 * SAMPLES, 5 * SAMPLES - 1),
        ]
        for row in missing:
            scores[row] = None
    return scores


def run_trl(folder: Path) -> None:
    """Run TRL's trainers on what `folder` holds, and save their advantages, losses and gradients there."""
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig as TRLGRPOConfig  # type: ignore[import-not-found, unused-ignore]
    from trl import GRPOTrainer, RLOOTrainer
    from trl import RLOOConfig as TRLRLOOConfig
    from trl.trainer.utils import split_tensor_dict  # type: ignore[import-not-found, unused-ignore]

    transformers.logging.set_verbosity_error()
    given = load_file(folder / "rollout.safetensors")
    completion_ids = [ids[kept].tolist() for ids, kept in zip(given["ids"], given["mask"].bool(), strict=True)]
    recorded: dict[str, Tensor] = {}

    def in_float64(
        model: Any, ids: Tensor, mask: Tensor, length: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor, None]:
        """TRL's log-probabilities and entropies, but for its output layer, which is float32 whatever the model is."""
        log_probs = model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1].log_softmax(-1)
        chosen = log_probs.gather(-1, ids[:, -length:, None])[..., 0]
        return chosen, -(log_probs.exp() * log_probs).sum(-1), None

    def record(setting: Setting, *, full: bool, minibatches: int = 1) -> None:
        both = shared()
        rewards = scores_of(full)
        options: dict[str, Any] = {
            "output_dir": str(folder / "unused"), "report_to": [], "bf16": False, "use_cpu": True, "seed": 0,
            "per_device_train_batch_size": PROMPTS * SAMPLES // minibatches, "steps_per_generation": minibatches,
            "num_generations": SAMPLES, "max_completion_length": LENGTH, "num_iterations": 2, "disable_dropout": True,
            "gradient_checkpointing": False, "beta": setting.beta, "epsilon": 0.2, "epsilon_high": setting.high,
        }  # fmt: skip
        if setting.algorithm == "grpo":
            args = TRLGRPOConfig(**options, loss_type=setting.kind, scale_rewards=setting.scale)
        else:
            args = TRLRLOOConfig(**options, normalize_advantages=setting.kind == "normal")
        trainer = (GRPOTrainer if setting.algorithm == "grpo" else RLOOTrainer)(
            model=both.base.model,
            reward_funcs=lambda completions, **_: rewards,
            args=args,
            train_dataset=Dataset.from_list([{"prompt": example.prompt} for example in both.examples]),
            processing_class=both.base.tokenizer,
            peft_config=both.lora,
        )
        # Nothing is sampled: the completions are those of the rollout.
        trainer._generate_single_turn = lambda *_: (
            (completion_ids, None) if setting.algorithm == "grpo" else completion_ids
        )
        if minibatches == 1:
            trainer._get_per_token_logps_and_entropies = in_float64
        model = trainer.model.train()
        parameters = {
            name.replace(".default.", "."): value for name, value in model.named_parameters() if value.requires_grad
        }
        assert {value.dtype for value in parameters.values()} == {torch.float64}

        def load(genome: Tensor) -> None:
            state = both.layout.to_state_dict(genome)
            assert sorted(state) == sorted(parameters)
            for name, value in parameters.items():
                value.data.copy_(state[name])
                value.grad = None

        load(both.genomes[0])
        batch = trainer._generate_and_score_completions(
            [{"prompt": example.prompt} for example in both.examples for _ in range(SAMPLES)]
        )
        assert torch.equal(batch["prompt_ids"], given["prompts"])
        prefix = f"{setting}/{'full' if full else 'partial'}/{minibatches}"
        recorded[f"{prefix}/advantages"] = batch["advantages"]
        recorded[f"{prefix}/equal_groups"] = torch.tensor(trainer._metrics["train"]["frac_reward_zero_std"][-1])
        if not full:
            return
        for iteration, genome in enumerate(both.genomes):
            for index, part in enumerate(split_tensor_dict(batch, minibatches)):
                load(genome)
                trainer.current_gradient_accumulation_steps = 1
                loss = trainer._compute_loss(model, part)
                loss.backward()
                gradient = torch.zeros(1, both.layout.genome_length, dtype=torch.float64)
                for module, a, b in both.layout.factors(gradient):
                    a[0].copy_(parameters[module.a_key].grad)
                    b[0].copy_(parameters[module.b_key].grad)
                recorded[f"{prefix}/{iteration}/{index}/loss"] = loss.detach()
                recorded[f"{prefix}/{iteration}/{index}/gradient"] = gradient[0]
                clip_fraction = trainer._metrics["train"]["clip_ratio/region_mean"][-1]
                recorded[f"{prefix}/{iteration}/{index}/clip_fraction"] = torch.tensor(clip_fraction)

    for setting in SETTINGS:
        record(setting, full=True)
        if setting.beta == 0 and setting.high is None and setting.kind in ("grpo", "plain", "normal"):
            record(setting, full=False)
        if setting.beta and setting.high is None and setting.scale in ("group", ""):
            record(setting, full=True, minibatches=2)
    save_file(recorded, folder / "trl.safetensors")


@dataclass(frozen=True)
class Comparison:
    """Our side, and what TRL recorded."""

    shared: Shared
    engine: Engine
    rollout: Rollout
    trl: dict[str, Tensor]

    def refiner(self, setting: Setting, *, full: bool = True) -> PolicyGradientRefiner[Any]:
        options: dict[str, Any] = {
            "rollout_samples": SAMPLES, "max_new_tokens": LENGTH, "kl_weight": setting.beta, "clip_range": 0.2,
            "clip_range_high": setting.high,
        }  # fmt: skip
        text = Text.of(self.shared.base.model, self.shared.base.tokenizer)
        arguments = self.engine, text, RewardScorer(lambda completions: scores_of(full))
        if setting.algorithm == "grpo":
            grpo = GRPOConfig(loss_type=setting.kind, scale_rewards=setting.scale, **options)  # type: ignore[arg-type]
            return GRPORefiner(*arguments, grpo, seed=0)
        return RLOORefiner(*arguments, RLOOConfig(normalize_advantages=setting.kind == "normal", **options), seed=0)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    both = shared()
    engine = choose_engine(both.base.model, both.layout).engine
    empty = Comparison(both, engine, None, {})  # type: ignore[arg-type]
    penalised = next(setting for setting in SETTINGS if setting.beta)  # whose rollouts ask the reference
    rollout = empty.refiner(penalised).collect(both.genomes[:1], both.examples, [(1, 0, 0)])
    # TRL computes them again.
    scored = engine.score(both.genomes[:1], rollout.prompts, replace(rollout.completions, trace=None), Scoring())
    agree(rollout.log_probs[rollout.mask], scored.log_probs[None][rollout.mask])
    folder = tmp_path_factory.mktemp("trl")
    held = {
        "ids": rollout.completions.ids,
        "mask": rollout.completions.mask.int(),
        "prompts": torch.tensor(rollout.prompts),
    }
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, folder / "rollout.safetensors")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return replace(empty, rollout=rollout, trl=load_file(folder / "trl.safetensors"))


def check(comparison: Comparison, setting: Setting, iteration: int, minibatches: int = 1) -> None:
    refiner, trl = comparison.refiner(setting), comparison.trl
    prefix = f"{setting}/full/{minibatches}"
    tolerance = 1e-6 if minibatches == 1 else 2e-5  # the latter with TRL's own output layer, in float32
    advantages, stats = refiner.credit(comparison.rollout)
    # TRL computes advantages in float32.
    torch.testing.assert_close(advantages[0], trl[f"{prefix}/advantages"].double(), rtol=1e-5, atol=2e-6)
    assert float(stats["equal_groups"]) == pytest.approx(1 / PROMPTS)
    # TRL looks at the whole batch when that is what it scales by, and at RLOO's rewards after the KL.
    if setting.scale != "batch" and not (setting.algorithm == "rloo" and setting.beta):
        assert float(trl[f"{prefix}/equal_groups"]) == pytest.approx(1 / PROMPTS)
    for index, part in enumerate(torch.arange(PROMPTS * SAMPLES).chunk(minibatches)):
        rows = comparison.shared.genomes[iteration : iteration + 1].clone().requires_grad_()
        losses = refiner.losses(rows, comparison.rollout, advantages, Share.of([part], rows.device), [0])
        losses["loss"].sum().backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        mine, theirs = rows.grad[0], trl[f"{prefix}/{iteration}/{index}/gradient"]
        assert (mine - theirs).norm() < tolerance * theirs.norm(), float((mine - theirs).norm() / theirs.norm())
        assert theirs.norm() > 1e-3
        torch.testing.assert_close(
            losses["loss"][0], trl[f"{prefix}/{iteration}/{index}/loss"].double(), rtol=tolerance, atol=tolerance
        )
        if setting.kind != "normal":  # normalised in float32, an advantage of zero has a sign, which TRL counts by
            clip_fraction = float(trl[f"{prefix}/{iteration}/{index}/clip_fraction"])
            assert float(losses["clip_fraction"]) == pytest.approx(clip_fraction, abs=1e-6)


@pytest.mark.parametrize("iteration", [0, 1])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_gradients_equal_trls(comparison: Comparison, setting: Setting, iteration: int) -> None:
    check(comparison, setting, iteration)


@pytest.mark.parametrize(
    "setting", [s for s in SETTINGS if s.beta and s.high is None and s.scale in ("group", "")], ids=str
)
def test_gradients_of_minibatches_equal_trls(comparison: Comparison, setting: Setting) -> None:
    check(comparison, setting, iteration=1, minibatches=2)


@pytest.mark.parametrize(
    "setting", [s for s in SETTINGS if not s.beta and s.high is None and s.kind in ("grpo", "plain", "normal")], ids=str
)
def test_advantages_with_missing_scores_equal_trls(comparison: Comparison, setting: Setting) -> None:
    """Only the advantages: a completion without a score is in TRL's divisors and KL, and not in ours."""
    refiner = comparison.refiner(setting, full=False)
    rollout = refiner.collect(comparison.shared.genomes[:1], comparison.shared.examples, [(1, 0, 0)])
    advantages, stats = refiner.credit(rollout)
    theirs = comparison.trl[f"{setting}/partial/1/advantages"]
    torch.testing.assert_close(advantages[0], theirs.double(), rtol=1e-5, atol=2e-6)
    assert theirs.abs().sum() > 1
    assert float(stats["equal_groups"]) == pytest.approx(3 / PROMPTS)


def test_the_comparison_is_a_real_test(comparison: Comparison) -> None:
    """The second policy is clipped at both ends, the upper limit matters, and no two loss types or scales coincide."""
    gradients = [comparison.trl[f"{setting}/full/1/1/0/gradient"] for setting in SETTINGS]
    for (one, mine), (other, theirs) in itertools.combinations(zip(SETTINGS, gradients, strict=True), 2):
        if one.algorithm == other.algorithm and {one.kind, other.kind} != {"bnpo", "dapo"}:  # one minibatch: the same
            assert (mine - theirs).norm() > 1e-4 * mine.norm(), (one, other)
    fractions = [float(comparison.trl[f"{setting}/full/1/1/0/clip_fraction"]) for setting in SETTINGS]
    assert min(fractions) > 0.02 and max(fractions) < 0.8
    lengths = comparison.rollout.mask[0].sum(-1)
    assert len(set(lengths.tolist())) > 3
    gap = (comparison.rollout.log_probs - comparison.rollout.reference_log_probs)[comparison.rollout.mask]
    assert gap.abs().max() > 0.1


if __name__ == "__main__":
    run_trl(Path(sys.argv[1]))
