"""Ranks for a budget: which r each matrix gets when all together have so much."""

import heapq
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters import peft_config
from lrdyn.adapters.peft import configuration
from lrdyn.core import checks, show
from lrdyn.diagnosis.report import Diagnosis
from lrdyn.diagnosis.updates import NOISE, MatrixUpdate
from lrdyn.system.whole_files import replace_file

WEIGHT = ".weight"


class Sizes(NamedTuple):
    """One matrix: the squares of its singular values and what each of them costs."""

    squares: np.ndarray
    """Decreasing."""
    cost: int
    """m + n: parameters of one more rank."""
    rest: float = 0.0
    """The squared norm behind these values."""


class Ranks(NamedTuple):
    """Ranks of a choice, what they cost and what they miss."""

    ranks: dict[str, int]
    cost: int
    """Parameters of all factors."""
    error: float
    """Norm of what they miss of the updates, over the norm of these."""
    left: int | None
    """What is left of the budget; None where there was an error to reach."""


def choose(
    matrices: Mapping[str, Sizes], *, budget: int | None = None, error: float | None = None
) -> Ranks:
    """Ranks by the largest sigma^2 / (m + n) first.

    Of one matrix the gains fall, so that the ranks are those at which sigma^2 / (m + n) exceeds one
    number: no other ranks of equal or lower cost miss less. It ends at the first that does not fit
    into the budget, or where the error is reached.

    Args:
        matrices: by name.
        budget: parameters of all factors, at most.
        error: relative error to reach, in place of a budget.

    Raises:
        ValueError: neither or both are given, the error cannot be reached with the values that are
            known, or values that are not known would be the next ones.

    Example:
        >>> sizes = {"a": Sizes(np.array([9.0, 1.0]), 4), "b": Sizes(np.array([4.0, 4.0]), 4)}
        >>> choose(sizes, budget=13)
        Ranks(ranks={'a': 1, 'b': 2}, cost=12, error=0.23570226039551584, left=1)
    """
    if (budget is None) == (error is None):
        checks.refuse("budget", "both or neither of budget and error", "one of the two")
    if budget is not None:
        checks.integer("budget", budget, 0)
    if error is not None:
        checks.fraction("error", error)
    total = sum(float(np.sum(sizes.squares)) + sizes.rest for sizes in matrices.values())
    if not total:
        checks.refuse("matrices", "an update that is 0", "one that is not")
    ranks, order_of = dict.fromkeys(matrices, 0), {name: i for i, name in enumerate(matrices)}
    # What each rank misses, summed from the least on: a difference would be rounded by eps times
    # the whole.
    tails = {
        name: np.append(np.cumsum(sizes.squares[::-1])[::-1], 0.0) + sizes.rest
        for name, sizes in matrices.items()
    }
    missing, cost = np.array([tail[0] for tail in tails.values()]), 0
    # Squared: tails are sums of squares.
    goal = 0.0 if error is None else error**2 * total
    waiting = [
        # Equal gains are taken in the order of the names, so that a plan repeats.
        (-float(sizes.squares[0]) / sizes.cost, order_of[name], name)
        for name, sizes in matrices.items()
        if len(sizes.squares) and sizes.squares[0] > 0
    ]
    heapq.heapify(waiting)
    # A rounding above the goal counts as reached: an error that was asked for at exactly a rank's
    # own would else cost one more.
    while waiting and (error is None or missing.sum() > goal * (1 + 1e-12)):
        _, order, name = heapq.heappop(waiting)
        sizes = matrices[name]
        if budget is not None and cost + sizes.cost > budget:
            break
        ranks[name] += 1
        cost += sizes.cost
        r = ranks[name]
        missing[order] = tails[name][r]
        if r < len(sizes.squares) and sizes.squares[r] > 0:
            heapq.heappush(waiting, (-float(sizes.squares[r]) / sizes.cost, order, name))
        elif sizes.rest > 0:
            checks.refuse(
                f"matrices[{name!r}]",
                f"a plan past the {r} values of a sketch",
                "exact values, or a wider sketch",
            )
    left = None if budget is None else budget - cost
    return Ranks(ranks, cost, float(np.sqrt(missing.sum() / total)), left)


def _given_ranks(
    matrices: Sequence[MatrixUpdate], sizes: Mapping[str, Sizes], rank: int | str
) -> Ranks:
    """The ranks that are asked for, what they cost and what they miss."""
    if isinstance(rank, str):
        if rank != NOISE:
            checks.refuse("rank", repr(rank), f"{NOISE!r} or an integer")
        if all(matrix.noise is None for matrix in matrices):
            checks.refuse("rank", f"{NOISE!r} where no update has a noise floor", "an integer")
    else:
        checks.integer("rank", rank)
    ranks, missing, total, cost = {}, 0.0, 0.0, 0
    for matrix in matrices:
        size, r = sizes[matrix.name], matrix.rank_noise if rank == NOISE else rank
        r = matrix.rank_90 if r is None else r
        if r is None or (r > len(size.squares) and size.rest):
            got = f"one past the {len(size.squares)} values of a sketch"
            checks.refuse(f"rank of {matrix.name}", got, "exact values, or a wider sketch")
        assert isinstance(r, int)
        # No update needs more than it has, and one that did not move needs none.
        r = min(r, int(np.sum(size.squares > 0)))
        ranks[matrix.name], cost = r, cost + r * size.cost
        missing += float(np.sum(size.squares[r:])) + size.rest
        total += float(np.sum(size.squares)) + size.rest
    if not cost:
        checks.refuse("rank", f"{rank!r}, at which no matrix has any", "a rank, budget or error")
    return Ranks(ranks, cost, float(np.sqrt(missing / total)), None)


