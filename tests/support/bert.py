"""A random, tiny BERT embedder on disk: shaped like stella-base-zh, made in a fraction of a second."""

import json
import os
from pathlib import Path
from typing import Any

# Every Chinese character a token of its own, as in the vocabulary of bert-base-chinese.
_CHARACTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789:,.?，。：？", *map(chr, range(0x4E00, 0xA000))]


def make_bert(folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None, positions: int = 64) -> Path:
    """Writes a model folder (32-d, 2 layers) and returns it; ``seed`` picks the weights.

    Without ``prompts`` there is no modules.json either, as in the original stella-base-zh: sentence-transformers then
    pools by the mean.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the service sets it, before torch reads it
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_CHARACTERS]
    vocabulary += [f"##{character}" for character in _CHARACTERS[:36]]
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    folder.mkdir(parents=True)
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    settings: dict[str, Any] = {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "model_max_length": positions}
    }
    if prompts is not None:
        modules = (("", "Transformer"), ("1_Pooling", "Pooling"))
        settings |= {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(modules)
            ],
            "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
            "config_sentence_transformers.json": {"prompts": prompts},
        }
    for name, content in settings.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder
