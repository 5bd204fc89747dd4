"""Folders in Hugging Face's layout: what is read from them, and what is said where they are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from services.model.engine.transformers.checkpoint import Loaded
from services.model.engine.transformers.loading import load
from services.model.engine.transformers.vocabulary import JsonVocabulary, TiktokenVocabulary
from services.model.errors import CheckpointError
from tests.support.checkpoints import (
    CHAT_TEMPLATE,
    CONTROL,
    QWEN2,
    write_checkpoint,
    write_json,
    write_tiktoken,
    write_tokenizer,
    write_weights,
)

torch.set_num_threads(2)
QWEN3 = QWEN2 | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 24, "attention_bias": False}
IDS = torch.tensor([[1, 50, 7, 258, 9, 200, 3, 3]])


def ignore(_: str) -> None:
    pass


def read(folder: Path, dtype: str = "auto", device: str = "cpu") -> Loaded:
    return load(folder, device=device, dtype=dtype, report=ignore)


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found


def qwen2(folder: Path, config: dict[str, Any] = QWEN2, **more: Any) -> Qwen2ForCausalLM:
    """The folder of a tiny Qwen2, and the model that was written to it."""
    model = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    write_checkpoint(folder, model, config, **more)
    return model


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_qwen2(tmp_path: Path, shards: int, tied: bool) -> None:
    model = qwen2(tmp_path, QWEN2 | {"tie_word_embeddings": tied}, shards=shards)
    loaded = read(tmp_path)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-5, atol=1e-5)
    assert loaded.context == 512
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_qwen3(tmp_path: Path) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**QWEN3)).eval()
    write_checkpoint(tmp_path, model, QWEN3)
    torch.testing.assert_close(logits(read(tmp_path).model), logits(model), rtol=1e-5, atol=1e-5)


def test_the_same_as_transformers_own_loading(tmp_path: Path) -> None:
    """Also where the positions are stretched, whose numbers are in no tensor."""
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    qwen2(tmp_path, QWEN2 | {"rope_scaling": rope, "max_position_embeddings": 128})
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(200)[None]
    loaded = read(tmp_path)
    torch.testing.assert_close(logits(loaded.model, ids), logits(theirs, ids), rtol=1e-5, atol=1e-5)
    assert loaded.context == 512


def test_16_bit_weights(tmp_path: Path) -> None:
    qwen2(tmp_path, QWEN2 | {"torch_dtype": "bfloat16"})
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    for asked, dtype in {
        "auto": torch.float32,  # a CPU is fast in nothing else
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }.items():
        loaded = read(tmp_path, asked)
        assert loaded.model.lm_head.weight.dtype == loaded.model.config.dtype == dtype
        assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.isfinite(logits(loaded.model)).all()


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    qwen2(tmp_path)
    loaded = read(tmp_path)
    assert loaded.eos_ids == {258, 256}
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.bos_token == ""
    assert loaded.special_tokens == {text: 256 + n for n, text in enumerate(CONTROL)}
    assert loaded.defaults == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.tool_style == "hermes"


@pytest.mark.parametrize(
    ("generation", "defaults", "eos"),
    [
        (None, {}, {258}),
        ({"eos_token_id": 256}, {}, {256, 258}),
        (
            {"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
            {258},
        ),
        ({"temperature": 0.6, "min_p": 0.1, "top_k": None}, {"temperature": 0.6, "min_p": 0.1}, {258}),
    ],
)
def test_generation_defaults(tmp_path: Path, generation: Any, defaults: dict[str, float], eos: set[int]) -> None:
    qwen2(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        write_json(tmp_path / "generation_config.json", generation)
    loaded = read(tmp_path)
    assert loaded.defaults == defaults
    assert loaded.eos_ids == eos


def test_where_the_chat_template_may_stand(tmp_path: Path) -> None:
    qwen2(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_json(tmp_path / "tokenizer_config.json", settings | {"chat_template": several})
    assert read(tmp_path).chat_template == "D"
    write_json(tmp_path / "tokenizer_config.json", settings | {"chat_template": None})
    assert read(tmp_path).chat_template is None
    write_json(tmp_path / "chat_template.json", {"chat_template": "J"})
    assert read(tmp_path).chat_template == "J"
    (tmp_path / "chat_template.jinja").write_text("jinja 模板", encoding="utf-8")
    assert read(tmp_path).chat_template == "jinja 模板"


def test_a_sliding_window_ends_the_context(tmp_path: Path) -> None:
    """Where the window does not slide yet, attention is full: so the engine needs no other."""
    qwen2(tmp_path, QWEN2 | {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 0})
    loaded = read(tmp_path)
    assert loaded.context == 32
    assert set(loaded.model.config.layer_types) == {"full_attention"}


def test_zero_biases_are_dropped_and_others_refused(tmp_path: Path) -> None:
    model = qwen2(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.bias"] = torch.zeros(64)
    write_weights(tmp_path, tensors)
    torch.testing.assert_close(logits(read(tmp_path).model), logits(model), rtol=1e-5, atol=1e-5)
    tensors["model.layers.0.mlp.down_proj.bias"][5] = 1e-3
    write_weights(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"down_proj\.bias, which is not zero"):
        read(tmp_path)


def test_loading_is_reported(tmp_path: Path) -> None:
    qwen2(tmp_path, shards=2)
    said: list[str] = []
    load(tmp_path, device="cpu", dtype="auto", report=said.append)
    percents = [int(line.split()[-2]) for line in said if line.endswith("%")]
    assert percents == sorted(percents)
    assert percents[-1] == 100


# --- broken folders ---------------------------------------------------------------------------------------------------


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        write_json(path, json.loads(path.read_text()) | values)

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def cut_short(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled_only(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_weights(folder: Path) -> None:
    pickled_only(folder)
    (folder / "pytorch_model.bin").unlink()


def drop_tensor(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def outside_the_folder(folder: Path) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../a.safetensors"}})


SHARD = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (remove("config.json"), "no config.json"),
        (write("config.json", b"{"), r"config\.json cannot be read"),
        (write("config.json", b"[]"), "not a JSON object"),
        (change("config.json", model_type="llama"), "'llama'.*Qwen2, Qwen2.5 and Qwen3"),
        (change("config.json", model_type="qwen2_moe"), "'qwen2_moe'"),
        (change("config.json", hidden_size="many"), "not a valid qwen2"),
        (change("config.json", hidden_size=128), "has the shape"),
        (change("config.json", num_hidden_layers=3), "lacks 12 tensors"),
        (change("config.json", num_hidden_layers=1), "no place"),
        (change("config.json", vocab_size=100), "token id 259.*vocab_size 100"),
        (change("config.json", rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic' is not supported"),
        (change("config.json", quantization_config={"quant_method": "awq", "bits": 4}), "packed as awq"),
        (change("config.json", quantization_config={"quant_method": "gptq"}), "'bits'"),
        (change("config.json", quantization_config={"quant_method": "gptq", "bits": 3}), "3-bit"),
        (change("generation_config.json", top_p="most"), "top_p is 'most'"),
        (remove("tokenizer.json"), "no tokenizer.json"),
        (write("tokenizer.json", b'{"model": {}}'), r"tokenizer\.json cannot be read"),
        (write("tokenizer_config.json", b"\xff"), r"tokenizer_config\.json cannot be read"),
        (remove(SHARD), r"lacks 1 of the 2 files.*00002-of-00002"),
        (remove("model.safetensors.index.json"), "no model.safetensors.index.json"),
        (write("model.safetensors.index.json", b"{}"), r"index\.json cannot be read"),
        (outside_the_folder, "outside the folder"),
        (cut_short, "00002-of-00002.*cut short"),
        (write(SHARD, b""), "00002-of-00002.*cut short"),
        (write(SHARD, b"version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
        (drop_tensor, "lacks tensors that the index lists"),
        (pickled_only, r"pickled weights only \(pytorch_model\.bin\)"),
        (no_weights, "no weights"),
    ],
)
def test_a_broken_folder_is_explained(tmp_path: Path, harm: Callable[[Path], None], says: str) -> None:
    qwen2(tmp_path, shards=2)
    harm(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        read(tmp_path)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    qwen2(tmp_path)
    trace = tmp_path / "was-run"
    code = f"open({str(trace)!r}, 'w')\nraise RuntimeError\n"
    for name in ("modeling_qwen.py", "configuration_qwen.py", "tokenization_qwen.py"):
        (tmp_path / name).write_text(code)
    change(
        "config.json",
        auto_map={
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
    )(tmp_path)
    change("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]})(tmp_path)
    read(tmp_path)
    assert not trace.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there(tmp_path: Path, device: str) -> None:
    qwen2(tmp_path)
    with pytest.raises(CheckpointError, match="MODEL_DEVICE=cpu"):
        read(tmp_path, device=device)
    assert read(tmp_path, device="auto").model.device.type == "cpu"


def test_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qwen2(tmp_path)
    real = Path.read_text

    def little(self: Path, *args: Any, **kwargs: Any) -> str:
        return "MemAvailable: 100 kB\n" if str(self) == "/proc/meminfo" else real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", little)
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB as float32"):
        read(tmp_path)


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["json", "tiktoken"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "json":
        write_tokenizer(folder)
        return JsonVocabulary(folder / "tokenizer.json", 272)
    write_tiktoken(folder)
    return TiktokenVocabulary(folder / "qwen.tiktoken", 480)


def spelled(vocabulary: Any, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes(token_id) for token_id in ids)


PIECES = st.sampled_from(
    [*CONTROL, "<tool_call>", "<|im_", "end|>", "中文", "é", "e\u0301", "\u0338", "\n", " ", "hello"]
)


@given(text=st.text() | st.lists(PIECES).map("".join))
def test_every_text_survives_without_control_tokens(vocabulary: Any, text: str) -> None:
    import unicodedata

    ids = vocabulary.encode(text, special=False)
    assert not set(ids) & set(vocabulary.special_tokens.values())
    # NFC, which both apply; around `<tool_call>`, a token of its own, parts are normalised apart
    assert unicodedata.normalize("NFC", spelled(vocabulary, ids).decode()) == unicodedata.normalize("NFC", text)


@given(before=st.text(max_size=5), after=st.text(max_size=5) | st.just("\u0338"))
def test_control_tokens_where_they_are_meant(vocabulary: Any, before: str, after: str) -> None:
    end = vocabulary.special_tokens["<|im_end|>"]
    ids = vocabulary.encode(f"{before}<|im_end|>{after}", special=True)
    expected = [*vocabulary.encode(before, special=False), end, *vocabulary.encode(after, special=False)]
    assert ids == expected


def test_lone_surrogates_are_text_too(vocabulary: Any) -> None:
    ids = vocabulary.encode("a\ud800b", special=False)
    assert spelled(vocabulary, ids).decode() == "a\ufffdb"


def test_all_bytes(vocabulary: Any) -> None:
    found = vocabulary.all_bytes()
    assert len(found) == vocabulary.size
    for text, token_id in vocabulary.special_tokens.items():
        assert found[token_id] == b"\xff" + text.encode()
        assert vocabulary.token_bytes(token_id) == b""
    assert found[-1] == b""  # padding
    assert {bytes([byte]) for byte in range(256)} <= set(found)
    assert vocabulary.token_bytes(vocabulary.size + 5) == b""


def test_what_is_one_token_but_not_control(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    vocabulary = JsonVocabulary(tmp_path / "tokenizer.json", 272, bos="<|endoftext|>")
    assert vocabulary.encode("<tool_call>", special=False) == [259]
    assert vocabulary.token_bytes(259) == b"<tool_call>"
    assert vocabulary.encode("", special=True, add_bos=True) == [256]


@pytest.mark.parametrize("content", [b"", b"IQ==\n", b"IQ== one\n", b"!!! 0\n", b"IQ== 1\n"])
def test_a_damaged_tiktoken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"qwen\.tiktoken cannot be read"):
        TiktokenVocabulary(path, 480)
