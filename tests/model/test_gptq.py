"""GPTQ checkpoints, packed here by hand, against the same weights unpacked. The comparisons need the extra `gptq`."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from services.model.engine.transformers.gptq import read_packing
from services.model.engine.transformers.loading import load
from services.model.errors import CheckpointError
from tests.support.checkpoints import (
    QWEN2,
    random_weights,
    write_checkpoint,
    write_json,
    write_tiktoken,
    write_tokenizer,
    write_weights,
)

torch.set_num_threads(2)
needs_gptqmodel = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is None,
    reason="needs the extra gptq (gptqmodel), which is heavy and pins numpy",
)

HIDDEN, INNER, GROUP = 256, 384, 128
# Two thirds of the attention's width for keys and values would hide a wrong split: all three are equally wide here.
CONFIG = QWEN2 | {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 480,
    "rope_theta": 10000.0,
    "torch_dtype": "float16",
}
IDS = torch.tensor([[1, 50, 7, 256, 9, 200, 3, 3, 140, 77]])


def packing(*, bits: int = 4, desc_act: bool = False, sym: bool = True) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": desc_act, "sym": sym}


def in_words(values: Tensor, bits: int) -> Tensor:
    """(n, m) integers below 2**bits as (n * bits / 32, m) words of 32 bits, the first value in the lowest bits."""
    share = 32 // bits
    words = torch.zeros(values.shape[0] // share, values.shape[1], dtype=torch.int64)
    for index in range(share):
        words |= values[index::share].to(torch.int64) << (bits * index)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def pack(weight: Tensor, *, bits: int, desc_act: bool, sym: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A weight (out, in) in GPTQ's first format, and the weight that it stands for.

    Each group of inputs has a scale and a zero for each output; the file has the zeros less one.
    """
    outputs, inputs = weight.shape
    order = (
        torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs)) if desc_act else torch.arange(inputs)
    )
    g_idx = torch.empty(inputs, dtype=torch.int32)
    g_idx[order] = (torch.arange(inputs) // GROUP).to(torch.int32)
    largest = 2**bits - 1
    scales = torch.empty(inputs // GROUP, outputs)
    zeros = torch.empty(inputs // GROUP, outputs, dtype=torch.int64)
    for group in range(inputs // GROUP):
        part = weight[:, g_idx == group]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if sym:
            scales[group] = 2 * torch.maximum(-low, high) / largest
            zeros[group] = 2 ** (bits - 1)
        else:
            scales[group] = (high - low) / largest
            zeros[group] = (-low / scales[group]).round().clamp(1, largest).to(torch.int64)
    scales = scales.half().float()
    spread = g_idx.long()
    codes = (weight.T / scales[spread] + zeros[spread]).round().clamp(0, largest).to(torch.int64)  # (in, out)
    packed = {
        "qweight": in_words(codes, bits),
        "qzeros": in_words((zeros - 1).T.contiguous(), bits).T.contiguous(),
        "scales": scales.half(),
        "g_idx": g_idx,
    }
    return packed, ((codes - zeros[spread]) * scales[spread]).T.contiguous()


def packed_qwen2(folder: Path, settings: dict[str, Any], *, in_config: bool = True) -> Qwen2ForCausalLM:
    """A packed folder, and the model with the weights that it stands for."""
    folder.mkdir(exist_ok=True)
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG)).eval()
    tensors = random_weights(model)
    stored = dict(tensors)
    for name in [name for name in tensors if "_proj.weight" in name]:
        words, unpacked = pack(
            stored.pop(name), bits=settings["bits"], desc_act=settings["desc_act"], sym=settings["sym"]
        )
        module = name.removesuffix(".weight")
        stored |= {f"{module}.{leaf}": tensor for leaf, tensor in words.items()}
        stored.setdefault(f"{module}.bias", torch.zeros(unpacked.shape[0]))  # as the packing tools wrote it
        tensors[name] = unpacked
    model.load_state_dict(tensors)
    stored = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    write_json(folder / "config.json", CONFIG | ({"quantization_config": settings} if in_config else {}))
    if not in_config:
        write_json(folder / "quantize_config.json", {key: settings[key] for key in settings if key != "quant_method"})
    write_tokenizer(folder)
    write_weights(folder, stored, shards=2)
    return model


def packed_qwen1(folder: Path, settings: dict[str, Any]) -> Qwen2ForCausalLM:
    """The same for the first generation: query, key and value are packed as one matrix, then stand for three."""
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG)).eval()
    tensors = random_weights(model)
    options = {"bits": settings["bits"], "desc_act": settings["desc_act"], "sym": settings["sym"]}
    stored = {
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "transformer.ln_f.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        old, new = f"transformer.h.{layer}", f"model.layers.{layer}"
        stored[f"{old}.ln_1.weight"] = tensors[f"{new}.input_layernorm.weight"]
        stored[f"{old}.ln_2.weight"] = tensors[f"{new}.post_attention_layernorm.weight"]
        three = [f"{new}.self_attn.{part}_proj" for part in "qkv"]
        words, unpacked = pack(torch.cat([tensors[f"{name}.weight"] for name in three]), **options)
        stored |= {f"{old}.attn.c_attn.{leaf}": tensor for leaf, tensor in words.items()}
        stored[f"{old}.attn.c_attn.bias"] = torch.cat([tensors[f"{name}.bias"] for name in three])
        for name, part in zip(three, unpacked.split(HIDDEN), strict=True):
            tensors[f"{name}.weight"] = part
        for mine, theirs in {
            "attn.c_proj": "self_attn.o_proj",
            "mlp.w1": "mlp.up_proj",
            "mlp.w2": "mlp.gate_proj",
            "mlp.c_proj": "mlp.down_proj",
        }.items():
            words, tensors[f"{new}.{theirs}.weight"] = pack(tensors[f"{new}.{theirs}.weight"], **options)
            stored |= {f"{old}.{mine}.{leaf}": tensor for leaf, tensor in words.items()}
            stored[f"{old}.{mine}.bias"] = torch.zeros(words["scales"].shape[1])
    model.load_state_dict(tensors)
    stored = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "fp16": True,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * INNER,
        "num_attention_heads": 4,
        "num_hidden_layers": CONFIG["num_hidden_layers"],
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "seq_length": 512,
        "vocab_size": 480,
        "quantization_config": settings,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"chat_format": "chatml"})
    write_tiktoken(folder)
    write_weights(folder, stored, shards=2)
    return model


