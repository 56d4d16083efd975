"""Entries of a verdict as objects: a claim, a control or a finding by its id."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lrdyn.core.show import aligned, near, table
from lrdyn.system.messages import refuse_truth
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.stating.claims import Decision


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """What a verdict says of one claim, control or finding.

    A control holds where its claim was seen to fail. By itself an entry is neither true nor false.

    Example:
        >>> entry = Entry.of({"id": "rho", "kind": "identity", "statement": "a = b",
        ...     "residual": 1e-16, "tolerance": 1e-15, "holds": True, "cases": 6, "cases_total": 6,
        ...     "judged": {"float64": {"drawn": 6, "judged": 6, "left_out": {}}},
        ...     "worst_case": {"dim": 3, "seed": 1}})
        >>> entry
        rho (identity) holds: 1.0e-16 of 1.0e-15 in 6/6 cases: a = b
        >>> entry.outcome, entry.holds, entry.worst_case["dim"]
        (<Decision.HOLDS: 'holds'>, True, 3)
    """

    id: str
    statement: str
    """What is claimed, broken or measured, in words."""
    kind: str
    """That of a claim (``identity``, ``bound``, ...), ``control`` or ``finding``."""
    outcome: Decision
    """HOLDS, FALSE, or UNDECIDED where nothing was judged."""
    said: str
    """The outcome in words, with the reason where it is undecided."""
    residual: float | None
    """Residual of the worst case, in the precision asked for; None where nothing was judged."""
    tolerance: float | None
    """Tolerance of that case."""
    worst_case: Mapping[str, Any]
    """Its settings: those that are swept, and the seed."""
    cases: int
    """Number of cases judged."""
    cases_total: int
    """Number of all cases, those outside the hypotheses too."""
    rest: str
    """Of a training: whether it was at rest, or its budget; empty of others."""
    claim: str
    """Of a control: the claim that must fail; empty of others."""
    finding: Mapping[str, Any] | None
    """Of a finding: mean, spread, interval and what was expected; None of others."""

    __bool__ = refuse_truth(".holds, or .outcome where UNDECIDED is not to count as FALSE")

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Entry":
        """The object of an entry among ``claims`` in ``verdict.json``."""
        finding = entry.get("finding")
        found = entry["kind"] == "finding"
        return cls(
            id=entry["id"],
            statement=entry["statement"],
            kind=entry["kind"],
            outcome=Decision.of(entry["holds"]),
            said=verdict_text.outcome_of_finding(finding or {"outcome": ""})
            if found
            else verdict_text.outcome(entry),
            residual=entry["residual"],
            tolerance=entry["tolerance"],
            worst_case=entry["worst_case"],
            cases=entry["cases"],
            cases_total=entry.get("cases_total", entry["cases"]),
            rest=(finding or entry).get("rest", ""),
            claim=entry.get("claim", ""),
            finding=finding,
        )

    @property
    def holds(self) -> bool:
        """Whether the outcome is HOLDS; what is undecided does not hold."""
        return self.outcome is Decision.HOLDS

    def __repr__(self) -> str:
        """One line: id, kind, outcome, residual, tolerance, cases, statement."""
        of = f" of {self.claim}" if self.claim else ""
        cases = f"in {self.cases}/{self.cases_total} cases"
        if self.finding is not None:
            value = self.finding["value"]
            number = "not known" if value is None else f"{value:.4g}"
            return f"{self.id} (finding) {number}, {self.said or 'looked at'}: {self.statement}"
        numbers = [("-" if n is None else f"{n:.1e}") for n in (self.residual, self.tolerance)]
        compared = " of ".join(numbers)
        return f"{self.id} ({self.kind}{of}) {self.said}: {compared} {cases}: {self.statement}"


class Entries(dict[str, Entry]):
    """Entries of a verdict by their ids, which show themselves as a table.

    Args:
        name: what a message calls them: ``claims``.
        entries: those of ``verdict.json``.
    """

    def __init__(self, name: str, entries: Iterable[Mapping[str, Any]]):
        super().__init__((entry["id"], Entry.of(entry)) for entry in entries)
        self._name = name
        self._rows = verdict_text.rows_of(entries) if self else []

    def __missing__(self, id: str) -> Entry:
        wanted = f"one of {', '.join(self)}" if self else "none: there are none"
        raise KeyError(f"{self._name}: got {id!r}{near(str(id), self)}, wanted {wanted}")

    def __repr__(self) -> str:
        """One line for each."""
        return "\n".join(aligned(self._rows)) if self else f"no {self._name}"

    def _repr_html_(self) -> str:
        return table(self._rows) if self else f"no {self._name}"
