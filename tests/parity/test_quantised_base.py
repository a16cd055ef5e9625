"""Adapters on a quantised base compute what PEFT computes on the same one."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evolora.engine.base import Scoring
from evolora.engine.canary import Canary, Row
from evolora.engine.choose import resolved
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.self_check import check_engine
from evolora.engine.text import Text
from evolora.errors import EngineError, InputError
from evolora.models.base import BaseModel, given_base, load_base, module_tree
from evolora.models.checksums import weights_sha256
from evolora.models.cost import ModelSize
from evolora.models.lora import as_peft_model, lora_config, lora_layout
from evolora.models.quantization import quantised_layers, rounding

pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")

Folder = Callable[[str], Path]
# The share of what is found that two ways to round may differ by.
CLOSE = {"nf4": 1e-4, "int8": 0.05}


@pytest.fixture(params=["nf4", "int8"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def saved(model_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a model that was quantised before it was saved."""

    @functools.cache
    def make(kind: str) -> Path:
        base, folder = load_base(str(model_folder("llama")), quantization=kind), tmp_path_factory.mktemp(kind)
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(params=["llama", "gpt2", "saved"])
def base(kind: str, request: pytest.FixtureRequest, model_folder: Folder, saved: Folder) -> BaseModel:
    if request.param == "saved":
        return load_base(str(saved(kind)))
    return load_base(str(model_folder(request.param)), quantization=kind)


def noisy(founder: Tensor, count: int = 2) -> Tensor:
    return founder + 0.2 * torch.randn(count, len(founder), generator=torch.Generator().manual_seed(0))


def test_the_self_check_passes(base: BaseModel, kind: str) -> None:
    config = lora_config(base.model, r=4, target_modules="all-linear")
    layout, founder = lora_layout(base.model, config, seed=0)
    kinds = {type(base.model.get_submodule(module.name)).__name__ for module in layout.modules}
    assert kinds == {"Linear4bit" if kind == "nf4" else "Linear8bitLt"}
    assert resolved(base.model, layout, "auto", "auto")[0] == "eager"
    with pytest.raises(InputError, match="--engine cpu: cannot be had: the base is quantised"):
        resolved(base.model, layout, "cpu", "auto")
    engine, text = EagerEngine(base.model, layout), Text.of(base.model, base.tokenizer)
    assert not check_engine(engine, base.model, config, founder, text, name="tiny").too_large
    wrong = EagerEngine(base.model, layout)
    wrong.layers.detach()
    with pytest.raises(InputError, match="does not say what PEFT's says"):
        check_engine(wrong, base.model, config, founder, text, name="tiny")


def test_the_canary_passes_and_finds_a_fault(base: BaseModel) -> None:
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, text = EagerEngine(base.model, layout), Text.of(base.model, base.tokenizer)
    canary, genomes = Canary(engine, base.model, founder, text), noisy(founder, 4)
    prompt = [5, 17, 30, 22]
    rows = engine.generate(genomes, [prompt], text.decoding(6)).rows()
    for generation, ids in enumerate(rows):
        assert canary.check(genomes, Row(generation, "it", prompt, ids), generation=generation) <= 1
    silent = replace(layout, modules=tuple(replace(module, scaling=0.0) for module in layout.modules))
    canary.engine = EagerEngine(base.model, silent)
    with pytest.raises(EngineError, match="the engine does not say of the sentinel in place"):
        canary.check(genomes)


