"""The answer of a diagnosis in sentences, and its table by kind of layer: 80 columns."""

import itertools
import re
import shlex
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lrdyn.core import show
from lrdyn.diagnosis.comparison import SHOWN
from lrdyn.diagnosis.updates import MatrixUpdate

WIDTH = 80
LOW, PAYS = 0.25, 1.0
"""Parameters of LoRA over those of full training: below the first an update is called low-rank,
from the second on LoRA saves nothing."""
NAMED = 3
"""Kinds of layers that a sentence names."""


class MatrixKind(NamedTuple):
    """Matrices of one kind: those whose names differ by numbers only."""

    name: str
    matrices: tuple[MatrixUpdate, ...]

    def cost(self, share: int) -> float | None:
        """LoRA's parameters over those of the matrices, at the ranks for 90 or 99 %."""
        return cost(self.matrices, share)

    def ranks(self, share: int) -> str:
        """The least and the largest r, in words."""
        ranks = [(_rank_at(matrix, share), matrix) for matrix in self.matrices]
        known = [r for r, _ in ranks if r is not None]
        above = next((matrix.rank_text(None) for r, matrix in ranks if r is None), "")
        low = str(min(known)) if known else above
        high = above or str(max(known))
        return low if low == high else f"{low}-{high}"


def _rank_at(matrix: MatrixUpdate, share: int) -> int | None:
    return matrix.rank_90 if share == 90 else matrix.rank_99


def cost(matrices: Sequence[MatrixUpdate], share: int) -> float | None:
    """LoRA's parameters over those of full training; None where an r is not known.

    Example:
        >>> cost([], 90) is None
        True
    """
    full = sum(matrix.full for matrix in matrices)
    if not full:
        return None
    trained = 0
    for matrix in matrices:
        rank = _rank_at(matrix, share)
        if rank is None:
            return None
        trained += matrix.lora(rank) if rank else 0
    return trained / full


def kind_of(name: str) -> str:
    """What matrices of all layers share of their names.

    Example:
        >>> kind_of("model.layers.3.self_attn.q_proj.weight"), kind_of("lm_head.weight")
        ('self_attn.q_proj', 'lm_head')
        >>> kind_of("layers.3.experts.down_proj[7]")
        'experts.down_proj'
    """
    # Behind a stack of experts stands the number of the expert.
    parts = re.sub(r"\[\d+\]$", "", name).removesuffix(".weight").split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    # A name that ends in a number, as of a list of matrices, has no kind behind it.
    if last == len(parts) - 1:
        return ".".join("*" if part.isdigit() else part for part in parts)
    return ".".join(parts[last + 1 :])


def kinds(matrices: Sequence[MatrixUpdate]) -> list[MatrixKind]:
    """Matrices by kind, in the order in which each comes first."""
    names = dict.fromkeys(kind_of(matrix.name) for matrix in matrices)
    return [
        MatrixKind(n, tuple(matrix for matrix in matrices if kind_of(matrix.name) == n))
        for n in names
    ]


def _format_share(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}" if value < 0.0995 else f"{value:.0%}"


def table(matrices: Sequence[MatrixUpdate]) -> list[str]:
    """Lines of the table by kind of layer."""
    head = ("kind of layer", "of", "m x n", "moved", "r 90 %", "r 99 %", "cost", "", "noise")
    has_intruders = any(matrix.intruders is not None for matrix in matrices)
    rows: list[tuple[str, ...]] = [(*head, "new") if has_intruders else head]
    for kind in kinds(matrices):
        shapes = dict.fromkeys(matrix.shape for matrix in kind.matrices)
        relative = [matrix.relative for matrix in kind.matrices if not np.isnan(matrix.relative)]
        rows.append(
            (
                kind.name,
                str(len(kind.matrices)),
                next(iter(shapes)) if len(shapes) == 1 else "several",
                f"{np.median(relative):.2g}" if relative else "-",
                kind.ranks(90),
                kind.ranks(99),
                _format_share(kind.cost(90)),
                _format_share(kind.cost(99)),
                _ranks_above(kind.matrices),
                *([_count_intruders(kind.matrices)] if has_intruders else []),
            )
        )
    return _fit_width(rows)


