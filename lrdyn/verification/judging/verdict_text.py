"""Verdicts as lines of text: every claim of one, or one line for each of several."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lrdyn.core import show
from lrdyn.core.show import aligned, wrapped
from lrdyn.verification.judging import rounding
from lrdyn.verification.judging.judging import TOO_FEW_SEEDS
from lrdyn.verification.stating.claims import (
    CLEARLY,
    MORE_STEPS_HELP,
    TOO_FEW_STEPS,
    UNSEEN_RELEASE,
)
from lrdyn.verification.stating.flags import option_string
from lrdyn.verification.stating.forms import TRIVIAL


def first_screen(
    verdict: Mapping[str, Any],
    summary: str = "",
    notes: Sequence[str] = (),
    *,
    controls: bool = False,
) -> str:
    """What a verdict says first: what is claimed, the sentence of :func:`sentence`, the claims.

    Controls that were seen to fail are a number in the sentence; findings are a table of their own.

    Args:
        verdict: content of ``verdict.json``.
        summary: what is claimed, in words.
        notes: lines to add, such as those of configurations that diverged.
        controls: a line for each control, not for those alone that were not seen to fail.
    """
    claims, broken = _claims_and_controls(verdict)
    shown = [entry for entry in broken if controls or entry["holds"] is not True]
    findings = _findings(verdict["claims"])
    parts = [
        [f"{verdict['name']}: {summary}"] if summary else [],
        [*wrapped(sentence(verdict, why=False)), *why_undecided(verdict)] if claims else [],
        aligned(_rows(claims)) if claims else [],
        aligned(_rows(shown)) if shown else [],
        aligned(findings) if findings else [],
        [*notes, *shortfall_lines(verdict)],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def html(verdict: Mapping[str, Any], summary: str = "", notes: Sequence[str] = ()) -> str:
    """The same as HTML for a notebook, with residual over tolerance drawn.

    Controls that were seen to fail are folded; those that were not are shown.

    Args:
        verdict: content of ``verdict.json``.
        summary: what is claimed, in words.
        notes: lines to add.
    """
    claims, controls = _claims_and_controls(verdict)
    findings = _findings(verdict["claims"])
    parts = [
        f"<p>{escape(verdict['name'])}: {escape(summary)}</p>" if summary else "",
        f"<p><b>{escape(sentence(verdict))}</b></p>",
        show.table(_rows(claims), _gauges(claims)) if claims else "",
        show.table(findings) if findings else "",
    ]
    unseen = [entry for entry in controls if entry["holds"] is not True]
    seen = [entry for entry in controls if entry["holds"] is True]
    if unseen:
        parts.append(show.table(_rows(unseen), _gauges(unseen)))
    if seen:
        heading = f"{count_held(controls)} controls were seen to fail"
        folded = show.table(_rows(seen), _gauges(seen))
        parts.append(f"<details><summary>{heading}</summary>{folded}</details>")
    parts += [f"<p>{escape(line)}</p>" for line in (*notes, *shortfall_lines(verdict))]
    return "".join(parts)


def _gauges(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    gauges = ["residual&#160;/&#160;tolerance,<br/>1e-6&#160;to&#160;1e6"]
    for entry in entries:
        over = entry["residual"] is not None and entry["tolerance"]
        color = "#d55e00" if entry["holds"] is False else "#0072b2"
        gauges.append(show.gauge(entry["residual"] / entry["tolerance"] if over else None, color))
    return gauges


def rows_of(entries: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A heading and a row for each entry; they are all findings, or none is."""
    entries = list(entries)
    return _findings(entries) or _rows(entries)


