"""Words that a terminal is to show and not to obey."""

import pytest

from lrdyn.core.show import make_printable

ORDINARY = ["", "a b", "Noël, Ωmega, 低秩, \N{SNOWMAN}", "back\\slash"]
ESCAPED = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\r\x00\x7f": r"\r\x00\x7f",
    "\x9b2J\x85": r"\x9b2J\x85",
    "a\u202eb\u2066": r"a\u202eb\u2066",
    "a\u2028b\u2029": r"a\u2028b\u2029",
    "\udcff": r"\udcff",
    "row\nforged": r"row\nforged",
}


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text):
    assert make_printable(text) == text


@pytest.mark.parametrize("text", ESCAPED)
def test_what_a_terminal_would_obey_is_escaped(text):
    assert make_printable(text) == ESCAPED[text]


def test_line_breaks_of_the_caller_stay():
    assert make_printable("a\nb\r\x1b[0m\n", lines=True) == "a\nb\\r\\x1b[0m\n"
