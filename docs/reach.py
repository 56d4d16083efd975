"""Draw how far each theorem reaches: ``python -m docs.reach [RESULTS]``.

The pictures of ``docs/images`` are drawn from the numbers in ``reach.json``. With a folder of
results these come from its newest run of each theorem with ``--perturb``, whatever else that run
swept: the controls that are left by degrees run at settings of their own.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from docs import gallery
from lrdyn.figures import verdict_plots
from lrdyn.figures.verdict_plots import Departure
from lrdyn.registry import theorems
from lrdyn.verification.judging.outcomes import precisions
from lrdyn.verification.stating.statement import Theorem
from lrdyn.verification.storing import results_file

NUMBERS = Path(__file__).with_name("reach.json")
Reach = Mapping[str, Mapping[str, Departure]]
"""Theorem -> control -> how its claim breaks."""


def has_degrees(theorem: Theorem) -> bool:
    """Whether ``--perturb`` has something to sweep."""
    return any(control.amounts for s in theorem.scenarios for control in s.controls)


def newest(folder: Path) -> Reach:
    """What the newest perturbed run of each theorem found."""
    by_theorem = {}
    for theorem in filter(has_degrees, theorems()):
        runs = precisions(theorem, theorem.scenarios[0], "float64")
        paths = folder.glob(f"{theorem.name}/*/perturb.png")
        run = max(paths, key=lambda path: path.stat().st_mtime).parent
        by_theorem[theorem.name] = verdict_plots.departures(
            theorem, results_file.load(run / "results.nc"), runs
        )
    return by_theorem


def saved(reach: Reach) -> str:
    """The numbers as text: three digits tell a residual."""

    def short(values: np.ndarray) -> list[list[float]]:
        return [[float(f"{value:.2e}") for value in row] for row in values]

    content = {
        name: {
            control: departure._replace(
                amounts=departure.amounts.tolist(),
                residuals={p: short(values) for p, values in departure.residuals.items()},
            )._asdict()
            for control, departure in departures.items()
        }
        for name, departures in reach.items()
    }
    return json.dumps(content, indent=1) + "\n"


def committed() -> Reach:
    """The numbers of the pictures."""

    def departure(entry: dict) -> Departure:
        residuals = {p: np.array(values) for p, values in entry["residuals"].items()}
        return Departure(**entry | {"amounts": np.array(entry["amounts"]), "residuals": residuals})

    content = json.loads(NUMBERS.read_text())
    return {
        name: {control: departure(entry) for control, entry in entries.items()}
        for name, entries in content.items()
    }


def figure_of(name: str) -> Any:
    """The picture of a theorem."""
    (title,) = (theorem.title for theorem in theorems() if theorem.name == name)
    return verdict_plots.perturb_figure(title, committed()[name])


def draw() -> None:
    """Draw a picture for each theorem."""
    for name in committed():
        gallery.save(figure_of(name), f"reach_{name}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        NUMBERS.write_text(saved(newest(Path(sys.argv[1]))))
    draw()
