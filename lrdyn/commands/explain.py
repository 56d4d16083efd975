"""``lrdyn explain NAME``: what a theorem claims, under which hypotheses, and how it could fail."""

from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

from lrdyn.commands.arguments import Example, Parser
from lrdyn.core.show import near, wrapped
from lrdyn.statements import statement
from lrdyn.system.printer import say
from lrdyn.verification.stating.claims import FALSE_ALARM
from lrdyn.verification.stating.hypotheses import measure_of
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.statement import Claim, Experiment, Finding, Scenario

ROUNDING = "rounding, 8 eps (sqrt(size (1 + steps)) + steps / 2)"
TOLERANCES = {
    "exact": "0, as integers",
    "identity": ROUNDING,
    "bound": f"{ROUNDING}, above the bound",
    "statistical": f"a false alarm of the whole command with probability {FALSE_ALARM:g}",
}
"""Kind of a claim -> its tolerance, of kinds that have a general one: see lrdyn.tolerance."""


def parser() -> Parser:
    """The parser of ``lrdyn explain``."""
    examples = [
        Example("lrdyn explain theorem2", "hypotheses, claims and what breaks each"),
        Example("lrdyn explain theorem2 rho", "one claim of it"),
        Example("lrdyn explain my_theorem.py", "a theorem of your own"),
    ]
    about = "What a theorem claims, under which hypotheses, and how each claim could fail."
    flags = Parser("lrdyn explain", about, examples=examples)
    flags.add_argument("theorem", metavar="NAME", help="a word of lrdyn list, FILE.py[:NAME]")
    flags.add_argument("claims", nargs="*", default=(), metavar="CLAIM", help="ids (default: all)")
    return flags


def main(words: Sequence[str]) -> None:
    """Run one command line.

    Raises:
        BadInput: there is no such theorem, or no such claim of it.
    """
    options = parser().parse(words)
    stated = statement(options.theorem, "explain")
    known = {entry.id for s in stated.scenarios for entry in (*s.claims, *s.findings)}
    for claim in options.claims:
        if claim not in known:
            wanted = f"one of {', '.join(sorted(known))}" if known else "none: nothing is claimed"
            raise BadInput(f"claim: got {claim!r}{near(claim, known)}, wanted {wanted}")
    say("\n".join(lines(stated, options.theorem, options.claims)))


def lines(stated: Experiment, command: str, claims: Sequence[str] = ()) -> Iterator[str]:
    """The explanation of a theorem or study.

    Args:
        stated: it.
        command: the word or file with which it is verified.
        claims: ids of claims and findings to explain; all if empty.
    """
    yield f"{stated.title}: {stated.summary}"
    for scenario in stated.scenarios:
        yield from _scenario(scenario, claims)
    yield ""
    if stated.source:
        yield f"as derived from: {stated.source}"
    if stated.page:
        yield f"page: {stated.page}"
    yield f"run it: lrdyn verify {command} (settings: --help)"


def _scenario(scenario: Scenario, asked: Sequence[str]) -> Iterator[str]:
    claims = [claim for claim in scenario.claims if not asked or claim.id in asked]
    findings = [finding for finding in scenario.findings if not asked or finding.id in asked]
    if not (claims or findings):
        return
    yield from ("", f"scenario {scenario.id}")
    if scenario.hypotheses:
        yield "  hypotheses, checked in each case"
        for text, check in scenario.hypotheses.items():
            said = _meaning(check)
            yield from wrapped(f"{text}: {said}" if said else text, "    - ")
    if claims:
        yield "  claims"
    for claim in claims:
        yield from _claim(claim, scenario)
    if findings:
        yield "  findings, which decide nothing"
    for finding in findings:
        yield from _finding(finding)


def _meaning(check: Callable[..., Any]) -> str:
    """What the check of a hypothesis looks at, in words; empty where it does not say."""
    if measure := measure_of(check):
        return measure.words
    # A partial function has the docstring of its type.
    written = check.__doc__ if isinstance(check, FunctionType) else None
    return (written or "").strip().partition("\n")[0].rstrip(".")


def _claim(claim: Claim, scenario: Scenario) -> Iterator[str]:
    yield f"    {claim.id} ({claim.kind})"
    yield from wrapped(claim.statement, "      ")
    if sides := claim.sides or scenario.sides:
        yield from wrapped(f"compared: {sides}", "      ")
    limit = f"{claim.tolerance:g}" if claim.tolerance is not None else TOLERANCES[claim.kind]
    yield from wrapped(f"tolerance: {limit}", "      ")
    if claim.seeds:
        yield from wrapped(f"over seeds: {claim.seeds} at least", "      ")
    for control in scenario.controls:
        if control.claim == claim.id:
            yield from wrapped(f"must fail with {control.id}: {control.statement}", "      ")


def _finding(finding: Finding) -> Iterator[str]:
    yield f"    {finding.id}"
    yield from wrapped(finding.statement, "      ")
    if finding.expected.sides:
        yield from wrapped(f"expected: {finding.expected}", "      ")
