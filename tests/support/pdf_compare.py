"""Which library reads PDFs best: ``python -m tests.support.pdf_compare [FOLDER]`` (see docs/decisions/0015).

Pages a second of processor time, and how many of the sentences and table rows come out whole. The lines of the other
libraries go through the project's `reflow`; blanks and table bars are not compared.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from services.rag.documents.pages import Options, PageText
from services.rag.documents.readers import pdf
from services.rag.documents.reflow import reflow

# file, page, what stands there: sentences over several lines of a column, parted words, table rows, numbered rules
CHECKS = [
    ("en_federal_register.pdf", 1, "and allow operation (dispatch) of an airplane with certain inoperative systems only if"),
    ("en_federal_register.pdf", 1, "will consider comments filed after the comment period has closed if it is possible to do so"),
    ("en_federal_register.pdf", 2, "Preliminary KNKT.18.10.35.04 Aircraft Accident Investigation Report, dated November 2018, and Final"),
    ("en_federal_register.pdf", 3, "An undesired MCAS activation could prompt the flightcrew to perform a non-normal procedure."),
    ("en_federal_register.pdf", 3, "would be possible only after the airplane returns to a low AOA state, below the threshold"),
    ("en_federal_register.pdf", 14, "Special flight permits may be issued in accordance with 14 CFR 21.197 and 21.199 to operate"),
    ("en_multicolumn.pdf", 1, "Lorem ipsum dolor sit amet, consectetuer adipiscing elit. Ut purus elit, vestibulum ut,"),
    ("en_multicolumn.pdf", 1, "metus rhoncus sem. Nulla et lectus vestibulum urna fringilla ultrices."),
    ("en_multicolumn.pdf", 2, "Donec pellentesque, erat ac sagittis semper, nunc dui lobortis purus, quis congue purus"),
    ("en_qwen_technical_report.pdf", 1, "have revolutionized the field of artificial intelligence, enabling natural language processing"),
    ("en_qwen_technical_report.pdf", 8, "with the most recent open-source base models, including LLaMA (Touvron et al., 2023a)"),
    ("en_qwen_technical_report.pdf", 9, "Table 3 presents the test results on arXiv3 in terms of perplexity (PPL)."),
    ("en_qwen_technical_report.pdf", 8, "ChatGLM2 6B 47.9 51.7 32.4 6.5 - - 33.7"),
    ("en_qwen_technical_report.pdf", 8, "MPT 30B 47.9 - 15.2 3.1 25.0 32.8 38.0"),
    ("en_qwen_technical_report.pdf", 12, "QWEN-CHAT 7B 55.8 / 57.0 59.7 / 59.3 50.3 / 54.1 37.2 39.6 / 46.7"),
    ("zh_alibaba_java_manual_huangshan.pdf", 4, "测试类命名以它要测试的类的名称开始，以 Test 结尾。"),
    ("zh_alibaba_java_manual_huangshan.pdf", 4, "部分框架在反向解析时，“误以为”对应的字段名称是 deleted"),
    ("zh_alibaba_java_manual_huangshan.pdf", 30, "个人敏感信息操作等相关记录，留存的日志不少于六个月，并且进行网络多机备份。"),
    ("zh_alibaba_java_manual_huangshan.pdf", 45, "1.3.1 纪念版 2017.11.30 修正部分描述；采用和 P3C 开源 IDE 检测插件相同的 Apache2.0 协议"),
    ("zh_alibaba_java_manual_huangshan.pdf", 53, "C0111 RPC 服务未找到"),
]  # fmt: skip
# What must not stand there: running heads and page numbers.
ABSENT = [
    ("en_federal_register.pdf", 4, "Vol. 85, No. 152"),
    ("en_federal_register.pdf", 9, "Vol. 85, No. 152"),
    ("zh_alibaba_java_manual_huangshan.pdf", 30, "Java 开发手册（黄山版）"),
    ("zh_alibaba_java_manual_huangshan.pdf", 30, "27/51"),
]


def ours(path: Path) -> Iterator[str]:
    for page in pdf.read(path, Options()):
        yield page.text if isinstance(page, PageText) else ""


def pypdfium2(path: Path) -> Iterator[str]:
    import pypdfium2 as library

    for page in library.PdfDocument(path):
        yield reflow(page.get_textpage().get_text_range().replace("\ufffe", "-\n"))
        page.close()


def pypdf(path: Path) -> Iterator[str]:
    from pypdf import PdfReader

    for page in PdfReader(path).pages:
        yield reflow(page.extract_text())


def pdfplumber(path: Path) -> Iterator[str]:
    import pdfplumber as library

    with library.open(path) as document:
        for page in document.pages:
            tables = [" ".join(cell or "" for cell in row) for table in page.extract_tables() for row in table]
            yield "\n".join([reflow(page.extract_text()), *tables])
            page.close()


def main(folder: Path) -> None:
    for read in (ours, pypdfium2, pypdf, pdfplumber):
        if read is not ours and find_spec(read.__name__) is None:
            print(f"{read.__name__}: not installed")
            continue
        print(measure(read, folder))


def measure(read: Callable[[Path], Iterator[str]], folder: Path) -> str:
    text: dict[tuple[str, int], str] = {}
    seconds = 0.0
    for path in sorted(folder.glob("*.pdf")):
        start = time.process_time()
        for number, page in enumerate(read(path), 1):
            text[path.name, number] = re.sub(r"[\s|]", "", page)
        seconds += time.process_time() - start
    whole = sum(re.sub(r"\s", "", phrase) in text[name, number] for name, number, phrase in CHECKS)
    gone = sum(re.sub(r"\s", "", phrase) not in text[name, number] for name, number, phrase in ABSENT)
    return (
        f"{read.__name__}: {len(text) / seconds:.1f} pages/s, {whole} of {len(CHECKS)} passages whole, "
        f"{gone} of {len(ABSENT)} heads gone"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2].parent / "shared" / "data" / "pdf_real")
