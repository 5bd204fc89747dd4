"""What LangChain's tutorials write, and its EnsembleRetriever, as a process: an order on stdin, a JSON line a result on stdout.

Run by ``bench_answers.py``. The order is ``{"model", "store", "folder", "llm", "max_tokens", "search": {id: question},
"ask": {system: {id: question}}}``; ``folder`` holds one text file a paragraph.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import rjieba
from langchain_chroma import Chroma
from langchain_classic.chains import RetrievalQA
from langchain_classic.retrievers import EnsembleRetriever
from langchain_community.document_loaders import TextLoader
from langchain_community.retrievers import BM25Retriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_openai import ChatOpenAI
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pydantic import SecretStr

K = 4  # passages that the tutorials' chains read; LangChain's default for both retrievers
DEEP = 20  # passages looked at for the retrieval figures


def main() -> None:
    order = json.load(sys.stdin)
    documents = _split(Path(order["folder"]))
    store = _store(order, documents)
    if order["search"]:
        for system, retriever in _retrievers(store, documents, DEEP).items():
            for key, question in order["search"].items():
                began = time.perf_counter()
                found = retriever.invoke(question)
                names = [Path(d.metadata["source"]).name for d in found]
                _tell(system=system, kind="search", id=key, found=names, ms=1000 * (time.perf_counter() - began))
    if any(order["ask"].values()):
        llm = ChatOpenAI(
            base_url=order["llm"],
            api_key=SecretStr("none"),
            model=order["llm_name"],
            temperature=0,
            max_completion_tokens=order["max_tokens"],
            timeout=600,
        )
        for system, retriever in _retrievers(store, documents, K).items():
            chain = RetrievalQA.from_chain_type(llm, chain_type="stuff", retriever=retriever)
            for key, question in order["ask"].get(system, {}).items():
                began = time.perf_counter()
                answer = chain.invoke({"query": question})["result"]
                _tell(system=system, kind="answer", id=key, answer=answer, ms=1000 * (time.perf_counter() - began))


def _split(folder: Path) -> list[Document]:
    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
    files = sorted(folder.glob("*.txt"))
    return splitter.split_documents([d for f in files for d in TextLoader(str(f), encoding="utf-8").load()])


def _store(order: dict[str, Any], documents: list[Document]) -> Chroma:
    embedder = HuggingFaceEmbeddings(
        model_name=order["model"],
        model_kwargs={"device": "cpu"},
        encode_kwargs={"prompt": "passage: "},
        query_encode_kwargs={"prompt": "query: "},
    )
    path = Path(order["store"])
    whole = path / "whole"  # written once everything is embedded: a store that was cut short is made again
    store = Chroma(embedding_function=embedder, persist_directory=str(path))
    if not whole.exists():
        store.reset_collection()
        store.add_documents(documents)
        whole.touch()
    return store


def _retrievers(store: Chroma, documents: list[Document], k: int) -> dict[str, BaseRetriever]:
    dense = store.as_retriever(search_kwargs={"k": k})
    plain = BM25Retriever.from_documents(documents, k=k)
    words = BM25Retriever.from_documents(documents, k=k, preprocess_func=rjieba.cut)
    return {
        "tutorial": dense,
        "ensemble": EnsembleRetriever(retrievers=[plain, dense], weights=[0.5, 0.5]),
        "ensemble, jieba": EnsembleRetriever(retrievers=[words, dense], weights=[0.5, 0.5]),
    }


def _tell(**line: Any) -> None:
    print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
