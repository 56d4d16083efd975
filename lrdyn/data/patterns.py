"""Regular expressions from files: matched in polynomial time, or refused.

Python's ``re`` tries one way after another, of which ``(a+)+!`` has exponentially many. Here a part
of a pattern takes all places at which it can begin to all at which it can end. Both are sets of
bits of one integer, so that a step costs the same however many ways lead there. Whether a text fits
does not depend on the order of the ways, so that the answer is that of ``re``, whose own parser
reads the patterns. The package ``regex`` can stop a match after a time, but not what it does before
one: ``(?:(?:a{1000}){1000}){1000}`` takes all memory there.
"""

import re
import re._parser as parser  # private modules, but the same in Python 3.11 to 3.14
import warnings
from collections.abc import Callable, Iterator
from typing import Any

STEPS = 3_000_000
"""Steps of all matches for one file, at most, of about a microsecond each. An image generator of
800 modules, each with a rank and an alpha of its own, takes a step for each of 1.3 million
pairs."""
LETTERS = 4096
"""Letters of a text that a step may look at: those of longer texts count more."""
DEPTH = 50
"""How deep parts may stand within others; beyond some 300 Python's parser gives up."""
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
        self._left = most
        self._parsed: dict[str, tuple[str, Any]] = {}

    def fullmatch(self, pattern: str, text: str) -> bool:
        """Whether the pattern matches the whole text, as ``re.fullmatch`` says."""
        return self._matches(pattern, text, lambda: 1, 1 << len(text))

    def ends_with(self, pattern: str, name: str) -> bool:
        r"""Whether a name with dots ends as the pattern, behind a dot or as a whole.

        As ``re.match(rf"(.*\.)?({pattern})$", name)`` says, in which ``.*`` ends before a new line
        and ``$`` may stand before one.
        """
        ends = 1 << len(name) | 1 << len(name.removesuffix("\n"))
        return self._matches(pattern, name, lambda: _behind_dots(name), ends)

    def _matches(self, pattern: str, text: str, starts: Callable[[], int], ends: int) -> bool:
        if pattern not in self._parsed:
            tree = parsed(pattern)
            self._parsed[pattern] = _longest_text(tree), tree
        needed, tree = self._parsed[pattern]
        self._left -= 1 + len(text) // LETTERS
        if self._left < 0:
            raise Unsupported("it takes too long")
        if needed not in text:  # so it is for most pairs of a pattern and a name
            return False
        match = _Match(text, self._left)
        fits = match.ends(tree, starts()) & ends
        self._left = match.left
        return bool(fits)


def _behind_dots(name: str) -> int:
    """Places of a name at its beginning and behind the dots of its first line, as bits."""
    line = name.partition("\n")[0]
    return 1 | _bits(letter == "." for letter in line) << 1


def _bits(flags: Any) -> int:
    """The integer whose bits are these, the lowest first."""
    return int("".join("1" if flag else "0" for flag in flags)[::-1] or "0", 2)


# What a pattern is made of ------------------------------------------------------------------------

LETTER = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")
LOOKS = ("ASSERT", "ASSERT_NOT")


def is_plain(pattern: str) -> bool:
    """Whether nothing in a pattern is optional, repeated, or one of several: ``re`` is quick then.

    Example:
        >>> is_plain("layers"), is_plain("layers?")
        (True, False)
    """
    return all(code.name in (*LETTER, "AT") for code, _ in parsed(pattern))


def parsed(pattern: str) -> Any:
    """The parts of a pattern, one behind the other, as Python's parser has them.

    Raises:
        Unsupported: it is none of ``re``, or has flags, references to groups, or atomic parts.

    Example:
        >>> len(parsed("query|key"))
        1
        >>> parsed("(a)" + chr(92) + "1")
        Traceback (most recent call last):
        lrdyn.data.patterns.Unsupported: GROUPREF
    """
    try:
        tree = _tree(pattern)
        if tree.state.flags & ~re.UNICODE:
            raise Unsupported("flags")
        _check(tree, 0)
        return tree
    except (re.error, RecursionError, OverflowError) as error:
        raise Unsupported(type(error).__name__) from None


def _tree(pattern: str) -> Any:
    with warnings.catch_warnings():
        # About sets that a later release may read otherwise.
        warnings.simplefilter("ignore")
        return parser.parse(pattern)


def _check(tree: Any, depth: int) -> None:
    """Refuse what is not matched here.

    Raises:
        Unsupported: by what Python's parser calls it.
    """
    if depth > DEPTH:
        raise Unsupported("parts that nest too deeply")
    for code, value in tree:
        name = code.name
        if name == "IN":
            for member, of in value:
                if member.name == "CATEGORY" and of.name not in CATEGORIES:
                    raise Unsupported(of.name)
        elif name == "SUBPATTERN" and (value[1] or value[2]):
            raise Unsupported("flags")
        elif name in LOOKS and value[0] < 0 and len(set(value[1].getwidth())) > 1:
            raise Unsupported("a look behind of any length")
        elif name not in (*LETTER, "AT", "BRANCH", "SUBPATTERN", *REPEATS[:2], *LOOKS):
            raise Unsupported(name)
        for body in _bodies(name, value):
            _check(body, depth + 1)


