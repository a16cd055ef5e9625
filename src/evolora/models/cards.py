"""Model cards, whoever wrote them: their metadata by huggingface_hub, which the hub reads alike."""

from huggingface_hub import ModelCard

from evolora.errors import InputError

CARD = "README.md"
"""Beside an adapter, its model card, which people edit."""
USE = "\n## Use\n"
"""Above what says how to load it."""
CHAT = "conversational"
"""The tag of what answers chat messages."""

_USE_MERGED = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("this folder", padding_side="left")
```
"""


def based_on(card: str, base: str | None) -> str:
    """The card with the hub's name of its base model; without any where it has none."""
    read = _read(card)
    read.data["base_model"] = base
    # The hub makes them of the base model; PEFT writes one of whatever was loaded, a folder too.
    read.data["tags"] = [tag for tag in read.data.get("tags") or [] if not str(tag).startswith("base_model:")] or None
    return str(read)


def of_merged(card: str) -> str:
    """An adapter's card as that of the model that it is merged into."""
    read = _read(card)
    read.data["library_name"] = "transformers"
    if read.data.get("base_model") is not None:
        read.data["base_model_relation"] = "finetune"
    text, _, _ = read.text.replace("# LoRA adapter for ", "# Model with a merged LoRA adapter for ", 1).partition(USE)
    read.text = text + USE + _USE_MERGED
    return str(read)


def tags(card: str) -> list[str]:
    """The tags of a card; none where they cannot be read."""
    try:
        return list(_read(card).data.get("tags") or [])
    except InputError:
        return []


def _read(card: str) -> ModelCard:
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except Exception as error:  # YAML's own, or that of metadata which is no card's
        reason = " ".join(str(error).split())
        raise InputError(f"{CARD}: its metadata cannot be read ({reason:.200}), expected YAML") from None
