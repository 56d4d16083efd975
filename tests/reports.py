"""Small folders of results to make reports of, some with markup in every text that may hold any."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import lrdyn
from lrdyn.figures import plotting
from lrdyn.report import page
from lrdyn.verification.storing import files, results_file

HOSTILE = (
    '<script>alert("1")</script><img src=x onerror=alert(2)> & \'quoted\' "twice" ]]> </style>'
)
"""A text that must stay one, whatever it stands in."""
CONFIG = {"dim": [3, 4], "steps": 9, "preset": "quick", "seed": 0, "seeds": 2, "dtype": "float64"}


def entry(name: str, kind: str, **changed: Any) -> dict[str, Any]:
    """An entry of ``verdict.json``."""
    counts = {"drawn": 4, "judged": 4, "left_out": {}}
    made: dict[str, Any] = {
        "id": name,
        "kind": kind,
        "statement": f"{name}: sigma_1 <= 2",
        "hypotheses_met": True,
        "residual": 1e-15,
        "tolerance": 1e-14,
        "holds": True,
        "cases": 4,
        "cases_total": 4,
        "judged": {"float64": counts, "float32": counts},
        "worst_case": {"dim": 4, "seed": 1},
        "residual_float32": 1e-7,
        "tolerance_float32": 1e-5,
        "decided_by": {"steps": 3, "certificate": 1, "trivial": 0, "excused": 0},
    }
    return made | changed


def verdict(name: str = "own", text: str = "", **changed: Any) -> dict[str, Any]:
    """A verdict with a claim, its control and a finding; ``text`` stands wherever one may."""
    word = text or "bound"
    one = {"drawn": 2, "judged": 2, "left_out": {text or "diverges": 1}}
    finding = {
        "value": 3.0,
        "spread": 0.1,
        "seeds": 4,
        "came_true": True,
        "expected": text or "above 2",
        "outcome": text or "as expected",
        "source": 3.5,
        "interval": [2.5, 3.5],
    }
    alone = {"residual_float32": None, "tolerance_float32": None, "judged": {"float64": one}}
    claims = [
        entry(word, "bound", statement=f"sigma_1 <= 2 {text}"),
        entry(
            "shown", "control", claim=word, statement=f"{text}: {word} fails", residual=1.0, **alone
        ),
        entry("measured", "finding", finding=finding, holds=None, judged={"float64": one}),
    ]
    made: dict[str, Any] = {
        "schema": 2,
        "name": text or name,
        "holds": True,
        "config": CONFIG | {"perturb": False} | ({"flag": text} if text else {}),
        "claims": claims,
        "undecided": [],
        "statistics": {"false_alarm": 1e-6, "tests": 3},
        "judged_by": {"git": text or "0123abc", "numpy": "2"},
        "arithmetic": {
            "float64": {"matmuls": "highest", "products": text or "float64", "add": 0.5}
        },
        "environment": {
            "dtype": "float64",
            "git": text or "0123abc",
            "device": text,
            "workers": [text],
        },
    }
    return made | changed


def saved(folder: Path, text: str = "", *, picture: str | None = "", **changed: Any) -> Path:
    """Write a run into a folder.

    Args:
        folder: where.
        text: stands wherever one may, in the name of the picture, too.
        picture: caption of one, none without it.
        **changed: entries of the verdict that are others.
    """
    folder.mkdir(parents=True)
    content = verdict(text=text, **changed)
    results_file.write(
        folder / results_file.NAME,
        {"/": xr.Dataset({"rho": ("step", np.zeros(3))})},
        name=content["name"],
        title=text or "rho stays below 2 r^",
        about=text,
        config=content["config"],
        digest=text or "d" * 64,
        judges=text or "e" * 64,
        dtype="float64",
    )
    content["results_sha256"] = results_file.checksum(folder / results_file.NAME)
    content["changed"] = False
    if picture is not None:
        figure = Figure(figsize=(2, 1))
        figure.set_label(text or picture)
        name = text.replace("/", "") or "spectrum"
        plotting.save(figure, folder / name)
    files.write_json(folder / "verdict.json", content | changed)
    return folder


def diagnosed(folder: Path, text: str = "") -> Path:
    """Write a diagnosis into a folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [text or f"layers.{layer}.weight" for layer in range(1 if text else 3)]
    before = {name: rng.normal(size=(20, 12)) for name in names} | {"b" + text: np.zeros(3)}
    after = {
        name: W + np.outer(rng.normal(size=20), np.ones(12))
        for name, W in before.items()
        if W.ndim == 2
    }
    after |= {"b" + text: np.ones(3), "only" + text: np.ones((2, 2))}
    found = lrdyn.diagnose(before, after, k=2)
    (folder / "diagnosis.json").write_text(found.json())
    drawn = Figure(figsize=(2, 1)) if text else found.plot()  # no legend has room for such names
    plotting.save(drawn, folder / "diagnosis")
    return folder


def searched(folder: Path, kind: str = "search", text: str = "", **changed: Any) -> Path:
    """Write what a search for the worst case leaves into a folder."""
    folder.mkdir(parents=True)
    head = {
        "schema": 1,
        "kind": kind,
        "name": text or "toy",
        "date": text or "2026-11-29",
        "points": 640,
        "seed": 3,
        "held": {text or "dim": [text or 5]},
        "command": text or "python -m experiments.toy --search 640",
        "environment": {"jax": text or "0.10.2", "workers": [text]},
    }
    claim = {
        "id": text or "rho",
        "kind": text or "identity",
        "statement": text or "rho <= r^2",
        "judged": 1200,
        "excused": 80,
        "outside": 0,
        "ratios": {"float64": 0.25, text or "float32": 0.5},
        "repeated": 0.5,
        "command": text or "python -m experiments.toy --seed 7",
        "lost": False,
    }
    edge = {
        "hypothesis": text or "d > 2 r",
        "claim": text or "rho",
        "statement": text or "rho <= r^2",
        "precision": text or "float32",
        "points": 600,
        "fails": 31,
        "ratio": None,
        "least_condition": 250.0,
        "found_after": 12,
        "command": text or "python -m experiments.toy --search 1 --beyond --seed 14",
    }
    unrun = {name: text or name for name in ("scenario", "hypothesis", "why", "command")}
    found = {
        "search": {"holds": True, "claims": [claim]},
        "beyond": {"edges": [edge, edge | {"fails": 0}], "not_run": [unrun]},
    }
    files.write_json(folder / "search.json", head | found[kind] | changed)
    return folder


def pages(folder: Path) -> list[Path]:
    """Reports of a run, a diagnosis, a search, and of several results whose texts are markup."""
    several = folder / "several"
    searched(several / "e", "search", HOSTILE)
    searched(several / "f", "beyond", HOSTILE)
    saved(several / "a" / "1", HOSTILE)
    saved(several / "b" / "2", holds=False)
    diagnosed(several / "c", HOSTILE)
    every = {
        "run": saved(folder / "r"),
        "diagnosis": diagnosed(folder / "d"),
        "search": searched(folder / "s"),
        "beyond": searched(folder / "b", "beyond"),
        "several": several,
    }
    made = []
    for name, results_ in every.items():
        made.append(folder / f"{name}.html")
        page.write(page.report(page.contents(results_), "0"), made[-1])
    return made
