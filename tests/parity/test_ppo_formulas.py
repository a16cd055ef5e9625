"""PPO's formulas against two oracles: plain Python loops written out by hand, and TRL's own PPOTrainer.

TRL 1.12 is the last look at its PPO that fits here and does not live in the project's environment: the test installs it
into build/oracles once, runs it in a process of its own (this file, as a script) and compares what it recorded.
"""

import contextlib
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evolora.refiners.advantages import generalized_advantages, whiten
from evolora.refiners.losses import (
    KLEstimator,
    clipped_policy_loss,
    clipped_value_loss,
    entropy_from_logits,
    k1_kl,
    k3_kl,
    masked_mean,
    masked_variance,
    per_token_reward,
)

torch.set_num_threads(1)

Rows = list[list[float]]  # one individual: [rows][time]


# --- the oracle written out by hand -----------------------------------------------------------------------------------


class Case:
    """Random inputs for k individuals, rows of mixed lengths, one token and none among them."""

    def __init__(self, seed: int, k: int = 3, rows: int = 5, time: int = 6) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.k, self.rows, self.time = k, rows, time
        self.lengths = [
            [1, time, 0, *random.Random(seed * 10 + i).choices(range(1, time + 1), k=rows)] for i in range(k)
        ]
        self.lengths = [row[:rows] for row in self.lengths]
        ends = torch.tensor(self.lengths)
        self.mask = torch.arange(time) < ends[..., None]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        shape = (k, rows, time)
        self.old_logp = -normal(*shape).abs() - 0.1
        self.logp = self.old_logp + 0.3 * normal(*shape)
        self.ref_logp = self.old_logp + 0.5 * normal(*shape)
        self.old_values, self.returns, self.advantages = normal(*shape), normal(*shape), normal(*shape)
        self.values = self.old_values + 0.4 * normal(*shape)
        self.scores = normal(k, rows)

    def inside(self, x: Tensor, individual: int) -> list[float]:
        """The individual's masked-in entries, row by row."""
        return [float(x[individual, row, t]) for row in range(self.rows) for t in range(self.lengths[individual][row])]


CASES = [Case(seed) for seed in range(6)] + [Case(9, k=1, rows=1, time=1), Case(10, k=2, rows=2, time=9)]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.k}x{case.rows}x{case.time}")


def agree(mine: Tensor, oracle: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(mine, torch.as_tensor(oracle, dtype=torch.float64), rtol=0, atol=tolerance)


def loop_mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def loop_variance(values: list[float]) -> float:
    mean = loop_mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) if len(values) > 1 else 0.0


def loop_rewards(case: Case, individual: int, kl_weight: float, estimator: KLEstimator) -> Rows:
    out = []
    for row, length in enumerate(case.lengths[individual]):
        earned = [0.0] * case.time
        for t in range(length):
            log_ratio = float(case.logp[individual, row, t]) - float(case.ref_logp[individual, row, t])
            kl = log_ratio if estimator == "k1" else math.exp(-log_ratio) - 1 + log_ratio
            earned[t] = -kl_weight * kl
        if length:
            earned[length - 1] += float(case.scores[individual, row])
        out.append(earned)
    return out


def loop_gae(case: Case, individual: int, rewards: Rows, discount: float, decay: float) -> tuple[Rows, Rows]:
    """The definition: a sum of discounted errors for each token, not the recursion."""
    advantages, returns = [], []
    for row, length in enumerate(case.lengths[individual]):
        value = [float(case.values[individual, row, t]) for t in range(length)] + [0.0]
        errors = [rewards[row][t] + discount * value[t + 1] - value[t] for t in range(length)]
        gained = [math.fsum((discount * decay) ** (s - t) * errors[s] for s in range(t, length)) for t in range(length)]
        padding = [0.0] * (case.time - length)
        advantages.append(gained + padding)
        returns.append([gained[t] + value[t] for t in range(length)] + padding)
    return advantages, returns


