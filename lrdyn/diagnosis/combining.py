"""Smaller adapters of an adapter, and one adapter of several: from their factors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters import lora_files, peft
from lrdyn.adapters.peft import Stored, StoredFactors, described
from lrdyn.adapters.peft_experts import stacks_of
from lrdyn.core import checks, show
from lrdyn.diagnosis.cores import Told, map_on_cores
from lrdyn.diagnosis.decomposition import product_svd
from lrdyn.diagnosis.noise import FEWEST, find_floor
from lrdyn.diagnosis.planning import Sizes, choose
from lrdyn.diagnosis.reading import is_adapter
from lrdyn.diagnosis.updates import NOISE, rank_with
from lrdyn.system.progress import Progress

WAYS = ("rank", "energy", "budget", "error")


class Combination(NamedTuple):
    """An adapter, and what it misses of the weighted sum that it stands for."""

    adapter: Stored
    errors: dict[str, float]
    """Module -> ||sum_i w_i s_i B_i A_i - B A|| / ||sum_i w_i s_i B_i A_i||."""
    error: float
    """Relative error of all modules together."""

    def lines(self) -> list[str]:
        """Lines of text: ranks and errors of the modules, and what all of them cost."""
        factors = self.adapter.factors
        rows = [("module", "r", "relative error")]
        rows += [(m, str(factors[m].A.shape[0]), f"{e:.2e}") for m, e in self.errors.items()]
        count = sum(factor.B.size + factor.A.size for factor in factors.values())
        return [
            *show.aligned(rows),
            f"{len(factors)} matrices, {count:,} parameters, alpha = r",
            f"relative error of what is added to the weights: {self.error:.2e}",
        ]


def combine(
    adapters: Sequence[Any],
    weights: Sequence[float] | None = None,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    budget: int | None = None,
    error: float | None = None,
    progress: Progress | None = None,
) -> Combination:
    """The nearest adapter to a weighted sum of adapters, by the ranks that are asked for.

    sum_i w_i s_i B_i A_i is a product of the factors side by side, and two QRs of these give its
    singular values and vectors: no matrix of the base's size is built. Of one adapter it is a
    smaller one. Adding factors apart, sum_i w_i B_i and sum_i w_i A_i, would add products of one
    adapter's B with another's A that belong to neither.

    Args:
        adapters: folders of PEFT, files of kohya, LyCORIS or diffusers, or what
            :func:`lrdyn.adapters.peft.read` or :func:`lrdyn.adapters.lora_files.read` gives.
        weights: w_i, 1 each by default.
        rank: r of every module, at most; or ``"noise"``: as many as lie above its noise floor
            (:func:`lrdyn.diagnosis.noise.product_floor`), and all where there is none.
        energy: or the share of the squared norm that each r must have.
        budget: or parameters of all factors, by the largest sigma^2 / (m + n) first.
        error: or the relative error of all, likewise. With none of the four nothing is cut.
        progress: is told of each module that is done.

    Raises:
        ValueError: DoRA or PiSSA, whose change is of no sum of products; tensors saved whole in
            one of several; shapes that differ; several ways; or a sum that is 0.

    Example:
        >>> adapter = described({"q": StoredFactors(np.eye(3)[:, :2], np.eye(2, 4), 2.0)})
        >>> combination = combine([adapter, adapter], [0.5, 1.0], rank=1)
        >>> combination.adapter.factors["q"].A.shape, round(combination.error, 4)
        ((1, 4), 0.7071)
    """
    stored = [_read(f"adapters[{i}]", adapter) for i, adapter in enumerate(adapters)]
    if not stored:
        checks.refuse("adapters", "none", "at least one")
    weights = [1.0] * len(stored) if weights is None else list(weights)
    if len(weights) != len(stored) or not np.isfinite(weights).all():
        checks.refuse("weights", weights, f"{len(stored)} finite numbers, one for each adapter")
    ways = {"rank": rank, "energy": energy, "budget": budget, "error": error}
    given = [name for name in WAYS if ways[name] is not None]
    if len(given) > 1:
        checks.refuse(given[1], f"it beside {given[0]}", "one of the two")
    if isinstance(rank, str):
        if rank != NOISE:
            checks.refuse("rank", repr(rank), f"{NOISE!r} or an integer")
    elif rank is not None:
        checks.integer("rank", rank)
    if energy is not None:
        checks.fraction("energy", energy)
    products = {m: _product(m, stored, weights) for m in _modules(stored)}
    # Two QRs, of 4 (m + n) r^2 multiplications together; the SVD between them is of r x r.
    counts = [4.0 * (len(B) + A.shape[1]) * B.shape[1] ** 2 for B, A in products.values()]
    decompositions = map_on_cores(
        lambda product: product_svd(*product),
        list(products.values()),
        counts,
        Told(progress, counts),
    )
    decomposed = dict(zip(products, decompositions, strict=True))
    moved = {
        module: decomposition
        for module, decomposition in decomposed.items()
        if decomposition.values[0] > 0
    }
    if not moved:
        checks.refuse("adapters", "a sum of 0", "one that changes a weight")
    ranks = _ranks(
        {module: decomposition.values for module, decomposition in moved.items()}, products, ways
    )
    factors, errors, missed, total = {}, {}, 0.0, 0.0
    for module, decomposition in moved.items():
        r, squares = ranks[module], decomposition.values**2
        missed, total = missed + float(np.sum(squares[r:])), total + float(np.sum(squares))
        if r:
            factors[module] = StoredFactors(*decomposition.cut(r), 1.0)
            errors[module] = float(np.sqrt(np.sum(squares[r:]) / np.sum(squares)))
    if not factors and rank == NOISE:
        checks.refuse("rank", f"{NOISE!r} where nothing lies above a noise floor", "an integer")
    if not factors:
        least = min(len(B) + A.shape[1] for B, A in products.values())
        checks.refuse("budget", budget, f"{least:,} at least: one rank of the smallest matrix")
    factors |= _still_experts(factors, products)
    config = stored[0].config
    adapter = described(
        factors,
        saved=stored[0].saved,
        embeddings=frozenset().union(*(source.embeddings for source in stored)) & set(factors),
        bias=config.get("bias") or "none",
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        modules_to_save=config.get("modules_to_save"),
        base_model_name_or_path=config.get("base_model_name_or_path"),
        task_type=config.get("task_type"),
        **_parameters(stored),
    )
    return Combination(adapter, errors, float(np.sqrt(missed / total)))


def _still_experts(
    factors: Mapping[str, StoredFactors], products: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, StoredFactors]:
    """Factors of 0 for experts that are cut whole: a stack is written with all of its experts."""
    kept = stacks_of(factors)
    return {
        f"{stack}[{e}]": StoredFactors(0 * B[:, :1], 0 * A[:1], 1.0)
        for stack, experts in stacks_of(products).items()
        for e, (B, A) in experts.items()
        if stack in kept and e not in kept[stack]
    }


def _parameters(stored: Sequence[Stored]) -> dict[str, Any]:
    """The stacks of experts that any of the adapters names."""
    named = [name for adapter in stored for name in adapter.config.get("target_parameters") or ()]
    return {"target_parameters": sorted(set(named))} if named else {}


def _read(name: str, adapter: Any) -> Stored:
    stored = adapter
    if isinstance(adapter, str | Path):
        is_file = Path(adapter).is_file() and not is_adapter(Path(adapter))
        stored = lora_files.read(adapter).stored if is_file else peft.read(adapter)
    elif isinstance(adapter, lora_files.LoraFile):
        stored = adapter.stored
    checks.instance(name, stored, Stored)
    for key, is_on, why in (
        ("DoRA", stored.config.get("use_dora"), "its lengths are of no sum of products"),
        ("PiSSA", stored.config.get("init_lora_weights") == "pissa", "peft.converted makes one"),
    ):
        if is_on:
            checks.refuse(name, key, f"LoRA or rsLoRA: {why}")
    return stored


def _modules(stored: Sequence[Stored]) -> list[str]:
    """Modules of any adapter; that they fit together is checked."""
    first = stored[0]
    for i, other in enumerate(stored[1:], 1):
        if other.saved or first.saved:
            whose = "this one" if other.saved else "the first"
            got = f"several adapters, and tensors saved whole in {whose}"
            checks.refuse(f"adapters[{i}]", got, "adapters of factors alone")
        ways = [bool(x.config.get("fan_in_fan_out")) for x in (first, other)]
        if ways[0] != ways[1]:
            checks.refuse(f"adapters[{i}]", f"fan_in_fan_out {ways[1]}", f"{ways[0]}, as the first")
    return list(dict.fromkeys(module for adapter in stored for module in adapter.factors))


def _product(
    module: str, stored: Sequence[Stored], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The factors of all adapters side by side, weights and scales in B."""
    Bs, As = [], []
    for i, (adapter, weight) in enumerate(zip(stored, weights, strict=True)):
        if module not in adapter.factors:
            continue
        B, A, scale, _ = adapter.factors[module]
        B, A = (np.asarray(x, np.result_type(x.dtype, np.float32)) for x in (B, A))
        if Bs and (len(B), A.shape[1]) != (len(Bs[0]), As[0].shape[1]):
            got = f"shape {(len(B), A.shape[1])} for {module}"
            checks.refuse(f"adapters[{i}]", got, f"{(len(Bs[0]), As[0].shape[1])}")
        # In the type of B: a scale that is a float64 of NumPy would make it one.
        Bs.append(B * B.dtype.type(weight * scale))
        As.append(A)
    return np.concatenate(Bs, axis=1), np.concatenate(As)


