"""What is declared is as it was: limits, switches, presets, settings of controls, usual arguments.

A theorem is data, and most of that data are single numbers and switches: a tolerance, the powers of
a bound, whether a verdict rests on a claim, the flags that a control runs at, which settings are
refused. None of them can be told from another by a formula, and a run that holds says nothing about
one that is looser. So they are written down in ``tests/data/declarations.json``, where a change is
read in the diff. ``LRDYN_RECORD=1 pytest tests/test_declarations.py`` writes the file anew, after a
change that is meant.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import pkgutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lrdyn.registry import REGISTRY, theorem, theorems
from lrdyn.verification.stating.flags import Domain, Flag
from lrdyn.verification.stating.statement import Claim, Control, Experiment, Finding, Scenario
from tests.kept_numbers import committed

FILE = Path(__file__).parent / "data" / "declarations.json"
ROOMS = (*REGISTRY, "core", "adapters")
WORDS = {"statement", "help", "summary", "sides", "symbol", "amount_label"}
"""Fields that are read by people."""
APART = {"claims", "controls", "findings", "scenarios", "flags"}
"""Fields whose entries have lines of their own."""
STATED = Flag | Claim | Control | Finding | Scenario | Experiment


def plain(value: Any) -> Any:
    """A value as JSON has it; of a function, that there is one."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if np.isfinite(value) else str(value)
        case np.ndarray() | np.generic() | jax.Array():
            return plain(np.asarray(value).tolist())
        case Domain():
            return value.wanted
        case set() | frozenset():
            return sorted(map(plain, value))
        case tuple() if names := getattr(value, "_fields", ()):
            return plain(dict(zip(names, value, strict=True)))
        case tuple() | list() | range():
            return [plain(each) for each in value]
        case dict():
            return {str(name): plain(each) for name, each in value.items()}
        case type():
            return value.__name__
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return "given" if callable(value) else type(value).__name__


def declared(statement):
    """The fields of a statement that are given, without words and without what runs nothing."""
    found = {}
    for field in dataclasses.fields(statement):
        value = getattr(statement, field.name)
        usual = field.default
        if field.default_factory is not dataclasses.MISSING:
            usual = field.default_factory()
        if field.name not in WORDS | APART and value is not usual and value != usual:
            found[field.name] = plain(value)
    return found


def settings_of(of, preset):
    return {flag.name: flag.default(preset) for flag in of.flags}


def changes(function, before):
    """What a function of settings makes of them, where that is something else."""
    after = function(dict(before))
    return {name: plain(value) for name, value in after.items() if before.get(name) != value}


def statements(of):
    """Line -> what is declared, for a theorem and all that it consists of."""
    yield "theorem", declared(of)
    for flag in of.flags:
        yield f"flag {flag.name}", declared(flag)
    for preset, side in itertools.product(("quick", "paper"), (0, 2, 3)):
        usual = settings_of(of, preset)
        if side:
            usual |= {f.name: (side,) if f.swept else side for f in of.flags if f.name in SIDES}
        words = f"sides of {side}" if side else "its own sides"
        changed = changes(lambda s: of.prepare(s, set()), usual)
        if changed:
            yield f"prepared {preset}, {words}", changed
    yield "numbers", of.numbers(first_point(of))
    for scenario in of.scenarios:
        sizes = [changes(scenario.narrow, settings_of(of, preset)) for preset in ("quick", "paper")]
        yield f"scenario {scenario.id}", declared(scenario) | {"narrow": sizes}
        for claim in scenario.claims:
            reads = [f"{side}.{name}" for side, name in claim.sides_read]
            condition = {"condition": claim.condition_name} if claim.condition else {}
            yield f"claim {claim.id}", declared(claim) | {"reads": reads} | condition
        for each in (*scenario.controls, *scenario.findings):
            swap = {"swap": plain(each.swapped)} if getattr(each, "swap", None) else {}
            yield f"{type(each).__name__.lower()} {each.id}", declared(each) | swap


SIDES = ("rows", "cols", "dim")
WHOLE, REAL = (1, 2, 3, 5, 8, 13), (1e-6, 0.01, 0.3, 0.9, 1.0, 3.0, 1e4)