def loop_policy(case: Case, individual: int, clip: float) -> tuple[float, float, float, Rows]:
    """Loss, clip fraction, approximate KL and the gradient with respect to logp."""
    count = sum(case.lengths[individual])
    loss = clipped_tokens = kl = 0.0
    gradient = [[0.0] * case.time for _ in range(case.rows)]
    for row, length in enumerate(case.lengths[individual]):
        for t in range(length):
            log_ratio = float(case.logp[individual, row, t] - case.old_logp[individual, row, t])
            advantage, ratio = float(case.advantages[individual, row, t]), math.exp(log_ratio)
            plain, clipped = -advantage * ratio, -advantage * min(max(ratio, 1 - clip), 1 + clip)
            loss += max(plain, clipped) / count
            kl += 0.5 * log_ratio**2 / count
            if clipped > plain:
                clipped_tokens += 1 / count
            else:
                gradient[row][t] = -advantage * ratio / count
    return loss, clipped_tokens, kl, gradient


def loop_value(case: Case, individual: int, clip: float) -> tuple[float, Rows]:
    """Loss and the gradient with respect to the values."""
    count = sum(case.lengths[individual])
    loss = 0.0
    gradient = [[0.0] * case.time for _ in range(case.rows)]
    for row, length in enumerate(case.lengths[individual]):
        for t in range(length):
            value, old = float(case.values[individual, row, t]), float(case.old_values[individual, row, t])
            target = float(case.returns[individual, row, t])
            near = min(max(value, old - clip), old + clip)
            loss += 0.5 * max((value - target) ** 2, (near - target) ** 2) / count
            # A clipped value does not move with the value, so where it is the worse one nothing is learned.
            if (value - target) ** 2 >= (near - target) ** 2:
                gradient[row][t] = (value - target) / count
    return loss, gradient


@cases
def test_mean_variance_and_whitening(case: Case) -> None:
    columns = [case.inside(case.values, individual) for individual in range(case.k)]
    agree(masked_mean(case.values, case.mask), [loop_mean(column) for column in columns])
    agree(masked_variance(case.values, case.mask), [loop_variance(column) for column in columns])
    population = [loop_variance(column) * (len(column) - 1) / len(column) for column in columns]
    agree(masked_variance(case.values, case.mask, unbiased=False), population)
    for shift in (True, False):
        whitened = whiten(case.values, case.mask, shift_mean=shift)
        assert (whitened[~case.mask] == 0).all()
        for individual, column in enumerate(columns):
            mean, scale = loop_mean(column), 1 / math.sqrt(loop_variance(column) + 1e-8)
            expected = [(value - mean) * scale + (0.0 if shift else mean) for value in column]
            agree(whitened[individual][case.mask[individual]], expected, tolerance=1e-11)


@cases
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_rewards_and_advantages(case: Case, estimator: KLEstimator) -> None:
    rewards = per_token_reward(case.scores, case.logp, case.ref_logp, case.mask, kl_weight=0.3, estimator=estimator)
    advantages, returns = generalized_advantages(rewards, case.values, case.mask, discount=0.97, trace_decay=0.9)
    for individual in range(case.k):
        expected = loop_rewards(case, individual, 0.3, estimator)
        agree(rewards[individual], expected)
        gained, targets = loop_gae(case, individual, expected, 0.97, 0.9)
        agree(advantages[individual], gained)
        agree(returns[individual], targets)


@cases
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_each_individual_has_its_own_kl_weight(case: Case, estimator: KLEstimator) -> None:
    weights = [0.25 * individual for individual in range(case.k)]
    rewards = per_token_reward(
        case.scores, case.logp, case.ref_logp, case.mask, kl_weight=torch.tensor(weights).double(), estimator=estimator
    )
    for individual, weight in enumerate(weights):
        agree(rewards[individual], loop_rewards(case, individual, weight, estimator))


