"""Tables of a report: claims with their controls, findings, settings and the machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lrdyn.report.markup import Markup, element, joined
from lrdyn.verification.judging import rounding, verdict_text
from lrdyn.verification.running.configuration import COMMON
from lrdyn.verification.runs.repeating import repeating
from lrdyn.verification.stating.flags import option_string

DECIDED = {
    "steps": "by theory's number of steps",
    "certificate": "by the run's own certificate",
    "trivial": "trivial",
    "excused": "excused",
}
"""What decided the cases, in words."""
MARKS = {True: ("holds", "✓"), False: ("false", "✗"), None: ("open", "○")}
"""Class and sign of an outcome; words stand beside them."""


def mark(holds: bool | None, words: str) -> Markup:
    """An outcome: a sign and words in its colour.

    Example:
        >>> mark(True, "holds")
        '<span class="mark holds">✓ holds</span>'
    """
    name, sign = MARKS[holds]
    return element("span", f"{sign} {words}", class_=f"mark {name}")


def scrolling(table: Markup, label: str) -> Markup:
    """A table that scrolls where it is wider than the page, with the keyboard, too."""
    return element("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")


def listed(pairs: Iterable[tuple[str, object]]) -> Markup:
    """A list of names with their values; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", [])]
    rows = [joined(element("dt", name), element("dd", value)) for name, value in shown]
    return element("dl", *rows) if rows else Markup("")


def head(*columns: str | tuple[str, str]) -> Markup:
    """The heading of a table; a column has a class beside its words."""
    cells = [(column, None) if isinstance(column, str) else column for column in columns]
    row = [element("th", words, scope="col", class_=class_) for words, class_ in cells]
    return element("thead", element("tr", *row))


# Claims -------------------------------------------------------------------------------------------


def claims(verdict: Mapping[str, Any], command: str, label: str) -> Markup:
    """Every claim: what it says, its residuals, who decided, its worst case and its controls.

    Args:
        verdict: content of ``verdict.json``.
        command: what verifies the theorem.
        label: of the table.
    """
    entries = [entry for entry in verdict["claims"] if entry["kind"] != "finding"]
    ids = {entry["id"] for entry in entries}
    controls = [entry for entry in entries if entry["kind"] == "control"]
    bodies = [
        _claim(
            entry,
            [c for c in controls if c.get("claim") == entry["id"]],
            verdict,
            command,
            alone=all(c.get("claim") not in (None, entry["id"]) for c in controls),
        )
        for entry in entries
        if entry["kind"] != "control"
    ]
    others = [entry for entry in controls if entry.get("claim") not in ids]
    if others:  # results that do not name the claim of a control
        title = element("th", "Controls", colspan=6, scope="rowgroup", class_="name")
        rows = [_control(entry) for entry in others]
        bodies.append(element("tbody", element("tr", title), *rows))
    columns = head(
        "precision, control",
        ("residual", "number"),
        ("tolerance", "number"),
        ("ratio", "number wide"),
        ("cases", "number"),
        "outcome",
    )
    caption = element("caption", "Every claim in the precisions of the run, then its controls")
    return scrolling(element("table", caption, columns, *bodies, class_="claims"), label)


def _claim(
    claim: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any],
    command: str,
    *,
    alone: bool,
) -> Markup:
    """The rows of one claim; ``alone`` if it is known to have no control."""
    title = element(
        "th",
        element("code", claim["id"], class_="name"),
        element("span", claim["kind"], class_="kind"),
        mark(claim["holds"], verdict_text.outcome(claim)),
        element("p", claim["statement"], class_="statement"),
        colspan=6,
        scope="rowgroup",
    )
    rows = [_leg(claim, precision, index) for index, precision in enumerate(claim["judged"])]
    again = repeating(command, verdict["config"], claim["worst_case"])
    lines = [
        _line("decided", _decided(claim)),
        _line("left out", _left_out(claim)),
        _line("p", "" if claim.get("p") is None else f"{claim['p']:.2g}"),
        _line("equal to the bit", "residual 0 in every bit" * bool(claim.get("equal_to_the_bit"))),
        _line("worst case", typed_out(again) if again else ""),
        _line("controls", "none" if alone else ""),
    ]
    more = element("tr", element("td", *lines, colspan=6, class_="more"))
    return element(
        "tbody", element("tr", title), *rows, more, *(_control(control) for control in controls)
    )


def typed_out(command: str) -> Markup:
    """A command line, which breaks between its words."""
    words = (element("span", word) for word in command.split(" "))
    return element("code", joined(*words, by=" "), class_="command")


def _line(name: str, words: object) -> Markup:
    if not words:
        return Markup("")
    return element("p", element("span", f"{name}: ", class_="label"), words)


def _leg(claim: Mapping[str, Any], precision: str, index: int) -> Markup:
    """The row of one precision; the first is that of the verdict."""
    suffix = f"_{precision}" if index else ""
    counts = claim["judged"][precision]
    residual, tolerance = claim.get(f"residual{suffix}"), claim.get(f"tolerance{suffix}")
    return _row(
        precision,
        residual,
        tolerance,
        f"{counts['judged']}/{counts['drawn']}",
        _within(residual, tolerance),
    )