def difference(folder: Path, model: Qwen2ForCausalLM, dtype: str = "float32") -> float:
    """How far the logits of the packed folder are from those of `model`, as a share of their size."""
    loaded = load(folder, device="cpu", dtype=dtype, report=lambda _: None)
    with torch.inference_mode():
        found, expected = loaded.model(IDS).logits.float(), model(IDS).logits
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm())


@needs_gptqmodel
@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("desc_act", [False, True])
def test_qwen2_int4(tmp_path: Path, dtype: str, desc_act: bool) -> None:
    model = packed_qwen2(tmp_path, packing(desc_act=desc_act))
    found = difference(tmp_path, model, dtype)
    print(f"int4 desc_act={desc_act} {dtype}: {found:.5f}")
    assert found < (0.02 if dtype == "bfloat16" else 0.01)


@needs_gptqmodel
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("desc_act", [False, True])
def test_one_layer(tmp_path: Path, dtype: str, desc_act: bool) -> None:
    model = packed_qwen2(tmp_path, packing(desc_act=desc_act))
    loaded = load(tmp_path, device="cpu", dtype=dtype, report=lambda _: None)
    name = "model.layers.1.mlp.down_proj"
    x = torch.randn(5, INNER, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = loaded.model.get_submodule(name)(x.to(loaded.model.dtype)).float()
        expected = model.get_submodule(name)(x)
    share = float((found - expected).norm() / expected.norm())
    print(f"one layer, desc_act={desc_act} {dtype}: {share:.5f}")
    assert share < 0.005


@needs_gptqmodel
@pytest.mark.parametrize("desc_act", [False, True])
def test_qwen1_int4(tmp_path: Path, desc_act: bool) -> None:
    found = difference(tmp_path, packed_qwen1(tmp_path, packing(desc_act=desc_act)))
    print(f"qwen1 int4 desc_act={desc_act}: {found:.5f}")
    assert found < 0.01


@needs_gptqmodel
@pytest.mark.parametrize("settings", [packing(bits=8), packing(sym=False), packing(bits=8, desc_act=True, sym=False)])
def test_other_packings(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = difference(tmp_path, packed_qwen2(tmp_path, settings, in_config=False))
    print(f"{settings}: {found:.5f}")
    assert found < 0.01


@needs_gptqmodel
def test_packed_weights_stay_packed(tmp_path: Path) -> None:
    packed_qwen2(tmp_path, packing())
    model = load(tmp_path, device="cpu", dtype="auto", report=lambda _: None).model
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    held = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
    assert held < HIDDEN * INNER  # unpacked it would be four bytes each


@needs_gptqmodel
def test_the_comparison_sees_a_wrong_zero(tmp_path: Path) -> None:
    settings = packing(sym=False)
    model = packed_qwen2(tmp_path, settings)
    write_json(tmp_path / "config.json", CONFIG | {"quantization_config": packing(bits=4)})
    paths = sorted(tmp_path.glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    for path in paths:
        tensors = load_file(path)
        save_file({name: tensor + 0x11111111 if "qzeros" in name else tensor for name, tensor in tensors.items()}, path)
    assert difference(tmp_path, model) > 0.05


def test_without_gptqmodel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_qwen2(tmp_path, packing())
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("gptqmodel", "logbar"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(CheckpointError, match=r"pip install 'docduet\[gptq\]'"):
        load(tmp_path, device="cpu", dtype="auto", report=lambda _: None)


def test_packed_weights_without_a_word_about_it(tmp_path: Path) -> None:
    packed_qwen2(tmp_path, packing())
    write_json(tmp_path / "config.json", CONFIG)
    with pytest.raises(CheckpointError, match="no quantization_config"):
        load(tmp_path, device="cpu", dtype="auto", report=lambda _: None)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"bits": 2}, "2-bit GPTQ is not supported"),
        ({"bits": None}, "cannot be read"),
        ({"quant_method": "awq"}, "packed as awq"),
        ({"quant_method": "fp8"}, "packed as fp8"),
        ({"checkpoint_format": "gptq_v2"}, "packed as gptq_v2"),
        ({"dynamic": {"-:down": {}}}, "rules for each layer"),
    ],
)
def test_packings_that_are_refused(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_packing({"quantization_config": packing() | values}, tmp_path)


def test_an_unpacked_folder_has_no_packing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Qwen2ForCausalLM(Qwen2Config(**QWEN2)), QWEN2)
    assert read_packing(QWEN2, tmp_path) is None
    (tmp_path / "quantize_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"quantize_config\.json cannot be read"):
        read_packing(QWEN2, tmp_path)