@cases
def test_policy_loss_and_its_gradient(case: Case) -> None:
    logp = case.logp.clone().requires_grad_()
    loss, stats = clipped_policy_loss(logp, case.old_logp, case.advantages, case.mask, clip_range=0.2)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None and not any(value.requires_grad for value in stats.values())
    for individual in range(case.k):
        expected, fraction, kl, gradient = loop_policy(case, individual, 0.2)
        agree(loss[individual], expected)
        agree(stats["clip_fraction"][individual], fraction)
        agree(stats["approx_kl"][individual], kl)
        agree(logp.grad[individual], gradient)


@cases
def test_value_loss_and_its_gradient(case: Case) -> None:
    values = case.values.clone().requires_grad_()
    loss = clipped_value_loss(values, case.old_values, case.returns, case.mask, clip_range=0.2)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    for individual in range(case.k):
        expected, gradient = loop_value(case, individual, 0.2)
        agree(loss[individual], expected)
        agree(values.grad[individual], gradient)


def test_gradients_equal_finite_differences() -> None:
    case = CASES[0]

    def policy(logp: Tensor) -> Tensor:
        return clipped_policy_loss(logp, case.old_logp, case.advantages, case.mask, clip_range=0.2)[0]

    def value(values: Tensor) -> Tensor:
        return clipped_value_loss(values, case.old_values, case.returns, case.mask, clip_range=0.2)

    def entropy(logits: Tensor) -> Tensor:
        return masked_mean(entropy_from_logits(logits.reshape(*logits.shape[:-1], 3, 2)), case.mask[..., :3])

    for function, inputs in ((policy, case.logp), (value, case.values), (entropy, case.logp)):
        assert torch.autograd.gradcheck(function, inputs.clone().requires_grad_())


def test_kl_estimators() -> None:
    logp, ref = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    agree(k1_kl(logp, ref), [float(p) - float(q) for p, q in zip(logp, ref, strict=True)])
    agree(k3_kl(logp, ref), [math.exp(q - p) - 1 - (q - p) for p, q in zip(logp.tolist(), ref.tolist(), strict=True)])
    assert (k3_kl(logp, ref) >= 0).all()
    # Both average to the KL itself when the tokens are the policy's own: sum over the vocabulary with its weights.
    policy, reference = logp.log_softmax(0), ref.log_softmax(0)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy), torch.distributions.Categorical(logits=reference)
    )
    agree((policy.exp() * k1_kl(policy, reference)).sum(), exact)
    agree((policy.exp() * k3_kl(policy, reference)).sum(), exact)


def test_entropy() -> None:
    logits = 3 * torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[0, 2] = -math.inf
    logits.requires_grad_()
    expected = []
    for row in logits.tolist():
        weights = [math.exp(value) for value in row]
        chances = [weight / math.fsum(weights) for weight in weights]
        expected.append(-math.fsum(chance * math.log(chance) for chance in chances if chance > 0))
    entropy = entropy_from_logits(logits)
    agree(entropy, expected)
    entropy.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad.isfinite().all()


def everything(case: Case, at: slice, *, garbage: float = 0.0) -> list[Tensor]:
    """All results, gradients too, for some of the individuals, with `garbage` outside the mask."""

    def taken(x: Tensor) -> Tensor:
        return torch.where(case.mask, x, garbage)[at].clone()

    mask, logp, values = case.mask[at], taken(case.logp).requires_grad_(), taken(case.values).requires_grad_()
    old_logp, advantages = taken(case.old_logp), taken(case.advantages)
    loss, stats = clipped_policy_loss(logp, old_logp, advantages, mask, clip_range=0.2)
    value_loss = clipped_value_loss(values, taken(case.old_values), taken(case.returns), mask, clip_range=0.2)
    (loss + value_loss).sum().backward()  # type: ignore[no-untyped-call]
    rewards = per_token_reward(case.scores[at], old_logp, taken(case.ref_logp), mask, kl_weight=0.1, estimator="k3")
    taken_rewards = torch.where(mask, rewards, garbage)
    gained = generalized_advantages(taken_rewards, values.detach(), mask, discount=0.9, trace_decay=0.8)
    assert logp.grad is not None and values.grad is not None
    results = [loss, value_loss, *stats.values(), logp.grad, values.grad, rewards, *gained, whiten(advantages, mask)]
    return [result.detach() for result in results]


