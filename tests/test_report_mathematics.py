"""Statements as MathML: every one of the library, and whatever somebody else may write."""

import re
import time
from html import unescape
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdyn.registry import theorems
from lrdyn.report.mathematics import GREEK, LARGE, RELATIONS, mathematics, spans, tokens_of
from lrdyn.studies import studies

EVERY = (*theorems(), *studies())
STATEMENTS = sorted(
    {
        one.statement
        for experiment in EVERY
        for scenario in experiment.scenarios
        for one in (*scenario.claims, *scenario.controls, *scenario.findings)
    }
    | {experiment.summary for experiment in EVERY}
)
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "mover": 2}
LEAVES = {"mi", "mn", "mo", "mtext"}
ROWS = {"math", "mrow", "msqrt"}
CODE = r"\b[a-z]{2,}(_[a-z0-9]+)+\b"
"""A name of code, in whose underscores nothing stands below."""


def trees(statement):
    """The MathML of every formula of a statement, with the source."""
    for span in spans(statement):
        yield span.source, [ElementTree.fromstring(unescaped(part)) for part in span.parts]


def unescaped(part):
    """What XML knows of entities is not all that HTML knows."""
    return part.replace("&#160;", " ")


@pytest.mark.parametrize("statement", STATEMENTS)
def test_every_statement_is_its_prose_and_formulas(statement):
    assert "".join(span.source for span in spans(statement)) == statement
    for source, parts in trees(statement):
        if not parts:  # no formula is left in the prose
            left = re.sub(CODE, "", source)
            left = re.sub(r" (<=|>=) ", " ", left)  # between words
            assert not re.search(r"[_^{}|<>~\\]", left), source
            words = set(re.findall("[A-Za-z]+", left))
            assert not words & ({*GREEK} - {"gamma"}), source
        for tree in parts:
            for node in tree.iter():
                assert node.tag in LEAVES | ROWS | {*CHILDREN}, source
                assert node.tag not in CHILDREN or len(node) == CHILDREN[node.tag], source
                assert (node.tag in LEAVES) == (not len(node)), source
                assert node.tag not in LEAVES or (node.text or "").strip(), source


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_token_of_a_formula_is_lost_or_moved(statement):
    shown = {**GREEK, **LARGE, **RELATIONS, "-": "−", "*": "∗", "...": "…", "||": "‖", ".": "·"}
    shown |= {"sqrt": "", "Wt": "W"}
    for source, parts in trees(statement):
        if parts:
            leaves = "".join(text.strip() for tree in parts for text in tree.itertext())
            words = [shown.get(token.word, token.word) for token in tokens_of(source)]
            assert plain(leaves) == plain("".join(words)), source


def plain(text):
    """Without what becomes a position: scripts, fractions, hats and their parentheses."""
    text = text.translate(str.maketrans("×⟨⟩′", "x<>'"))
    return re.sub(r"[_^{}()\[\]/~]", "", text)


@pytest.mark.parametrize(
    ("statement", "markup"),
    [
        ("a step", "a step"),
        ("x < y", "<math><mi>x</mi><mo form='infix'>&lt;</mo><mi>y</mi></math>"),
        ("rank <= that of", "rank ≤ that of"),
        ("s^2", "<math><msup><mrow><mi>s</mi></mrow><mrow><mn>2</mn></mrow></msup></math>"),
        ("1/2", "<math><mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac></math>"),
        ("(1-p)/p", "<mfrac><mrow><mi>1-p"),
        ("weight_decay of 99 %", "weight_decay of 99 %"),
        ("||.||_*", "<mo form='prefix' stretchy='false'>‖</mo><mo>·</mo>"),
        ("U^T", "<mi mathvariant='normal'>T</mi>"),
        ("tail beyond rank r", "tail beyond rank <math><mi>r</mi></math>"),
    ],
)
def test_what_becomes_of_a_statement(statement, markup):
    made = mathematics(statement).replace('"', "'")
    if statement == "(1-p)/p":  # the parentheses of a numerator are no more needed
        assert "(" not in made
        assert "<mfrac>" in made
    else:
        assert markup in made


def test_a_norm_may_have_words_in_it():
    (source, parts), *_ = trees("||W after - W before||_F^2")
    assert source == "||W after - W before||_F^2"
    assert [(node.text or "").strip() for node in parts[0].iter("mtext")] == ["after", "before"]


def test_a_remark_is_no_factor():
    assert [span.source for span in spans("2 (s - t) (r = 1)") if span.parts] == [
        "2 (s - t)",
        "(r = 1)",
    ]


def test_a_long_formula_may_break_at_its_relations_and_sums():
    (span,) = spans("sum_i sigma_i^2 + lambda sum_i w_i^2 = ||W||_F^2 - tr(A B)")
    assert len(span.parts) == 4


@given(st.text() | st.text("()|<>_^{}[]/ =+-abxsum12.,'\\&", max_size=60))
def test_any_text_comes_back_and_is_escaped(text):
    assert "".join(span.source for span in spans(text)) == text
    made = mathematics(text)
    for tag in re.findall(r"<(/?\w*)", made):
        assert tag.lstrip("/") in LEAVES | ROWS | {*CHILDREN}
    ElementTree.fromstring(f"<p>{unescaped(made)}</p>")


@pytest.mark.parametrize("text", ["(" * 400, "|" * 400, "sum " * 400, "((a" * 200, "x_{" * 200])
def test_what_nests_without_end_is_read_in_time(text):
    began = time.process_time()
    mathematics.__wrapped__(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b", '"><img src=x onerror=y>'])
def test_markup_in_a_statement_is_text(text):
    made = mathematics(text)
    assert "<script" not in made
    assert "<img" not in made
    assert unescape(re.sub(r"</?m\w+[^>]*>", "", made)).replace(" ", "").startswith(text[:1])
