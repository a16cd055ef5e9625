"""The base model and its tokenizer."""

import copy
import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from evolora.errors import InputError
from evolora.files import is_sealed, verify
from evolora.models.foreign import check_model_folder, check_sizes, loading, refuse_code, weight_files
from evolora.models.options import BUNDLED_FOLDER, ModelOptions
from evolora.models.options import BUNDLED_MODEL as BUNDLED_MODEL
from evolora.models.quantization import (
    BITSANDBYTES,
    keep_weights_as_they_are,
    loading_options,
    need_bitsandbytes,
    quantised_by,
    refuse_infinite_files,
    shared_state,
)

TEMPLATE = "chat_template.jinja"
"""Where transformers writes a tokenizer's chat template."""
TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal LM, its tokenizer (left padding), the folder or hub name they came from, and of a hub name the
    commit."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    revision: str | None = None

    @property
    def folder(self) -> str:
        """Where its files are on this machine."""
        if self.revision is None:
            return self.path
        return str(Path(cached_file(self.path, "config.json", revision=self.revision)).parent)


def model_path(name: str) -> str:
    """Where a model is loaded from: the bundled one's folder, or `name` itself (a local folder or hub name)."""
    return BUNDLED_FOLDER if name == BUNDLED_MODEL else name


def dtype_on(device: str, name: str) -> torch.dtype:
    """The precision called `name`, or what `auto` comes to on a device: bfloat16 on a GPU that computes in it."""
    if name == "auto":
        half = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if half else torch.float32
    found: torch.dtype = getattr(torch, name)
    return found


def load_base(
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization: str | None = None,
    check: Callable[[Any], None] | None = None,
) -> BaseModel:
    """Load a causal LM, frozen and in evaluation mode, and its tokenizer: of a hub name all from the commit that its
    `revision` stands for; with the `dtype` auto in the precision of its files. Code that comes with it is run with
    `trust_remote_code` alone. By a `quantization`, `nf4` or `int8`, all its linear layers but the head are quantised;
    one that bitsandbytes quantised before it was saved stays as it is. `check` may refuse its configuration before any
    weights are read.

    Raises InputError when there is no such model, when it is no causal LM, when its weights are pickled, quantised by
    anything else, incomplete or not finite, when any of its files cannot be read, and when what quantises is missing or
    cannot compute there; CheckpointError when it is one of a run's folders and altered.
    """
    path, subject = model_path(name), f"--model {name}" if revision is None else f"--model {name} --revision {revision}"
    folder = Path(path)
    if quantization is not None:
        subject += f" --quantization {quantization}"
        need_bitsandbytes(f"--quantization {quantization}")
    if revision is not None and folder.is_dir():
        raise InputError(f"--revision {revision} with --model {name}: a folder has none, expected a hub name")
    if is_sealed(folder):
        verify(folder)
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{subject}: found a PEFT adapter, expected a base model; --init {name} starts from it, and "
            f"'evolora export {name} --to MODEL --merge' makes a model of it"
        )
    check_model_folder(subject, folder, trusted=trust_remote_code)
    with loading(subject):
        commit = None if folder.is_dir() else _commit(path, revision)
        source: dict[str, Any] = {
            "trust_remote_code": trust_remote_code,
            **({} if commit is None else {"revision": commit}),
        }
        if not trust_remote_code and not folder.is_dir():
            _refuse_unknown_code(subject, path, commit)
        config = AutoConfig.from_pretrained(path, **source)
        _refuse_other_kinds(subject, config, trusted=trust_remote_code)
        if saved_quantised := quantised_by(config) is not None:
            _check_quantised(subject, config, again=quantization is not None)
        check_sizes(subject, config, folder)
        if check is not None:
            check(config)
        tokenizer = _tokenizer(subject, path, **source)
        attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        if quantization is None and not saved_quantised:
            model = load_whole(AutoModelForCausalLM, path, dtype=dtype, **source, **attention).to(device)
        else:
            few_bits = loading_options(quantization, dtype, device)  # type: ignore[arg-type]
            model = load_whole(AutoModelForCausalLM, path, dtype=dtype, **source, **attention, **few_bits)
            keep_weights_as_they_are(model)
            base = BaseModel(model, tokenizer, path, commit)
            refuse_infinite_files([Path(base.folder) / name for name in weight_files(subject, Path(base.folder))])
        model.requires_grad_(False).eval()
        _try(model, tokenizer)
    return BaseModel(model, tokenizer, path, commit)


