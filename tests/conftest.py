"""Tiny random models of several architectures, saved as folders that `load_base` loads."""

import atexit
import os
import shutil
import tempfile

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="evolora-state-")  # no test writes into the user's own
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: no test may reach the hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
torch.set_num_threads(1)
# A suite that runs in the background has them ignored, and so would the commands that it starts.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
# An example that compiles a function, or meets a busy machine, is slow and not wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

VOCABULARY = 100
END = 0
ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3", "gpt_neox")


def _gated(**more: int) -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "initializer_range": 0.2,
        **more,
    }


def random_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A model whose random weights are large enough that its greedy text is varied. An "uneven gpt2" has biases and
    normalisations, too, that are not all the same."""
    if architecture == "uneven gpt2":
        model, generator = random_model("gpt2", seed), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=VOCABULARY,
                    n_embd=32,
                    n_layer=2,
                    n_head=4,
                    n_positions=64,
                    bos_token_id=END,
                    eos_token_id=END,
                    initializer_range=0.2,
                )
            )
        if architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**_gated()))
        if architecture == "qwen2":
            return Qwen2ForCausalLM(Qwen2Config(**_gated()))
        if architecture == "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**_gated(head_dim=8)))
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=64,
                bos_token_id=END,
                eos_token_id=END,
                initializer_range=0.2,
            )
        )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["the cat sat on the mat", "a dog ran to the red house", "one two three four five", "4 + 3 = 7"]
    # The vocabulary starts with <|end|> and the characters of the text; merges fill it as far as they go.
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


@pytest.fixture(scope="session")
def model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[[str], Path]:
    """The folder of a tiny model, by architecture; made once."""
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            path = tmp_path_factory.mktemp(architecture)
            random_model(architecture).save_pretrained(path)
            tiny_tokenizer.save_pretrained(path)
            made[architecture] = path
        return made[architecture]

    return folder


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)