def first_point(of):
    return {
        flag.name: (flag.quick[0] if flag.quick else None) if flag.swept else flag.default("quick")
        for flag in of.flags
    }


def refusals(of):
    """Pair of numbers among the flags -> which values of the two a theorem refuses together."""
    base = {flag.name: flag.quick[0] if flag.quick else None for flag in of.flags}

    def refused(**changed):
        try:
            of.check(base | changed)
        except ValueError:
            return True
        return False

    tried = {
        flag.name: [x for x in (WHOLE if flag.type is int else REAL) if flag.accepts(x)]
        for flag in of.flags
        if flag.type in (int, float)
    }
    for (one, values), (other, others) in itertools.combinations(tried.items(), 2):
        rows = ["".join(".x"[refused(**{one: x, other: y})] for y in others) for x in values]
        # What one of the two decides alone is said once, with the flag before it.
        if len({*rows}) > 1 and len({*zip(*rows, strict=True)}) > 1:
            yield f"refused {one}, {other}", " ".join(rows)


def constants(module):
    """Numbers and switches at the top of a module, and the usual arguments of its functions."""
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.FunctionDef(name):
                usual = {
                    p.name: plain(p.default)
                    for p in inspect.signature(getattr(module, name)).parameters.values()
                    if p.default is not p.empty
                }
                if usual:
                    yield f"{name}()", usual
            case ast.ClassDef(name):
                fields = getattr(getattr(module, name), "_field_defaults", {})
                usual = {n: plain(value) for n, value in fields.items() if value is not None}
                if usual:
                    yield name, usual
            case ast.Assign([ast.Name(name)]) | ast.AnnAssign(ast.Name(name)):
                value = getattr(module, name)
                parts = value if isinstance(value, tuple | list) else [value]
                stated = any(isinstance(part, STATED) for part in parts)
                if name.isupper() and not stated and not name.startswith(MACHINE):
                    yield name, plain(value)


MACHINE = "HAS_"
"""Beginning of what is so on one machine and not on another."""


def modules(room):
    package = importlib.import_module(f"lrdyn.{room}")
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith(("figures", "peft")):  # nothing is drawn here, or read
            yield found.name, importlib.import_module(f"lrdyn.{room}.{found.name}")


def by_line(pairs):
    return json.loads(json.dumps(dict(pairs)))


def compared(key, pairs):
    found = by_line(pairs)
    wanted = committed(FILE, key, found)
    assert found.keys() == wanted.keys()
    assert {n: (found[n], wanted[n]) for n in wanted if found[n] != wanted[n]} == {}


@pytest.mark.parametrize("of", theorems(), ids=lambda of: of.name)
def test_what_a_theorem_declares_is_what_it_declared(of):
    compared(of.name, [*statements(of), *refusals(of)])


@pytest.mark.parametrize("room", ROOMS)
def test_numbers_at_the_top_of_modules_are_as_they_were(room):
    lines = [
        (f"{name} {line}", value)
        for name, module in modules(room)
        for line, value in constants(module)
    ]
    compared(f"modules of {room}", lines)


def test_a_loosened_limit_is_seen():
    """One of each kind: a switch, a condition, a setting of a control, a preset."""
    of = theorem("corollary1")
    (first,) = of.scenarios
    (claim, *claims), control = first.claims, next(c for c in first.controls if c.at)
    before = by_line(statements(of))
    for changed in (
        {"long": not first.long},
        {"claims": (dataclasses.replace(claim, carries=False), *claims)},
        {"claims": (dataclasses.replace(claim, condition=None), *claims)},
        {"controls": (dataclasses.replace(control, at={}),)},
    ):
        scenarios = (dataclasses.replace(first, **changed),)
        after = by_line(statements(dataclasses.replace(of, scenarios=scenarios)))
        assert any(after[name] != before[name] for name in after)
    flags = (dataclasses.replace(of.flags[0], quick=(7,)), *of.flags[1:])
    assert by_line(statements(dataclasses.replace(of, flags=flags))) != before
