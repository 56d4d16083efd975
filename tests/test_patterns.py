"""Regular expressions of other people: those of ``re``, in polynomial time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdyn.data.patterns import Patterns, Unsupported, exponential, is_plain

ATOMS = r"a b \. [ab] [^a] . \d \w \W \s ^ $ \b \B \Z \A (?=a) (?!b) (?<=a) (?<!b) [a-c.]".split()
QUANTIFIERS = "* + ? *? +? ?? {2} {1,3} {0,2}? {2,}".split()
PATTERNS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(QUANTIFIERS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(pattern=PATTERNS, text=st.text("aab.1x\n", max_size=7))
def test_matches_are_those_of_re(pattern, text):
    assert Patterns().fullmatch(pattern, text) == bool(re.fullmatch(pattern, text))
    # As PEFT looks for the name of a module.
    expected = re.match(rf"(.*\.)?({pattern})$", text)
    assert Patterns().ends_with(pattern, text) == bool(expected)


MANY = [
    ("((a+)+!)|(b*)", 34 * "a", False),
    ("(a+)+!|(a*)", 34 * "a", True),
    ("(((((a*)*b?)*c?)*d?)*!)", 50 * "abcd", False),
    ("(a|a)*(b?){500}(a{0,1000}){0,1000}!", 50 * "a", False),
    ("(.*){1000000}!", 100 * "a", False),
    ("(((a*)*)*)*b|.*", 1700 * "a", True),
    ("((a{1,1000}){1,1000}){1,1000}[bB]", 5000 * "a", False),
    ("(?:(?:a{1000}){1000}){1000}[bB]", 5000 * "a", False),
    (r".*?(?:x|y).*?(?:attn|mlp).*?(?:q|k)_proj.*?", "m.x.l.0.self_attn.q_proj", True),
    (r"^(?!.*vision).*(q|v)_proj$", "m.layers.0.q_proj", True),
    (r"^(?!.*vision).*(q|v)_proj$", "m.vision.0.q_proj", False),
]


@pytest.mark.parametrize(("pattern", "text", "fits"), MANY)
def test_many_ways_take_little_time(pattern, text, fits):
    begin = time.process_time()
    assert Patterns().fullmatch(pattern, text) is fits
    assert time.process_time() - begin < 2


def test_the_steps_of_all_matches_are_counted():
    patterns = Patterns(50)
    assert not patterns.fullmatch("(a+)+[!?]", "aaaa")
    with pytest.raises(Unsupported, match="it takes too long"):
        [patterns.fullmatch("(a+)+[!?]", "aaaab") for _ in range(9)]


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "(?i)a",
        "(?i:a)",
        r"(a)\1",
        "(?>a)",
        "a++",
        "(?P<n>a)(?(n)b)",
        "(?<=a*)b",
        "(" * 5000,
        "(" * 240 + "a" + ")" * 240 + "|.*",
        "(?=" * 100 + "a" + ")" * 100,
        "a{99999999999999999999}",
    ],
)
def test_what_is_not_read_is_named(pattern):
    with pytest.raises(Unsupported):
        Patterns().fullmatch(pattern, "a")


def test_plain_patterns():
    assert [is_plain(one) for one in ("layers", r"h\.[0-9]", "^a.$")] == [True] * 3
    assert not any(is_plain(one) for one in ("a*", "(a)", "a|bc", "a?", "(?=a)"))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|bc)*",
        "((a){1,2})+",
        "(a?b)*",
        "(?:a*)*?",
        "(a+){2}",
        "(?=(a+)+)",
        "a{1,2}+",
        "(?>(a*)*)",
        r"(\p{L}+)+",
        "(",
        r"\p{L",
        "(a)(?(1)(b+)+|c)",
    ],
)
def test_patterns_of_exponential_time_are_seen(pattern):
    assert exponential(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\w+|[^\w\s]+",
        "(a|b)*c",
        "(ab){2}",
        r"\\p{L}+",
    ],
)
def test_those_of_tokenizers_are_not(pattern):
    assert not exponential(pattern)
