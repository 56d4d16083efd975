"""``python -m referee.exact``: one line for each identity; status 1 if one does not stand."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from referee.exact import (
    edge_of_stability,
    example42,
    galore_noise,
    theorem1,
    theorem2,
    theorem3,
    theorem4,
)
from referee.exact.claim import Answer, ExactIdentity, answer


def identities() -> list[ExactIdentity]:
    """All identities, in the order of the theorems."""
    beyond = (edge_of_stability, galore_noise)
    modules = (theorem1, theorem2, theorem3, example42, theorem4, *beyond)
    return [identity for module in modules for identity in module.identities()]


def outcome(answered: Answer) -> str:
    """Cell of the table about an identity."""
    if not answered.agree:
        return "NOT EQUAL"
    if not answered.told_apart:
        return "THE WRONG FORMULA AGREES, TOO"
    return "equal" if answered.width is None else f"equal within {answered.width:.0e}"


def table(answers: Sequence[Answer]) -> Iterator[str]:
    """The lines of the table."""
    rows = [("theorem", "claim", "identity", "instance", "outcome", "seen to fail with")]
    for answered in answers:
        of = answered.identity
        rows.append(
            (of.theorem, of.claim, of.statement, of.instance, outcome(answered), of.mistake)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def main(words: Sequence[str] | None = None) -> int:
    """Compute everything and print the table."""
    parser = argparse.ArgumentParser(prog="python -m referee.exact", description=__doc__)
    parser.parse_args(words)
    answers = [answer(identity) for identity in identities()]
    for line in table(answers):
        print(line)
    bad = [answered for answered in answers if not (answered.agree and answered.told_apart)]
    enclosed = sum(answered.width is not None for answered in answers)
    print(
        f"{len(answers)} identities: {len(answers) - enclosed} equal as rational numbers, "
        f"{enclosed} enclosed; each with a formula that fails"
        if not bad
        else f"{len(bad)} of {len(answers)} identities do not stand"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
