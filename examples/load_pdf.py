"""Load a PDF and print a page, as the service reads it.   python examples/load_pdf.py [FILE.pdf [PAGE]]"""

import sys
from pathlib import Path

from services.rag.documents.reading import Limits, PageText, read_pages

path = Path(sys.argv[1]) if len(sys.argv) > 1 else next(Path("samples").glob("*.zh.pdf"))
wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 1
for page in read_pages(path, Limits()):
    if page.number == wanted:
        print(f"--- {path.name}, page {page.number} of {page.total}")
        print(page.text if isinstance(page, PageText) else f"not readable: {page.reason}")