def test_log_probabilities_and_gradients_are_pefts(base: BaseModel, kind: str) -> None:
    config = lora_config(base.model, r=4)
    layout, founder = lora_layout(base.model, config, seed=0)
    genomes, text = noisy(founder), Text.of(base.model, base.tokenizer)
    engine, prompts = EagerEngine(base.model, layout), text.encode(["the cat sat", "one two three four"])
    completions = engine.generate(genomes, prompts, text.decoding(5))
    scored = engine.score(genomes, prompts, completions, Scoring(gradient=True))
    found = scored.backward(torch.ones_like(scored.log_probs))
    rows = completions.rows()
    for i in range(len(genomes)):
        oracle = as_peft_model(base.model, config, state=layout.to_state_dict(genomes[i]))
        factors = {name.replace(".default", ""): value for name, value in oracle.named_parameters() if "lora_" in name}
        total = torch.zeros(())
        for place, prompt in enumerate(prompts):
            row = rows[i * len(prompts) + place]
            logits = oracle(input_ids=torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(row)[:, None])[:, 0]
            own = scored.log_probs[i * len(prompts) + place, : len(row)]
            assert (own - chosen).abs().max() < CLOSE[kind] * max(1.0, float(chosen.abs().max()))
            total = total + chosen.sum()
        gradients = torch.autograd.grad(total, list(factors.values()))
        right = layout.from_state_dict(dict(zip(factors, gradients, strict=True)))
        assert right.abs().max() > 1e-2
        assert (found[i] - right).norm() < CLOSE[kind] * right.norm()


def test_a_copy_of_the_modules_shares_the_weights(base: BaseModel) -> None:
    copy = module_tree(base.model)
    for own, other in zip(quantised_layers(base.model), quantised_layers(copy), strict=True):
        assert own is not other and own.weight is other.weight
        for part in ("CB", "SCB"):
            if hasattr(own, "state"):
                assert getattr(own.state, part).data_ptr() == getattr(other.state, part).data_ptr()


def test_it_costs_what_its_weights_are_and_is_known_by_their_scales(
    kind: str, model_folder: Folder, tmp_path: Path
) -> None:
    plain, few = (load_base(str(model_folder("llama")), quantization=how) for how in (None, kind))
    assert ModelSize.of(few.model, adapter=0) == ModelSize.of(plain.model, adapter=0)
    for file in model_folder("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2  # the same numbers in few bits, of another scale
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert weights_sha256(load_base(str(tmp_path), quantization=kind).model) != weights_sha256(few.model)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its tensor model\.layers\.0\.mlp\.up_proj\.weight has values that are not"):
        load_base(str(tmp_path), quantization=kind)


def test_one_that_was_quantised_before_it_was_saved_is_the_same(kind: str, saved: Folder, model_folder: Folder) -> None:
    now = load_base(str(model_folder("llama")), quantization=kind)
    assert weights_sha256(load_base(str(saved(kind))).model) == weights_sha256(now.model)
    with pytest.raises(InputError, match=f"--quantization {kind}: found weights that are quantised already, expected"):
        load_base(str(saved(kind)), quantization=kind)
    with pytest.raises(InputError, match="model: found weights quantised by bitsandbytes, expected an unquantised one"):
        given_base(now.model, now.tokenizer)


def test_it_rounds_as_its_files_say_that_it_computes(saved: Folder, tmp_path: Path) -> None:
    shutil.copytree(saved("nf4"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    whole, ids = load_base(str(tmp_path)).model, torch.tensor([[5, 6, 7, 8]])
    assert rounding(whole) == torch.finfo(torch.float32).eps
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = load_base(str(tmp_path))
    assert rounding(base.model) == torch.finfo(torch.bfloat16).eps
    assert (base.model(ids).logits - whole(ids).logits).abs().max() > 1e-3
    lora = lora_config(base.model)
    layout, founder = lora_layout(base.model, lora, seed=0)
    engine, text = EagerEngine(base.model, layout), Text.of(base.model, base.tokenizer)
    assert not check_engine(engine, base.model, lora, founder, text, name="tiny").too_large


def test_a_saved_one_without_bitsandbytes_is_refused_in_a_sentence(
    saved: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"found no bitsandbytes, expected what pip install 'evolora\[quantization\]'"):
        load_base(str(saved("nf4")))


def test_without_bitsandbytes_it_is_refused_in_a_sentence(tmp_path: Path) -> None:
    code = "import sys; sys.modules['bitsandbytes'] = None; from evolora.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["train", "--task", "translate", "--quantization", "nf4", "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *words], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--quantization nf4: found no bitsandbytes, expected what pip install 'evolora[quantization]'" in done.stderr
    assert not (tmp_path / "run").exists()
