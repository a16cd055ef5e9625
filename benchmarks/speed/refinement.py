"""Refinement: a GRPO update against TRL's, and k elites together against one after another."""

import copy
import gc
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer

from evolora import PPOConfig
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import BUNDLED_MODEL, load_base
from evolora.refiners import GRPOConfig, GRPORefiner, PPORefiner
from evolora.rewards import RewardScorer, load_reward
from evolora.tasks.task import Example, load_task
from speed import machine
from speed.subjects import PROMPTS, Subject
from speed.timing import alternate, median, seconds_of

GROUP = 8
COMPLETION = 20
LEARNING_RATE = 1e-5
WARM_UP = 4  # two updates with each number of TRL's threads
ELITES = 4
TRANSLATION = 11  # new tokens that evolora allows on the bundled translation task


def even_words(completions: list[str], **_: object) -> list[float]:
    """A reward that costs nothing and differs within a group: the share of words with an even number."""
    return [sum(word[-1] in "02468" for word in text.split()) / COMPLETION for text in completions]


def grpo_update(subject: Subject, repeats: int) -> dict[str, Any]:
    """One update: a rollout of 8 prompts x 8 completions of full length, and one optimiser step on it.

    TRL trains; after each of its steps, while its clock stands, evolora makes one update.
    """
    clock = _Clock(_evolora_update(subject), subject)
    with TemporaryDirectory() as folder:
        trainer = _trl_trainer(subject, folder, WARM_UP + repeats, clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    tokens = PROMPTS * GROUP * COMPLETION
    if clock.ours_tokens != [tokens] * (WARM_UP + repeats):
        raise RuntimeError(f"evolora's completions are not of full length: {clock.ours_tokens}, expected {tokens}")
    if clock.trl_tokens(trainer) != COMPLETION:
        raise RuntimeError(f"TRL's completions are not of full length: {clock.trl_tokens(trainer)} tokens on average")
    return {
        "part": "refinement",
        "model": subject.name,
        "prompts": PROMPTS,
        "group": GROUP,
        "completion": COMPLETION,
        "lengths": "all completions are of full length, on both sides: their end cannot be written",
        "epochs": 1,
        "repeats": repeats,
        "sides": {
            name: {
                "median": median(times[WARM_UP:]),
                "seconds": times[WARM_UP:],
                "warm_up": times[:WARM_UP],
                "threads": threads,
            }
            for name, times, threads in (("evolora", clock.ours, subject.threads), ("TRL", clock.trl, clock.threads))
        },
        "machine": machine.describe(),
    }


def _evolora_update(subject: Subject) -> Callable[[], int]:
    """A function that makes one update of the founder, and returns the number of tokens it wrote."""
    refiner = GRPORefiner(
        subject.engine(),
        Text.of(subject.own(), subject.tokenizer),
        RewardScorer(even_words),
        GRPOConfig(
            lr=LEARNING_RATE,
            rl_steps=1,
            rollout_samples=GROUP,
            epochs=1,
            minibatches=1,
            kl_weight=0.0,
            target_kl=None,
            max_new_tokens=COMPLETION,
        ),
        seed=0,
    )
    examples = [Example(text, {}) for text in subject.prompt_texts()]
    genomes = subject.founder[None]
    updates = 0

    def update() -> int:
        nonlocal genomes, updates
        refinement = refiner.refine(genomes, examples, key=[(updates, 0)])
        if torch.equal(refinement.genomes, genomes):
            raise RuntimeError("the update changed nothing")
        genomes, updates = refinement.genomes, updates + 1
        return refinement.costs.by_purpose["rollout"].tokens

    return update


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Stamps TRL's steps, and makes an evolora update between them. TRL has as many threads as it is fastest with."""

    def __init__(self, ours: Callable[[], int], subject: Subject) -> None:
        self.update = ours
        self.counts = (subject.threads_an_operation, subject.threads)
        self.threads = self.counts[0]
        self.ours: list[float] = []
        self.ours_tokens: list[int] = []
        self.trl: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        del args, state, control
        if len(self.trl) < WARM_UP:
            self.threads = self.counts[len(self.trl) * 2 // WARM_UP]
        elif len(self.trl) == WARM_UP:
            self.threads = self.counts[self.trl[WARM_UP // 2 - 1] > self.trl[WARM_UP - 1]]
        torch.set_num_threads(self.threads)
        gc.collect()
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        del args, state, control
        self.trl.append(time.perf_counter() - self._started)
        if torch.get_num_threads() != self.threads:
            raise RuntimeError(f"TRL's threads were changed to {torch.get_num_threads()}")
        torch.set_num_threads(self.counts[0])
        self.ours.append(seconds_of(lambda: self.ours_tokens.append(self.update())))

    def trl_tokens(self, trainer: GRPOTrainer) -> float:
        """TRL's own figure of the completions' mean length, over all steps."""
        return float(trainer.state.log_history[-1]["completions/mean_length"])


def _trl_trainer(subject: Subject, folder: str, steps: int, clock: TrainerCallback) -> GRPOTrainer:
    lora = copy.deepcopy(subject.lora)
    lora.lora_dropout = 0.0
    config = TRLConfig(
        output_dir=folder,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=COMPLETION,
        max_steps=steps,
        num_iterations=1,
        beta=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        # Everything that is no part of an update is off, and so is what trades time for memory.
        disable_dropout=True,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    return GRPOTrainer(
        model=subject.stock(),
        reward_funcs=even_words,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": subject.prompt_texts()}),
        processing_class=subject.tokenizer,
        peft_config=lora,
        callbacks=[clock],
    )


def elites_together(subject: Subject, repeats: int) -> dict[str, Any]:
    """PPO on four elites in one batch against four refinements of one: the bundled translation task as a run has it,
    with its reward and completions that end by themselves, but 8 prompts a rollout."""
    base, task = load_base(BUNDLED_MODEL), load_task(task="translate")
    refiner = PPORefiner(
        choose_engine(base.model, subject.layout, threads=subject.threads).engine,
        Text.of(base.model, base.tokenizer),
        RewardScorer(load_reward(task.reward)),
        # No early stop: both sides make all their updates.
        PPOConfig(max_new_tokens=TRANSLATION, target_kl=None),
        seed=0,
        dropout=0.05,
    )
    examples = task.train[:PROMPTS]
    genomes = subject.genomes(ELITES)

    def together() -> None:
        refiner.refine(genomes, examples, key=[(0, index) for index in range(ELITES)])

    def one_after_another() -> None:
        for index in range(ELITES):
            refiner.refine(genomes[index : index + 1], examples, key=[(0, index)])

    sides = {"together": together, "one after another": one_after_another}
    for side in sides.values():
        side()
    seconds = alternate(sides, repeats)
    return {
        "part": "elites",
        "model": subject.name,
        "elites": ELITES,
        "prompts": PROMPTS,
        "completion": TRANSLATION,
        "lengths": "completions end by themselves",
        "rl_steps": refiner.config.rl_steps,
        "epochs": refiner.config.epochs,
        "repeats": repeats,
        "sides": {
            name: {"median": median(times), "seconds": times, "threads": subject.threads}
            for name, times in seconds.items()
        },
        "machine": machine.describe(),
    }
