"""Rewards by sequence classifiers of transformers: a label's probability, a reward model's score."""

from collections.abc import Sequence
from typing import Any

from evolora.errors import InputError
from evolora.models.sequence_scores import check_batch_size, classifier_outputs, load_classifier, model_version, written
from evolora.rewards.base import Reward


class Classifier:
    """The probability of a label, by any sequence classifier: softmax over the labels, or, where the model says that it
    is a multi-label one, the sigmoid of the label's own output. In [0, 1]."""

    __name__ = "classifier"

    def __init__(self, model: str, label: str, *, device: str, batch_size: int, with_prompt: bool) -> None:
        self.model, self.tokenizer = load_classifier("classifier", model, device)
        self.batch_size = batch_size
        self.with_prompt = with_prompt
        labels = {int(index): str(name) for index, name in self.model.config.id2label.items()}
        found = [index for index, name in labels.items() if name.casefold() == label.casefold()]
        if len(found) != 1:
            raise InputError(
                f"reward classifier: label is {label!r}, expected one of the model's, {', '.join(labels.values())}."
            )
        self.label = found[0]
        self.version = f"{model_version(model)} {self.label} {with_prompt}"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float | None]:
        texts = [p + c for p, c in zip(prompts, completions, strict=True)] if self.with_prompt else list(completions)
        outputs = classifier_outputs(self.model, self.tokenizer, texts, self.batch_size)
        several = self.model.config.problem_type == "multi_label_classification"
        probabilities = outputs.sigmoid() if several else outputs.softmax(dim=1)
        return [float(value) for value in probabilities[:, self.label]]


class RewardModelReward:
    """The score of a reward model: any sequence classifier with one output.

    It reads the chat template of its tokenizer, with the prompt as the user's message (or the data's own messages) and
    the completion as the assistant's; without a template, prompt and completion and the end of the text.
    """

    __name__ = "reward-model"

    def __init__(self, model: str, *, device: str, batch_size: int, scale: str) -> None:
        self.model, self.tokenizer = load_classifier("reward-model", model, device)
        self.batch_size = batch_size
        self.scale = scale
        if self.model.config.num_labels != 1:
            raise InputError(
                f"reward reward-model: model is {model!r} with {self.model.config.num_labels} outputs, expected one; "
                "the reward classifier takes the probability of a label."
            )
        self.version = f"{model_version(model)} {scale}"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: object) -> list[float | None]:
        scores = classifier_outputs(self.model, self.tokenizer, self._texts(prompts, completions), self.batch_size)
        values = scores[:, 0].sigmoid() if self.scale == "sigmoid" else scores[:, 0]
        return [float(value) for value in values]

    def _texts(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[str]:
        if not self.tokenizer.chat_template:
            plain = [_plain(completion) for completion in completions]
            return written(self.tokenizer, [_plain(prompt) for prompt in prompts], plain)
        return [
            str(self.tokenizer.apply_chat_template(_chat(prompt, "user") + _chat(text, "assistant"), tokenize=False))
            for prompt, text in zip(prompts, completions, strict=True)
        ]


def _chat(text: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else "\n".join(str(message["content"]) for message in text)


def make_classifier(
    *, model: str, label: str, device: str = "cpu", batch_size: int = 32, with_prompt: bool = False
) -> Reward:
    """`Classifier`. Raises InputError for a model that cannot be loaded, and for a label that it does not have."""
    check_batch_size("classifier", batch_size)
    return Classifier(model, label, device=device, batch_size=batch_size, with_prompt=with_prompt)


def make_reward_model(*, model: str, device: str = "cpu", batch_size: int = 32, scale: str = "none") -> Reward:
    """`RewardModelReward`. `scale` sigmoid brings the score into (0, 1), none leaves it as it is. Raises InputError for
    a model that cannot be loaded, or has more than one output."""
    check_batch_size("reward-model", batch_size)
    if scale not in ("none", "sigmoid"):
        raise InputError(f"reward reward-model: scale is {scale!r}, expected none or sigmoid.")
    return RewardModelReward(model, device=device, batch_size=batch_size, scale=scale)
