"""The LoRA layout that PEFT gives a base model."""

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import fields

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evolora.errors import InputError
from evolora.models.base import module_tree
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.models.quantization import quantised_layers

# What the adapted layers carry. Every other LoraConfig field must keep its default: a variant that PEFT would run
# and evolora would not must be refused, not run as plain LoRA.
_CARRIED_LORA_FIELDS = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "use_rslora",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "runtime_config",
}
_CARRIED_INITS = (True, "gaussian")
# How the weights of a finished adapter may have begun. All others, such as PiSSA and OLoRA, change the base's own.
_FINISHED_INITS = (True, False, "gaussian", "orthogonal", "eva")
# What attention calls its projections, where PEFT does not know the architecture.
_ATTENTION = (
    ("q_proj", "v_proj"),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("c_attn",),
    ("query", "value"),
    ("q_b_proj", "kv_b_proj"),  # of DeepSeek's latent attention
    ("in_proj", "x_proj"),  # Mamba's, which has no attention
    ("in_proj",),
)


def lora_config(
    model: PreTrainedModel,
    *,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.05,
    target_modules: list[str] | str | None = None,
    exclude_modules: list[str] | str | None = None,
    use_rslora: bool = False,
) -> LoraConfig:
    """PEFT's configuration for `model`. Text is `all-linear` or a regular expression, as PEFT has it; without target
    modules they are `default_targets`. Only the text decoder is adapted, no vision tower beside it.

    GPT-2's layers are Conv1D, which keep their weight transposed: hence `fan_in_fan_out` there.
    """
    conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    if target_modules is None:
        target_modules = default_targets(model)
    exclude_modules = _without_towers(model, exclude_modules)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        exclude_modules=exclude_modules,
        use_rslora=use_rslora,
        fan_in_fan_out=conv1d,
    )


def for_causal_lm(model: PreTrainedModel, config: LoraConfig) -> LoraConfig:
    """A configuration that somebody wrote, with what follows from the model: PEFT warns and corrects
    `fan_in_fan_out`, and without a task type it saves an adapter that cannot be loaded by itself."""
    config = copy.deepcopy(config)
    config.task_type = config.task_type or "CAUSAL_LM"
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    if config.target_modules is None:
        config.target_modules = default_targets(model)
    excluded = config.exclude_modules
    config.exclude_modules = _without_towers(model, list(excluded) if isinstance(excluded, set) else excluded)
    return config


def default_targets(model: PreTrainedModel) -> list[str] | None:
    """Which layers are adapted by default: `c_attn` and `c_proj` for GPT-2, what PEFT names for the architectures that
    it knows, and the projections to queries and values, or what a model has instead, for the others. None where nothing
    of the kind is found."""
    kind = model.config.get_text_config(decoder=True).model_type
    if kind == "gpt2":
        return ["c_attn", "c_proj"]
    leaves = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, ())
    return next((list(names) for names in (known, *_ATTENTION) if names and leaves.issuperset(names)), None)


def _without_towers(model: PreTrainedModel, excluded: list[str] | str | None) -> list[str] | str | None:
    """What is excluded, and all that is neither in the model's text decoder nor its head, where there is more."""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    head = next((own for own, module in model.named_modules() if module is model.get_output_embeddings()), "lm_head")
    outside = [
        own
        for own, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not own.startswith(f"{name}.") and own != head
    ]
    if not name or not outside:
        return excluded
    towers = rf"(?!{re.escape(name)}\.|{re.escape(head)}$).*"
    if not excluded:
        return towers
    own = excluded if isinstance(excluded, str) else rf"(.*\.)?({'|'.join(map(re.escape, excluded))})"
    return f"{towers}|{own}"


def check_lora(config: LoraConfig) -> None:
    """Raise InputError, by the field's name, for a LoRA variant that the adapted layers cannot carry."""
    plain = LoraConfig()
    for field in fields(LoraConfig):
        if field.name in _CARRIED_LORA_FIELDS or not field.init:
            continue
        value = getattr(config, field.name)
        if value != getattr(plain, field.name) and value != []:  # PEFT writes an empty list for nothing, too
            raise InputError(f"LoraConfig {field.name}={value!r} cannot be carried by the adapted layers")
    if config.init_lora_weights not in _CARRIED_INITS:
        raise InputError(
            f"LoraConfig init_lora_weights={config.init_lora_weights!r} cannot be carried by the adapted layers, "
            f"expected one of {_CARRIED_INITS}: the untouched base must be an individual"
        )