@cases
def test_individuals_do_not_mix(case: Case) -> None:
    together = everything(case, slice(None))
    for individual in range(case.k):
        alone = everything(case, slice(individual, individual + 1))
        for mine, ours in zip(alone, together, strict=True):
            agree(mine[0], ours[individual], tolerance=1e-14)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e300])
def test_what_lies_outside_the_mask_changes_nothing(garbage: float) -> None:
    clean, dirty = (everything(CASES[0], slice(None), garbage=value) for value in (0.0, garbage))
    for index, (mine, theirs) in enumerate(zip(dirty, clean, strict=True)):
        assert torch.equal(mine, theirs), index


def test_an_individual_without_tokens_gets_zeros() -> None:
    x, nothing = torch.full((1, 2, 3), math.nan), torch.zeros(1, 2, 3)
    zero = torch.zeros(1)
    assert torch.equal(masked_mean(x, nothing), zero) and torch.equal(masked_variance(x, nothing), zero)
    assert torch.equal(clipped_policy_loss(x, x, x, nothing, clip_range=0.2)[0], zero)
    assert torch.equal(clipped_value_loss(x, x, x, nothing, clip_range=0.2), zero)
    rewards = per_token_reward(torch.ones(1, 2), x, x, nothing, kl_weight=0.1, estimator="k1")
    assert torch.equal(rewards, nothing) and torch.equal(whiten(x, nothing), nothing)


# --- TRL's own trainer ------------------------------------------------------------------------------------------------

ORACLE = Path(__file__).parents[2] / "build" / "oracles" / "trl-1.12.0"
# What `import trl.experimental.ppo` loads beyond this project's own dependencies, by name, for pip runs without --deps.
REQUIREMENTS = (
    "trl==1.12.0",
    "datasets==5.2.0",
    "pandas==3.1.1",
    "pyarrow==26.0.1",
    "python-dateutil==4.0.0",
    "dill==0.4.1",
    "multiprocess==0.70.19",
    "xxhash==4.1.0",
)
DISCOUNT, TRACE_DECAY, CLIP, VALUE_CLIP, KL_WEIGHT = 0.97, 0.9, 0.2, 0.3, 0.4
RUNS: dict[str, dict[str, Any]] = {
    "k1": {"kl_estimator": "k1", "whiten_rewards": False},
    "k3": {"kl_estimator": "k3", "whiten_rewards": True},
}