class Plan(NamedTuple):
    """Ranks of a LoRA, and PEFT's configuration that has them."""

    chosen: Ranks
    config: dict[str, Any]
    """The content of ``adapter_config.json``, for ``peft.LoraConfig``."""
    full: int
    """Parameters of the matrices."""
    one_rank: tuple[int, float]
    """The largest r that all may have at that cost, and its error."""
    left_out: tuple[str, ...]
    """Matrices that are no ``<module>.weight``."""
    intruders: Mapping[str, int]
    """Matrix -> intruder dimensions beyond those that chance gives, where they were counted."""
    said: str = ""
    """How it is known which way round the weights are stored."""

    def lines(self) -> list[str]:
        """Lines of text: ranks, parameters and error of the plan, and what it leaves out."""
        used = {name: r for name, r in self.chosen.ranks.items() if r}
        least, most = (f(used.values(), default=0) for f in (min, max))
        span = str(least) if least == most else f"{least} to {most}"
        r, error = self.one_rank
        lines = [
            f"plan: r = {span} on {len(used)} of {len(self.chosen.ranks)} matrices, "
            f"{self.chosen.cost:,} parameters ({self.chosen.cost / self.full:.3g} of full "
            "training)",
            f"relative error of the update {self.chosen.error:.3g}; one r for all at that cost, "
            f"{r}: {error:.3g}",
        ]
        if self.chosen.left is not None:
            lines.append(f"left of the budget: {self.chosen.left:,} parameters")
        without = [
            name.removesuffix(WEIGHT) for name, rank in self.chosen.ranks.items() if not rank
        ]
        if without:
            some = ", ".join(without[:4]) + (f" and {len(without) - 4} more" * (len(without) > 4))
            lines.append(f"not in target_modules (r = 0): {some}")
        if self.left_out:
            lines.append(
                f"left out, since PEFT adapts <module>.weight alone: {', '.join(self.left_out[:4])}"
            )
        if self.intruders:
            counts = [f"{name.removesuffix(WEIGHT)} {n}" for name, n in self.intruders.items()]
            more = f" and {len(counts) - 4} more" * (len(counts) > 4)
            lines.append(f"intruders beyond chance: {', '.join(counts[:4])}{more}")
        lines.append("the error is one of weights, not of the loss")
        lines += [self.said] if self.said else []
        return [show.make_printable(line) for line in lines]

    def write(self, folder: str | Path) -> None:
        """Write ``adapter_config.json`` into a folder, which is made if it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(folder / peft_config.NAME) as temporary:
            temporary.write_text(json.dumps(self.config, indent=2, sort_keys=True))


def plan(
    diagnosis: Diagnosis,
    *,
    budget: int | None = None,
    error: float | None = None,
    rank: int | str | None = None,
    fan_in_fan_out: bool = False,
    others: tuple[str, ...] = (),
) -> Plan:
    """Ranks for the matrices of a diagnosis, as PEFT's configuration of a LoRA with alpha = r.

    Args:
        diagnosis: of the update of a training like the one that is planned.
        budget: parameters of all factors, at most.
        error: or the relative error of the update that is to be reached.
        rank: or r of every matrix; ``"noise"``: as many as lie above its noise floor, and r for
            90 % where there is none.
        fan_in_fan_out: as in PEFT.
        others: further modules of the model: none of them is taken in.

    Raises:
        ValueError: see :func:`choose`; no rank fits into the budget; or no matrix has a noise
            floor where the rank is that above it.

    Example:
        >>> from lrdyn.diagnosis.report import diagnose
        >>> sides = ({"q.weight": np.zeros((2, 2))}, {"q.weight": np.diag([3.0, 1.0])})
        >>> small = plan(diagnose(*sides), budget=4)
        >>> small.config["r"], small.config["target_modules"], round(small.chosen.error, 3)
        (1, ['q'], 0.316)
    """
    usable = [matrix for matrix in diagnosis.matrices if matrix.name.endswith(WEIGHT)]
    left_out = tuple(
        matrix.name for matrix in diagnosis.matrices if not matrix.name.endswith(WEIGHT)
    )
    sizes = {
        matrix.name: Sizes(
            matrix.values**2,
            matrix.rows + matrix.columns,
            matrix.beyond * matrix.norm**2 if matrix.is_sketched else 0.0,
        )
        for matrix in usable
    }
    if rank is None:
        chosen = choose(sizes, budget=budget, error=error)
    else:
        if budget is not None or error is not None:
            checks.refuse("rank", "it beside a budget or an error", "one of the three")
        chosen = _given_ranks(usable, sizes, rank)
    ranks = {name.removesuffix(WEIGHT): r for name, r in chosen.ranks.items() if r}
    if not ranks:
        least = min(size.cost for size in sizes.values())
        checks.refuse("budget", budget, f"{least:,} at least: one rank of the smallest matrix")
    without = {name.removesuffix(WEIGHT) for name in chosen.ranks} - set(ranks)
    config = configuration(
        ranks,
        dict(ranks),
        others=without.union(others) - set(ranks),
        fan_in_fan_out=fan_in_fan_out,
        inference_mode=False,
    )
    r = chosen.cost // sum(size.cost for size in sizes.values())
    missed = sum(float(np.sum(size.squares[r:])) + size.rest for size in sizes.values())
    total = sum(float(np.sum(size.squares)) + size.rest for size in sizes.values())
    full = sum(matrix.full for matrix in usable)
    beyond = {
        matrix.name: (matrix.intruders or 0) - (matrix.intruders_by_chance or 0)
        for matrix in usable
    }
    beyond = {name: count for name, count in beyond.items() if count > 0}
    return Plan(chosen, config, full, (r, float(np.sqrt(missed / total))), left_out, beyond)
