"""First-generation Qwen, against the published architecture written out plainly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import SandboxedEnvironment
from torch import Tensor
from torch.nn.functional import silu

from services.model.engine.transformers import qwen1
from services.model.engine.transformers.checkpoint import Loaded
from services.model.engine.transformers.loading import load
from services.model.engine.transformers.vocabulary import TiktokenVocabulary
from services.model.errors import CheckpointError
from tests.support.checkpoints import write_json, write_tiktoken, write_weights

torch.set_num_threads(2)
REAL = Path(__file__).parents[3] / "shared" / "data" / "qwen1"
needs_real_files = pytest.mark.skipif(
    not REAL.is_dir(), reason="the files of the real checkpoints are not on this machine"
)

HIDDEN, HEADS, LAYERS, INNER, VOCABULARY = 64, 4, 2, 96, 480
COMMON: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "bf16": False,
    "fp16": False,
    "fp32": False,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-06,
    "model_type": "qwen",
    "no_bias": True,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 128,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "vocab_size": VOCABULARY,
}
OLD = COMMON | {
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_positions": 6144,
    "ffn_hidden_size": 2 * INNER,
    "padded_vocab_size": VOCABULARY,
    "activation": "swiglu",
    "params_dtype": "torch.bfloat16",
}
NEW = COMMON | {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 8192,
    "intermediate_size": 2 * INNER,
    "torch_dtype": "float32",
}
IDS = torch.tensor([[5, 258, 17, 260, 99, 300, 17, 8, 8, 1]])


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights by the names of the first generation, of a size that makes every one of them matter."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    found = {
        "transformer.wte.weight": random(VOCABULARY, HIDDEN, scale=1.0),
        "transformer.ln_f.weight": 1 + random(HIDDEN, scale=0.3),
        "lm_head.weight": random(VOCABULARY, HIDDEN, scale=0.3),
    }
    for layer in range(LAYERS):
        prefix = f"transformer.h.{layer}"
        found |= {
            f"{prefix}.ln_1.weight": 1 + random(HIDDEN, scale=0.3),
            f"{prefix}.ln_2.weight": 1 + random(HIDDEN, scale=0.3),
            f"{prefix}.attn.c_attn.weight": random(3 * HIDDEN, HIDDEN, scale=0.2),
            f"{prefix}.attn.c_attn.bias": random(3 * HIDDEN, scale=0.5),
            f"{prefix}.attn.c_proj.weight": random(HIDDEN, HIDDEN, scale=0.2),
            f"{prefix}.mlp.w1.weight": random(INNER, HIDDEN, scale=0.2),
            f"{prefix}.mlp.w2.weight": random(INNER, HIDDEN, scale=0.2),
            f"{prefix}.mlp.c_proj.weight": random(HIDDEN, INNER, scale=0.2),
        }
    return found


def reference(weights: dict[str, Tensor], ids: Tensor, base: float = 10000.0) -> Tensor:
    """Logits (1, n, vocabulary) as the published description has them: no cache, no batch, no shortcuts."""
    count, size = ids.shape[1], HIDDEN // HEADS

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weights[name]

    angles = torch.arange(count)[:, None] / base ** (torch.arange(0, size, 2) / size)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def rotate(x: Tensor) -> Tensor:  # (heads, n, size); the two halves, not neighbours
        first, second = x[..., : size // 2], x[..., size // 2 :]
        return x * cos + torch.cat([-second, first], -1) * sin

    x = weights["transformer.wte.weight"][ids[0]]
    for layer in range(LAYERS):
        prefix = f"transformer.h.{layer}"
        mixed = norm(x, f"{prefix}.ln_1.weight") @ weights[f"{prefix}.attn.c_attn.weight"].T
        mixed = mixed + weights[f"{prefix}.attn.c_attn.bias"]
        query, key, value = (part.view(count, HEADS, size).transpose(0, 1) for part in mixed.split(HIDDEN, dim=-1))
        scores = rotate(query) @ rotate(key).transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
        attended = (scores.softmax(-1) @ value).transpose(0, 1).reshape(count, HIDDEN)
        x = x + attended @ weights[f"{prefix}.attn.c_proj.weight"].T
        normed = norm(x, f"{prefix}.ln_2.weight")
        first, second = normed @ weights[f"{prefix}.mlp.w1.weight"].T, normed @ weights[f"{prefix}.mlp.w2.weight"].T
        x = x + (first * silu(second)) @ weights[f"{prefix}.mlp.c_proj.weight"].T
    return (norm(x, "transformer.ln_f.weight") @ weights["lm_head.weight"].T)[None]


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], *, shards: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {
            "chat_format": "chatml",
            "eos_token_id": 258,
            "pad_token_id": 258,
            "do_sample": True,
            "top_k": 0,
            "top_p": 0.8,
        },
    )
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "QWenTokenizer"})
    write_tiktoken(folder)
    write_weights(folder, weights, shards=shards)


def read(folder: Path) -> Loaded:
    return load(folder, device="cpu", dtype="float32", report=lambda _: None)


def logits(loaded: Loaded, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        found: Tensor = loaded.model(ids).logits
    return found


@pytest.mark.parametrize("config", [OLD, NEW], ids=["old names", "new names"])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_logits_are_those_of_the_description(tmp_path: Path, config: dict[str, Any], shards: int) -> None:
    weights = tensors()
    write(tmp_path, config, weights, shards=shards)
    expected = reference(weights, IDS)
    torch.testing.assert_close(logits(read(tmp_path)), expected, rtol=0, atol=1e-4)
    assert expected.std() > 1  # or the comparison would mean little


@pytest.mark.parametrize(
    ("one", "other"),
    [("mlp.w1", "mlp.w2"), ("ln_1", "ln_2")],
)
def test_the_comparison_sees_exchanged_tensors(tmp_path: Path, one: str, other: str) -> None:
    weights = tensors()
    exchanged = {
        name.replace(one, "?").replace(other, one).replace("?", other): tensor for name, tensor in weights.items()
    }
    write(tmp_path, NEW, exchanged)
    assert (logits(read(tmp_path)) - reference(weights, IDS)).abs().max() > 0.1


def test_another_rotary_base(tmp_path: Path) -> None:
    weights = tensors()
    write(tmp_path, NEW | {"rotary_emb_base": 1000}, weights)
    found = logits(read(tmp_path))
    torch.testing.assert_close(found, reference(weights, IDS, base=1000), rtol=0, atol=1e-4)
    assert (found - reference(weights, IDS)).abs().max() > 0.1


def test_the_whole_context(tmp_path: Path) -> None:
    weights = tensors()
    write(tmp_path, OLD, weights)
    loaded = read(tmp_path)
    assert loaded.context == 128  # seq_length, not n_positions
    ids = torch.randint(0, VOCABULARY, (1, 128), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(loaded, ids), reference(weights, ids), rtol=0, atol=2e-4)


def test_biases_that_are_zero_and_one_that_is_not(tmp_path: Path) -> None:
    """Packing tools wrote one for every layer."""
    weights = tensors()
    more = {
        name.replace(".weight", ".bias"): torch.zeros(tensor.shape[0])
        for name, tensor in weights.items()
        if "c_proj" in name or ".w1." in name or ".w2." in name
    }
    buffers = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "transformer.rotary_emb.inv_freq": torch.ones(8)}
    write(tmp_path, NEW, weights | more | buffers)
    torch.testing.assert_close(logits(read(tmp_path)), reference(weights, IDS), rtol=0, atol=1e-4)
    more["transformer.h.1.mlp.w1.bias"][3] = 0.5
    write(tmp_path, NEW, weights | more)
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.w1\.bias, which is not zero"):
        read(tmp_path)


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    write(tmp_path, OLD, tensors())
    loaded = read(tmp_path)
    assert loaded.tool_style == "react"
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.eos_ids == {258, 260}
    assert loaded.defaults == {"top_k": 0, "top_p": 0.8}
    assert len(loaded.special_tokens) == 208
    assert loaded.special_tokens["<|im_start|>"] == 259
    assert loaded.vocabulary.encode("<|im_start|>he", special=True) == [259, 256]


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    write(tmp_path, OLD, tensors())
    write_json(tmp_path / "generation_config.json", {"chat_format": "raw", "eos_token_id": 258})
    loaded = read(tmp_path)
    assert loaded.chat_template is None
    assert loaded.eos_ids == {258}


@pytest.mark.parametrize("config", [OLD, NEW])
def test_16_bit_flags(config: dict[str, Any]) -> None:
    for flag, dtype in {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.items():
        without = {key: value for key, value in config.items() if key != "torch_dtype"}
        assert qwen1.as_qwen2(without | {flag: True}, Path("config.json"))["torch_dtype"] == dtype
        assert qwen1.as_qwen2(without, Path("config.json"))["torch_dtype"] is None


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (OLD | {"n_layer": None}, "num_hidden_layers"),
        (NEW | {"visual": {"layers": 48}}, "Qwen-VL"),
        (NEW | {"rotary_pct": 0.25}, "rotary_pct"),
        (NEW | {"kv_channels": 100}, "kv_channels"),
    ],
)
def test_what_is_not_the_published_architecture(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    write(tmp_path, config, tensors())
    with pytest.raises(CheckpointError, match=says):
        read(tmp_path)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path, NEW, tensors() | {"transformer.h.0.attn.extra.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r"transformer\.h\.0\.attn\.extra\.weight"):
        read(tmp_path)


def chat(messages: list[dict[str, str]], **more: Any) -> str:
    return SandboxedEnvironment().from_string(qwen1.CHAT_TEMPLATE).render(messages=messages, **more)


def test_the_prompt_is_chatml() -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    turn = "<|im_start|>user\nhi<|im_end|>"
    assert chat([user], add_generation_prompt=True) == f"{default}{turn}\n<|im_start|>assistant\n"
    assert chat([user], add_generation_prompt=False) == f"{default}{turn}"
    assert chat([user, answer, user], add_generation_prompt=True) == (
        f"{default}{turn}\n<|im_start|>assistant\nho<|im_end|>\n{turn}\n<|im_start|>assistant\n"
    )
    assert chat([{"role": "system", "content": "S"}, user], add_generation_prompt=True).startswith(
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user"
    )


# --- the real files ---------------------------------------------------------------------------------------------------


@needs_real_files
@pytest.mark.parametrize(("name", "dtype"), [("chat-2023-08", None), ("vl-chat-int4", "float16")])
def test_the_real_configs(name: str, dtype: str | None) -> None:
    where = REAL / name / "config.json"
    config = json.loads(where.read_text())
    assert qwen1.is_qwen1(config)
    config.pop("visual", None)  # the language half is the published 7B
    found = qwen1.as_qwen2(config, where)
    assert (found["hidden_size"], found["num_hidden_layers"], found["num_attention_heads"]) == (4096, 32, 32)
    assert (found["intermediate_size"], found["vocab_size"], found["max_position_embeddings"]) == (11008, 151936, 2048)
    assert (found["rope_theta"], found["rms_norm_eps"], found["torch_dtype"]) == (10000.0, 1e-6, dtype)


@needs_real_files
def test_the_real_packed_names_are_the_tensors_of_qwen2() -> None:
    index = json.loads((REAL / "vl-chat-int4" / "model.safetensors.index.json").read_text())
    names = [name for name in index["weight_map"] if not name.startswith("transformer.visual")]
    translate = qwen1.translate(4096, 4)
    found = {piece.name for name in names for piece in translate(name)}
    linears = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    leaves = ("qweight", "qzeros", "scales", "g_idx", "bias")
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(32):
        prefix = f"model.layers.{layer}"
        expected |= {f"{prefix}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")}
        expected |= {f"{prefix}.{linear}.{leaf}" for linear in linears for leaf in leaves}
    assert found == expected


@pytest.fixture(scope="module")
def real_vocabulary() -> TiktokenVocabulary:
    path = REAL / "chat-2023-08" / "qwen.tiktoken"
    if not path.is_file():
        pytest.skip("the files of the real checkpoints are not on this machine")
    return TiktokenVocabulary(path, 151_936)


def test_the_real_tokenizer(real_vocabulary: TiktokenVocabulary) -> None:
    """Ids from the published tokenizer's documentation, and of Qwen2's, which has the same ranks."""
    special = real_vocabulary.special_tokens
    assert (special["<|endoftext|>"], special["<|im_start|>"], special["<|im_end|>"]) == (151643, 151644, 151645)
    assert (special["<|extra_0|>"], special["<|extra_204|>"], len(special)) == (151646, 151850, 208)
    assert real_vocabulary.encode("Hello world<|im_end|>", special=True) == [9707, 1879, 151645]
    assert 151645 not in real_vocabulary.encode("Hello world<|im_end|>", special=False)
    text = "请解释“长城”是什么，then 12345 days\n\n\tOK? 🦆"
    ids = real_vocabulary.encode(text, special=False)
    assert b"".join(map(real_vocabulary.token_bytes, ids)).decode() == text
    assert real_vocabulary.encode("e\u0301", special=False) == real_vocabulary.encode("é", special=False)
    assert sum(piece == b"" for piece in real_vocabulary.all_bytes()) == 151_936 - 151_851