def finished(config: LoraConfig, subject: str) -> LoraConfig:
    """The configuration of an adapter that is done: how its weights began says nothing about what they are. Raises
    InputError, by the field's name, where that has changed the base's weights, which its files do not have."""
    if config.init_lora_weights not in _FINISHED_INITS:
        raise InputError(
            f"{subject}: LoraConfig init_lora_weights={config.init_lora_weights!r} changes the base's own weights, "
            "expected an adapter of the base as it is, as PEFT saves with path_initial_model_for_weight_conversion"
        )
    config = copy.deepcopy(config)
    config.init_lora_weights, config.eva_config = True, None
    return config


def lora_layout(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> tuple[GenomeLayout, Tensor]:
    """The genome's layout as PEFT lays the adapter out, and the genome of the untouched base, float32 [genome_length].

    PEFT itself is asked, by wrapping the model once and unwrapping it, so that target modules, ranks and scalings are
    PEFT's own. A is drawn from `seed`, B is zero: the base's own answers, and the one A that all individuals descend
    from.

    Raises InputError for what the adapted layers cannot carry.
    """
    check_lora(config)
    try:
        peft_model = as_peft_model(model, config, seed=seed)
    except ValueError as error:
        if "ParamWrapper" in str(error):
            raise InputError(
                f"--target-modules {config.target_modules}: the experts of {type(model).__name__} are tensors and no "
                "layers, which cannot be adapted, expected layers by name, such as q_proj v_proj"
            ) from None
        if config.target_modules is None:
            raise InputError(
                f"--target-modules: nothing of the usual names is found in {type(model).__name__}, expected the names "
                "of its layers, or all-linear"
            ) from None
        raise
    layout = GenomeLayout(tuple(_adapted_modules(peft_model)))
    if adapts_head(model, layout) and model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        raise InputError(
            f"--target-modules: the output embedding of {type(model).__name__} is its input embedding, too, and could "
            "not be merged, expected other layers"
        )
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    genome = layout.from_state_dict({key: value.float().cpu() for key, value in state.items()})
    return layout, genome


def adapts_head(model: PreTrainedModel, layout: GenomeLayout) -> bool:
    """Whether the output embedding is among the adapted layers."""
    head = model.get_output_embeddings()
    return any(model.get_submodule(module.name) is head for module in layout.modules)


def _adapted_modules(peft_model: PeftModel) -> Iterator[AdaptedModule]:
    prefix = "base_model.model."
    offset = 0
    for path, layer in peft_model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base_layer, name = layer.get_base_layer(), path.removeprefix(prefix)
        quantised = type(layer).__module__ == "peft.tuners.lora.bnb" and any(True for _ in quantised_layers(base_layer))
        if not quantised and not (isinstance(layer, PeftLinear) and type(base_layer) in (nn.Linear, Conv1D)):
            raise InputError(
                f"target module {name} is a {type(base_layer).__name__}, which the adapted layers cannot carry, "
                "expected Linear or Conv1D"
            )
        module = AdaptedModule(
            name=name,
            a_key=f"{path}.lora_A.weight",
            b_key=f"{path}.lora_B.weight",
            in_features=layer.in_features,
            out_features=layer.out_features,
            rank=layer.r["default"],
            scaling=layer.scaling["default"],
            a_offset=offset,
            b_offset=offset + layer.r["default"] * layer.in_features,
        )
        offset = module.b_offset + module.b_size
        yield module


def as_peft_model(
    model: PreTrainedModel, config: LoraConfig, *, state: dict[str, Tensor] | None = None, seed: int = 0
) -> PeftModel:
    """A copy of `model` that shares its weights, wrapped by PEFT, carrying `state` if given; in evaluation mode.

    The base's weights are shared, not copied: do not merge. torch's own random state is left as it was.

    Raises PEFT's ValueError when it cannot wrap the model, and ValueError when `state` lacks a tensor or has one too
    many.
    """
    peft_model = wrapped(module_tree(model), config, seed=seed)
    if state is not None:
        set_state(peft_model, state)
    return peft_model.eval()


def wrapped(model: PreTrainedModel, config: LoraConfig, *, seed: int = 0) -> PeftModel:
    """PEFT's model around `model` itself, A drawn from `seed` in float32. It warns of nothing: what it corrects in a
    configuration, the base's name or how its layers keep their weights, is as it should be."""
    config = copy.deepcopy(config)
    config.base_model_name_or_path = None  # PEFT says the model's own
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    finally:
        torch.set_default_dtype(before)


def set_state(peft_model: PeftModel, state: dict[str, Tensor]) -> None:
    """Give the adapter its weights. Raises ValueError when `state` lacks a tensor or has one too many, which PEFT would
    pass over in silence."""
    if unmatched := sorted(get_peft_model_state_dict(peft_model, save_embedding_layers=False).keys() ^ state.keys()):
        raise ValueError(f"the adapter does not fit the model: {unmatched[0]} is on one side only")
    set_peft_model_state_dict(peft_model, state)