def install_trl() -> None:
    """Put TRL into ORACLE unless it is there; whole or not at all, so that two runs at once do no harm."""
    if ORACLE.exists():
        return
    ORACLE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ORACLE.parent) as folder:
        target = Path(folder) / "site"
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1", "--target", str(target)]
        try:
            subprocess.run([*command, *REQUIREMENTS], capture_output=True, text=True, timeout=300, check=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"TRL 1.12.0 could not be installed: {error.stderr.strip()[-300:]}")
        except subprocess.TimeoutExpired:
            pytest.skip("TRL 1.12.0 could not be installed within five minutes")
        with contextlib.suppress(OSError):  # another run was first
            target.rename(ORACLE)


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What TRL's trainer held in its local variables, by `run/variable` or `run/epoch/variable`."""
    install_trl()
    folder = tmp_path_factory.mktemp("trl")
    environment = {**os.environ, "PYTHONPATH": str(ORACLE), "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder / "trl.safetensors")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "trl.safetensors")


def run_trl(path: str) -> None:
    """Run PPOTrainer.train() on a tiny random GPT-2 in float64 and save its local variables. TRL must be importable."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, set_seed
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

    torch.set_default_dtype(torch.float64)
    end, padding = 4, 7  # few tokens: an early end is common; padding lies outside them: no sample looks like it
    config = GPT2Config(
        vocab_size=5, n_positions=16, n_embd=16, n_layer=2, n_head=2, num_labels=1, initializer_range=0.3
    )
    config.eos_token_id = config.bos_token_id = end
    prompts = [[padding] * (i % 3) + [1, 2, 3, i % 4][i % 3 :] for i in range(16)]
    recorded: dict[str, Tensor] = {}
    masked_mean_of_trl = ppo_trainer.masked_mean

    def train(name: str, options: dict[str, Any]) -> None:
        set_seed(0)
        models = [GPT2LMHeadModel(config), GPT2LMHeadModel(config)]
        critics = [GPT2ForSequenceClassification(config), GPT2ForSequenceClassification(config)]
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir="unused", per_device_train_batch_size=16, num_mini_batches=1, num_ppo_epochs=3,
                total_episodes=16, response_length=7, stop_token="eos", bf16=False, use_cpu=True, report_to=[],
                save_strategy="no", num_sample_generations=0, learning_rate=0.003, gamma=DISCOUNT, lam=TRACE_DECAY,
                cliprange=CLIP, cliprange_value=VALUE_CLIP, kl_coef=KL_WEIGHT, vf_coef=1.0, disable_tqdm=True,
                **options,
            ),
            processing_class=SimpleNamespace(pad_token_id=padding, eos_token_id=end),
            model=models[0], ref_model=models[1], reward_model=critics[0], value_model=critics[1],
            train_dataset=[{"input_ids": prompt} for prompt in prompts],
            data_collator=lambda batch: {"input_ids": torch.tensor([row["input_ids"] for row in batch])},
        )  # fmt: skip

        def keep(values: dict[str, Any], prefix: str, names: str) -> None:
            recorded.update({f"{prefix}/{key}": values[key].detach().clone() for key in names.split()})

        # TRL calls masked_mean for the value loss, its clip fraction, the policy loss and, after the backward pass, the
        # policy's clip fraction; the caller's frame shows what it holds at that moment.
        def spy(values: Tensor, mask: Tensor, axis: Any = None) -> Any:
            frame = sys._getframe(1)
            if frame.f_code.co_name == "train":
                held = frame.f_locals
                if "logprobs_diff" not in held:
                    held["vpred"].retain_grad()
                elif "pg_loss" not in held:
                    held["new_logprobs"].retain_grad()
                else:
                    prefix = f"{name}/{held['ppo_epoch_idx']}"
                    keep(held, prefix, "new_logprobs vpred logits pg_loss vf_loss")
                    recorded[f"{prefix}/rows"] = torch.as_tensor(held["micro_batch_inds"])
                    recorded[f"{prefix}/logp_gradient"] = held["new_logprobs"].grad.clone()
                    recorded[f"{prefix}/value_gradient"] = held["vpred"].grad.clone()
            return masked_mean_of_trl(values, mask, axis)

        def log(_metrics: dict[str, float]) -> None:
            held = sys._getframe(1).f_locals
            keep(held, name, "logprobs ref_logprobs values scores padding_mask padding_mask_p1 responses kl rewards")
            keep(held, name, "advantages returns approxkl_stats pg_clipfrac_stats entropy_stats")

        ppo_trainer.masked_mean, trainer.log = spy, log
        trainer.train()

    for name, options in RUNS.items():
        train(name, options)
    save_file(recorded, path)


def same(mine: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


class TrlRun:
    """One of TRL's runs, its tensors given a leading dimension of one individual."""

    def __init__(self, recorded: dict[str, Tensor], name: str) -> None:
        self.tensors = {key.removeprefix(f"{name}/"): x for key, x in recorded.items() if key.startswith(f"{name}/")}
        self.mask = ~self["padding_mask"]
        # One position longer where there is room: TRL counts the end of an early EOS as a step of its own.
        self.long_mask = ~self["padding_mask_p1"]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key][None]


runs = pytest.mark.parametrize("name", RUNS)