def _ranks(
    spectra: Mapping[str, np.ndarray],
    products: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ways: Mapping[str, Any],
) -> dict[str, int]:
    """The rank of each module by the way that was given."""
    # What rounding leaves of a 0 is no direction; the epsilon of float32 is 1.2e-7.
    ranks = {m: int(np.sum(values > 1e-6 * values[0])) for m, values in spectra.items()}
    if ways["rank"] == NOISE:
        shapes = {m: (len(B), A.shape[1]) for m, (B, A) in products.items()}
        floors = {m: find_floor(spectra[m], shapes[m]) for m in spectra}
        if all(floor is None for floor in floors.values()):
            got = f"{NOISE!r} where no module has a noise floor"
            checks.refuse("rank", got, f"an integer or an energy: a floor needs r >= {FEWEST}")
        return {m: ranks[m] if floor is None else floor.above for m, floor in floors.items()}
    if ways["rank"] is not None:
        return {m: min(r, ways["rank"]) for m, r in ranks.items()}
    if ways["energy"] is not None:
        return {m: rank_with(values, ways["energy"]) or 0 for m, values in spectra.items()}
    if ways["budget"] is None and ways["error"] is None:
        return ranks
    sizes = {
        m: Sizes(values**2, len(products[m][0]) + products[m][1].shape[1])
        for m, values in spectra.items()
    }
    return choose(sizes, budget=ways["budget"], error=ways["error"]).ranks