def _tokenizer(subject: str, path: str, **source: Any) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, padding_side="left", **source)
    # transformers makes an empty tokenizer where there is none.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{subject}: found no tokenizer with the model, expected one")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{subject}: its tokenizer has no end-of-sequence token, expected one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_tokenizer_of(base: BaseModel, adapter: Path) -> BaseModel:
    """The base with the tokenizer that lies in an adapter's folder, and with it the chat template that it was tuned
    with; as it is where there is none. Raises InputError for one that cannot be read."""
    if not (adapter / TOKENIZER).is_file():
        return base
    with loading(str(adapter)):
        return replace(base, tokenizer=_tokenizer(str(adapter), str(adapter), trust_remote_code=False))


def load_chosen(
    options: ModelOptions,
    *,
    device: str = "cpu",
    check: Callable[[Any], None] | None = None,
    as_stored: bool = False,
) -> BaseModel:
    """`load_base` of what the options say; `as_stored` in the precision of its files."""
    return load_base(
        options.name,
        device=device,
        dtype="auto" if as_stored else dtype_on(device, options.dtype),
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
        attn_implementation=options.attn_implementation,
        quantization=options.quantization,
        check=check,
    )


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub name stands for. Raises OSError where there is none."""
    commit: str | None = extract_commit_hash(cached_file(name, "config.json", revision=revision), None)
    return commit


def _refuse_unknown_code(subject: str, name: str, commit: str | None) -> None:
    """Of a kind that transformers knows, its own code runs, whatever comes with the model."""
    values, _ = PreTrainedConfig.get_config_dict(name, revision=commit)
    if "auto_map" in values and values.get("model_type") not in CONFIG_MAPPING_NAMES:
        refuse_code(subject, may_be_trusted=True)


def load_whole(kind: Any, path: str, *, new: str | None = None, **options: Any) -> Any:
    """A model of transformers' auto class `kind`, for whose missing tensors transformers would make up weights.

    Raises ValueError, naming one, for tensors that are missing, of another shape than the configuration says, or not
    finite. Of a module whose name begins with `new` nothing is expected.
    """
    model, info = kind.from_pretrained(
        path,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        **{"trust_remote_code": False, **options},
    )
    shapes = {name: f"{tuple(found)}, expected {tuple(right)}" for name, found, right in info["mismatched_keys"]}
    if shapes:
        name = min(shapes)
        raise ValueError(f"its tensor {name} is of shape {shapes[name]}{_more(shapes)}")
    if missing := {name for name in info["missing_keys"] if new is None or not name.startswith(new)}:
        raise ValueError(f"its weights lack the tensor {min(missing)}{_more(missing)}")
    _refuse_infinite(model)
    return model


def _refuse_infinite(model: PreTrainedModel) -> None:
    bad = [
        name
        for name, weight in model.named_parameters()
        # The extremes of a tensor with NaN are NaN: one pass, and no copy.
        if weight.is_floating_point() and weight.numel() and not torch.stack(weight.detach().aminmax()).isfinite().all()
    ]
    if bad:
        raise ValueError(f"its tensor {bad[0]} has values that are not finite in {model.dtype}{_more(bad)}")


def _more(names: Collection[str]) -> str:
    return f" ({len(names)} such in all)" if len(names) > 1 else ""


def _try(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compute one token, so that what a configuration asks for and cannot be done is found now. Raises anything."""
    ids = (tokenizer("a")["input_ids"] or [tokenizer.eos_token_id])[-1:]
    tokenizer.decode(ids)
    ends = getattr(model.generation_config, "eos_token_id", None)
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise ValueError(f"generation_config.json has eos_token_id {ends!r:.60}, expected a token's number or several")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids], dtype=torch.int64, device=model.device)).logits
    if not bool(logits.isfinite().all()):
        raise ValueError("what it computes is not finite")