def _bodies(name: str, value: Any) -> list[Any]:
    """The sequences of parts within a part."""
    if name in REPEATS:
        return [value[2]]
    if name == "BRANCH":
        return list(value[1])
    if name == "SUBPATTERN":
        return [value[3]]
    if name in LOOKS:
        return [value[1]]
    if name == "ATOMIC_GROUP":
        return [value]
    return [branch for branch in value[1:] if branch] if name == "GROUPREF_EXISTS" else []


def _longest_text(tree: Any) -> str:
    """The longest run of letters that every text that fits must have."""
    letters = (chr(value) if code.name == "LITERAL" else "\0" for code, value in tree)
    # A letter \0 of the pattern only parts a run.
    return max("".join(letters).split("\0"), key=len)


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

WORD = parser.parse(r"[\w]")[0][1]


def _fits(letter: str, name: str, value: Any) -> bool:
    """Whether a letter is one of an instruction."""
    if name == "ANY":
        return letter != "\n"
    if name != "IN":
        return (ord(letter) == value) is (name == "LITERAL")
    negated = value[0][0].name == "NEGATE"
    return any(_is_member(letter, *member) for member in value[negated:]) is not negated


def _is_member(letter: str, code: Any, value: Any) -> bool:
    if code.name == "RANGE":
        return value[0] <= ord(letter) <= value[1]
    return ord(letter) == value if code.name == "LITERAL" else CATEGORIES[value.name](letter)


# Matching -----------------------------------------------------------------------------------------


class _Match:
    """Matches against one text, of whose places, one more than letters, a set is an integer."""

    def __init__(self, text: str, left: int):
        self.text, self.left = text, left
        self._places: dict[tuple[str, Any], int] = {}

    def ends(self, tree: Any, places: int) -> int:
        """Places at which a sequence of parts can end that begins at one of these."""
        for code, value in tree:
            if not places:
                break
            places = self._ends_of(code.name, value, places)
        return places

    def _ends_of(self, name: str, value: Any, places: int) -> int:
        self._spend(1 + len(self.text) // LETTERS)
        if name in LETTER:
            return (places & self._places_of(name, value)) << 1
        if name == "AT":
            return places & self._boundaries(value.name)
        if name in REPEATS:
            low, high, body = value
            return self._repeated(low, high, body, places)
        if name in LOOKS:
            direction, body = value
            seen = self._seen(direction, body, places)
            return places & (seen if name == "ASSERT" else ~seen)
        ends = 0
        for body in _bodies(name, value):
            ends |= self.ends(body, places)
        return ends

    def _spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Unsupported("it takes too long")

    def _places_of(self, name: str, value: Any) -> int:
        """Places of the letters that an instruction takes."""
        # A set of letters is a list that lives as long as its pattern: its id is not reused.
        key = (name, id(value) if name == "IN" else value)
        if key not in self._places:
            letters = set(self.text)
            members = len(value) if name == "IN" else 1
            self._spend((len(self.text) + len(letters) * members) // 16)
            fitting = {letter for letter in letters if _fits(letter, name, value)}
            self._places[key] = _bits(letter in fitting for letter in self.text)
        return self._places[key]

    def _boundaries(self, at: str) -> int:
        """Places at the beginning, at the end, or at a boundary of words."""
        size = len(self.text)
        if at in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return 1
        if at in ("AT_END", "AT_END_STRING"):
            line = len(self.text.removesuffix("\n")) if at == "AT_END" else size
            return 1 << size | 1 << line
        words = self._places_of("IN", WORD)
        boundaries = words ^ words << 1
        # ``re`` finds neither a boundary nor none in an empty text.
        every = (2 << size) - 1 if size else 0
        return boundaries if at == "AT_BOUNDARY" else every & ~boundaries

    def _repeated(self, low: int, high: int, body: Any, places: int) -> int:
        for _ in range(low):
            before, places = places, self.ends(body, places)
            if places == before:  # none, or what can be repeated without a letter
                break
        ends = new = places
        for _ in range(high - low):
            new = self.ends(body, new) & ~ends
            if not new:
                break
            ends |= new
        return ends

    def _seen(self, direction: int, body: Any, places: int) -> int:
        """Places before, or behind, which a part stands."""
        if direction < 0:
            width = body.getwidth()[0]
            return self.ends(body, places >> width) if width <= len(self.text) else 0
        return sum(place for place in _each(places) if self.ends(body, place))


def _each(places: int) -> Iterator[int]:
    """The places of a set, each as a set of its own."""
    while places:
        yield (place := places & -places)
        places ^= place


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


def _nests(tree: Any, *, repeated: bool) -> bool:
    for code, value in tree:
        inside = repeated
        if code.name in REPEATS:
            low, high, _ = value
            # Elsewhere a+{2}+ repeats a repetition, and here it keeps what it found.
            if (repeated and low != high) or (code.name == REPEATS[2] and 1 < high < UNBOUNDED):
                return True
            inside = repeated or high > 1
        elif code.name == "BRANCH":
            if repeated:
                return True
            inside = False
        if any(_nests(body, repeated=inside) for body in _bodies(code.name, value)):
            return True
    return False
