"""Regular expressions from files: matched in polynomial time, or refused.

Python's ``re`` tries one way after another, of which ``(a+)+!`` has exponentially many. Here each
part of a pattern has a set of places at which it can end, never more than the text has letters.
Whether a text fits does not depend on the order of the ways, so that the answer is that of ``re``,
whose own parser reads the patterns.
"""

import re
import re._parser as parser  # private modules, but the same in Python 3.11 to 3.14
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

STEPS = 3_000_000
"""Steps of all matches for one file, at most, of some microseconds each. An image generator of 800
modules, each with a rank and an alpha of its own, takes a step for each of 1.3 million pairs."""
UNBOUNDED = 2**32 - 1
"""How often the parser says that something is repeated that may be repeated for ever."""


class Unsupported(ValueError):
    """A pattern is invalid, has parts that are not supported, or takes too long."""


class Patterns:
    """Matches texts against patterns, and counts the steps of all matches together.

    Args:
        most: steps, at most.

    Raises:
        Unsupported: on matching, a pattern is not read, or the steps are used up.

    Example:
        >>> patterns = Patterns()
        >>> patterns.fullmatch("((a+)+!)|(a*)", 34 * "a"), patterns.fullmatch("(a+)+!", 34 * "a")
        (True, False)
    """

    def __init__(self, most: int = STEPS):
        self._left, self._parsed = most, {}

    def fullmatch(self, pattern: str, text: str) -> bool:
        """Whether the pattern matches the whole text, as ``re.fullmatch`` says."""
        return self._matches(pattern, text, [0], {len(text)})

    def ends_with(self, pattern: str, name: str) -> bool:
        r"""Whether a name with dots ends as the pattern, behind a dot or as a whole.

        As ``re.match(rf"(.*\.)?({pattern})$", name)`` says, in which ``.*`` ends before a new line
        and ``$`` may stand before one.
        """
        line = name.partition("\n")[0]
        starts = [0, *(place + 1 for place, letter in enumerate(line) if letter == ".")]
        ends = {len(name), len(name.removesuffix("\n"))}
        return self._matches(pattern, name, starts, ends)

    def _matches(self, pattern: str, text: str, starts: list[int], ends: set[int]) -> bool:
        if pattern not in self._parsed:
            self._parsed[pattern] = parsed(pattern)
        parts = self._parsed[pattern]
        if parts and isinstance(parts[0], _Text):  # most begin so, and most names otherwise
            starts = [place for place in starts if text.startswith(parts[0].text, place)]
        elif parts and parts[0] == _Place("AT_BEGINNING"):
            starts = [0]
        match = _Match(text, self._left - 1)
        fits = any(not ends.isdisjoint(match.ends(parts, place)) for place in starts)
        self._left = match.left
        return fits


# What a pattern is made of ------------------------------------------------------------------------


class _Text(NamedTuple):
    """A part of a pattern that matches certain letters."""

    text: str


class _Letter(NamedTuple):
    """A part that matches one letter of a kind."""

    fits: Callable[[str], bool]


class _Place(NamedTuple):
    """A part that matches the beginning, the end, or a boundary of words."""

    at: str


class _Either(NamedTuple):
    """An alternation of parts, or a group."""

    branches: "tuple[Parts, ...]"


class _Repeat(NamedTuple):
    """A part repeated between two numbers of times."""

    low: int
    high: int
    body: "Parts"


class _Look(NamedTuple):
    """A lookahead, or a lookbehind of fixed length; positive or negative."""

    wanted: bool
    behind: int | None
    body: "Parts"


Part = _Text | _Letter | _Place | _Either | _Repeat | _Look
Parts = tuple[Part, ...]


def is_plain(pattern: str) -> bool:
    """Whether nothing in a pattern is optional, repeated, or one of several: ``re`` is quick then.

    Example:
        >>> is_plain("layers"), is_plain("layers?")
        (True, False)
    """
    return all(isinstance(part, _Text | _Letter | _Place) for part in parsed(pattern))