def module_tree(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model's modules and config that shares its weights, frozen and in evaluation mode: hooks and layers
    of somebody's own may go in there, and the model itself stays as it is."""
    shared: dict[int, Any] = shared_state(model) | {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        # One that is trained elsewhere is another parameter here, of the same memory.
        shared[id(weight)] = nn.Parameter(weight.detach(), requires_grad=False) if weight.requires_grad else weight
    tree: PreTrainedModel = copy.deepcopy(model, shared)
    return tree.eval()


def check_given(model: Any, tokenizer: Any) -> None:
    """Raise InputError for objects that are no causal LM with weights of a kind that can be used, and its tokenizer."""
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        hint = "; give its base, and the adapter's LoraConfig as peft_config=" if hasattr(model, "peft_config") else ""
        raise InputError(f"model: found {kind}, expected a name or a causal LM of transformers{hint}")
    if tokenizer is None:
        raise InputError("model: found a loaded model without a tokenizer, expected tokenizer= beside it")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"tokenizer: found {type(tokenizer).__name__}, expected the tokenizer that belongs to the model= given"
        )
    _refuse_other_kinds("model", model.config)
    if (method := quantised_by(model.config)) is not None:
        raise InputError(
            f"model: found weights quantised by {method}, expected an unquantised one, or in its place the name of a "
            f"folder with weights quantised by {BITSANDBYTES}"
        )
    if model.get_output_embeddings() is None:
        raise InputError(f"model: found {kind}, which has no head, expected a causal LM, as AutoModelForCausalLM loads")
    if any(weight.is_meta for weight in model.parameters()):
        raise InputError("model: found weights on the device meta, which are none, expected a model that is loaded")
    if any(weight.is_inference() for weight in model.parameters()):
        raise InputError(
            "model: found weights made inside torch.inference_mode, expected a model that is loaded outside"
        )
    if tokenizer.eos_token_id is None:
        raise InputError("tokenizer: has no end-of-sequence token, expected one")
    if model.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(f"model: found weights of {model.dtype}, expected float32, bfloat16 or float16")


def given_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BaseModel:
    """A model and a tokenizer that the caller has loaded, which stay as they are.

    Raises InputError for what `check_given` refuses, and for weights that are not finite.
    """
    check_given(model, tokenizer)
    try:
        _refuse_infinite(model)
    except ValueError as error:
        raise InputError(f"model: {error}, expected finite weights") from None
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return BaseModel(model, tokenizer, str(model.config.name_or_path or type(model).__name__))


def _refuse_other_kinds(subject: str, config: Any, *, trusted: bool = False) -> None:
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if trusted and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        causal |= set(config.architectures or ())
    architectures = config.architectures or [f"no architecture for {config.model_type}"]
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise InputError(f"{subject}: found the architectures {architectures!r:.60}, expected a list of names")
    if not config.architectures and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        # A kind that is only ever a causal LM needs no saying so.
        architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, architectures[0])]
    if config.is_encoder_decoder or not causal.intersection(architectures):
        raise InputError(f"{subject}: found {architectures[0]}, expected a causal language model")


def _check_quantised(subject: str, config: Any, *, again: bool) -> None:
    """Raise InputError for weights that were quantised before they were saved, but by bitsandbytes, and `again`."""
    if (method := quantised_by(config)) != BITSANDBYTES:
        raise InputError(
            f"{subject}: found weights quantised by {method}, expected an unquantised base model, which --quantization "
            f"quantises as it is loaded, or one by {BITSANDBYTES}"
        )
    if again:
        raise InputError(f"{subject}: found weights that are quantised already, expected no --quantization beside them")
    need_bitsandbytes(subject)


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes `argument`: architectures without absolute positions take no position_ids."""
    return argument in _arguments(type(model).forward)


def cache_argument(model: PreTrainedModel) -> str | None:
    """What the model's forward calls the cache that it takes and fills; None where it has none, as GPT-1."""
    return next((name for name in ("past_key_values", "cache_params") if accepts(model, name)), None)


@functools.cache  # asked for every token
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