def _count_intruders(matrices: Sequence[MatrixUpdate]) -> str:
    """Intruders of all matrices together, and how many chance gives in brackets."""
    counted = [matrix for matrix in matrices if matrix.intruders is not None]
    if not counted:
        return "-"
    found = sum(matrix.intruders or 0 for matrix in counted)
    return f"{found} ({sum(matrix.intruders_by_chance or 0 for matrix in counted)})"


def _ranks_above(matrices: Sequence[MatrixUpdate]) -> str:
    above = [matrix.noise.above for matrix in matrices if matrix.noise is not None]
    if not above:
        return "-"
    return str(above[0]) if min(above) == max(above) else f"{min(above)}-{max(above)}"


def sentences(matrices: Sequence[MatrixUpdate], changed: bool, *, noted: bool = False) -> list[str]:
    """What the update is like, which r it needs, what that costs, and how sure that is.

    Args:
        matrices: of a diagnosis.
        changed: whether other arrays changed.
        noted: whether there are notes on what was not compared, or not as a whole.

    Example:
        >>> from lrdyn.diagnosis.comparison import ArrayPair
        >>> from lrdyn.diagnosis.updates import Settings, examine_pair
        >>> pair = ArrayPair("q.weight", np.eye(2), np.eye(2), ("float32", "float32"))
        >>> sentences([examine_pair(pair, Settings(1)).update], False)
        ['The two sets of weights are identical: there is nothing to adapt.']
        >>> sentences([], False, noted=True)
        ['No matrix could be compared: nothing is known of the update.']
    """
    if not matrices:
        return ["No matrix could be compared: nothing is known of the update."]
    moved = [matrix for matrix in matrices if matrix.norm > 0]
    if not moved and noted:  # a matrix that is not compared may have moved
        return ["The matrices that were compared are identical: there is nothing to adapt in them."]
    if not moved:
        which = "matrices" if changed else "sets of weights"
        return [f"The two {which} are identical: there is nothing to adapt."]
    lines = [_rank_sentence(moved), *_meaning_sentences(moved)]
    lines += [*_costly_sentences(moved), _certainty_sentence(moved)]
    if len(moved) < len(matrices):
        lines.insert(1, _unchanged_sentence(matrices))
    return [line for text in lines for line in textwrap.wrap(show.make_printable(text), WIDTH)]


def _rank_sentence(moved: Sequence[MatrixUpdate]) -> str:
    costs = {share: cost(moved, share) for share in (90, 99)}
    ranks = {
        share: MatrixKind("", tuple(moved)).ranks(share).replace("-", " to ") for share in costs
    }
    decides, ninety = noise_decides(moved), costs[90]
    # Where the floor decides, what lies below it is no reason to call an update of full rank.
    paid = _cost_above_noise(moved) if decides else ninety
    if paid is None:
        like = f"The update has more than the {len(moved[0].values)} directions that were computed"
    elif paid >= PAYS:
        like = "The update is not low-rank: LoRA is not worth it"
    else:
        like = f"The update is {'only partly ' * (paid >= LOW)}low-rank"
    parts = []
    for share, value in costs.items():
        text = f"{share} % of its squared norm takes r = {ranks[share]}"
        if value is None:
            text += ", at a cost that is not known"
        elif value >= PAYS:
            text += f", {value:.3g} times the parameters of full training"
        else:
            text += f", {_format_share(value)} of the parameters of full training"
        parts.append(text)
    largest = [matrix.rank_90 for matrix in moved]
    if ninety is not None and len(set(largest)) > 1:
        most = max(r for r in largest if r is not None)
        one_for_all = sum(matrix.lora(min(most, matrix.rows, matrix.columns)) for matrix in moved)
        full = sum(matrix.full for matrix in moved)
        parts[0] += f" (one r = {most} for all: {_format_share(one_for_all / full)})"
    floors = [matrix for matrix in moved if matrix.noise is not None]
    if not floors:
        return f"{like}. {parts[0]}; {parts[1]}."
    ranks_above = _ranks_above(floors).replace("-", " to ")
    total = sum(matrix.norm**2 for matrix in floors)
    held = sum(matrix.energy_above_noise * matrix.norm**2 for matrix in floors) / total
    if decides:
        price = _format_share(_cost_above_noise(moved))
        return (
            f"{like}, with noise: above its noise floor r = {ranks_above}, {_format_share(held)} "
            f"of its squared norm for {price} of the parameters of full training; {parts[0]}; "
            f"{parts[1]}."
        )
    where = "" if len(floors) == len(moved) else f" of {len(floors)} of {len(moved)} updates"
    above = f"above the noise floor{where} lie r = {ranks_above}, {_format_share(held)} of it"
    return f"{like}. {parts[0]}; {parts[1]}; {above}."