def parsed(pattern: str) -> Parts:
    """The parts of a pattern, one behind the other.

    Raises:
        Unsupported: it is none of ``re``, or has flags, references to groups, or atomic parts.

    Example:
        >>> parsed("query")
        (_Text(text='query'),)
        >>> parsed("(a)" + chr(92) + "1")
        Traceback (most recent call last):
        lrdyn.data.patterns.Unsupported: GROUPREF
    """
    try:
        tree = _tree(pattern)
        if tree.state.flags & ~re.UNICODE:
            raise Unsupported("flags")
        return _parts(tree)
    except (re.error, RecursionError, OverflowError) as error:
        raise Unsupported(type(error).__name__) from None


def _tree(pattern: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # warnings about sets that a later release may read otherwise
        return parser.parse(pattern)


def _parts(tree: Any) -> Parts:
    parts: list[Part] = []
    for code, value in tree:
        if code.name == "LITERAL":
            before = parts[-1] if parts else None
            if isinstance(before, _Text):
                parts[-1] = _Text(before.text + chr(value))
            else:
                parts.append(_Text(chr(value)))
        elif code.name in ("NOT_LITERAL", "ANY", "IN"):
            parts.append(_Letter(_kind(code, value)))
        elif code.name == "AT":
            parts.append(_Place(value.name))
        elif code.name == "BRANCH":
            parts.append(_Either(tuple(map(_parts, value[1]))))
        elif code.name == "SUBPATTERN" and not (value[1] or value[2]):
            parts.append(_Either((_parts(value[3]),)))
        elif code.name in ("MAX_REPEAT", "MIN_REPEAT"):
            parts.append(_Repeat(int(value[0]), int(value[1]), _parts(value[2])))
        elif code.name in ("ASSERT", "ASSERT_NOT"):
            low, high = value[1].getwidth()
            if value[0] < 0 and low != high:
                raise Unsupported("a look behind of any length")
            behind = low if value[0] < 0 else None
            parts.append(_Look(code.name == "ASSERT", behind, _parts(value[1])))
        else:
            raise Unsupported(code.name)
    return tuple(parts)


def _kind(code: Any, value: Any) -> Callable[[str], bool]:
    """Whether a letter is of the kind of an instruction."""
    if code.name == "NOT_LITERAL":
        return lambda letter: ord(letter) != value
    if code.name == "ANY":
        return lambda letter: letter != "\n"
    negated = value[0][0].name == "NEGATE"
    members = [_member(*member) for member in value[negated:]]
    return lambda letter: any(fits(letter) for fits in members) is not negated


def _member(code: Any, value: Any) -> Callable[[str], bool]:
    """Whether a letter is a member of a set of letters, by the instruction for that member."""
    if code.name == "LITERAL":
        return lambda letter: ord(letter) == value
    if code.name == "RANGE":
        return lambda letter: value[0] <= ord(letter) <= value[1]
    fits = CATEGORIES.get(value.name) if code.name == "CATEGORY" else None
    if fits is None:
        raise Unsupported(code.name)
    return fits


def _of_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"


CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": lambda letter: not letter.isdecimal(),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda letter: not letter.isspace(),
    "CATEGORY_WORD": _of_word,
    "CATEGORY_NOT_WORD": lambda letter: not _of_word(letter),
}

# Matching -----------------------------------------------------------------------------------------


