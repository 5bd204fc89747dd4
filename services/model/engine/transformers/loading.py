"""A folder in Hugging Face's layout, loaded: Qwen2, Qwen2.5, Qwen3 (dense) and first-generation Qwen, packed or not.

No code of a checkpoint ever runs: `trust_remote_code` has no counterpart here, pickled weights are refused, and the chat
template is rendered in a sandbox by the text code above the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from services.model.engine.base import Report
from services.model.engine.transformers import gptq, qwen1
from services.model.engine.transformers.checkpoint import Loaded
from services.model.engine.transformers.vocabulary import JsonVocabulary, TiktokenVocabulary
from services.model.engine.transformers.weights import Translate, Weights, same_name
from services.model.errors import CheckpointError

_KINDS: dict[str, tuple[type[PreTrainedConfig], type[nn.Module]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
_SUPPORTED = "Qwen2, Qwen2.5 and Qwen3 (dense; model_type qwen2 or qwen3) and first-generation Qwen (model_type qwen)"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# These stretch the positions once, by numbers in the config; "dynamic" ones would change with each batch's longest text.
_ROPE_TYPES = ("default", "linear", "yarn", "llama3")


def load(folder: Path, *, device: str, dtype: str, report: Report) -> Loaded:
    """`device`: auto, cpu, or gpu (cuda); `dtype`: auto, float32, bfloat16 or float16.

    auto is a GPU where torch sees one; and there the checkpoint's own dtype, on a CPU float32, the only one it is fast in.
    Blocks for as long as the disk takes. Raises CheckpointError: what is wrong with the folder, and what to do.
    """
    where = folder / "config.json"
    raw = _read_json(where)
    if raw is None:
        raise CheckpointError(
            f"{folder} has no config.json: it is not a Hugging Face checkpoint. Download all its files."
        )
    first_generation = qwen1.is_qwen1(raw)
    packing = gptq.read_packing(raw, folder)
    values = qwen1.as_qwen2(raw, where) if first_generation else raw
    config, make = _read_config(values, where)
    context = _context(config, where)
    target = _device(device)

    report("reading the tokenizer")
    settings = _read_json(folder / "tokenizer_config.json") or {}
    vocabulary = _vocabulary(folder, config.vocab_size, settings, first_generation)
    generation = _read_json(folder / "generation_config.json") or {}
    defaults = _defaults(generation, folder / "generation_config.json")
    eos_ids, eos_token = _ends(config, generation, settings, vocabulary, first_generation)

    report("reading the headers of the weights")
    weights = Weights(folder)
    if packing is not None:
        gptq.require_gptqmodel()
    elif any(name.endswith(".qweight") for name in weights.shapes):
        raise CheckpointError(
            f"{folder} has packed weights, but config.json has no quantization_config. Download it again."
        )
    kind = _dtype(dtype, target, values, weights)
    config.dtype = kind
    try:
        with torch.device("meta"):
            model = make(config)
        translate: Translate = same_name
        if first_generation:
            translate = qwen1.translate(config.hidden_size, packing.bits if packing else None)
        if packing is not None:
            packed = [piece.name for name in weights.shapes for piece in translate(name) if name.endswith(".qweight")]
            names = [name.removesuffix(".qweight") for name in packed]
            gptq.make_packed_layers(model, names, packing, device=target, dtype=kind)
        weights.fill(model, translate, device=target, dtype=kind, report=report)
        _complete(model, config, target)
        if packing is not None:
            report("preparing the packed weights")
            gptq.finish_packed_layers(model, packing)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise CheckpointError(
            f"{folder} does not fit into the memory of {target}. Use a smaller model or a GPTQ-Int4 version of it."
        ) from error
    return Loaded(
        model=model,
        vocabulary=vocabulary,
        context=context,
        chat_template=_chat_template(folder, settings, generation, first_generation),
        special_tokens=vocabulary.special_tokens,
        bos_token=_text(settings.get("bos_token")),
        eos_token=eos_token,
        eos_ids=eos_ids,
        defaults=defaults,
        tool_style="react" if first_generation else "hermes",
    )


def _complete(model: Any, config: PreTrainedConfig, device: torch.device) -> None:
    """What the files do not hold: shared weights, and the positions' frequencies."""
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.to(device)
    model.eval()
    model.requires_grad_(False)


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Download the file again.") from error
    return values


def _read_config(values: Mapping[str, Any], where: Path) -> tuple[Any, type[Any]]:
    kind = values.get("model_type")
    if kind not in _KINDS:
        raise CheckpointError(
            f"{where} describes a model of type {kind!r}, which this engine does not run. It runs {_SUPPORTED}. Others may "
            "exist as a GGUF file, for the llama.cpp engine."
        )
    config_type, make = _KINDS[kind]
    # Neither may have a say here: packing is read by `gptq.py`, and auto_map names code of the checkpoint.
    kept = {key: value for key, value in values.items() if key not in ("quantization_config", "auto_map")}
    try:
        return config_type.from_dict(kept), make
    except Exception as error:  # transformers validates with exceptions of several libraries
        raise CheckpointError(f"{where} is not a valid {kind} configuration: {error}. Download it again.") from error


