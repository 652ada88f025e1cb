"""Text from data for terminals: on one line, nothing hidden, columns that line up."""

from hypothesis import given
from hypothesis import strategies as st

from vovnet.terminal.text import padded, printable, shortened, width_of


def test_what_cannot_be_seen_is_escaped():
    assert printable("stop\nsign") == "stop sign"
    assert printable("red\x1b[31m\u202e\ud800") == r"red\x1b[31m\u202e\ud800"
    assert printable("汽车 😀 A$10^$") == "汽车 😀 A$10^$"


@given(st.text(st.characters()))
def test_any_text_is_one_printable_line(text):
    line = printable(text)
    assert line.isprintable()
    assert line.encode() is not None
    assert len(line) >= len(text)


@given(st.text(), st.integers(3, 40))
def test_a_shortened_text_keeps_both_ends(text, most):
    short = shortened(text, most)
    assert len(short) <= max(most, 0)
    assert short == text if len(text) <= most else short[0] == text[0] and short[-1] == text[-1]


def test_columns_count_what_a_terminal_shows():
    assert [width_of(text) for text in ("ab", "汽车", "e\u0301", "")] == [2, 4, 1, 0]
    assert padded("汽车", 6) == "汽车  "
