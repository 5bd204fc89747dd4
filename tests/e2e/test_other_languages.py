"""Answers in another language than their documents, cited by what the real embedder makes of them."""

from collections.abc import Iterator

import pytest

from services.rag.answer_text import Sentence
from services.rag.citations import Evidence, Unsupported
from services.rag.config import Settings
from services.rag.embeddings import load_embedder
from services.rag.passages import Passage
from services.rag.retrieval import Retriever
from services.rag.store.catalog import Catalog
from services.rag.store.index import Indexes

CHINESE = (
    "员工离职须提前一个月书面通知部门主管。报销单据应当贴在专用的表格上，并由经办人签字。"
    "办公室的门禁卡遗失后，应立即向行政部报告。实验室内禁止饮食和吸烟。"
)
ENGLISH = (
    "Visitors must wear a badge at all times. The canteen is closed on public holidays. Parcels are kept at the front "
    "desk until they are collected. Bicycles may be parked in the basement."
)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    folder = tmp_path_factory.mktemp("meaning")
    embedder = load_embedder("embedded", Settings(_env_file=None).cache_dir / "embeddings")
    catalog = Catalog(folder)
    indexes = Indexes(catalog, Indexes.open_chroma(folder, None), embedder, None)
    retriever = Retriever(catalog, indexes)
    yield retriever
    retriever.close()
    indexes.close()
    catalog.close()


@pytest.mark.parametrize(
    ("answer", "page", "quote"),
    [
        ("Smoking and eating are forbidden in the laboratory.", CHINESE, "实验室内禁止饮食和吸烟。"),
        (
            "Whoever loses an access card must tell the administration at once.",
            CHINESE,
            "办公室的门禁卡遗失后，应立即向行政部报告。",
        ),
        ("访客必须始终佩戴胸卡。", ENGLISH, "Visitors must wear a badge at all times."),
        ("自行车可以停在地下室。", ENGLISH, "Bicycles may be parked in the basement."),
    ],
)
def test_an_answer_in_another_language_is_cited_by_meaning(
    retriever: Retriever, answer: str, page: str, quote: str
) -> None:
    passage = Passage("doc", "rules.pdf", 1, 0, page, 0.9)
    found = Evidence([passage], nearness=retriever.nearness).support(Sentence(answer))
    assert isinstance(found, list)
    assert [one.quote for one in found] == [quote]


@pytest.mark.parametrize(
    ("answer", "page"),
    [
        ("The company was founded in Hamburg by two brothers.", CHINESE),
        ("公司的股票在香港上市。", ENGLISH),
        ("Resignations need 3 months of notice.", CHINESE),  # the page says one month
    ],
)
def test_what_the_page_does_not_say_has_no_source_in_any_language(retriever: Retriever, answer: str, page: str) -> None:
    passage = Passage("doc", "rules.pdf", 1, 0, page, 0.9)
    assert isinstance(Evidence([passage], nearness=retriever.nearness).support(Sentence(answer)), Unsupported)


def test_an_embedder_that_fails_costs_the_citation_and_not_the_answer(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(texts: object) -> None:
        raise MemoryError("no room")

    with retriever._indexes.use() as index:
        monkeypatch.setattr(index.embedder, "embed_documents", fails)
    assert retriever.nearness("Smoking is forbidden.", ["实验室内禁止吸烟。"]) == []
