"""What is claimed and found of each cell: an edge at K, and how much of the rank labels decide.

The part of the labels is ``R = log(rank shuffled / rank true) / log(rank Gaussian / rank true)``:
0 if shuffled labels leave an update of the same effective rank, 1 if they leave one without any
direction. Its words and margins, like the edge below .6, were stated before a seed above 0 was run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lrdyn.studies.labels.cells import PERCEPTRONS, RESNET, make_perceptron, make_resnet
from lrdyn.studies.labels.measured import (
    ANEW,
    LABELLINGS,
    LEVELS,
    PARTLY,
    SHUFFLED,
    TRUE,
    LabelCase,
    LabelsMeasured,
    measure_labels,
)
from lrdyn.studies.over_seeds import ALPHA, SEEDS, mean_exceeds, restrict_to
from lrdyn.verification.stating.statement import Claim, Control, Finding, Outcome, Scenario

EDGE = 0.6
"""sigma_{K+1} / sigma_K below which there is an edge at K."""
WORDS = {0.1: "little", 0.4: "some", 0.6: "about half", 0.9: "most", np.inf: "nearly all"}
"""Upper end of R -> how much of the concentration the labels decide."""
HALF = (0.4, 0.6)
"""R of a perceptron that fits shuffled digits, from two seeds of another program."""
FITTED = LEVELS.index(0.01)
"""The level at which the edge is claimed."""

EQUAL_FITS = "equal fits"
"""Budget at which trainings are compared: the same training loss."""

Measured = Outcome[Any, LabelsMeasured]


def part_in_words(low: float, high: float) -> str:
    """The word of an interval of R, or both where it reaches over a border.

    Example:
        >>> part_in_words(0.45, 0.55), part_in_words(0.35, 0.5), part_in_words(-0.1, 0.05)
        ('about half', 'some to about half', 'little')
    """
    ends = [next(word for end, word in WORDS.items() if value < end) for value in (low, high)]
    return " to ".join(dict.fromkeys(ends))


def part_of_labels(rank: np.ndarray, of_true: np.ndarray, gaussian: np.ndarray) -> np.ndarray:
    """R, the share of the way from the rank on true labels to a Gaussian's, on a log scale.

    Example:
        >>> part_of_labels(np.array(20.0), np.array(10.0), np.array(40.0)).item()
        0.5
    """
    return np.asarray(np.log(rank / of_true) / np.log(gaussian / of_true))


def _part_at(labelling: int, level: int) -> Callable[[Measured], np.ndarray]:
    def part(outcome: Measured) -> np.ndarray:
        run = outcome.measured
        ranks = run.rank_at[..., level]
        return part_of_labels(ranks[:, labelling], ranks[:, 0], run.gaussian_rank)

    return part


def _fresh_part(outcome: Measured) -> np.ndarray:
    run = outcome.measured
    ranks = run.rank_at_equal_norm
    return part_of_labels(ranks[:, LABELLINGS.index(ANEW)], ranks[:, 0], run.gaussian_rank)


def _entry(
    field: Callable[[LabelsMeasured], np.ndarray], *place: int
) -> Callable[[Measured], np.ndarray]:
    """The entry of a field at a place, one for each seed."""
    return lambda outcome: field(outcome.measured)[:, *place]


def _of_labelling(cell: str, labelling: str) -> tuple[Finding[Any, LabelsMeasured], ...]:
    """Where the largest drop is, and which spans hold the update."""
    place, name = LABELLINGS.index(labelling), f"{cell}_{labelling}"
    return (
        Finding(
            f"{name}_drop",
            f"{labelling} labels: sigma_(K+1) / sigma_K at equal fits, loss .01 log K",
            _entry(lambda run: run.drop_at_K, place, FITTED),
            reads=lambda theory, run: (run.drop_at_K,),
            below=EDGE,
            rest=EQUAL_FITS,
        ),
        Finding(
            f"{name}_place",
            f"{labelling} labels: the j up to 3 K with the least sigma_(j+1) / sigma_j, over K",
            _entry(lambda run: run.largest_drop, place, FITTED),
            reads=lambda theory, run: (run.largest_drop,),
        ),
        Finding(
            f"{name}_outside",
            f"{labelling} labels: share of the squared norm outside 2 K directions, loss .01 log K",
            _entry(lambda run: run.outside_2K, place, FITTED),
            reads=lambda theory, run: (run.outside_2K,),
        ),
        Finding(
            f"{name}_left",
            f"{labelling} labels: share at the end in the rows of the last layer, first and last",
            _entry(lambda run: run.left_both, place),
            reads=lambda theory, run: (run.left_both,),
        ),
    )


def _parts(cell: str, classes: int) -> tuple[Finding[Any, LabelsMeasured], ...]:
    """R at two fits, that of fresh labels, and in the base cell those of a share of the labels."""
    shuffled = LABELLINGS.index(SHUFFLED)
    # Labels at random are as random when they are shuffled.
    margin = HALF if cell == "base" else (-0.1, 0.1) if classes > 20 else None
    expected: dict[str, Any] = {"against": 0.0} if margin is None else {"within": margin}
    findings = [
        Finding(
            f"{cell}_part_at_{level:g}",
            f"R of shuffled labels at equal fits, loss {level:g} log K",
            _part_at(shuffled, LEVELS.index(level)),
            reads=lambda theory, run: (run.rank_at, run.gaussian_rank),
            rest=EQUAL_FITS,
            **expected,
        )
        for level in (0.1, 0.01)
    ]
    findings.append(
        Finding(
            f"{cell}_part_fresh",
            "R of fresh labels, where the updates of all labellings are as large",
            _fresh_part,
            reads=lambda theory, run: (run.rank_at_equal_norm, run.gaussian_rank),
            against=0.0,
            rest="equal sizes of the update",
        )
    )
    if cell == "base":
        findings += [
            Finding(
                f"{cell}_part_{share}",
                f"R with {share} % of the labels shuffled at equal fits, loss .01 log K",
                _part_at(len(LABELLINGS) + PARTLY.index(share), FITTED),
                reads=lambda theory, run: (run.rank_at, run.gaussian_rank),
            )
            for share in PARTLY
        ]
    return tuple(findings)


def _edge_claim(labelling: str) -> Claim[Any, LabelsMeasured]:
    place = LABELLINGS.index(labelling)
    return Claim(
        f"base_{labelling}_edge",
        f"perceptron on ten digits, {labelling} labels: sigma_(K+1) / sigma_K of W(t) - W(0) is "
        f"below {EDGE:g} at equal fits, loss .01 log K (stated before; Student's test over seeds "
        "above 0, the residual is its p; the alternative is half as far from 1)",
        kind="statistical",
        form=lambda outcome: mean_exceeds(
            1 - EDGE, 1 - outcome.measured.drop_at_K[:, place, FITTED]
        ),
        reads=lambda theory, run: (run.drop_at_K,),
        tolerance=ALPHA,
        seeds=SEEDS,
        rest=EQUAL_FITS,
        sides="a threshold that was stated before against the SVD of trained updates",
    )


def _edge_control(labelling: str) -> Control[Any, Any, LabelsMeasured]:
    return Control[Any, Any, LabelsMeasured](
        f"base_{labelling}_edge_at_2K",
        "sigma_(2K+1) / sigma_2K in its place",
        f"base_{labelling}_edge",
        swap=lambda theory, run: (run.drop_at_K, run.drop_at_2K),
    )


def _scenario(
    cell: str, make: Callable[..., LabelCase], classes: int, seeds: int
) -> Scenario[LabelCase, Any, LabelsMeasured]:
    """The trainings of one cell."""
    edges = (TRUE, SHUFFLED) if cell == "base" else ()
    return Scenario[LabelCase, Any, LabelsMeasured](
        cell,
        make,
        train=measure_labels,
        measured=LabelsMeasured,
        claims=tuple(map(_edge_claim, edges)),
        controls=tuple(map(_edge_control, edges)),
        findings=(
            *_parts(cell, classes),
            *_of_labelling(cell, TRUE),
            *_of_labelling(cell, SHUFFLED),
        ),
        narrow=partial(restrict_to, cell, flag="cell"),
        diverged=lambda run: run.diverged_at,
        seeds=seeds,
    )


TRAININGS = (
    *(
        _scenario(name, make_perceptron(name), cell.classes, seeds=5)
        for name, cell in PERCEPTRONS.items()
    ),
    _scenario(RESNET, make_resnet, 10, seeds=3),
)
