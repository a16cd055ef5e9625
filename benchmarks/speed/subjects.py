"""The models that are measured, their prompts and their genomes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from evolora.engine.base import Engine
from evolora.engine.calibration import available_cores, choose_threads, threads_an_operation
from evolora.engine.choose import choose_engine
from evolora.models.base import BUNDLED_MODEL, given_base, model_path
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.rng import keyed_generator

MODELS = ("tiny", "124M")
PROMPTS = 8
PAD = 0
# Standard deviations of the genomes' entries: large enough for the individuals' texts to differ and not to loop.
_GENOME_SCALE = {"tiny": 0.05, "124M": 0.1}


@dataclass(frozen=True)
class Subject:
    """A base model in a folder, and how its adapters are laid out. Each side loads it anew: sides wrap, hook or rebuild
    it."""

    name: str
    folder: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerFast
    lora: LoraConfig
    layout: GenomeLayout
    founder: Tensor
    threads: int
    threads_an_operation: int  # as evolora sets them

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    @property
    def never(self) -> int:
        """An end-of-sequence id that the model cannot write: every row then runs its full length, on every side at the
        same cost."""
        return self.vocabulary

    def stock(self) -> PreTrainedModel:
        """The model as transformers loads it, for the other sides."""
        return AutoModelForCausalLM.from_pretrained(self.folder).requires_grad_(False).eval()

    def own(self) -> PreTrainedModel:
        """The model as evolora loads it."""
        return given_base(self.stock(), self.tokenizer).model

    def engine(self) -> Engine:
        """What evolora asks that model through: the engine that it chooses, on all threads."""
        return choose_engine(self.own(), self.layout, threads=self.threads).engine

    def genomes(self, n: int) -> Tensor:
        """`n` different individuals, [n, genome_length]. Individual i is the same whatever n."""
        generator = keyed_generator(0, "benchmark genomes", self.name)
        return torch.randn(n, self.layout.genome_length, generator=generator).mul_(_GENOME_SCALE.get(self.name, 0.1))

    def prompts(self, seed: int = 0) -> list[list[int]]:
        """Eight prompts of 4 to 20 random tokens. Token 0 only pads."""
        ids: list[list[int]] = self.tokenizer(self.prompt_texts(seed))["input_ids"]
        return ids

    def prompt_texts(self, seed: int = 0) -> list[str]:
        generator = keyed_generator(seed, "benchmark prompts", self.name)
        lengths = [round(4 + 16 * index / (PROMPTS - 1)) for index in range(PROMPTS)]
        return [
            " ".join(
                f"w{token}" for token in torch.randint(1, self.vocabulary, (length,), generator=generator).tolist()
            )
            for length in lengths
        ]


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the token ids themselves ("w17" is 17), so that prompts have the length one asks for.

    Its end of sequence lies just outside the model's vocabulary; see `Subject.never`.
    """
    words = {f"w{index}": index for index in range(vocabulary)} | {"<end>": vocabulary}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="<end>", unk_token="w0", padding_side="left"
    )


@contextmanager
def subjects_folder() -> Iterator[Path]:
    """A folder in which the models' weights lie for the length of a benchmark."""
    with TemporaryDirectory(prefix="evolora-bench-") as folder:
        yield Path(folder)


def load_subject(name: str, folder: Path, threads: int | None = None) -> Subject:
    """The bundled tiny model, or a GPT-2 of 124M parameters with random weights: time does not depend on them."""

    def made() -> PreTrainedModel:
        if name == "tiny":
            return AutoModelForCausalLM.from_pretrained(model_path(BUNDLED_MODEL))
        return GPT2LMHeadModel(GPT2Config())

    return subject_of(name, made, folder, threads=threads)


def subject_of(
    name: str,
    made: Callable[[], PreTrainedModel],
    folder: Path,
    *,
    threads: int | None = None,
    target_modules: str | None = None,
) -> Subject:
    """A model that `made` gives, with the first seed's weights; its folder is written once."""
    path = folder / name
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = made()
        vocabulary = model.config.vocab_size
        model.generation_config.eos_token_id = vocabulary
        model.generation_config.pad_token_id = PAD
        model.save_pretrained(path)
        word_tokenizer(vocabulary).save_pretrained(path)
    # Not by AutoTokenizer: some kinds of model have it take a tokenizer of theirs for any other.
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).requires_grad_(False).eval()
    base = given_base(model, word_tokenizer(model.config.vocab_size))
    lora = lora_config(base.model, target_modules=target_modules)
    layout, founder = lora_layout(base.model, lora, seed=0)
    threads = threads or choose_threads(base.model, available_cores())
    shared = threads_an_operation(base.model, threads)
    return Subject(name, str(path), base.model.config, base.tokenizer, lora, layout, founder, threads, shared)