def _context(config: Any, where: Path) -> int:
    """Most positions the checkpoint was made for."""
    context = int(config.max_position_embeddings)
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"{where}: rope scaling of type {kind!r} is not supported ({', '.join(_ROPE_TYPES)} are). Remove rope_scaling to run "
            "the model with its own context."
        )
    if kind == "yarn":  # Qwen's model cards leave max_position_embeddings as it was
        context = max(context, int(rope.get("factor", 1) * (rope.get("original_max_position_embeddings") or context)))
    if config.sliding_window is not None:
        # Up to the window's length, sliding and full attention are the same.
        context = min(context, int(config.sliding_window))
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        config.sliding_window, config.use_sliding_window = None, False
    return context


def _device(device: str) -> torch.device:
    available = torch.cuda.is_available()
    if device in ("gpu", "cuda") and not available:
        raise CheckpointError(
            "MODEL_DEVICE asks for a GPU, but torch sees none. Install a CUDA build of torch (in a container: start it with "
            "--gpus all), or set MODEL_DEVICE=cpu."
        )
    return torch.device("cuda", 0) if available and device != "cpu" else torch.device("cpu")


def _dtype(dtype: str, device: torch.device, values: Mapping[str, Any], weights: Weights) -> torch.dtype:
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    named = str(values.get("dtype") or values.get("torch_dtype")).removeprefix("torch.")
    own = _DTYPES.get(named, weights.stored_dtype())
    if own is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return own


def _vocabulary(
    folder: Path, size: int, settings: Mapping[str, Any], first_generation: bool
) -> JsonVocabulary | TiktokenVocabulary:
    path = folder / ("qwen.tiktoken" if first_generation else "tokenizer.json")
    if path.is_file():
        if first_generation:
            return TiktokenVocabulary(path, size)
        bos = _text(settings.get("bos_token")) if settings.get("add_bos_token") else ""
        return JsonVocabulary(path, size, bos=bos)
    hint = ""
    if not first_generation and (folder / "vocab.json").is_file():
        hint = " (vocab.json and merges.txt alone are not enough)"
    raise CheckpointError(
        f"{folder} has no {path.name}{hint}: without it there is no tokenizer. Download it into the folder."
    )


def _ends(
    config: Any,
    generation: Mapping[str, Any],
    settings: Mapping[str, Any],
    vocabulary: JsonVocabulary | TiktokenVocabulary,
    first_generation: bool,
) -> tuple[frozenset[int], str]:
    """The tokens that end a turn, and the text of the one that templates call `eos_token`."""
    control = vocabulary.special_tokens
    listed = generation.get("eos_token_id", config.eos_token_id)
    ids = {value for value in (listed if isinstance(listed, list) else [listed]) if isinstance(value, int)}
    if first_generation:
        # Its generation_config.json names only the first; `chat_format` decides whether turns end with the other.
        names = ["<|endoftext|>"] if generation.get("chat_format") == "raw" else ["<|im_end|>", "<|endoftext|>"]
        return frozenset(ids | {control[name] for name in names}), names[0]
    eos = _text(settings.get("eos_token"))
    if eos in control:
        ids.add(control[eos])
    return frozenset(ids), eos


def _defaults(generation: Mapping[str, Any], where: Path) -> dict[str, float]:
    """The sampling that the checkpoint's makers chose."""
    if generation.get("do_sample") is False:
        # What is set beside it has no effect in transformers either, but for the penalty.
        names: tuple[str, ...] = ("repetition_penalty",)
    else:
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    found: dict[str, float] = {"temperature": 0.0} if generation.get("do_sample") is False else {}
    for name in names:
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise CheckpointError(
                f"{where}: {name} is {value!r}, which is no number from 0 up. Correct it, or remove the line."
            )
        found[name] = value
    return found


def _chat_template(
    folder: Path, settings: Mapping[str, Any], generation: Mapping[str, Any], first_generation: bool
) -> str | None:
    """The template, from whichever place this checkpoint's time kept it in; None: a base model."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Download the file again.") from error
    found = settings.get("chat_template") or (_read_json(folder / "chat_template.json") or {}).get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if isinstance(found, str):
        return found
    if first_generation and generation.get("chat_format") != "raw":
        return qwen1.CHAT_TEMPLATE
    return None


def _text(token: Any) -> str:
    """A token of `tokenizer_config.json`, which is a string, an object with its content, or null."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
