"""An embedding and its dimension, by the embedder that the RAG service uses.   python examples/embedding.py"""

import os
from pathlib import Path

from services.rag.embeddings import load_embedder

cache = Path(os.environ.get("RAG_CACHE_DIR", "~/.cache/docduet")).expanduser() / "embeddings"
embedder = load_embedder(os.environ.get("RAG_EMBEDDING_MODEL", "embedded"), cache)
vector = embedder.embed_query("租约的硬限制是多久？")
print(f"{embedder.model_id}: {len(vector)} dimensions")
print(vector[:8])
for text in ("硬限制是 2 小时。", "今天天气很好。"):
    print(f"{float(embedder.embed_documents([text])[0] @ vector):.3f}  {text}")
