"""Fits an embedder's relevance model (services/rag/retrieval.py) on SQuAD-style question sets.

usage: python scripts/calibrate.py FILE.json [FILE.json …] [--embedder embedded] [--questions 250]
Prints the weights, and the threshold that refuses 5 % of the answerable questions with the share of hard wrong passages
(the four best-looking of the same set) that it lets through.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.rag.embeddings import load_embedder
from services.rag.retrieval import coverage

Array = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--embedder", default="embedded")
    parser.add_argument("--questions", type=int, default=250)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/docduet/embeddings").expanduser())
    arguments = parser.parse_args()
    embedder = load_embedder(arguments.embedder, arguments.cache)
    rows: list[tuple[float, float, float]] = []
    for file in arguments.files:
        passages, questions = _read(file)
        sample = random.Random(0).sample(questions, min(arguments.questions, len(questions)))  # noqa: S311
        vectors = np.asarray(embedder.embed_documents(passages))
        for question, gold in sample:
            similarity = vectors @ np.asarray(embedder.embed_query(question))
            covered = np.array([coverage(question, p) for p in passages])
            wrong = [i for i in np.argsort(-(10 * similarity + covered)) if i != gold][:4]
            rows.append((1.0, similarity[gold], covered[gold]))
            rows.extend((0.0, similarity[i], covered[i]) for i in wrong)
    data = np.array(rows)
    right, features = data[:, 0], data[:, 1:]
    for name, columns in (("cosine and coverage", [0, 1]), ("cosine alone", [0]), ("coverage alone", [1])):
        weights, p = _fit(features[:, columns], right)
        threshold = float(np.percentile(p[right == 1], 5))
        passed = float((p[right == 0] >= threshold).mean())
        print(
            f"{name}: weights and intercept {weights.round(2).tolist()}, threshold {threshold:.3f}, passed {passed:.3f}"
        )


def _read(file: Path) -> tuple[list[str], list[tuple[str, int]]]:
    passages: list[str] = []
    questions: list[tuple[str, int]] = []
    for article in json.loads(file.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            questions += [(q["question"], len(passages)) for q in paragraph["qas"]]
            passages.append(paragraph["context"][:600])
    return passages, questions


def _fit(features: Array, right: Array) -> tuple[Array, Array]:
    """Logistic regression by Newton's method, both classes with the same total weight."""
    x = np.c_[features, np.ones(len(features))]
    balance = np.where(right == 1, 1 / right.sum(), 1 / (1 - right).sum()) * len(right)
    weights = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ weights))
        hessian = (x * (balance * p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(len(weights))
        weights = weights + np.linalg.solve(hessian, x.T @ (balance * (right - p)))
    return weights, 1 / (1 + np.exp(-x @ weights))


if __name__ == "__main__":
    main()