def noise_decides(moved: Sequence[MatrixUpdate]) -> bool:
    """Whether every update has a noise floor, above which there is less than r for 90 %.

    Example:
        >>> noise_decides([])
        False
    """
    known, ninety = _cost_above_noise(moved), cost(moved, 90)
    return known is not None and ninety is not None and 0 < known < ninety


def _cost_above_noise(moved: Sequence[MatrixUpdate]) -> float | None:
    """LoRA's parameters above the noise floors, over those of full training; None without one."""
    ranks = [(matrix, matrix.rank_noise) for matrix in moved]
    known = [matrix.lora(r) if r else 0 for matrix, r in ranks if r is not None]
    if not known or len(known) < len(moved):
        return None
    return sum(known) / sum(matrix.full for matrix in moved)


def _meaning_sentences(moved: Sequence[MatrixUpdate]) -> list[str]:
    """What the two answers to the question of the rank count."""
    if all(matrix.noise is None for matrix in moved):
        return []
    return [
        "Which r: singular values below a noise floor are distributed as those of independent "
        "numbers, and only those above it show a direction; r for 90 or 99 % keeps that much of "
        "the squared norm, noise or not."
    ]


def next_command(
    matrices: Sequence[MatrixUpdate], before: str, after: str | None, more: Sequence[str] = ()
) -> str:
    """The command that makes an adapter of the rank that the answer names; empty if none pays.

    Args:
        matrices: of the diagnosis.
        before: the first argument of the command.
        after: the second, or none where the first is an adapter.
        more: further words of the command, such as ``--select``.

    Example:
        >>> from lrdyn.diagnosis.report import diagnose
        >>> update = np.outer(np.ones(8), np.ones(9))
        >>> found = diagnose({"q.weight": np.zeros((8, 9))}, {"q.weight": update})
        >>> next_command(found.matrices, "base", "tuned")
        'lrdyn diagnose base tuned --extract adapter --energy .9'
    """
    # PEFT adapts what is called <module>.weight.
    moved = [m for m in matrices if m.norm > 0 and m.name.endswith(".weight")]
    decides = noise_decides(moved)
    paid = _cost_above_noise(moved) if decides else cost(moved, 90)
    if paid is None or paid >= PAYS:
        return ""
    rank = "noise" if decides else ""
    if after is None:
        size = ("--resize", rank) if rank else ("--energy", ".9")
        return shlex.join(["lrdyn", "merge", before, *size, "--out", "smaller"])
    size = ("--rank", rank) if rank else ("--energy", ".9")
    return shlex.join(["lrdyn", "diagnose", before, after, *more, "--extract", "adapter", *size])


