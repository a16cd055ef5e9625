"""The loop that the project was first sketched as, repaired so that it runs, and else left as it was: a list of LoRA
state dicts that are set one at a time into one PEFT model, prompts that are generated one by one, children by uniform
crossover and Gaussian mutation, and a plain policy gradient (REINFORCE, Williams, 1992) on the best.

Its answer is the best of the last generation on that generation's few prompts: there is no validation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from evolora.models.lora import as_peft_model, set_state
from evolora.rewards import Reward, RewardScorer
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.tasks.task import Example, columns_of
from study.budget import Budget, Meter, Point

State = dict[str, Tensor]

INDIVIDUALS, ELITES, PROMPTS = 8, 2, 8
SIGMA, LR = 0.02, 1e-3
OPTIONS = {"pop": INDIVIDUALS, "elites": ELITES, "prompts": PROMPTS, "sigma": SIGMA, "lr": LR}


def sketch(parts: Parts, reward: Reward, seed: int, budget: Budget) -> list[Point]:
    """A point with the best adapter for each generation."""
    founder = parts.layout.to_state_dict(parts.founder)
    points: list[Point] = []
    model = as_peft_model(parts.base.model, parts.lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "sketch"))
        loop = _Loop(parts, model, RewardScorer(reward))
        population = [founder, *(_mutate(founder) for _ in range(INDIVIDUALS - 1))]
        while not points or not budget.over(len(points), loop.meter.seconds):
            order = torch.randperm(len(parts.task.train))[:PROMPTS].tolist()
            examples = [parts.task.train[index] for index in order]
            fitness = [loop.fitness(state, examples) for state in population]
            ranked = sorted(range(INDIVIDUALS), key=lambda row: -fitness[row])
            best = loop.fine_tune(population[ranked[0]], examples)
            parents = [best, *(population[row] for row in ranked[1 : INDIVIDUALS // 2])]
            children = [_child(parents) for _ in range(INDIVIDUALS - ELITES)]
            population = [*parents[:ELITES], *children]
            genome = parts.layout.from_state_dict(best)
            points.append(Point(loop.meter.seconds, loop.meter.tokens, loop.meter.flops, genome=genome))
    return points


def _mutate(state: State) -> State:
    return {name: value + SIGMA * torch.randn_like(value) for name, value in state.items()}


def _child(parents: Sequence[State]) -> State:
    one, other = (parents[index] for index in torch.randperm(len(parents))[:2].tolist())
    mixed = {name: torch.where(torch.rand_like(value) < 0.5, value, other[name]) for name, value in one.items()}
    return _mutate(mixed)


class _Loop:
    def __init__(self, parts: Parts, model: PeftModel, scorer: RewardScorer) -> None:
        self.parts, self.model, self.scorer = parts, model, scorer
        self.meter = Meter(model)

    def fitness(self, state: State, examples: Sequence[Example]) -> float:
        set_state(self.model, state)
        written = [self._generate(example.prompt, sample=False)[1] for example in examples]
        return sum(self._rewards(examples, written)) / len(examples)

    def fine_tune(self, state: State, examples: Sequence[Example]) -> State:
        """One step of the policy gradient with the mean reward as the baseline."""
        set_state(self.model, state)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(weights, lr=LR)
        written = [self._generate(example.prompt, sample=True) for example in examples]
        rewards = self._rewards(examples, [new for _, new in written])
        baseline = sum(rewards) / len(rewards)
        loss = torch.zeros(())
        for (prompt, new), reward in zip(written, rewards, strict=True):
            ids = torch.tensor([[*prompt, *new]])
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits, -1)[torch.arange(len(new)), torch.tensor(new)]
            loss = loss - (reward - baseline) * log_probs.sum() / len(examples)
            self.meter.trained(len(prompt) + len(new))
        loss.backward()
        optimiser.step()
        return {name: value.detach().clone() for name, value in get_peft_model_state_dict(self.model).items()}

    def _generate(self, prompt: str, *, sample: bool) -> tuple[list[int], list[int]]:
        tokenizer = self.parts.base.tokenizer
        batch = tokenizer([prompt], return_tensors="pt")
        how: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
        with torch.no_grad():
            ids = self.model.generate(
                **batch,
                **how,
                max_new_tokens=self.parts.max_new_tokens,
                eos_token_id=list(self.parts.text.ends),
                pad_token_id=tokenizer.pad_token_id,
            )[0].tolist()
        length = batch["input_ids"].shape[1]
        self.meter.generated(length, len(ids) - length)
        return ids[:length], ids[length:]

    def _rewards(self, examples: Sequence[Example], written: list[list[int]]) -> list[float]:
        scores = self.scorer.score(
            prompts=[example.prompt for example in examples],
            completions=[str(self.parts.base.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written],
            columns=columns_of(examples),
            completion_ids=written,
        )
        return [float(reward) for reward in scores.rewards]