class _Match:
    """Matches against one text: where each part that begins at a place can end, memoised."""

    def __init__(self, text: str, left: int):
        self.text, self.left = text, left
        self._known: dict[tuple[int, int], set[int]] = {}

    def ends(self, parts: Parts, place: int) -> set[int]:
        """Places at which a sequence of parts can end."""
        places = {place}
        for part in parts:
            places = set().union(*(self._ends_of(part, place) for place in places))
            if not places:
                break
        return places

    def _ends_of(self, part: Part, place: int) -> set[int]:
        self.left -= 1
        if self.left < 0:
            raise Unsupported("it takes too long")
        if isinstance(part, _Text):
            return {place + len(part.text)} if self.text.startswith(part.text, place) else set()
        if isinstance(part, _Letter):
            fits = place < len(self.text) and part.fits(self.text[place])
            return {place + 1} if fits else set()
        # A part lives as long as its pattern, so that its id is not reused.
        key = (id(part), place)
        if key not in self._known:
            self._known[key] = self._found(part, place)
        return self._known[key]

    def _found(self, part: Part, place: int) -> set[int]:
        if isinstance(part, _Either):
            return set().union(*(self.ends(branch, place) for branch in part.branches))
        if isinstance(part, _Repeat):
            return self._repeated(part, place)
        if isinstance(part, _Look):
            begin = place if part.behind is None else place - part.behind
            ends = self.ends(part.body, begin) if begin >= 0 else set()
            fits = bool(ends) if part.behind is None else place in ends
            return {place} if fits is part.wanted else set()
        assert isinstance(part, _Place)
        return {place} if self._stands(part.at, place) else set()

    def _repeated(self, part: _Repeat, place: int) -> set[int]:
        places = {place}
        for _ in range(part.low):
            before, places = places, self._once_more(part, places)
            if places == before:  # none, or what can be repeated without a letter
                break
        ends, new = set(places), places
        for _ in range(part.high - part.low):
            new = self._once_more(part, new) - ends
            if not new:
                break
            ends |= new
        return ends

    def _once_more(self, part: _Repeat, places: set[int]) -> set[int]:
        return set().union(*(self.ends(part.body, place) for place in places))

    def _stands(self, at: str, place: int) -> bool:
        text = self.text
        if at in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return place == 0
        if at == "AT_END":
            return place == len(text) or text[place:] == "\n"
        if at == "AT_END_STRING":
            return place == len(text)
        before, behind = (bool(x) and _of_word(x) for x in (text[:place][-1:], text[place:][:1]))
        return bool(text) and (before != behind) is (at == "AT_BOUNDARY")


# Of patterns that others match --------------------------------------------------------------------

ESCAPED = re.compile(r"\\(?:[pP]\{\^?\w+\}|[^}])")


def exponential(pattern: str) -> str:
    r"""Why a pattern of another library may take exponential time there; empty if it may not.

    It may if a part without a fixed length, or one of several, is repeated. What is left takes the
    square or a higher power of the length of a text.

    Args:
        pattern: as ``re`` has it, with ``\p{...}`` besides.

    Example:
        >>> exponential("(a+)+$")
        'without a repetition within a repetition'
        >>> exponential(r" ?\p{L}+| ?\p{N}+|\s+(?!\S)|\s+")
        ''
    """
    text = ESCAPED.sub(lambda match: r"\w" if match[0].endswith("}") else match[0], pattern)
    try:
        nested = _nests(_tree(text), repeated=False)
    except (re.error, RecursionError, OverflowError):
        return "that Python reads, too"
    return "without a repetition within a repetition" if nested else ""


REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def _nests(tree: Any, *, repeated: bool) -> bool:
    for code, value in tree:
        bodies: list[tuple[Any, bool]] = []
        if code.name in REPEATS:
            low, high, body = value
            # Elsewhere a+{2}+ repeats a repetition, and here it keeps what it found.
            if (repeated and low != high) or (code.name == REPEATS[2] and 1 < high < UNBOUNDED):
                return True
            bodies = [(body, repeated or high > 1)]
        elif code.name == "BRANCH":
            if repeated:
                return True
            bodies = [(branch, False) for branch in value[1]]
        elif code.name == "SUBPATTERN":
            bodies = [(value[3], repeated)]
        elif code.name in ("ASSERT", "ASSERT_NOT"):
            bodies = [(value[1], repeated)]
        elif code.name == "ATOMIC_GROUP":
            bodies = [(value, repeated)]
        elif code.name == "GROUPREF_EXISTS":
            bodies = [(branch, repeated) for branch in value[1:] if branch]
        if any(_nests(body, repeated=inside) for body, inside in bodies):
            return True
    return False