def _unchanged_sentence(matrices: Sequence[MatrixUpdate]) -> str:
    """Sentence on the matrices that did not change: by name if they are few, else by kind."""
    still = [matrix for matrix in matrices if not matrix.norm > 0]
    names = [matrix.name.removesuffix(".weight") for matrix in still]
    if len(still) > NAMED:
        counts = {kind.name: len(kind.matrices) for kind in kinds(matrices)}
        of_kinds = [(kind.name, len(kind.matrices)) for kind in kinds(still)]
        names = [
            name if count == counts[name] else f"{name} ({count} of {counts[name]})"
            for name, count in of_kinds
        ]
    more = f" and {len(names) - SHOWN} kinds more" if len(names) > SHOWN else ""
    which = f"{', '.join(names[:SHOWN])}{more}"
    return f"{len(still)} of {len(matrices)} matrices did not change: {which}."


def _costly_sentences(moved: Sequence[MatrixUpdate]) -> list[str]:
    """Kinds of layers on which low rank does not pay."""
    costly = [kind for kind in kinds(moved) if (kind.cost(90) or 0) >= PAYS]
    if not costly or len(costly) == len(kinds(moved)):
        return []
    names = [f"{kind.name} (r = {kind.ranks(90)})" for kind in costly[:NAMED]]
    more = f" and {len(costly) - NAMED} more" if len(costly) > NAMED else ""
    return [f"Low rank does not pay on {', '.join(names)}{more}: train these whole, or not at all."]


def _certainty_sentence(moved: Sequence[MatrixUpdate]) -> str:
    """Sentence on how sure the numbers are: sketch, rounding, noise floor."""
    parts = []
    if any(matrix.is_sketched for matrix in moved):
        width = max(len(matrix.values) for matrix in moved if matrix.is_sketched)
        beyond = max(matrix.beyond for matrix in moved)
        parts.append(
            f"of the larger matrices the first {width} directions were computed by a sketch: an r "
            f"is never too small, and at most {_format_share(beyond)} of a squared norm lies beyond"
        )
    else:
        parts.append("singular values are exact")
    size = max((matrix.rounding / matrix.values[0] for matrix in moved), default=0.0)
    if size > 0.1:
        parts.append(
            f"but rounding of the stored numbers alone may make singular values up to "
            f"{size:.2g} of the largest"
        )
    floors = [matrix for matrix in moved if matrix.noise is not None]
    if floors:
        distance = max(matrix.noise.distance for matrix in floors if matrix.noise is not None)
        parts.append(
            f"{len(floors)} of {len(moved)} updates end in a noise floor (Marchenko and Pastur's "
            f"law to {distance:.2g}), which says that the rest is like noise, not that no "
            "task needs it"
        )
    elif any(not matrix.is_sketched for matrix in moved):
        parts.append("no update has a noise floor")
    else:
        parts.append("a noise floor is seen in exact values alone")
    parts.append("this is about weights: how much of the squared norm a task needs it cannot say")
    return "How sure: " + "; ".join(parts) + "."


def matrix_rows(matrices: Sequence[MatrixUpdate], head: Sequence[str]) -> list[str]:
    """The table of all matrices: names without what all begin with, shortened to 80 columns."""
    names = [matrix.name.removesuffix(".weight") for matrix in matrices]
    # Of two names that sort first and last the others share at least as much.
    ends = (min(names, default=""), max(names, default=""))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    skipped = "".join(first for first, _ in same).rfind(".") + 1 if len(names) > 1 else 0
    rows = [("matrix", "m x n", *head)]
    for matrix, name in zip(matrices, names, strict=True):
        rows.append((name[skipped:], matrix.shape, *map(str, matrix.cells)))
    return _fit_width(rows)


def _fit_width(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of 80 columns: of a long name the end is shown, which tells it from others."""
    room = max(
        13, WIDTH - sum(2 + max(map(len, cells)) for cells in [*zip(*rows, strict=True)][1:])
    )
    names = [show.make_printable(row[0]) for row in rows]
    names = [name if len(name) <= room else f"...{name[3 - room :]}" for name in names]
    return show.aligned([(name, *row[1:]) for name, row in zip(names, rows, strict=True)])
