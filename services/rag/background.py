"""What an ordinary chunk of a collection looks like to the embedder: a sample of its vectors, kept in memory."""

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.rag.fusion import Calibration
from services.rag.relevance import Background, is_cjk
from services.rag.store.catalog import Catalog
from services.rag.store.index import Index
from services.rag.store.records import Collection

# With 256 the mean of the similarities is known to a sixteenth of their standard deviation.
SIZE = 256
# A collection that has grown or shrunk by this share is looked at again.
_CHANGED = 0.1


@dataclass(frozen=True)
class _Sample:
    documents: int
    vectors: npt.NDArray[np.float32]  # (n, d)
    cjk: npt.NDArray[np.bool_]


class Backgrounds:
    """Thread-safe."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._samples: dict[tuple[int, str], _Sample] = {}
        self._lock = threading.Lock()

    def of(
        self,
        index: Index,
        collection: Collection,
        vector: npt.NDArray[np.float32],
        asked_cjk: bool,
        calibration: Calibration,
    ) -> Background:
        """The background of a question's ``vector`` (d,)."""
        sample = self._sample(index, collection)
        cosines = (sample.vectors @ vector).astype(np.float64) if len(sample.cjk) else np.empty(0)
        return Background(cosines, sample.cjk, calibration.prior(asked_cjk))

    def _sample(self, index: Index, collection: Collection) -> _Sample:
        key = (index.row.generation, collection.id)
        known = self._samples.get(key)
        if known is not None and abs(known.documents - collection.documents) <= _CHANGED * known.documents:
            return known
        with self._lock:
            texts = dict(self._catalog.sample_chunks(collection.id, SIZE))
            vectors = index.vectors.vectors(collection.id, list(texts))
            ids = sorted(vectors)
            sample = _Sample(
                collection.documents,
                np.stack([vectors[id_] for id_ in ids]) if ids else np.empty((0, 0), np.float32),
                np.array([is_cjk(texts[id_]) for id_ in ids], np.bool_),
            )
            # Generations that are gone go with the first sample of a new one.
            self._samples = {k: s for k, s in self._samples.items() if k[0] == key[0]} | {key: sample}
        return sample
