"""Numbers as they are compared: odd ones do no harm, and a minus is a part of its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.answer_text import Sentence
from services.rag.citations import Evidence
from services.rag.passages import Passage
from services.rag.quantities import held, missing, quantities, without

_PIECES = [
    *"0123456789.,:-−–%$ ",
    *"零一二两三十百千万亿点〇負负年月日节元个天",
    *(
        "百分之",
        "零下",
        "minus ",
        "hundred ",
        "million",
        "one ",
        "mıllıon ",
        "hours",
        "kg",
        "°C",
        " B",
        "٣",
        "５",
        "½",
        "²",
        "。",
    ),
]


@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
def test_no_text_is_too_odd(text: str) -> None:
    found = quantities(text)
    missing(found, held(found))
    without(text)
    Evidence([Passage("d", "a.pdf", 1, 0, text, 0.9)], text).support(Sentence(text))


@pytest.mark.parametrize(
    "text",
    [
        "2.1.1 年假",
        "3.1.2 Time limits",
        "第3.2.1节",
        "10.0.0.1 times",
        "2024.5.1日",
        "百分之五.",
        "百分之十……",
        "百分之5.5.",
    ],
)
def test_a_value_with_several_points_is_compared_as_it_stands(text: str) -> None:
    assert quantities(text)
    assert not missing(quantities(text), held(quantities(text)))


@pytest.mark.parametrize("text", ["亿" * 600, "5" + "亿" * 90_000, "one" + " hundred" * 3000, "1" * 5000 + "万"])
def test_a_numeral_that_nobody_writes_is_read_in_no_time(text: str) -> None:
    assert held(quantities(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("百分之五.", "5"),
        ("百分之一百二十", "120"),
        ("百分之五点二", "5.2"),
        ("-5 °C", "-5"),
        ("−5℃", "-5"),
        ("温度-5℃", "-5"),
        ("零下5度", "-5"),
        ("零下五度", "-5"),
        ("負5分", "-5"),
        ("minus 5 degrees", "-5"),
        ("COVID-19", "19"),
        ("负责三天", "3"),
    ],
)
def test_a_sign_is_a_part_of_the_value(text: str, value: str) -> None:
    assert [q.value for q in quantities(text)] == [value]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5-10 kg", ["5", "10"]),
        ("5℃-10℃", ["5", "10"]),
        ("6月-8月", ["6", "8"]),
        ("$5-$10", ["5", "10"]),
        ("1990 –1995", ["1990", "1995"]),
        ("2024-05-01", ["2024", "5", "1"]),
        ("-20℃～-10℃", ["-20", "-10"]),
        ("10:00-12:00", ["10", "0", "12", "0"]),
    ],
)
def test_a_range_and_a_date_have_no_sign(text: str, values: list[str]) -> None:
    assert [q.value for q in quantities(text)] == values