def sentence(verdict: Mapping[str, Any], *, why: bool = True) -> str:
    """A verdict in a sentence: its claims, cases and controls, and the claim nearest to failing.

    Args:
        verdict: content of ``verdict.json``.
        why: also why claims are undecided.

    Example:
        >>> sentence({"name": "t", "holds": None, "claims": [], "undecided": []})
        't: nothing is claimed.'
    """
    claims, controls = _claims_and_controls(verdict)
    if not claims:
        return f"{verdict['name']}: nothing is claimed."
    judged = [entry for entry in claims if entry["holds"] is not None]
    false = [entry["id"] for entry in claims if entry["holds"] is False]
    unseen = [entry["id"] for entry in controls if entry["holds"] is False]
    parts = [_held_claims(judged, claims)]
    if false:
        parts.append(f"false: {', '.join(false)}")
    if controls:
        failing = sum(bool(entry["holds"]) for entry in controls)
        parts.append(f"{failing} of {len(controls)} controls were seen to fail, as they must")
    if unseen:
        parts.append(f"not seen to fail: {', '.join(unseen)}")
    parts += why_undecided(verdict) if why else []
    return f"{verdict['name']} {word(verdict)}: {'; '.join(parts)}."


def _held_claims(judged: Sequence[Mapping[str, Any]], claims: Sequence[Mapping[str, Any]]) -> str:
    held = sum(bool(claim["holds"]) for claim in judged)
    open_ = len(claims) - len(judged)
    left = f" ({open_} not judged)" if open_ else ""
    most = max((claim.get("cases_total", claim["cases"]) for claim in claims), default=0)
    each = f", in up to {most} cases each" if most != 1 else ", in one case each"
    return f"{held} of {len(claims)} claims hold{left}{each}{_nearest(claims)}"


def _nearest(claims: Sequence[Mapping[str, Any]]) -> str:
    """The claim nearest to failing in words, or the one that fails by most."""
    ratios = ratios_of(claims)
    if not ratios:
        return ""
    ratio, name = max(ratios)
    if ratio <= 1:
        return f"; the nearest to failing is {name}, at {ratio:.2g} of its tolerance"
    return f"; {name} is off by {ratio:.2g} times its tolerance"


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    # The precision that is judged beside the one asked for; of a study the finer one.
    finer = any("residual_float64" in entry for entry in entries)
    other = "float64" if finer else "float32"
    rows = [("claim", "kind", "cases", "residual", "tolerance", other, "tolerance", "")]
    for entry in entries:
        rows.append(
            (
                entry["id"],
                entry["kind"],
                f"{entry['cases']}/{entry.get('cases_total', entry['cases'])}",
                _format_residual(entry["residual"]),
                _format_residual(entry["tolerance"]),
                _format_residual(entry.get(f"residual_{other}")),
                _format_residual(entry.get(f"tolerance_{other}")),
                outcome(entry),
            )
        )
    return rows


