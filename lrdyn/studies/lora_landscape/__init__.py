"""Which rank LoRA's landscape needs: descent on a linearised model, and a certificate of every end.

Two counts are published from which LoRA is said to have no spurious minima. Here every end of
descent is certified as a global minimum over all ranks, or called numerically spurious, or left
undecided. The bodies of the papers of the counts were not read: what is compared is the counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.studies.lora_landscape.certificate_claims import CERTIFICATE
from lrdyn.studies.lora_landscape.convex import proximal_gradient as proximal_gradient
from lrdyn.studies.lora_landscape.features import NONE, read_features
from lrdyn.studies.lora_landscape.figures import plot_phases
from lrdyn.studies.lora_landscape.phase import (
    CLASSES,
    GAUSSIAN,
    OWN,
    PHASES,
    RECTANGULAR,
    TITLES,
    UNREGULARISED,
)
from lrdyn.studies.lora_landscape.problem import Factors as Factors
from lrdyn.studies.lora_landscape.problem import LinearisedModel as LinearisedModel
from lrdyn.studies.lora_landscape.problem import duality_gap as duality_gap
from lrdyn.studies.lora_landscape.problem import largest_decay as largest_decay
from lrdyn.studies.lora_landscape.problem import lora_loss as lora_loss
from lrdyn.studies.lora_landscape.problem import lower_bound as lower_bound
from lrdyn.studies.lora_landscape.second_order import descend as descend
from lrdyn.studies.lora_landscape.second_order import examine as examine
from lrdyn.verification.stating.flags import POSITIVE, Domain, Flag, at_least, one_of
from lrdyn.verification.stating.statement import Study

ROOM = 2**30
"""Bytes of the derivatives of all outputs in U and V, of all starts of a problem, at most."""


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Take shapes of somebody's own features, and refuse ranks that no matrix has."""
    outputs = 3
    if settings["features"] != NONE:
        N, outputs, m, n = read_features(settings["features"]).features.shape
        for flag in ("rows", "cols", "measurements"):
            if flag in given:
                raise ValueError(
                    f"--{flag}: got it beside --features, wanted one of them: the file has {N} "
                    f"examples, m = {m} and n = {n}"
                )
        settings |= {"rows": m, "cols": n, "measurements": (N,)}
        if "problem" not in given:
            settings["problem"] = (OWN,)
        if "rank" not in given:
            ranks = tuple(r for r in settings["rank"] if r <= min(m, n))
            settings["rank"] = ranks or (min(m, n),)
    elif OWN in settings["problem"]:
        raise ValueError("--problem: got own without --features, wanted a file of features")
    m, n = settings["rows"], settings["cols"]
    if max(settings["rank"]) > min(m, n):
        raise ValueError(
            f"--rank: got {max(settings['rank'])}, wanted at most min(m, n), {min(m, n)}"
        )
    examples = max(settings["measurements"])
    size = 8 * examples * outputs * (m + n) * max(settings["rank"]) * settings["starts"]
    if size > ROOM:
        raise ValueError(
            f"--starts: got {settings['starts']}, with which the derivatives of {examples} "
            f"examples take {size / 2**30:.1f} GiB, wanted at most 1: fewer starts, a lower rank, "
            "or features of fewer entries"
        )
    ordered = {name: tuple(sorted(settings[name])) for name in SORTED}
    return settings | ordered


SORTED = ("rank", "measurements", "weight_decay")
"""Axes of the phase diagram, increasing: a value at a lower rank counts at every higher one."""


def _files(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    path = Path(settings.get("features", NONE))
    return (path,) if path.is_file() else ()


def _about(settings: Mapping[str, Any]) -> str:
    """What is looked at; of own features the decay from which on W = 0 is the minimum."""
    if settings["features"] == NONE:
        return "Gaussian problems: " + "; ".join(TITLES[name] for name in settings["problem"])
    own = read_features(settings["features"])
    N, K, m, n = own.features.shape
    slope = -own.targets if own.loss == "squared" else 1 / K - own.targets
    size = np.linalg.norm(np.einsum("kc,kcab->ab", slope / N, own.features), 2)
    what = "numbers, squared error" if own.loss == "squared" else f"{K} classes, cross-entropy"
    return f"{N} examples of {what}, W {m} x {n}; from lambda = {size:.3g} on W = 0 is the minimum"


FLAGS = (
    Flag(
        "problem",
        (GAUSSIAN, UNREGULARISED),
        one_of(*TITLES),
        str,
        help="problems to look at, see the page",
        paper=(GAUSSIAN, UNREGULARISED, RECTANGULAR, CLASSES),
        shapes=True,
    ),
    Flag(
        "features",
        (NONE,),
        Domain(text="a path"),
        str,
        help="features and targets of a linearised model: .npy, .npz, .csv, .safetensors",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag("rows", (4,), at_least(1), int, "m", "rows of W", paper=(8,), shapes=True, swept=False),
    Flag("cols", (4,), at_least(1), int, "n", "columns of W", paper=(8,), shapes=True, swept=False),
    Flag(
        "rank", (1, 2, 3, 4), at_least(1), int, "r", "rank of LoRA", (1, 2, 3, 4, 5, 6), shapes=True
    ),
    Flag(
        "measurements",
        (2, 4, 6, 8, 10, 12),
        at_least(1),
        int,
        symbol="N",
        help="examples",
        paper=tuple(range(2, 41, 2)),
        shapes=True,
    ),
    Flag(
        "weight_decay",
        (0.01, 0.1),
        POSITIVE,
        symbol="lambda",
        help="decay of the factors",
        paper=(0.001, 0.01, 0.1),
    ),
    Flag(
        "starts",
        (8,),
        at_least(1),
        int,
        help="starts of each problem at each rank",
        paper=(16,),
        shapes=True,
        swept=False,
    ),
)

LORA_LANDSCAPE = Study(
    "lora_landscape",
    "which rank LoRA's landscape needs: every end of descent with a certificate, or without",
    FLAGS,
    (CERTIFICATE, *PHASES),
    plots={"phases": plot_phases},
    prepare=_prepare,
    data=_files,
    about=_about,
    title="LoRA's landscape",
    page="docs/theorems/lora_landscape.md",
    dtype="float64",
)
"""What ``python -m experiments.lora_landscape`` runs."""
