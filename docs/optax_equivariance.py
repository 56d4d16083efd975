"""Write ``records/optax_equivariance.md``: ``python -m docs.optax_equivariance [compare]``.

Every export of the optax that is installed is tried (:mod:`lrdyn.equivariance.optax_exports`), and
what was seen stays in ``optax_equivariance.json``. With ``compare`` nothing is written: what is
seen is compared with what stays there, and the status is 1 if an optimiser is of another kind, or
an export is neither tried nor excluded with a reason.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import optax

from docs.refresh import row
from lrdyn.cli import setup
from lrdyn.equivariance import optax_exports
from lrdyn.equivariance.trial import KINDS, equivariance
from lrdyn.galore.releases import release_numbers
from lrdyn.system.printer import complain

PAGE = Path(__file__).parent / "records" / "optax_equivariance.md"
KEPT = Path(__file__).with_name("optax_equivariance.json")
NUMBERS = ("orthogonal", "signed", "frame", "frame_in_coordinates")
HEADINGS = {
    "equivariant": "Does not see the basis",
    "low precision": "Does not see the basis, but rounds its state",
    "signed permutations": "Sees the basis, not its order or signs",
    "neither": "Neither",
}
INTRODUCTION = """\
# Which optimisers of optax see the basis

`python -m docs.optax_equivariance` · what follows from it: [Theorem 2 for other
optimisers](../theorems/equivariance.md)

Each optimiser that optax {optax} exports takes {steps} steps on a factorisation of three 10 x 10
layers, in one basis and in others (JAX {jax}, float64). A number is the largest difference of an
entry between the two runs, turned back, over the largest change of an entry in the run: in *random*
bases; in those of *signed permutations*, which move entries and change their signs. The last two
are off-diagonal blocks that arise from Theorem 2's start, where its *frame* is a random basis, and
where it is the standard one (*lost*: not finite). A trial can show that an optimiser sees the
basis, and never that it does not. Noise is drawn from one key in all bases: `noisy_sgd` and
`add_noise` keep the distribution of paths, and no path. This page is written from the run; no row
by hand.
"""


def tried() -> dict[str, Any]:
    """Try every expression, and say of which optax and JAX."""
    setup()
    rows = []
    for expression in optax_exports.TRIED:
        complain(expression)
        seen = equivariance(jax.random.key(0), optax_exports.optimizer_of(expression))
        rows.append(
            {"tried": expression, "kind": seen.kind}
            | {name: rounded(getattr(seen, name)) for name in NUMBERS}
        )
    return {"optax": optax.__version__, "jax": jax.__version__, "rows": rows}


def rounded(number: float) -> float | None:
    """A number with two digits; None for a run that was lost."""
    return float(f"{number:.1e}") if math.isfinite(number) else None


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Lines that say which optimisers are of another kind than before, and which are new or gone.

    Args:
        before: of the committed file.
        now: of the optax that is installed.
    """
    kinds = {entry["tried"]: entry["kind"] for entry in before["rows"]}
    for entry in now["rows"]:
        was = kinds.get(entry["tried"])
        if was is not None and was != entry["kind"]:
            yield f"{entry['tried']}: {was} in optax {before['optax']}, now {entry['kind']}"
    for name in optax_exports.unknown():
        yield f"optax.{name}: neither tried nor excluded with a reason"
    for name in optax_exports.gone():
        yield f"optax.{name}: not exported any more"


def cell(number: float | None) -> str:
    """A number of the table."""
    return "lost" if number is None else "0" if number == 0 else f"{number:.0e}"


def page(seen: dict[str, Any]) -> str:
    """The page of what was seen."""
    parts = [INTRODUCTION.format(optax=seen["optax"], jax=seen["jax"], steps=30)]
    for kind, heading in HEADINGS.items():
        parts.append(f"## {heading}\n\n{KINDS[kind][0].upper()}{KINDS[kind][1:]}.\n")
        mine = [entry for entry in seen["rows"] if entry["kind"] == kind]
        lines = [row(("optimiser", *("random", "signed permutations", "frame", "in coordinates")))]
        lines.append("|" + "---|" * 5)
        for entry in mine:
            code = entry["tried"].replace("optax.contrib.", "contrib.").replace("optax.", "")
            lines.append(row((f"`{code}`", *(cell(entry[name]) for name in NUMBERS))))
        parts.append("\n".join(lines) + "\n")
    lines = [row(("not tried", "because")), "|---|---|"]
    for reason, names in optax_exports.EXCLUDED.items():
        lines.append(row((", ".join(f"`{name}`" for name in names), reason)))
    parts.append("## Not tried\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def main(words: list[str]) -> int:
    """Write the page, or compare."""
    compare = words == ["compare"]
    if words and not compare:
        complain(f"arguments: got {' '.join(words)}, wanted compare or none")
        return 2
    now = tried()
    before = json.loads(KEPT.read_text()) if KEPT.exists() else now
    said = list(changes(before, now))
    if said and release_numbers(now["optax"]) > release_numbers(before["optax"]):
        said.insert(0, f"unseen release: optax {now['optax']}, seen on {before['optax']}")
    print("\n".join(said) or f"optax {now['optax']}: as in optax {before['optax']}")
    if compare:
        return 1 if said else 0
    KEPT.write_text(json.dumps(now, indent=1) + "\n")
    PAGE.write_text(page(now))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
