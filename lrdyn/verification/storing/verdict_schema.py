"""Schema of ``verdict.json``: the type of each entry that the library reads."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lrdyn.core.show import shortened


class Form(NamedTuple):
    """A test that a value must pass, and its description."""

    wanted: str
    fits: Callable[[Any], bool]

    def mismatch(self, value: Any) -> str:
        """What is wrong with a value; empty if it fits."""
        return "" if self.fits(value) else f"got {_quote(value)}, wanted {self.wanted}"


class Entries(NamedTuple):
    """Forms of the entries of an object, which may have others besides."""

    forms: "Mapping[str, Form | Entries | Each]"
    optional: frozenset[str] = frozenset()
    """Which of them may be missing."""
    others: Form | None = None
    """What entries of other names must be; anything without it."""

    def mismatch(self, value: Any) -> str:
        """What is wrong with a value, and where."""
        if not isinstance(value, dict):
            return f"got {_quote(value)}, wanted an object"
        for name, form in self.forms.items():
            if name not in value and name not in self.optional:
                return f"{name}: got nothing, wanted it"
            if name in value and (why := form.mismatch(value[name])):
                return f"{name}: {why}"
        others = [] if self.others is None else [name for name in value if name not in self.forms]
        for name in others:
            if self.others and (why := self.others.mismatch(value[name])):
                return f"{_quote(name)}: {why}"
        return ""


class Each(NamedTuple):
    """Form of all entries of a list, or of an object with arbitrary names."""

    kind: type
    form: Form | Entries

    def mismatch(self, value: Any) -> str:
        """What is wrong with a value, and where."""
        if not isinstance(value, self.kind):
            return f"got {_quote(value)}, wanted {'a list' if self.kind is list else 'an object'}"
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, entry in entries:
            if why := self.form.mismatch(entry):
                return f"{_quote(name)}: {why}"
        return ""


def _quote(value: Any) -> str:
    """Show a value in a message, in one short line of printable characters."""
    kinds = {dict: "an object", list: "a list"}
    return kinds.get(type(value)) or shortened(ascii(value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_scalar(value: Any) -> bool:
    return value is None or type(value) in (str, bool) or _is_number(value)


def _is_interval(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_setting(value: Any) -> bool:
    """A value of a flag, several, or an array by its shape and checksum."""
    if isinstance(value, dict):
        shape, digest = value.get("shape"), value.get("sha256")
        sizes = isinstance(shape, list) and all(map(COUNT.fits, shape))
        return set(value) == {"shape", "sha256"} and sizes and DIGEST.fits(digest)
    return _is_scalar(value) or (isinstance(value, list) and all(map(_is_scalar, value)))


TEXT = Form("a text", lambda value: type(value) is str)
OPTIONAL_TEXT = Form("a text or null", lambda value: value is None or type(value) is str)
TRUTH = Form("true or false", lambda value: type(value) is bool)
MAYBE = Form("true, false or null", lambda value: value is None or type(value) is bool)
NUMBER = Form("a number or null", lambda value: value is None or _is_number(value))
COUNT = Form("an integer >= 0", lambda value: type(value) is int and value >= 0)
DIGEST = Form(
    "a SHA-256 in hexadecimal",
    lambda value: type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None,
)
CHECKSUM = Form(
    f"{DIGEST.wanted}, or null for changed results",
    lambda value: value is None or DIGEST.fits(value),
)
SCALAR = Form("a text, a number, true, false or null", _is_scalar)
SETTING = Form("a value, a list of values, or an array's shape and sha256", _is_setting)
PRECISION = Form("float64 or float32", lambda value: value in ("float64", "float32"))

MORE_STEPS = Entries(
    {
        "needed": Form("an integer >= 0 or null", lambda value: value is None or COUNT.fits(value)),
        "flag": Form("a text or null", lambda value: value is None or TEXT.fits(value)),
    }
)
"""Steps that would do where there were too few, null if not known, and the flag that sets them."""
JUDGED = Entries(
    {
        "drawn": COUNT,
        "judged": COUNT,
        "left_out": Each(dict, COUNT),
        "more_steps": MORE_STEPS,
    },
    optional=frozenset({"more_steps"}),
)
FINDING = Entries(
    {
        "value": NUMBER,
        "spread": NUMBER,
        "seeds": COUNT,
        "came_true": MAYBE,
        "expected": OPTIONAL_TEXT,
        "outcome": OPTIONAL_TEXT,
        "source": NUMBER,
        "interval": Form("two numbers or null", _is_interval),
        "rest": TEXT,
    },
    optional=frozenset({"source", "interval", "rest"}),
)
BLAS = Entries(
    {"name": TEXT, "version": OPTIONAL_TEXT, "architecture": OPTIONAL_TEXT, "threads": COUNT}
)
"""Form of a BLAS library of the process."""
ARITHMETIC = Entries(
    {"matmuls": TEXT, "products": TEXT, "convolutions": TEXT},
    optional=frozenset({"convolutions"}),
    others=NUMBER,
)
"""Form of the measured arithmetic of a device in one precision."""
KINDS = ("exact", "identity", "bound", "limit", "rate", "statistical", "finding", "control")
CLAIM = Entries(
    {
        "id": TEXT,
        "kind": Form(f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
        "statement": TEXT,
        "claim": TEXT,
        "hypotheses_met": TRUTH,
        "residual": NUMBER,
        "tolerance": NUMBER,
        "holds": MAYBE,
        "cases": COUNT,
        "judged": Each(dict, JUDGED),
        "worst_case": Each(dict, SCALAR),
        "cases_total": COUNT,
        "residual_float32": NUMBER,
        "tolerance_float32": NUMBER,
        "residual_float64": NUMBER,
        "tolerance_float64": NUMBER,
        "scales_with_epsilon": MAYBE,
        "p": NUMBER,
        "decided_by": Each(dict, COUNT),
        "equal_to_the_bit": TRUTH,
        "rest": TEXT,
        "finding": Form("a finding or null", lambda x: x is None or not FINDING.mismatch(x)),
    },
    optional=frozenset(
        "claim cases_total residual_float32 tolerance_float32 residual_float64 tolerance_float64 "
        "scales_with_epsilon p decided_by equal_to_the_bit rest finding".split()
    ),
)
"""A claim, a control or a finding."""
CONFIG = Entries(
    {
        "preset": Form("quick or paper", lambda value: value in ("quick", "paper")),
        "seed": COUNT,
        "seeds": Form("an integer >= 1 or null", lambda x: x is None or (COUNT.fits(x) and x > 0)),
        "dtype": PRECISION,
        "perturb": TRUTH,
    },
    others=SETTING,
)
"""The settings that every run has, and the flags of one."""
WHOLE = Entries(
    {
        "name": TEXT,
        "holds": MAYBE,
        "config": CONFIG,
        "claims": Each(list, CLAIM),
        "results_sha256": CHECKSUM,
        "changed": TRUTH,
        "environment": Entries(
            {"dtype": PRECISION, "blas": Each(list, BLAS)}, optional=frozenset({"blas"})
        ),
        "undecided": Each(list, TEXT),
        "statistics": Entries({"false_alarm": NUMBER, "tests": COUNT}),
        "arithmetic": Each(dict, ARITHMETIC),
        "nothing_applies": Each(dict, COUNT),
    },
    optional=frozenset({"undecided", "statistics", "changed", "arithmetic", "nothing_applies"}),
)
"""The whole file."""


def mismatch(verdict: Any) -> str:
    """What is wrong with a verdict, and where; empty if nothing is.

    Example:
        >>> mismatch({"name": "theorem2", "holds": 1})
        'holds: got 1, wanted true, false or null'
    """
    if why := WHOLE.mismatch(verdict):
        return why
    names = [claim["id"] for claim in verdict["claims"]]
    twice = next((name for name in names if names.count(name) > 1), None)
    return "" if twice is None else f"claims: got {_quote(twice)} twice, wanted each once"