@runs
def test_trl_run_is_a_real_test(trl: dict[str, Tensor], name: str) -> None:
    run = TrlRun(trl, name)
    lengths = run.mask.sum(-1)
    # The sampled log-probabilities are float32, for so are the scores that `generate` returns; the rest is float64.
    assert {run[key].dtype for key in ("ref_logprobs", "advantages", "0/new_logprobs")} == {torch.float64}
    assert lengths.min() == 1 and lengths.max() == 7 and len(set(lengths.flatten().tolist())) > 3
    assert 0 < run["pg_clipfrac_stats"].max() < 1 and run["kl"].abs().max() > 0.1
    ended = run["responses"].eq(4).long()
    assert torch.equal(run.mask, ended.cumsum(-1) - ended == 0)


@runs
def test_rewards_advantages_and_returns_equal_trls(trl: dict[str, Tensor], name: str) -> None:
    run = TrlRun(trl, name)
    rewards = per_token_reward(
        run["scores"], run["logprobs"], run["ref_logprobs"], run.long_mask, kl_weight=KL_WEIGHT,
        estimator=RUNS[name]["kl_estimator"],
    )  # fmt: skip
    if RUNS[name]["whiten_rewards"]:
        rewards = whiten(rewards, run.long_mask, shift_mean=False)
    same(rewards, run["rewards"])
    advantages, returns = generalized_advantages(
        rewards, run["values"], run.long_mask, discount=DISCOUNT, trace_decay=TRACE_DECAY
    )
    same(returns, run["returns"])
    same(whiten(advantages, run.mask), run["advantages"])


@runs
def test_advantages_of_full_length_rows_equal_trls_without_its_extra_step(trl: dict[str, Tensor], name: str) -> None:
    run = TrlRun(trl, name)
    full = run.mask.all(-1)[0]
    assert full.sum() > 1
    rewards, values, mask = run["rewards"][:, full], run["values"][:, full], run.mask[:, full]
    _, returns = generalized_advantages(rewards, values, mask, discount=DISCOUNT, trace_decay=TRACE_DECAY)
    same(returns, run["returns"][:, full])


@runs
@pytest.mark.parametrize("epoch", range(3))
def test_losses_statistics_and_gradients_equal_trls(trl: dict[str, Tensor], name: str, epoch: int) -> None:
    run = TrlRun(trl, name)
    rows = run.tensors[f"{epoch}/rows"]

    def batch(key: str) -> Tensor:
        return run[key][:, rows]

    mask, long_mask = run.mask[:, rows], run.long_mask[:, rows]
    logp, values = run[f"{epoch}/new_logprobs"].requires_grad_(), run[f"{epoch}/vpred"].requires_grad_()
    loss, stats = clipped_policy_loss(logp, batch("logprobs"), batch("advantages"), mask, clip_range=CLIP)
    value_loss = clipped_value_loss(values, batch("values"), batch("returns"), long_mask, clip_range=VALUE_CLIP)
    (loss + value_loss).sum().backward()  # type: ignore[no-untyped-call]
    same(loss, run[f"{epoch}/pg_loss"])
    same(value_loss, run[f"{epoch}/vf_loss"])
    assert logp.grad is not None and values.grad is not None
    # TRL fills with a constant outside its masks, which stops the gradient there; ours is zero there too.
    same(logp.grad, run[f"{epoch}/logp_gradient"])
    same(values.grad, run[f"{epoch}/value_gradient"])
    # TRL takes this mean in float32.
    same(stats["clip_fraction"], run["pg_clipfrac_stats"][:, epoch, 0, 0], tolerance=1e-7)
    # TRL averages this one over padding too.
    same(stats["approx_kl"] * mask.double().mean(), run["approxkl_stats"][:, epoch, 0, 0])
    same(entropy_from_logits(run[f"{epoch}/logits"]).mean()[None], run["entropy_stats"][:, epoch, 0, 0])


if __name__ == "__main__":
    run_trl(sys.argv[1])