def _claims_and_controls(
    verdict: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    entries = _judged_claims(verdict)
    claims = [entry for entry in entries if entry["kind"] != "control"]
    return claims, [entry for entry in entries if entry["kind"] == "control"]


def _judged_claims(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [claim for claim in verdict["claims"] if claim["kind"] != "finding"]


def _findings(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the findings: means over seeds, and whether expectations came true."""
    findings = [(c["id"], c["finding"]) for c in entries if c["kind"] == "finding"]
    rows = [("finding", "value", "spread", "seeds", "interval", "expected", "")]
    for name, finding in findings:
        rows.append(
            (
                name,
                _format_number(finding["value"]),
                _format_number(finding["spread"]),
                str(finding["seeds"]),
                _format_interval(finding.get("interval")),
                finding["expected"] or "-",
                outcome_of_finding(finding),
            )
        )
    return rows if findings else []


def outcome_of_finding(finding: Mapping[str, Any]) -> str:
    """The outcome of a finding, and whether its trainings were at rest or had an equal budget.

    Example:
        >>> outcome_of_finding({"outcome": "above 0", "rest": "equal steps"})
        'above 0 (equal steps)'
    """
    came, rest = finding["outcome"] or "", finding.get("rest", "")
    return f"{came} ({rest})" if came and rest and rest != came else came


def _format_interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else "{:.3g} to {:.3g}".format(*ends)


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def summary(verdicts: Sequence[tuple[dict[str, Any], Path]]) -> list[str]:
    """A heading, one line for each verdict and its folder, and one for each failure."""
    rows = [("theorem", "claims", "cases", "nearest its tolerance", "controls", "", "")]
    faults: list[list[str]] = [[]]
    for verdict, path in verdicts:
        claims, controls = _claims_and_controls(verdict)
        rows.append(
            (
                verdict["name"],
                count_held(claims),
                str(max(c["cases_total"] for c in claims)),
                nearest_claim(claims),
                count_held(controls),
                word(verdict),
                str(path),
            )
        )
        faults.append(
            [f"  {c['id']}: {outcome(c)}" for c in _judged_claims(verdict) if not c["holds"]]
        )
    lines = aligned(rows)
    return [line for pair in zip(lines, faults, strict=True) for line in (pair[0], *pair[1])]


def count_held(entries: Sequence[Mapping[str, Any]]) -> str:
    """Number of claims or controls that hold, and of all, as ``3/4``."""
    return f"{sum(bool(e['holds']) for e in entries)}/{len(entries)}"


def nearest_claim(claims: Sequence[Mapping[str, Any]]) -> str:
    """Largest residual over tolerance of any claim in any precision, and which it is."""
    ratios = ratios_of(claims)
    # Pairs compare by their ratio first.
    return "{:.2f} {}".format(*max(ratios)) if ratios else "-"


def ratios_of(claims: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Residual over tolerance of each claim in each precision, and which claim it is."""
    return [
        (c[f"residual{leg}"] / c[f"tolerance{leg}"], c["id"])
        for c in claims
        for leg in ("", "_float32")
        if c.get(f"residual{leg}") is not None and c[f"tolerance{leg}"]
    ]


def _format_residual(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def word(verdict: Mapping[str, Any]) -> str:
    """A verdict in a few words, which say what was not seen: a failure, two precisions."""
    outcome = {True: "holds", False: "IS FALSE", None: "is undecided"}[verdict["holds"]]
    control = any(claim["kind"] == "control" for claim in verdict["claims"])
    scaling = not (verdict["holds"] and rounding.short_precisions(verdict.get("arithmetic", {})))
    missing = {"no control": control, "scaling not claimed": scaling}
    unseen = ", ".join(words for words, there in missing.items() if not there)
    return f"{outcome} ({unseen})" if unseen else outcome


def shortfall_lines(verdict: Mapping[str, Any]) -> list[str]:
    """One line for each precision that the device does not have, with what was measured."""
    measured = verdict.get("arithmetic", {})
    return [rounding.shortfall_line(p, measured[p]) for p in rounding.short_precisions(measured)]


def why_undecided(verdict: Mapping[str, Any]) -> list[str]:
    """One line for each claim that keeps a verdict open, with what left its cases out.

    Before them one that says so if no claim of the first scenario applies: what is open is then
    something else.
    """
    lines = []
    if verdict["holds"] is None and (unmet := verdict.get("nothing_applies")):
        listed = ", ".join(f"{reason} ({n})" for reason, n in unmet.items())
        lines = [f"no claim of the main scenario applies, hypotheses not met: {listed}"]
    undecided = [c for c in verdict["claims"] if c["id"] in verdict["undecided"]]
    return lines + [
        f"{c['id']}: undecided, {reasons(next(iter(c['judged'].values())))}" for c in undecided
    ]


def reasons(counts: Mapping[str, Any]) -> str:
    """The reasons for which cases were left out, how many, and how many steps would do."""
    left_out, more_steps = counts["left_out"], counts.get("more_steps")
    # Of two reasons the number is that of the first: the second may be words alone.
    asking = next((reason for reason in MORE_STEPS_HELP if reason in left_out), "")
    if asking != TOO_FEW_STEPS and not more_steps:
        asking = ""
    words = []
    for reason, n in left_out.items():
        asked = f": {_more_steps(more_steps)}" if reason == asking else ""
        words.append(f"{reason} ({n}){asked}")
    return ", ".join(words)


def _more_steps(asked: Mapping[str, Any] | None) -> str:
    """Which number of steps would do; verdicts of earlier releases do not know."""
    needed, flag = (asked["needed"], asked["flag"]) if asked else (None, None)
    if needed is not None:
        return (
            f"{option_string(flag)} {needed} would do"
            if flag
            else f"{needed} would do, no flag sets it"
        )
    how_many = f"how many {option_string(flag)}" if flag else "how many"
    no_flag = ", and no flag sets them" if asked and not flag else ""
    return f"{how_many} would do is not known{no_flag}"


def _residuals(claim: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Precision -> residual and tolerance, each None if it is no finite number."""
    first, *others = claim["judged"]
    both = {first: (claim["residual"], claim["tolerance"])}
    return both | {p: (claim[f"residual_{p}"], claim[f"tolerance_{p}"]) for p in others}


def _unnoticed(control: Mapping[str, Any]) -> bool:
    """Whether a control fails clearly, and no check of a hypothesis left any of its cases out."""
    clear = all(
        None not in pair and pair[0] > 0 and pair[0] >= CLEARLY * pair[1]
        for pair in _residuals(control).values()
    )
    return clear and not any(leg["left_out"] for leg in control["judged"].values())


def outcome(claim: Mapping[str, Any]) -> str:
    """The outcome of a claim or a control, in words."""
    if claim["kind"] == "control" and claim["holds"] is None:
        open_on = [r for leg in claim["judged"].values() for r in leg["left_out"]]
        if rounding.REASON in open_on:
            return f"undecided: {rounding.REASON}"
        unseen = any(reason.startswith(UNSEEN_RELEASE) for reason in open_on)
        return UNSEEN_RELEASE.rstrip(": ") if unseen else TOO_FEW_SEEDS
    if claim["kind"] == "control":
        blind = " (the hypothesis that it breaks did not notice)" * _unnoticed(claim)
        return "fails, as it must" if claim["holds"] else f"NOT SEEN TO FAIL{blind}"
    if claim["holds"] is False:
        lost = [p for p, (residual, _) in _residuals(claim).items() if residual is None]
        unscaled = claim.get("scales_with_epsilon") is False
        if lost and unscaled:  # a NaN scales with nothing
            return f"FALSE (no number in {', '.join(lost)})"
        return "FALSE (does not scale with epsilon)" if unscaled else "FALSE"
    (_, first), *others = claim["judged"].items()
    if claim["holds"] is None:
        if not claim["hypotheses_met"]:
            return TOO_FEW_SEEDS if TOO_FEW_SEEDS in first["left_out"] else "does not apply"
        excused = claim.get("decided_by", {}).get("excused", 1)
        return f"undecided: {reasons(first)}" if excused else TRIVIAL
    silent = [f" (not judged in {p}: {reasons(leg)})" for p, leg in others if not leg["judged"]]
    rest = f" ({claim['rest']})" if claim.get("rest") else ""
    return "holds" + _remarks(claim) + rest + "".join(silent)


def _remarks(claim: Mapping[str, Any]) -> str:
    """What a reader should know of a claim that holds: who decided, and what was not decided."""
    by = claim.get("decided_by", {})
    remarks = [
        f"{by[name]} {words}"
        for name, words in {
            "certificate": "by the run's own certificate",
            "trivial": TRIVIAL,
            "excused": "excused",
        }.items()
        if by.get(name)
    ]
    if claim.get("equal_to_the_bit"):
        remarks.append("residual 0 in every bit: are both sides computed apart?")
    return f" ({', '.join(remarks)})" if remarks else ""
