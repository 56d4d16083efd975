"""Tables: one grid as text, CSV and LaTeX."""

import csv
import re

import pytest

from lrdyn.figures import tables
from lrdyn.figures.tables import Grid

GRID = Grid(
    ("part", "name", "$m^2$", "left"),
    {
        "first & best": [["a_1 100 %", 1234567, -8], ["$\\max(b, c)$", 2, 0.12345]],
        "second": [["#{x}~^\\", 3, -1234]],
    },
)


def test_text_is_aligned_and_free_of_dollar_signs():
    assert tables.as_text(GRID).split("\n") == [
        "  name             m^2    left",
        "first & best",
        "  a_1 100 %  1,234,567      -8",
        "  max(b, c)          2   0.123",
        "second",
        "  #{x}~^             3  -1,234",
        "",
    ]


def test_csv_keeps_every_number():
    rows = list(csv.reader(tables.as_csv(GRID).splitlines()))
    assert rows == [
        ["part", "name", "m^2", "left"],
        ["first & best", "a_1 100 %", "1234567", "-8"],
        ["first & best", "max(b, c)", "2", "0.12345"],
        ["second", "#{x}~^", "3", "-1234"],
    ]


def test_csv_holds_nothing_that_a_terminal_obeys():
    name = "a\x1b[2J\0\u202eb"
    grid = tables.Grid(["part", name], {name: [[name]]})
    text = tables.as_csv(grid, mathematics=False)
    assert text.replace("\n", "").isprintable()
    assert text.count(r"a\x1b[2J\x00\u202eb") == 3


def check_latex(text):
    """What LaTeX would stop at: other letters, braces, environments, signs, columns."""
    assert text.isascii()
    text = re.sub(r"^% needs.*\n", "", text)
    bare = re.sub(r"\\[\\{}%&#_$,]", "", text)
    assert bare.count("$") % 2 == 0
    assert bare.count("{") == bare.count("}")
    assert "%" not in bare
    assert "#" not in bare
    outside = "".join(bare.split("$")[::2])
    assert not set("_^<>|~") & set(outside)
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1]
    (columns,) = re.findall(r"\\begin{tabular}{(\w+)}", text)
    inside = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in inside.split("\n") if line.rstrip().endswith(r"\\")]
    assert len(rows) > 1
    for row in rows:
        spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn{(\d+)}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + 1 + spans == len(columns)
    known = {
        "begin",
        "end",
        "centering",
        "toprule",
        "midrule",
        "bottomrule",
        "multicolumn",
        "emph",
        "caption",
        "label",
        "max",
        "textbackslash",
        "textasciitilde",
        "textasciicircum",
    }
    assert set(re.findall(r"\\([a-z]+)", text)) <= known


def test_latex_is_escaped_outside_mathematics():
    text = tables.as_latex(GRID, "Costs 5 %, a_b < c, $a_b < c$.", "x")
    check_latex(text)
    assert r"a\_1 100 \% & 1\,234\,567 & $-8$ \\" in text
    assert r"\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 3 & $-1\,234$ \\" in text
    assert r"$\max(b, c)$ & 2 & 0.123 \\" in text
    assert r"\multicolumn{3}{l}{\emph{first \& best}} \\" in text
    assert r"\caption{Costs 5 \%, a\_b $<$ c, $a_b < c$.}" in text
    assert "{lrr}" in text


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text.replace(r"\%", "%"),
        lambda text: text.replace(r"\end{table}", ""),
        lambda text: text.replace("-8$ ", "-8$ & "),
        lambda text: text.replace(r"\_", "_", 1),
        lambda text: text.replace("m^2$", "m^2"),
        lambda text: text.replace("best", "b\u00e9st"),
    ],
)
def test_the_check_of_latex_can_fail(broken):
    text = tables.as_latex(GRID, "5 %.", "x")
    assert broken(text) != text
    with pytest.raises(AssertionError):
        check_latex(broken(text))


@pytest.mark.parametrize(
    ("text", "says"), [("a $ b", "dollar signs in pairs"), ("caf\u00e9", "ASCII letters")]
)
def test_what_cannot_be_escaped_is_named(text, says):
    with pytest.raises(ValueError, match=says):
        tables.escape(text)
