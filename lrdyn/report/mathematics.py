"""Statements as MathML: formulas within prose, as docstrings, claims and flags write them.

``sum_{i<=q} w_i^L u_i v_i^T`` stands in a sentence without marks around it. What is a formula is
read off its letters, operators and scripts; what is none stays text, letter for letter. Every token
of a formula has its place in what comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from lrdyn.report.markup import Markup, element, joined, text

LETTERS = (
    "alpha beta gamma delta zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
)
GREEK = dict(zip(LETTERS.split(), "αβγδζηθκλμνξπρστφχψω", strict=True)) | {"eps": "ε"}
GREEK |= dict(
    zip("Gamma Delta Theta Lambda Pi Sigma Phi Psi Omega".split(), "ΓΔΘΛΠΣΦΨΩ", strict=True)
)
LARGE = {"sum": "∑", "prod": "∏"}
FUNCTIONS = frozenset(
    "min max exp log log10 sin cos tanh tr diag Diag blkdiag sr opt grad row col rank det".split()
)
WITHOUT_PARENTHESES = frozenset("min max exp log log10 tr diag Diag blkdiag".split())
"""Functions that also stand before an argument without them; the others are words then."""
PRODUCTS = frozenset("mn nm nr mr pA rK dA dB dm ij ik jk kl".split())
"""Two letters that are two quantities, or a differential."""
DISTRIBUTIONS = frozenset({"law", "distribution", "function"})
"""Behind these a letter is a name: the gamma law."""
RELATIONS = {"=": "=", "<=": "≤", ">=": "≥", "!=": "≠", "<": "<", ">": ">", "<-": "←", "->": "→"}
SUMS = {"+": "+", "-": "−"}
CLOSING = {"(": ")", "[": "]", "{": "}"}
IN_PROSE = {name: RELATIONS[name] for name in ("<=", ">=", "!=", "<-", "->")}
DEPTH, EFFORT = 8, 60
"""Parentheses within each other, and symbols that are tried for each token: what asks for more is
no statement that anybody reads, and stays text."""
LONG = 28
"""Characters of a formula that has no place to break a line."""

# The first alternative that fits is taken: abbreviations stand before letters, numbers with commas
# before others, names with subscripts before names, signs of two letters before single ones.
TOKEN = re.compile(
    r"e\.g\.|i\.e\.|'[a-z]+|[0-9][0-9,]*[0-9](?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
    r"|[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?"
    r"|[A-Za-z]+_[A-Za-z]{2,}(?:_\w+)*|[A-Za-z]'(?![A-Za-z])|[A-Za-z][A-Za-z0-9]*|\.\.\.|\|\||<-|->"
    r"|<=|>=|!=|\S",
    re.ASCII,
)
IDENTIFIER = re.compile(r"[a-z]{2,}(_[a-z0-9]{2,})+", re.ASCII)


class Token(NamedTuple):
    """A word or a sign of a statement."""

    word: str
    start: int
    end: int
    tight: bool
    """Whether no space stands before it."""


class MarkedFormula(NamedTuple):
    """A part of a formula."""

    html: Markup
    bare: Markup | None = None
    """The markup without its parentheses, if one pair of them encloses it."""
    relates: bool = False
    """Whether these hold a relation: behind a space they are a remark, ``2 lambda (r = 1)``."""


class Span(NamedTuple):
    """A piece of a statement: prose, or a formula in the parts between which a line may break."""

    source: str
    parts: tuple[Markup, ...] = ()


class _NoFormula(Exception):
    """Raised where the text that follows is prose, not a formula."""


def tokens_of(statement: str) -> list[Token]:
    """The words and signs of a statement; names with subscripts are cut behind their letter."""
    tokens: list[Token] = []
    place = 0
    while match := TOKEN.search(statement, place):
        word = match[0]
        if "_" in word[1:] and not _is_identifier(word):
            word = word.partition("_")[0]
        tight = not statement[place : match.start()] and bool(tokens)
        place = match.start() + len(word)
        tokens.append(Token(word, match.start(), place, tight))
    return tokens


def _is_identifier(word: str) -> bool:
    """Whether it is a name of code: ``weight_decay``, but not ``sum_above``."""
    first = word.partition("_")[0]
    return bool(IDENTIFIER.fullmatch(word)) and first not in {*GREEK, *LARGE, *FUNCTIONS}


class _Reader:
    """Reads formulas out of the tokens of a statement; a failed attempt moves nothing."""

    def __init__(self, tokens: list[Token]):
        self.tokens, self.place, self.flat = tokens, 0, False
        self.open: tuple[str, ...] = ()
        self.worded, self.ahead = False, 0
        # A failed attempt is read again in another way, and each may begin others: without a bound,
        # brackets within brackets that never close would take exponentially long.
        self.left = EFFORT * (len(tokens) + 1)

    def word(self, ahead: int = 0) -> str:
        """The token at the place, empty behind the last."""
        place = self.place + ahead
        return self.tokens[place].word if place < len(self.tokens) else ""

    def tight(self, ahead: int = 0) -> bool:
        """Whether that token follows without a space."""
        place = self.place + ahead
        return place < len(self.tokens) and self.tokens[place].tight

    def attempt(self, read: Callable[[], MarkedFormula]) -> MarkedFormula | None:
        """Read a formula, or return None and go back to the old place."""
        before = self.place, self.flat, self.open, self.worded
        try:
            return read()
        except _NoFormula:
            self.place, self.flat, self.open, self.worded = before
            return None

    # A chain of sums and relations --------------------------------------------------------------

    def chain(self, *, relations: bool = True) -> list[tuple[str, Markup]]:
        """Operators and what follows each; the first operator is empty."""
        parts = [("", self.product().html)]
        while True:
            word, signs = self.word(), RELATIONS | SUMS if relations else SUMS
            if word not in signs:
                return parts
            place = self.place
            self.place += 1
            following = self.attempt(self.product)
            if following is None:
                self.place = place
                return parts
            parts.append((signs[word], following.html))

    def row(self, closing: str, *, relations: bool = True) -> tuple[Markup, bool]:
        """Chains between commas up to a closing sign, which stays; whether there is a relation."""
        html: list[Markup] = []
        relates = False
        while True:
            for operator, part in self.chain(relations=relations):
                html.append(joined(_sign(operator) if operator else "", part))
                relates |= operator in RELATIONS.values()
            if self.word() == closing:
                return joined(*html), relates
            if self.word() not in (",", ";", ":"):
                raise _NoFormula
            html.append(element("mo", self.word(), separator="true"))
            self.place += 1

    # Products -----------------------------------------------------------------------------------

    def product(self) -> MarkedFormula:
        """Factors side by side, with a sign before them."""
        sign = self.word()
        if sign in SUMS:
            self.place += 1
            html = [element("mo", SUMS[sign], form="prefix")]
        else:
            html = []
        first = self.factor()
        html.append(first.html)
        while (following := self.attempt(self.next_factor)) is not None:
            html.append(following.html)
        return first if len(html) == 1 else MarkedFormula(joined(*html))

    def next_factor(self) -> MarkedFormula:
        """Another factor: of numbers only behind an operator."""
        word = self.word()
        if word in ("*", "/"):
            self.place += 1
            sign = "∗" if word == "*" else "/"
            return MarkedFormula(joined(element("mo", sign), self.factor().html))
        if word == "x" and not self.tight() and not self.tight(1):
            following = self.attempt(self.times)
            if following is not None:
                return following
        # A number behind a symbol begins something else ("W 3 times"), and a dot ends the sentence.
        if word[:1].isdigit() or word == "." or word in SUMS:
            raise _NoFormula
        if word == "a" and not self.tight() and self.word(1)[:1].isalpha():  # the article
            raise _NoFormula
        # Brackets that hold a relation are a factor only where they touch what stands before them.
        apart = not self.tight()
        following = self.factor()
        if apart and following.relates:
            raise _NoFormula
        return following

    def times(self) -> MarkedFormula:
        """``x`` between two sizes."""
        self.place += 1
        return MarkedFormula(joined(element("mo", "×"), self.factor().html))

    def factor(self) -> MarkedFormula:
        """An operand, or two with a solidus between them and no space: a fraction."""
        upper = self.operand()
        if not (self.word() == "/" and self.tight() and self.tight(1)):
            return upper
        self.place += 1
        lower = self.operand()
        # Within a script a fraction with a bar would be too small to read.
        if self.flat:
            return MarkedFormula(joined(upper.html, element("mo", "/"), lower.html))
        above, below = (element("mrow", part.bare or part.html) for part in (upper, lower))
        return MarkedFormula(element("mfrac", above, below))

    def operand(self) -> MarkedFormula:
        """A symbol, number or group with its scripts and arguments."""
        operand = self.primary()
        while True:
            word = self.word()
            if not self.tight():
                return operand
            if word in ("_", "^"):
                operand = MarkedFormula(self.scripts(operand.html))
            elif word == "~":
                self.place += 1
                operand = MarkedFormula(
                    element(
                        "mover", element("mrow", operand.html), element("mo", "~"), accent="true"
                    )
                )
            elif word in ("(", "[") and (inner := self.attempt(self.group)) is not None:
                operand = MarkedFormula(joined(operand.html, inner.html))
            else:
                return operand

    def primary(self) -> MarkedFormula:
        """A symbol, number or group."""
        word = self.word()
        self.left -= 1
        if self.left < 0 or len(self.open) > DEPTH:
            raise _NoFormula
        if word in ("||", "|"):
            if self.open[-1:] == (word,):  # which it closes
                raise _NoFormula
            return self.bars(word)
        if word == "<":
            return self.between("<", ">", ("⟨", "⟩"))
        if word in CLOSING:
            return self.group()
        if word == "#" and self.word(1) == "{":
            self.place += 1
            return MarkedFormula(joined(element("mi", "#"), self.group().html))
        if word == "...":
            self.place += 1
            return MarkedFormula(element("mo", "…"))
        if word and (word[0].isdigit() or (word[0] == "." and len(word) > 1)):
            self.place += 1
            return MarkedFormula(element("mn", word))
        return self.symbol()

    def symbol(self) -> MarkedFormula:
        """A letter, or a name that stands for one."""
        word = self.word()
        bound = self.tight(1) and self.word(1) in ("(", "[", "_", "^")
        self.place += 1
        if word == "sqrt" and self.word() == "(":
            group = self.group()
            return MarkedFormula(element("msqrt", element("mrow", group.bare or group.html)))
        if word in LARGE or word in FUNCTIONS:
            return self.function(word, bound)
        if word in GREEK:
            return MarkedFormula(element("mi", GREEK[word]))
        if word in PRODUCTS:
            return MarkedFormula(joined(*(element("mi", letter) for letter in word)))
        if word == "Wt":  # W with a tilde
            wide = element("mover", element("mi", "W"), element("mo", "~"), accent="true")
            return MarkedFormula(wide)
        if re.fullmatch("[A-Za-z]'?", word, re.ASCII):
            return MarkedFormula(element("mi", word.replace("'", "′")))
        # Only within the argument of a function, ``rank(update)``: elsewhere any word would be a
        # symbol.
        if self.worded and re.fullmatch("[A-Za-z]+", word):
            return MarkedFormula(element("mi", word))
        raise _NoFormula

    def function(self, word: str, bound: bool) -> MarkedFormula:
        """A large operator or a function; its argument in parentheses may have words in it."""
        if not bound and (word not in {*LARGE, *WITHOUT_PARENTHESES} or not self.follows()):
            raise _NoFormula
        name = element("mo" if word in LARGE else "mi", LARGE.get(word, word))
        if not bound or self.word() not in ("(", "["):
            return MarkedFormula(name)
        # Not put back where reading fails: the attempt that began it restores the state as a whole.
        outside, self.worded = self.worded, True
        argument = self.group()
        self.worded = outside
        return MarkedFormula(joined(name, argument.html))

    def follows(self) -> bool:
        """Whether what a large operator or a function needs comes next."""
        if self.ahead == DEPTH:
            return False
        # Looking ahead reads a factor, which may look ahead itself: each level reads the rest once
        # more.
        place, self.ahead = self.place, self.ahead + 1
        factor = self.attempt(self.factor)
        self.place, self.ahead = place, self.ahead - 1
        return factor is not None and not self.word()[:1].isdigit()

    # Scripts ------------------------------------------------------------------------------------

    def scripts(self, base: Markup) -> Markup:
        """A base with what stands below and above it, and hats."""
        below = above = None
        base = element("mrow", base)
        while self.tight() and self.word() in ("_", "^"):
            sign = self.word()
            if (below if sign == "_" else above) is not None:
                break
            self.place += 1
            if sign == "^" and self.ends():
                base = element("mover", base, element("mo", "^"), accent="true")
            elif sign == "_":
                below = self.script()
            else:
                above = self.script()
        if below is not None and above is not None:
            return element("msubsup", base, below, above)
        if below is not None:
            return element("msub", base, below)
        return base if above is None else element("msup", base, above)

    def ends(self) -> bool:
        """Whether nothing stands behind a ``^``, or another one: it is a hat."""
        return not self.tight() or self.word() in (
            "^",
            ")",
            "]",
            "}",
            ",",
            ";",
            ":",
            ".",
            "|",
            "||",
        )

    def script(self) -> Markup:
        """The script that follows ``_`` or ``^``."""
        word, flat, self.flat = self.word(), self.flat, True
        if word in ("{", "("):
            group = self.group()
            html = group.bare or group.html
        elif word in ("+", "*") or (word in SUMS and not self.tight(1)):
            self.place += 1
            html = element("mo", "∗" if word == "*" else SUMS.get(word, word))
        elif word in SUMS:
            self.place += 1
            html = joined(element("mo", SUMS[word], form="prefix"), self.primary().html)
        elif word == "T":
            self.place += 1
            html = element("mi", "T", mathvariant="normal")
        elif word[:1].isdigit():
            html = self.primary().html
            if self.tight() and re.fullmatch("[a-z]", self.word()):  # q^2t
                html = joined(html, self.symbol().html)
        else:
            symbol = self.attempt(self.symbol)
            if symbol is None and not word[:1].isalpha():
                raise _NoFormula
            if symbol is None:
                self.place += 1
            html = symbol.html if symbol else element("mi", word)
        self.flat = flat
        return element("mrow", html)

    # Groups -------------------------------------------------------------------------------------

    def group(self) -> MarkedFormula:
        """The content of parentheses, brackets or braces."""
        opening = self.word()
        closing = CLOSING.get(opening)
        if closing is None:
            raise _NoFormula
        return self.between(opening, closing, (opening, closing))

    def between(self, opening: str, closing: str, shown: tuple[str, str]) -> MarkedFormula:
        """A list of formulas between two signs."""
        outside, self.open = self.open, (*self.open, opening)
        self.place += 1
        inner, relates = self.row(closing, relations=opening != "<")
        self.place += 1
        self.open = outside
        html = joined(_fence(shown[0], "prefix"), inner, _fence(shown[1], "postfix"))
        return MarkedFormula(html, None if opening in "<[" else inner, relates)

    def bars(self, sign: str) -> MarkedFormula:
        """A norm or an absolute value; in a norm a dot is an argument, and words may stand."""
        outside, self.open = self.open, (*self.open, sign)
        self.place += 1
        if sign == "||" and self.word() == "." and self.word(1) == "||":
            self.place += 1
            inner = element("mo", "·")
        else:
            place = self.place
            try:
                inner, _ = self.row(sign)
            except _NoFormula:
                self.place, self.open = place, (*outside, sign)
                inner = self.named(sign)
        self.place += 1
        self.open = outside
        shown = "‖" if sign == "||" else "|"
        return MarkedFormula(joined(_fence(shown, "prefix"), inner, _fence(shown, "postfix")))

    def named(self, sign: str) -> Markup:
        """Words and symbols up to a bar: ``||W after - W before||``."""
        if sign != "||":
            raise _NoFormula
        html: list[Markup] = []
        while (word := self.word()) != sign:
            if not word or len(html) > 12 or word in ("|", *RELATIONS, ",", ";", ":"):
                raise _NoFormula
            if word in SUMS:
                html.append(_sign(SUMS[word]))
                self.place += 1
            elif (symbol := self.attempt(self.operand)) is not None:
                html.append(symbol.html)
            else:
                html.append(element("mtext", Markup("&#160;"), word, Markup("&#160;")))
                self.place += 1
        return joined(*html)


def _sign(operator: str) -> Markup:
    return element("mo", operator, form="infix")


def _fence(sign: str, form: str) -> Markup:
    return element("mo", sign, form=form, stretchy="false")


def spans(statement: str) -> Iterator[Span]:
    """Cut a statement into prose and formulas, in order; their sources are the statement.

    Example:
        >>> [span.source for span in spans("ends at W_2 W_1 = Phi if r > 2, in all runs")]
        ['ends at ', 'W_2 W_1 = Phi', ' if ', 'r > 2', ', in all runs']
    """
    tokens = tokens_of(statement)
    reader, done = _Reader(tokens), 0
    while reader.place < len(tokens):
        first = reader.place
        start = tokens[first].start
        try:
            parts = reader.chain()
        except _NoFormula:
            parts = []
        if parts and _is_formula(tokens, first, reader.place):
            end = tokens[reader.place - 1].end
            # Prose since the last formula, in one piece.
            if start > done:
                yield Span(statement[done:start])
            yield Span(statement[start:end], _broken(parts, end - start))
            done = end
        else:
            reader.place, reader.flat, reader.open = first + 1, False, ()
    if done < len(statement):
        yield Span(statement[done:])


def _is_formula(tokens: list[Token], first: int, end: int) -> bool:
    """Whether the text is a formula, rather than a number or article of a sentence."""
    words = [token.word for token in tokens[first:end]]
    if words[0] == "a":
        after = _word_after(tokens, first + 1)
        return (len(words) == 1 and not after[:1].isalnum()) or (
            len(words) > 1 and words[1] in {*RELATIONS, *SUMS, "_", "^", "(", "/"}
        )
    if len(words) == 1 and words[0] in GREEK and _word_after(tokens, end) in DISTRIBUTIONS:
        return False
    has_letter = "||" in words or any(word[0].isalpha() for word in words)
    if first and tokens[first].tight and tokens[first - 1].word[-1:].isalnum():
        return False  # the end of a word with letters outside of ASCII
    return has_letter or (len(words) > 2 and any(w in RELATIONS or w == "/" for w in words))


def _word_after(tokens: list[Token], end: int) -> str:
    return tokens[end].word if end < len(tokens) else ""


def _broken(parts: list[tuple[str, Markup]], length: int) -> tuple[Markup, ...]:
    """One ``math``, or several between which a line may break: MathML breaks none itself."""
    if length <= LONG:
        row = joined(*(joined(_sign(sign) if sign else "", part) for sign, part in parts))
        return (element("math", row),)
    return tuple(
        element("math", joined(element("mo", sign, form="infix", lspace="0") if sign else "", part))
        for sign, part in parts
    )


@cache
def mathematics(statement: str) -> Markup:
    """A statement with its formulas as MathML.

    Example:
        >>> mathematics("its norm is sigma_1")
        'its norm is <math><msub><mrow><mi>σ</mi></mrow><mrow><mn>1</mn></mrow></msub></math>'
        >>> mathematics("<script>")
        '&lt;script&gt;'
    """
    return joined(
        *(
            joined(*span.parts, by=" ") if span.parts else text(_prose(span.source))
            for span in spans(statement)
        )
    )


def _prose(words: str) -> str:
    """Relations between words, as in *the error <= that of the other*."""
    return re.sub(" (<=|>=|!=|<-|->) ", lambda match: f" {IN_PROSE[match[1]]} ", words)
