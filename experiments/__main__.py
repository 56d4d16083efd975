"""``python -m experiments`` lists the verifications, ``python -m experiments all`` runs them."""

import sys

from lrdyn import cli
from lrdyn.theorems.completion import COMPLETION
from lrdyn.theorems.corollary1 import COROLLARY1
from lrdyn.theorems.theorem1 import THEOREM1
from lrdyn.theorems.theorem2 import THEOREM2
from lrdyn.theorems.theorem3 import THEOREM3
from lrdyn.theorems.theorem4 import THEOREM4

THEOREMS = (THEOREM1, THEOREM2, COROLLARY1, COMPLETION, THEOREM3, THEOREM4)


def shares(argv: list[str]) -> list[list[str]]:
    """Deal a command line out: a flag goes to the theorems that have it, and a wrong one to all."""
    known = [cli.flags_of(theorem) for theorem in THEOREMS]
    mine: list[list[str]] = [[] for _ in THEOREMS]
    takers = mine
    for word in argv:
        if word.startswith("--"):
            has = [word.partition("=")[0] in flags for flags in known]
            takers = [m for m, h in zip(mine, has, strict=True) if h or not any(has)]
        for taker in takers:
            taker.append(word)
    return mine


def run_all(argv: list[str]) -> int:
    """Run every theorem and print one table; their own commands print every claim."""
    verdicts, diverged = [], []
    pairs = list(zip(THEOREMS, shares(argv), strict=True))
    for theorem, share in pairs:
        cli.parse(theorem, share)  # bad input of the last one is found before the first one runs
    for theorem, share in pairs:
        print(f"{theorem.name} ...", file=sys.stderr)
        found, path = cli.verify_command(theorem, share)
        verdicts.append((found.verdict, path))
        diverged += [f"{theorem.name}: {line}" for line in found.diverged]
    print("\n".join([*cli.summary(verdicts), *diverged]))
    held = sum(verdict["holds"] for verdict, _ in verdicts)
    print(f"\n{held} of {len(verdicts)} theorems hold")
    return cli.HOLDS if held == len(verdicts) else cli.FAILS


def main(argv: list[str]) -> int:
    """List or run."""
    if not argv or argv[0] in ("-h", "--help"):
        for theorem in THEOREMS:
            print(f"{theorem.name:12}{theorem.summary}")
        return cli.HOLDS
    if argv[0] != "all":
        names = ", ".join(theorem.name for theorem in THEOREMS)
        raise cli.BadInput(
            f"command: got {argv[0]!r}, wanted 'all' (or python -m experiments.NAME with NAME "
            f"out of {names})"
        )
    return run_all(argv[1:])


if __name__ == "__main__":
    sys.exit(cli.run("experiments", lambda: main(sys.argv[1:]), own_process=True))
