"""Names and presets of a statement of which no flag, folder or file can be made: bad input."""

import keyword
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any

from lrdyn.core.show import near, shortened
from lrdyn.verification.stating.fields import SIZE
from lrdyn.verification.stating.flags import Flag
from lrdyn.verification.stating.mistakes import BadInput, folders_of, line_of, name_mistakes
from lrdyn.verification.stating.statement import RESERVED, Experiment

PASSED = ("key", "seed", "amount", "keeper", "data_dir")
"""Arguments that functions of an experiment get beside its flags."""


def check_statement(experiment: Experiment, taken: Collection[str] = ()) -> None:
    """Refuse names and presets of which no flag, folder or file can be made.

    Args:
        experiment: the experiment.
        taken: what every experiment has in the place of a flag.

    Raises:
        BadInput: the line of the file, what it has and what was wanted.
    """
    with name_mistakes(folders_of(experiment), of=experiment):
        for got, wanted, name in _unusable_parts(experiment, {*taken, *PASSED}):
            raise _bad_statement(experiment, name, got, wanted)


def taken_name(experiment: Experiment, flag: Flag) -> BadInput:
    """Bad input for a flag whose name every command has."""
    return _bad_statement(experiment, flag.name, *_clash("a flag", flag.name))


def no_values(experiment: Experiment, flag: Flag) -> BadInput:
    """Bad input for a flag that has no values, neither given nor in a preset."""
    return _bad_statement(
        experiment, flag.name, f"quick=() of flag {flag.name!r}", "a tuple of values"
    )


def _bad_statement(experiment: Experiment, name: object, got: str, wanted: str) -> BadInput:
    return BadInput(f"{line_of(experiment, name)}: got {got}, wanted {wanted}")


def _clash(kind: str, name: str) -> tuple[str, str]:
    return f"{_short_repr(name)} as a name of {kind}, which is taken", "another one"


def _unusable_parts(
    experiment: Experiment, taken: Collection[str]
) -> Iterator[tuple[str, str, object]]:
    """What cannot be used, what was wanted, and the name at which it stands."""
    for flag in experiment.flags:
        if not isinstance(flag, Flag):
            yield f"{_short_repr(flag)} among the flags", "a lrdyn.Flag", flag
    statements: list[Any] = [experiment, *experiment.flags]
    for scenario in experiment.scenarios:
        statements += [scenario, *scenario.claims, *scenario.controls, *scenario.findings]
    for statement in statements:
        called = getattr(statement, "id", None) or getattr(statement, "name", None)
        for field in fields(statement):
            value = getattr(statement, field.name)
            names = list(value) if isinstance(value, Mapping) else []
            names += [value] if field.name in ("id", "name") else []
            for name in names:
                if wanted := _wanted_of_a_name(name):
                    yield f"{_short_repr(name)} as a name", wanted, name
            if isinstance(value, str) and not _can_be_saved(value):
                yield f"{field.name}={_short_repr(value)}", "text of Unicode, without NUL", called
    groups = {*RESERVED, *(scenario.id for scenario in experiment.scenarios[1:])}
    flags = [flag.name for flag in experiment.flags]
    for flag in experiment.flags:
        if not flag.name.isidentifier() or keyword.iskeyword(flag.name):
            wanted = "one that an argument of Python can have"
            yield f"{_short_repr(flag.name)} as a name of a flag", wanted, flag.name
        if flag.name in {*taken, *groups} or flags.count(flag.name) > 1:
            yield *_clash("a flag", flag.name), flag.name
        if why := _preset_mistake(flag):
            yield *why, flag.name
    yield from _unknown_flags(experiment)
    for number, scenario in enumerate(experiment.scenarios):
        field_of = {axis: field for field, axes in scenario.axes.items() for axis in axes}
        swept = {f.name for f in experiment.flags if f.swept} - {*scenario.whole}
        # The arrays of the first scenario lie beside the groups of the others.
        saved = {*swept, "seed", "amount", *(RESERVED if number else groups)}
        for axis, field in field_of.items():
            if wanted := _wanted_of_a_name(axis):
                yield f"{_short_repr(axis)} as a name of an axis", wanted, field
            if axis in saved:
                yield *_clash("an axis", axis), field
        saved |= {SIZE, *(f"length_{axis}" for axis in field_of)}
        saved |= {f"met_{hypothesis}" for hypothesis in scenario.hypotheses}
        # A field of both sides is saved with an ending.
        saved &= set(scenario.fields("theory")) ^ set(scenario.fields("run"))
        for name in sorted(saved):
            yield *_clash("a field", name), name


def _unknown_flags(experiment: Experiment) -> Iterator[tuple[str, str, object]]:
    """Settings of scenarios and controls that no flag has, and numbers that it does not take.

    A word may stand for several values of a flag.
    """
    flags = {flag.name: flag for flag in experiment.flags}
    known = f"one of {', '.join(flags)}" if flags else "none: there are no flags"
    for scenario in experiment.scenarios:
        if scenario.steps and scenario.steps not in flags:
            got = f"steps={scenario.steps!r}{near(scenario.steps, flags)}"
            yield f"{got} of scenario {scenario.id!r}", f"a flag, {known}", scenario.id
        for owner in (scenario, *scenario.controls):
            for name, value in owner.at.items():
                where = f"at of {type(owner).__name__.lower()} {owner.id!r}"
                if name not in flags:
                    yield f"{name!r}{near(str(name), flags)} in {where}", known, owner.id
                elif isinstance(value, int | float) and not flags[name].accepts(value):
                    got = f"{name}={_short_repr(value)} in {where}"
                    yield got, flags[name].wanted(), owner.id


def _wanted_of_a_name(name: object) -> str:
    """What is wanted in the place of a name of a folder, group or array; empty if it will do."""
    if not (isinstance(name, str) and name.isprintable() and 0 < len(name.encode()) <= LONGEST):
        return f"printable text of up to {LONGEST} bytes"
    return "one without / that begins with no dot" if "/" in name or name[0] == "." else ""


LONGEST = 200
"""Bytes of a name, at most: with an ending it must fit into that of a file, 255 bytes."""


def _preset_mistake(flag: Flag) -> tuple[str, str] | None:
    """What is wrong with the presets of a flag, and what was wanted; None if nothing is."""
    for preset in ("quick", "paper", "float32"):
        values = getattr(flag, preset)
        if not isinstance(values, tuple):
            return f"{preset}={_short_repr(values)} of flag {flag.name!r}", "a tuple of values"
        for value in values:
            accepted = flag.accepts(value)
            wanted = flag.wanted()
            if isinstance(value, int) and abs(value) >= 2**31:
                wanted, accepted = f"{wanted}, below 2^31", False
            elif accepted and not isinstance(value, int | float | str):  # NumPy's are not JSON
                wanted, accepted = f"{wanted} of Python", False
            if not accepted:
                return f"{_short_repr(value)} in {preset} of flag {flag.name!r}", wanted
    return None


def _can_be_saved(text: str) -> bool:
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _short_repr(value: object) -> str:
    return shortened(repr(value), 40)
