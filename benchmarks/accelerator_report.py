"""The report of a day with an accelerator: every piece with what came of it, for a person."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ahead

Numbers = dict[str, Any]
COMPILED = Path(__file__).parents[1] / "docs" / "accelerators.json"
"""What ``make aot`` found, operations of each program among it."""


def is_finished(numbers: Numbers | None) -> bool:
    """Whether a piece left what it was to leave: neither a fault nor cut, or not on this device."""
    return numbers is not None and not {"fault", "cut"} & numbers.keys()


@functools.cache
def operations() -> Mapping[str, float]:
    """Program -> operations of one run, of which a loop counts once."""
    rows = json.loads(COMPILED.read_text())["rows"]
    return {row["name"]: row["work"] for row in rows if row.get("work")}


def told(numbers: Numbers, kind: str = "") -> str:
    """What came of a piece, in a few words.

    Args:
        numbers: what the piece left.
        kind: ``device_kind`` of the device, whose ceilings stand beside what was reached.

    Example:
        >>> told({"holds": False, "wanted": False, "said": "rho IS FALSE", "seconds": 2.5})
        'FALSE, as it must be; rho IS FALSE; 2.5 s'
        >>> told({"rate": 2e12, "arithmetic": "float64"}, "NVIDIA H200")
        '2 TF/s, 3 % of 67'
        >>> told({"fault": "no memory"}), told({"absent": "no TF32"})
        ('**no memory**', 'not on this device: no TF32')
    """
    if "fault" in numbers:
        return f"**{numbers['fault']}**"
    if "cut" in numbers:
        return f"**cut after {numbers['cut']:.3g} s**: it goes on with the parts that it finished"
    if "absent" in numbers:
        return f"not on this device: {numbers['absent']}"
    words = [numbers["said"]] if "said" in numbers else []
    if "holds" in numbers:
        outcome = {True: "holds", False: "FALSE", None: "undecided"}[numbers["holds"]]
        right = numbers["holds"] is numbers["wanted"]
        must = "FALSE" if numbers["wanted"] is False else "holds"
        expected = ", as it must be" if outcome == "FALSE" else ""
        words.insert(0, outcome + (expected if right else f", **wanted: {must}**"))
    if "measured" in numbers:
        words += [f"{precision}: {arithmetic(m)}" for precision, m in numbers["measured"].items()]
    if "same" in numbers:
        words.insert(0, {True: "as committed", False: "DIFFERS", None: "drawn"}[numbers["same"]])
    if "dot" in numbers:
        words.append(arithmetic(numbers))
    ceilings = ahead.ceilings_of(kind)
    if "rate" in numbers:
        words.append(_beside(numbers["rate"], ceilings.get(numbers["arithmetic"]), "TF/s"))
    if "bytes" in numbers:
        words.append(_beside(numbers["bytes"], ceilings.get("bytes"), "TB/s"))
    if "steps" in numbers:
        words.append(f"{numbers['steps']:.3g} steps a second")
    words += [
        f"{_time(numbers[name])} {name}"
        for name in ("single", "batch", "one by one", "by NumPy", "first", "a step")
        if name in numbers
    ]
    if "seconds" in numbers:
        words.append(_time(numbers["seconds"]))
    if "operations" in numbers:
        rate = numbers["operations"] / numbers["seconds"]
        words.append(_beside(rate, ceilings.get(numbers["arithmetic"]), "TF/s"))
    return "; ".join(words)


def arithmetic(measured: Mapping[str, Any]) -> str:
    """A measured arithmetic in a few words.

    Example:
        >>> arithmetic({"products": "float32", "dot": 1.65, "svd": 8.4})
        'products in float32, a dot within 1.65 eps, an SVD within 8.4'
    """
    kinds = sorted({measured["products"], measured.get("convolutions", measured["products"])})
    words = [f"products in {' and '.join(kinds)}", f"a dot within {measured['dot']} eps"]
    words += [f"an SVD within {measured['svd']}"] if "svd" in measured else []
    if "svd_on_device" in measured:
        words.append(f"the device's own within {measured['svd_on_device']}")
    return ", ".join(words)


def _beside(rate: float, ceiling: float | None, unit: str) -> str:
    """A rate, and the share that it is of what the maker promises."""
    share = f", {rate / ceiling:.0%} of {ceiling / 1e12:.3g}".replace("%", " %") if ceiling else ""
    return f"{rate / 1e12:.3g} {unit}{share}"


def _time(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def overview(stages: Mapping[str, Mapping[str, Numbers]]) -> list[str]:
    """What came of the verdicts and of the figures, in a line for each kind of them.

    Example:
        >>> overview({"verdicts": {"lora float64": {"holds": True, "wanted": True}}})
        ['- theorems in float64: 1 of 1 as wanted']
    """
    lines = []
    by_kind: dict[str, dict[str, bool]] = {}
    for pieces in stages.values():
        for piece, numbers in pieces.items():
            name, _, kind = piece.partition(" ")
            if "wanted" in numbers:
                right = numbers["holds"] is numbers["wanted"]
                by_kind.setdefault(f"theorems in {kind}", {})[name] = right
            elif numbers.get("same") is not None:
                by_kind.setdefault(f"figures and tables, {kind}", {})[name] = numbers["same"]
    for kind, right in by_kind.items():
        wrong = ", ".join(name for name in right if not right[name])
        how = "as wanted" if kind.startswith("theorems") else "as committed"
        lines.append(
            f"- {kind}: {sum(right.values())} of {len(right)} {how}"
            + (f"; otherwise: {wrong}" if wrong else "")
        )
    return lines


def report(day: Numbers, missing: Sequence[str] | None = None, level: int = 1) -> str:
    """The page for a person: every piece with what came of it.

    Args:
        day: the numbers of a device, as ``measured.json`` has them.
        missing: names of pieces that are to come, which the last line names; None for no such line.
        level: of the heading.
    """
    of = day["of"]
    tiny = " Sizes are tiny: only that it runs is shown." if of["tiny"] else ""
    revisions = day.get("revisions", [])
    code = f", revision {', then '.join(revisions)}" if revisions else ""
    lines = [
        f"{'#' * level} {of['device']}",
        "",
        f"Platform {of['platform']}, JAX {of['jax']}{code}.{tiny}",
    ]
    if said := overview(day["stages"]):
        lines += ["", *said]
    for stage, pieces in day["stages"].items():
        if pieces:
            lines += ["", f"{'#' * (level + 1)} {stage.capitalize()}", ""]
            lines += ["| piece | outcome |", "|---|---|"]
            lines += [
                f"| {name} | {told(numbers, of['device']).replace('|', chr(92) + '|')} |"
                for name, numbers in pieces.items()
            ]
    if missing is not None:
        lines += ["", f"Still missing: {', '.join(missing) if missing else 'nothing'}."]
    return "\n".join([*lines, ""])
