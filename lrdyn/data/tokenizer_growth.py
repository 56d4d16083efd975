"""How much longer a ``tokenizer.json`` may make a text before a model takes it.

A tokenizer first rewrites a text, one step after the other. Five steps that each write forty
letters in the place of one make a hundred million of it.
"""

import base64
import binascii
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrdyn.data.guarded import refused

MOST = 5000
"""Bytes that the steps of a tokenizer may make of one, at most, if all meet their worst letter.
Those of ALBERT, a compatibility form before a table of its own, come to 4,356. The package
``tokenizers`` takes some 40 bytes for each."""
MARKS = 64
"""Tokens that may stand around a text, at most; BERT has two, and three around a pair."""
LETTERS_OF_WORD = 200
"""Letters of a word that WordPiece looks up, at most, in a time of their third power; BERT has
100."""


def check(content: Any, path: Path) -> None:
    """Refuse steps that together make too much of a text.

    Args:
        content: the JSON of a tokenizer.
        path: of its file.

    Raises:
        Refused: a text may grow too much, a step is not known, or words may be too long.

    Example:
        >>> steps = 5 * [{"type": "Prepend", "prepend": "abc"}]
        >>> check({"normalizer": {"type": "Sequence", "normalizers": steps}}, Path("a"))
        >>> steps = 9 * [{"type": "Prepend", "prepend": "abc"}]
        >>> check({"normalizer": {"type": "Sequence", "normalizers": steps}}, Path("a"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got steps that make 262144 bytes of one, wanted at most 5000
    """
    if not isinstance(content, dict):
        return  # its reader refuses it
    if not (made := growth(content, path)) <= MOST:
        raise refused(path, f"steps that make {made:.0f} bytes of one", f"at most {MOST}")
    model = content.get("model")
    letters = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if type(letters) is int and letters > LETTERS_OF_WORD:
        wanted = f"at most {LETTERS_OF_WORD}"
        raise refused(path, f"{letters}", wanted, "max_input_chars_per_word")


def growth(content: Mapping[str, Any], path: Path) -> float | int:
    """Bytes that the steps before a model may make of one, at most.

    Args:
        content: the JSON of a tokenizer.
        path: of its file.

    Raises:
        Refused: a step is not known.

    Example:
        >>> growth({"normalizer": {"type": "NFKD"}, "pre_tokenizer": None}, Path("a"))
        11
    """
    parts = PARTS.items()
    return math.prod(_growth(content.get(part), *steps, part, path) for part, steps in parts)


def check_marks(tokenizer: Any, path: Path) -> None:
    """Refuse a tokenizer that adds many tokens to a text, or to a pair.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        path: of its file.

    Raises:
        Refused: it does.
    """
    marks = max(tokenizer.num_special_tokens_to_add(is_pair) for is_pair in (False, True))
    if marks > MARKS:
        raise refused(path, f"{marks} tokens around a text", f"at most {MARKS}", "post_processor")


Growth = int | Callable[[Mapping[str, Any]], float]
"""Bytes that a step may make of one, or what tells them from its entries."""


def _growth(
    step: Any, several: str, known: Mapping[str, Growth], part: str, path: Path
) -> float | int:
    """Bytes that a step, or a sequence of them, may make of one."""
    if not isinstance(step, dict):
        return 1
    kind = step.get("type")
    if kind == "Sequence":
        inner = step.get(several)
        steps = inner if isinstance(inner, list) else []
        # Not ``math.prod``, whose infinity times zero is NaN: no step has less than one.
        return math.prod(_growth(one, several, known, part, path) for one in steps)
    growth = known.get(kind) if isinstance(kind, str) else None
    if growth is None:
        raise refused(path, repr(kind), f"one of {', '.join(known)}", f"{part}: type")
    return max(1, growth(step) if callable(growth) else growth)


def _size(text: Any) -> int:
    return len(text.encode()) if isinstance(text, str) else 0


def _of_replacing(step: Mapping[str, Any]) -> float | int:
    pattern, content = step.get("pattern"), _size(step.get("content"))
    text = _size(pattern.get("String")) if isinstance(pattern, dict) else 0
    # A regular expression, and an empty text, may fit before every letter and at the end.
    return content / text if text else 1 + 2 * content


def _of_table(step: Mapping[str, Any]) -> float | int:
    """The longest text in a table of SentencePiece: a tree, behind its length, and then texts."""
    try:
        table = base64.b64decode(step.get("precompiled_charsmap") or "")
        (size,) = struct.unpack_from("<I", table)
    except (binascii.Error, struct.error, TypeError, ValueError):
        return 1  # its reader refuses it
    return max(map(len, table[4 + size :].split(b"\0")))


NORMALIZERS: Mapping[str, Growth] = {
    "BertNormalizer": 2 * 3 * 2,  # spaces around a Chinese letter; NFD; lower case
    "ByteLevel": 2,
    "Lowercase": 2,
    # The most that UTF-8 grows, by the table of the Unicode consortium on normalization.
    "NFC": 3,
    "NFD": 3,
    "NFKC": 11,
    "NFKD": 11,
    "Nmt": 1,
    "Precompiled": _of_table,
    "Prepend": lambda step: 1 + _size(step.get("prepend")),
    "Replace": _of_replacing,
    "Strip": 1,
    "StripAccents": 1,
}
PRE_TOKENIZERS: Mapping[str, Growth] = {
    "BertPreTokenizer": 1,
    "ByteLevel": 4,  # a space before, and then two bytes for each
    "CharDelimiterSplit": 1,
    "Digits": 1,
    "FixedLength": 1,
    "Metaspace": lambda step: 2 * _size(step.get("replacement")),
    "Punctuation": 1,
    "Split": 1,
    "UnicodeScripts": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
}
PARTS: Mapping[str, tuple[str, Mapping[str, Growth]]] = {
    "normalizer": ("normalizers", NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", PRE_TOKENIZERS),
}
"""Parts of a tokenizer that rewrite a text, in their order: the name of several steps, and each."""
