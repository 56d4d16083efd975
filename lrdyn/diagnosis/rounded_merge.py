"""What rounding leaves of an update that is merged into weights of a narrow type.

Merging stores round(W + U). What it adds is round(W + U) - round(W) = U + E, where each entry of E
is off by up to half a unit in the last place of W: 2^-9 of it in bfloat16. Where U is smaller than
that most entries of W do not move, and a few move by a whole unit, so that on the average over W
the update is still there, under noise E of full rank. A singular value of U below the largest one
of E cannot be told from it. The size of E is that of independent uniform errors
(:func:`lrdyn.diagnosis.spectrum.rounding`), known before anything is rounded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lrdyn.adapters.peft import Stored
from lrdyn.core import checks, show
from lrdyn.diagnosis import reading, unfolding
from lrdyn.diagnosis.cores import Told, map_on_cores
from lrdyn.diagnosis.decomposition import product_svd
from lrdyn.diagnosis.products import Products
from lrdyn.diagnosis.spectrum import norm, rounding, square_sums
from lrdyn.system.progress import Progress

TYPES = ("bfloat16", "float16", "float32")
"""Types in which a merge is stored."""
ROWS = 24
"""Modules that are listed, those that lose most first."""


class RoundedUpdate(NamedTuple):
    """What rounding leaves of the update of one matrix."""

    rank: int
    """Singular values of U that are not 0."""
    below: int
    """How many of them lie below the largest one that rounding makes."""
    survives: float
    """Share of the squared norm of U in the others."""
    error: float
    """||E|| / ||U||, measured on the rounded matrices."""
    moved: float
    """Share of the entries of W that the merge changes."""
    norm: float
    """||U||."""


class RoundedMerge(NamedTuple):
    """A merge into a narrow type: see :func:`round_merge`."""

    dtype: str
    updates: dict[str, RoundedUpdate]
    """By module."""

    @property
    def survives(self) -> float:
        """Share of the squared norm of the whole update in singular values above rounding."""
        squares = {module: update.norm**2 for module, update in self.updates.items()}
        kept = sum(self.updates[module].survives * square for module, square in squares.items())
        return kept / sum(squares.values())

    @property
    def error(self) -> float:
        """||E|| / ||U|| of all matrices together."""
        errors = sum((update.error * update.norm) ** 2 for update in self.updates.values())
        return float(np.sqrt(errors / sum(update.norm**2 for update in self.updates.values())))

    def lines(self) -> list[str]:
        """Lines of text: the answer, and the modules that lose most."""
        below = sum(update.below for update in self.updates.values())
        count = sum(update.rank for update in self.updates.values())
        if below:
            said = f"{below} of its {count} singular values lie below rounding"
        else:
            said = f"all of its {count} singular values lie above rounding"
        first = (
            f"merged in {self.dtype}, {self.survives:.3%} of the squared norm of the update "
            f"survives rounding; {said}"
        )
        second = f"rounding adds noise of {self.error:.2g} of the update's norm"
        if self.dtype != "float32" and (below or self.error > 0.1):
            second += ": merge in float32, or keep the adapter beside the base"
            first, second = second, first  # what to do is read first
        rows = [("module", "r", "below rounding", "survives", "noise", "entries moved")]
        worst = sorted(self.updates.items(), key=lambda item: -item[1].error)
        rows += [
            (
                module,
                str(update.rank),
                str(update.below),
                f"{update.survives:.2%}",
                f"{update.error:.2g}",
                f"{update.moved:.1%}",
            )
            for module, update in worst[:ROWS]
        ]
        lines = [first, second, *show.aligned(rows)]
        if len(worst) > ROWS:
            lines.append(f"and {len(worst) - ROWS} modules that lose less")
        return [show.make_printable(line) for line in lines]


def round_update(W: np.ndarray, B: np.ndarray, A: np.ndarray, dtype: str) -> RoundedUpdate:
    """What rounding leaves of B A where round(W + B A) is stored.

    Args:
        W: m x n, as it is stored.
        B: m x r, with the adapter's scale.
        A: r x n.
        dtype: one of :data:`TYPES`.

    Example:
        >>> W, B, A = np.full((2, 2), 3.0, np.float32), np.ones((2, 1)), np.full((1, 2), 1e-3)
        >>> update = round_update(W, B, A, "bfloat16")
        >>> update.below, update.survives, update.moved, update.error
        (1, 0.0, 0.0, 1.0)
    """
    # In float64, where W + U is exact beside what the narrow type rounds.
    start, update = reading.widen(W).astype(np.float64), B.astype(np.float64) @ A
    after = start + update
    stored = [np.asarray(side, jnp.dtype(dtype)).astype(np.float64) for side in (start, after)]
    added = stored[1] - stored[0]
    # Where W is of that type already it is not rounded again.
    epsilons = [reading.epsilon(dtype) if np.any(stored[0] != start) else 0.0]
    epsilons.append(reading.epsilon(dtype))
    floor = rounding(square_sums(start), square_sums(after), (epsilons[0], epsilons[1]))
    values = product_svd(B, A).values
    # What rounding leaves of a 0 is no direction.
    values = values[values > np.finfo(np.float32).eps * values[0]]
    above, size = values > floor, norm(update)
    return RoundedUpdate(
        rank=len(values),
        below=int(np.sum(~above)),
        survives=float(np.sum(values[above] ** 2) / np.sum(values**2)),
        error=norm(added - update) / size,
        moved=float(np.mean(added != 0)),
        norm=size,
    )


def round_merge(
    adapter: Stored,
    base: Any,
    dtype: str = "bfloat16",
    *,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> RoundedMerge:
    """What is left of an adapter that is merged into a base of a narrow type.

    Args:
        adapter: LoRA or rsLoRA.
        base: its weights, as for :func:`lrdyn.diagnose`.
        dtype: in which the merged weights are stored: bfloat16, float16 or float32.
        config: the content of the base's ``config.json``; that beside the files by default.
        progress: is told of each matrix that is done.

    Raises:
        ValueError: the type is another, the base lacks a weight, or what is added is no product.

    Example:
        >>> from lrdyn.adapters import peft
        >>> factors = peft.StoredFactors(np.ones((4, 1)), np.ones((1, 4)), 2.0)
        >>> base = {"q.weight": np.eye(4, dtype=np.float32)}
        >>> merge = round_merge(peft.described({"q": factors}), base)
        >>> merge.survives, merge.updates["q"].below
        (1.0, 0)
    """
    if dtype not in TYPES:
        checks.refuse("dtype", repr(dtype), f"one of {', '.join(TYPES)}")
    weights = reading.weights("base", base)
    if isinstance(weights, Products):
        checks.refuse("base", "an adapter", "the weights that it is merged into")
    config = reading.config_of(weights) if config is None else config
    side = Products("adapter", Path("adapter"), adapter, unfolding.unfold(weights), config)
    names = [name for name in side.infos if side.adapts(name)]

    def examine(name: str) -> RoundedUpdate | None:
        start, factors = side.start(name), side.factors(name)
        if factors is None:
            checks.refuse("adapter", f"DoRA or PiSSA of {name}", "LoRA, of which B A is added")
        if start is None or not (np.any(factors[0]) and np.any(factors[1])):
            return None
        return round_update(start[: len(factors[0])], *factors, dtype)

    counts = [float(np.prod(side.infos[name].shape)) for name in names]
    found = map_on_cores(examine, names, counts, Told(progress, counts))
    updates = {
        name.removesuffix(".weight"): update
        for name, update in zip(names, found, strict=True)
        if update is not None
    }
    if not updates:
        checks.refuse("adapter", "an update of 0", "one that changes a weight")
    return RoundedMerge(dtype, updates)
