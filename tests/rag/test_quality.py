"""The page quality gate: writing passes, mojibake does not."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.documents.quality import mojibake

ENGLISH = (
    "The river rises in the northern hills and flows through eleven towns before it reaches the sea. Its water is "
    "measured at every bridge, and the measure is written down twice a day by the keeper of the bridge. In spring the "
    "snow melts and the river may rise by three metres within a single night, so the lower gates are kept closed."
)
GERMAN = (
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und "
    "sollen einander im Geist der Brüderlichkeit begegnen. Jeder hat Anspruch auf die in dieser Erklärung verkündeten "
    "Rechte und Freiheiten ohne irgendeinen Unterschied, etwa nach Sprache, Religion oder politischer Überzeugung."
)
FRENCH = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience "
    "et doivent agir les uns envers les autres dans un esprit de fraternité. Chacun peut se prévaloir de tous les droits."
)
CZECH = (
    "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím a mají spolu "
    "jednat v duchu bratrství. Každý má všechna práva a všechny svobody, stanovené touto deklarací, bez jakéhokoli "
    "rozlišování, zejména podle rasy, barvy, pohlaví, jazyka, náboženství, politického nebo jiného smýšlení."
)
SIMPLIFIED = (
    "软限制到期之前，写入者对文件的独占访问是确定的。如果软限制到期而客户端没有关闭文件或续租，另一个客户端可以抢占租约。"
    * 4
)
TRADITIONAL = (
    "軟限制到期之前，寫入者對檔案的獨佔存取是確定的。如果軟限制到期而用戶端沒有關閉檔案或續租，另一個用戶端可以搶佔租約。"
    * 4
)
JAPANESE = (
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は理性と良心とを授けられている。"
    * 4
)
KOREAN = (
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았다."
    * 4
)
RUSSIAN = "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью." * 4
ARABIC = "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً." * 4
CODE = (
    'if (Math.abs(a - b) < diff) {\n  System.out.println("true");\n}\nBigDecimal recommend2 = BigDecimal.valueOf(0.1);\n'
    * 6
)
NUMBERS = "| 47.9 | 51.7 | 32.4 | 6.5 | - | - | 33.7 |\n" * 30
KEYS = "3f9a77c1e0b2d44586aa91bc7e5f0d21\nQmFzZTY0IGlzIG5vdCBhIGxhbmd1YWdl\n" * 30


@pytest.mark.parametrize(
    "text",
    [ENGLISH, GERMAN, FRENCH, CZECH, SIMPLIFIED, TRADITIONAL, JAPANESE, KOREAN, RUSSIAN, ARABIC, CODE, NUMBERS, KEYS, ""],
)  # fmt: skip
def test_writing_passes(text: str) -> None:
    assert mojibake(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("".join(chr(ord(c) + 0xF000) for c in ENGLISH), "not characters of any writing"),
        ("\ufffd" * 12 + "abc", "not characters of any writing"),
        ("".join(chr(3 + i % 20) for i in range(60)), "not characters of any writing"),
        (SIMPLIFIED.encode("gbk").decode("latin-1"), "another encoding|not characters"),
        (SIMPLIFIED.encode().decode("latin-1"), "another encoding|not characters"),
        ("㐂㐄㐆㐈㐊㐌㐎㐐㐒", "rare ones"),
        ("".join(chr(0x5000 + 37 * i % 0x4000) for i in range(300)), "ideographs are not those of any text"),
    ],
    ids=["private use", "replacement", "control", "gbk as latin", "utf-8 as latin", "rare", "by chance"],
)
def test_mojibake_is_told(text: str, reason: str) -> None:
    assert re.search(reason, mojibake(text) or "")


@pytest.mark.parametrize("text", [ENGLISH, GERMAN])
def test_letters_that_were_swapped_are_told(text: str) -> None:
    swapped = str.maketrans(string.ascii_lowercase, "kvxqzjwbpygfmucldrhsnioate")
    assert mojibake((text * 2).translate(swapped)) is not None


def test_glyph_numbers_are_told_and_ascii_numbers_are_not() -> None:
    shifted = "".join(chr(ord(c) - 29) if " " < c <= "z" else c for c in ENGLISH)
    assert "do not say which characters" in (mojibake(shifted, len(ENGLISH), shifted) or "")
    # An old font that numbers its glyphs as ASCII does.
    assert mojibake(ENGLISH, len(ENGLISH), ENGLISH) is None
    # A few symbols among much text are no reason to lose the page.
    assert mojibake(ENGLISH, 5, "\x01\x02\x03\x04\x05") is None


@given(st.text(max_size=400), st.integers(0, 500), st.text(max_size=100))
def test_the_gate_never_fails(text: str, unmapped: int, unmapped_text: str) -> None:
    reason = mojibake(text, unmapped, unmapped_text)
    assert reason is None or reason


@given(st.lists(st.sampled_from(ENGLISH.split()), min_size=1, max_size=200))
def test_any_words_of_a_text_pass(words: list[str]) -> None:
    assert mojibake(" ".join(words)) is None
