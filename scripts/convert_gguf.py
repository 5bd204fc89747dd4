"""Make an ordinary Hugging Face folder from a GGUF file of a Qwen model.

    python scripts/convert_gguf.py SRC.gguf DEST_FOLDER

So that the same weights can be given to engines of both kinds. The tensors are dequantized to float32: what the file's 4-bit
values stand for, exactly, and about 4 bytes a parameter (2.5 GB for the 0.5b). The folder gets config, generation_config,
safetensors, tokenizer and chat template, all from the file. It is written beside DEST_FOLDER and renamed when complete; a
model that is already there is left as it is. Needs the packages torch, transformers and gguf.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

# What llama.cpp takes for the end of a turn or a text in a Qwen file, whichever of them the file names as its eos token.
END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def convert_gguf(source: Path, destination: Path) -> Path:
    """Returns `destination`, made from `source` unless it is there already. Raises OSError (no such file, or the
    destination cannot be written), ValueError (not a GGUF file of a model that transformers knows) and ImportError (a package is
    missing)."""
    if (destination / "config.json").is_file():
        return destination
    if not source.is_file():
        raise FileNotFoundError(f"{source} is not there: give the path of a .gguf file.")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} is there and holds no model: name a folder that is new or empty.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename stays on one file system and is atomic.
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as scratch:
        made = Path(scratch) / "model"
        _write(source, made)
        try:
            made.rename(destination)
        except OSError:  # someone else has made it meanwhile, or else it cannot be written
            if not (destination / "config.json").is_file():
                raise
    return destination


def _write(source: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import modeling_gguf_pytorch_utils

    hf: Any = transformers  # parts of it have no types
    gguf: Any = modeling_gguf_pytorch_utils
    tokenizer = hf.AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    config = hf.AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The step that `from_pretrained(..., gguf_file=...)` takes too; that one also asks for the package accelerate.
    tensors = gguf.load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if unexpected or set(missing) - tied:
        raise ValueError(f"its tensors do not fit the model: missing {missing}, left over {unexpected}.")
    model.tie_weights()
    ends = [index for index in map(tokenizer.get_vocab().get, END_TOKENS) if index is not None]
    model.generation_config = hf.GenerationConfig(
        eos_token_id=ends or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="SRC.gguf")
    parser.add_argument("destination", type=Path, metavar="DEST_FOLDER")
    options = parser.parse_args(arguments)
    try:
        folder = convert_gguf(options.source.expanduser(), options.destination.expanduser())
    except (OSError, ValueError, ImportError) as error:
        print(f"{options.source} was not converted: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
