"""PDFs that tests make: plain Latin text in a core font, pictures without text, encrypted ones."""

from collections.abc import Sequence
from pathlib import Path

from fpdf import FPDF
from fpdf.enums import AccessPermission


def make_pdf(path: Path, pages: Sequence[str | None], *, password: str | None = None) -> Path:
    """A PDF with one paragraph a page; None makes a page with a drawing and no text, as a scan has."""
    pdf = FPDF()
    for text in pages:
        pdf.add_page()
        if text is None:
            pdf.rect(20, 20, 100, 60, style="F")
        else:
            pdf.set_font("Helvetica", size=11)
            pdf.multi_cell(0, 6, text)
    if password:
        pdf.set_encryption(owner_password="owner", user_password=password, permissions=AccessPermission.none())
    pdf.output(str(path))
    return path
