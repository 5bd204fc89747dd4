"""The tutorial's own index: load, split, embed, store, search, with LangChain's parts alone (no docduet service).

python examples/index_chroma.py [FILE.pdf]
"""

import os
import sys
import tempfile
from pathlib import Path

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pypdf import PdfReader

from services.rag.embeddings import load_embedder


class DocduetEmbeddings(Embeddings):
    """The service's embedder with LangChain's interface."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("RAG_CACHE_DIR", "~/.cache/docduet")).expanduser() / "embeddings"
        self._embedder = load_embedder(os.environ.get("RAG_EMBEDDING_MODEL", "embedded"), cache)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self._embedder.embed_query(text).tolist()


path = Path(sys.argv[1]) if len(sys.argv) > 1 else next(Path("samples").glob("*.zh.pdf"))
pages = [
    Document(page.extract_text(), metadata={"source": path.name, "page": number})
    for number, page in enumerate(PdfReader(path).pages, start=1)
]
chunks = RecursiveCharacterTextSplitter(chunk_size=300, chunk_overlap=50).split_documents(pages)
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    store = Chroma.from_documents(chunks, DocduetEmbeddings(), persist_directory=folder)
    print(f"{len(chunks)} chunks of {len(pages)} pages indexed")
    for found in store.similarity_search("租约的硬限制是多久？", k=2):
        print(f"page {found.metadata['page']}: {found.page_content[:80]!r}")