def _within(residual: float | None, tolerance: float | None) -> str:
    if residual is None or tolerance is None:
        return "not judged"
    return "within" if residual <= tolerance else "above"


def _control(control: Mapping[str, Any]) -> Markup:
    words = control["statement"].removesuffix(f": {control.get('claim')} fails")
    name = joined("control ", element("code", control["id"]), ": ", words)
    outcome = mark(control["holds"], verdict_text.outcome(control))
    cases = f"{control['cases']}/{control.get('cases_total', control['cases'])}"
    return _row(name, control["residual"], control["tolerance"], cases, outcome)


def _row(
    name: object, residual: float | None, tolerance: float | None, cases: str, outcome: object
) -> Markup:
    ratio = residual / tolerance if residual is not None and tolerance else None
    return element(
        "tr",
        element("th", name, scope="row", class_="leg"),
        element("td", _short(residual), class_="number"),
        element("td", _short(tolerance), class_="number"),
        element("td", "-" if ratio is None else f"{ratio:.2g}", class_="number wide"),
        element("td", cases, class_="number"),
        element("td", outcome),
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value else "0"


def _decided(claim: Mapping[str, Any]) -> str:
    by = claim.get("decided_by", {})
    return ", ".join(f"{by[name]} {words}" for name, words in DECIDED.items() if by.get(name))


def _left_out(claim: Mapping[str, Any]) -> str:
    """Why cases of the first precision were not judged, and how many."""
    return verdict_text.reasons(next(iter(claim["judged"].values()), {"left_out": {}}))


# Findings -----------------------------------------------------------------------------------------


def findings(verdict: Mapping[str, Any], label: str) -> Markup:
    """Table of the findings, with the interval of each mean; empty without findings."""
    entries = [claim for claim in verdict["claims"] if claim["kind"] == "finding"]
    if not entries:
        return Markup("")
    rows = []
    for entry in entries:
        numbers = entry["finding"] or {}
        interval = numbers.get("interval")
        cells = [
            _number(numbers.get("value")),
            _number(numbers.get("spread")),
            str(numbers.get("seeds", "-")),
            "-" if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}",
            numbers.get("expected") or "-",
            _number(numbers.get("source")),
        ]
        name = joined(element("code", entry["id"]), ": ", entry["statement"])
        outcome = verdict_text.outcome_of_finding(numbers) if numbers.get("outcome") else "-"
        came_true = numbers.get("came_true")
        # Nothing was expected of what is compared alone.
        said = outcome if came_true is None else mark(came_true, outcome)
        rows.append(
            element(
                "tr",
                element("th", name, scope="row"),
                *(element("td", cell, class_="number") for cell in cells),
                element("td", said),
            )
        )
    columns = head(
        "finding",
        *(
            (word, "number")
            for word in ("mean", "spread", "seeds", "interval", "expected", "source")
        ),
        "outcome",
    )
    caption = element(
        "caption",
        f"{label}: findings, which decide nothing. Spread: standard deviation over seeds; "
        "interval: of the mean; source: the number of the source.",
    )
    body = element("tbody", *rows)
    return scrolling(
        element("table", caption, columns, body, class_="findings"), f"{label}: findings"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


# Settings and machine -----------------------------------------------------------------------------


def settings(config: Mapping[str, Any]) -> Markup:
    """Every setting, as flags are typed."""
    return listed((option_string(name), _setting(config[name])) for name in _ordered(config))


def _ordered(config: Mapping[str, Any]) -> list[str]:
    """The settings that every run has come last."""
    return sorted(config, key=lambda name: name in COMMON)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an array of shape {tuple(value['shape'])}, SHA-256 {value['sha256']}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def machine(environment: Mapping[str, Any]) -> Markup:
    """Versions and hardware that results came from."""
    return listed((name.replace("_", " "), _shown(value)) for name, value in environment.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_shown(inner)}" for name, inner in value.items())
    return (
        ", ".join(map(_shown, value))
        if isinstance(value, list)
        else ""
        if value is None
        else str(value)
    )


def measured(by_precision: Mapping[str, Mapping[str, Any]], label: str) -> Markup:
    """The arithmetic of the device beside the reference; empty if nothing was measured."""
    if not by_precision:
        return Markup("")
    names = list(dict.fromkeys(name for numbers in by_precision.values() for name in numbers))
    columns = ["number", *(p for precision in by_precision for p in (precision, "reference"))]
    rows = [
        element(
            "tr",
            element("th", name.replace("_", " "), scope="row"),
            *(
                element("td", cell, class_="number")
                for precision, numbers in by_precision.items()
                for cell in (
                    _digits(numbers.get(name)),
                    _digits(rounding.REFERENCE.get(precision, {}).get(name)),
                )
            ),
        )
        for name in names
    ]
    caption = element("caption", "Errors in units of machine epsilon, the worst of several draws")
    head_row = head(columns[0], *((word, "number") for word in columns[1:]))
    table = element("table", caption, head_row, element("tbody", *rows))
    return scrolling(table, f"{label}: arithmetic")


def _digits(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3g}"
