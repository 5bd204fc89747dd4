"""A page of a document over HTTP: its text, and its picture with a quote marked."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel, Field

from services.rag.documents.rendering import NARROWEST, WIDEST
from services.rag.service import Service

Number = Annotated[int, Path(ge=1, le=1 << 31, description="1-based.")]
Offset = Annotated[int | None, Query(ge=0, le=1 << 31, description="In the page's text, in code points.")]


class PageOut(BaseModel):
    document_id: str
    page: int
    label: str = Field(description="What a person calls the page; empty for a printed one.")
    method: str = Field(description="text, or ocr")
    text: str


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    catalog, images = service.catalog, service.images

    @routes.get("/documents/{document_id}/pages/{page}", tags=["documents"])
    def page(document_id: str, page: Number) -> PageOut:
        """The text of one page (1-based); a citation's offsets refer to it."""
        found = catalog.document(document_id)
        text = catalog.page(found.id, page)
        return PageOut(document_id=found.id, page=page, label=text.label, method=text.method, text=text.text)

    @routes.get(
        "/documents/{document_id}/pages/{page}/image",
        tags=["documents"],
        response_class=Response,
        responses={200: {"content": {"image/png": {}, "image/jpeg": {}}}},
    )
    def image(
        document_id: str,
        page: Number,
        start: Offset = None,
        end: Offset = None,
        width: Annotated[int, Query(ge=NARROWEST, le=WIDEST, description="Pixels.")] = 1200,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """The page as it looks, of a PDF or a picture, with the text from ``start`` to ``end`` marked (a citation's offsets).

        ``X-Docduet-Highlight`` says whether it is: ``exact``, ``partial``, or ``none`` (no span was asked for, or it cannot
        be found on the page, as where the text was read by OCR). Other formats have no picture (415).
        """
        view, tag = images.view(document_id, page, start, end, width)
        # The browser asks each time, for the document may be gone; where nothing changed, nothing is drawn.
        headers = {"ETag": tag, "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
        if if_none_match is not None and tag in if_none_match:
            return Response(status_code=304, headers=headers)
        picture = images.draw(document_id, view)
        return Response(
            picture.data, media_type=picture.media_type, headers={**headers, "X-Docduet-Highlight": picture.highlight}
        )

    return routes
