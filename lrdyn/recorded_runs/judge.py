"""Judging a recorded run: theory from its first record, the claims of the theorem, a verdict."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from lrdyn.core.show import near
from lrdyn.recorded_runs.records import Order, Records, records_of
from lrdyn.verification.judging.judging import finite_or_none
from lrdyn.verification.judging.rounding import scope
from lrdyn.verification.running.evaluate import evaluate
from lrdyn.verification.runs.verify import Verification, verify_groups
from lrdyn.verification.stating.claims import Decision
from lrdyn.verification.stating.fields import SIZE
from lrdyn.verification.stating.hypotheses import measure_of
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.statement import Experiment, Scenario

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

    from lrdyn.recorded_runs.cases import Kind, RecordedCase

OF_DESCENT = ("weight_decay", "loss", "target", "rank")
JUDGED: dict[str, tuple[str, ...]] = {
    "theorem2": (*OF_DESCENT, "inputs", "outputs", "optimizer"),
    "corollary1": (*OF_DESCENT, "excess_rank", "compressed"),
    "theorem4": (
        *("loss", "rank", "inputs", "outputs"),
        *("period", "optimizer", "state", "side", "other"),
    ),
}
"""Theorem that recorded runs are judged by -> the settings that it takes."""


class HypothesisEntry(NamedTuple):
    """By how much the records meet or miss a hypothesis."""

    name: str
    words: str
    """What is measured."""
    amount: float
    """The worst number of the records."""
    limit: float
    """What is allowed."""
    from_above: bool
    met: bool

    def as_json(self) -> dict[str, Any]:
        """The entry of ``verdict.json``, of which no number is NaN."""
        entry = self._asdict()
        return entry | {name: finite_or_none(entry[name]) for name in ("amount", "limit")}

    def line(self) -> str:
        """The entry in words."""
        wanted = f"allowed {self.limit:.1e}" if self.from_above else f"wanted > {self.limit:.1e}"
        missed = "" if self.met else ", NOT MET"
        return f"{self.name}: {self.words} = {self.amount:.1e}, {wanted}{missed}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RecordedRun(Verification):
    """The verdict on a recorded run: what :func:`judge_run` returns.

    It is the :class:`~lrdyn.verification.runs.verify.Verification` of a theorem, with what was
    asked of the records. ``results["/"]`` has predicted and recorded arrays side by side.
    """

    hypotheses: tuple[HypothesisEntry, ...] = ()
    """The hypotheses that records show, each with its amount."""
    assumptions: tuple[str, ...] = ()
    """What records do not show, as it was stated."""
    not_judged: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Claim of the theorem -> why records say nothing of it."""

    @property
    def residuals(self) -> dict[str, float | None]:
        """Residual of each claim, None where nothing was judged."""
        return {entry["id"]: entry["residual"] for entry in self.verdict["claims"]}

    @property
    def notes(self) -> list[str]:
        """What is said beside the table of claims: hypotheses, assumptions, what is not judged."""
        unlike: dict[str, list[str]] = {}
        for claim, why in self.not_judged.items():
            unlike.setdefault(why, []).append(claim)
        return [
            *self.diverged,
            *(entry.line() for entry in self.hypotheses),
            *(f"assumed: {line}" for line in self.assumptions),
            *(f"not judged: {', '.join(claims)} ({why})" for why, claims in unlike.items()),
            f"not judged: controls (lrdyn verify {self.verdict['name']} runs those of the theorem)",
        ]

    def plot(self) -> "Figure":
        """Theory over the records: lines are predicted, markers are what was recorded."""
        from lrdyn.recorded_runs import pictures  # which loads what draws

        figure = pictures.plot_run(self.results["/"])
        figure.set_label(f"{self.verdict['name']}: theory (lines) over a recorded run (markers)")
        return figure

    def in_a_line(self) -> str:
        """The verdict on this run, in a line."""
        name = self.verdict["name"]
        lines = {
            Decision.HOLDS: f"{name} holds on this run",
            # That it is another run than the one that was stated is no fault of the theorem.
            Decision.FALSE: f"{name} IS FALSE on this run, if it is the run that is assumed",
            Decision.UNDECIDED: f"{name} is undecided on this run",
        }
        return lines[self.outcome]

    def __repr__(self) -> str:
        """The text that the command prints."""
        return f"{super().__repr__()}\n\n{self.in_a_line()}"


def judge_run(
    theorem: str,
    *,
    weights: Iterable[tuple[Any, Any]],
    step_size: float,
    target: Any = None,
    weight_decay: float | Sequence[float] | None = None,
    rank: int | None = None,
    loss: str | Callable[..., Any] | None = None,
    inputs: Any = None,
    outputs: Any = None,
    excess_rank: int | None = None,
    compressed: Iterable[tuple[Any, Any]] | None = None,
    other: Iterable[tuple[Any, Any]] | None = None,
    period: int | None = None,
    optimizer: str | None = None,
    state: str | None = None,
    side: str | None = None,
    layers_of: Callable[[Any], Sequence[Any]] | None = None,
    order: Order = "forward",
) -> RecordedRun:
    """Judge a run that was trained and recorded elsewhere, by the claims of a theorem.

    Theory starts from the first record, ``W_l(t_0)``, and predicts every later one: for Theorem 2

        W_l(t) = U_l blkdiag( Wt_l(t), rho_l(t) I ) V_l^T.

    Claims, their power and tolerances are those of :func:`lrdyn.verify` in the precision of the
    records. Hypotheses are checked on the records, each with the amount by which it is met or
    missed; what records do not show is repeated as an assumption.

    Args:
        theorem: ``"theorem2"``, ``"corollary1"`` or ``"theorem4"``.
        weights: ``(t, layers)`` for each recorded step t, see :func:`records_of`; of Theorem 4
            those of GaLore.
        step_size: eta; time is counted in steps of the optimiser.
        target: Phi, of shape (out, in).
        weight_decay: lambda, or one for each layer; 0 if not given. The rule is
            ``W <- (1 - eta lambda) W - eta grad``, as that of ``torch.optim.SGD``.
        rank: r, at least the rank of Phi, which it is if not given; of Theorem 4 that of P.
        loss: ``"sum/2"`` (if not given), ``"sum"``, ``"mean/2"`` or ``"mean"`` of the squared
            entries of ``W_L ... W_1 - Phi``, ``"mean"`` being ``mse_loss`` of torch; of Theorem 4 a
            JAX function of layers and ``(inputs, outputs)``.
        inputs: X of a classifier, d x n, in the place of a target; of Theorem 4 X of
            ``1/2 ||W X - Y||_F^2``.
        outputs: Y, beside it.
        excess_rank: of Corollary 1, compress to r^ = r and to this much more.
        compressed: records of a compressed network, ``2 r^ x d``, L of ``2 r^ x 2 r^``,
            ``d x 2 r^``; it is trained here if not given.
        other: of Theorem 4 the records of ReLoRA with a frozen factor, its adapter merged.
        period: T, steps between two refreshes of P.
        optimizer: a word of ``--optimizer`` of ``lrdyn verify theorem2``, of a factorisation, as
            ``"momentum"`` or ``"muon"``; of Theorem 4 ``"sgd"``, ``"momentum"`` or ``"adam"``.
        state: of the optimiser at a refresh, ``"keep"``, ``"reset"`` or ``"transport"``.
        side: of the gradient that is projected, ``"left"`` or ``"right"``.
        layers_of: maps what was recorded at a step to the layers, W_1 first.
        order: ``"backward"`` if W_L stands first.

    Returns:
        A :class:`RecordedRun`; ``.holds`` in a test.

    Raises:
        BadInput: an argument, or a record, is not as described; the message says which.

    Example:
        >>> import numpy as np
        >>> Phi, (W1, W2), run = np.diag([1.0, 0, 0, 0]), 0.5 * np.stack([np.eye(4)] * 2), []
        >>> for t in range(41):
        ...     run.append((t, [W1, W2]))
        ...     E = W2 @ W1 - Phi
        ...     W1, W2 = W1 - 0.1 * W2.T @ E, W2 - 0.1 * E @ W1.T
        >>> found = judge_run("theorem2", weights=run, target=Phi, step_size=0.1)
        >>> found.holds, found.residuals["rho"] < 1e-14
        (True, True)

    Reference: arXiv 2503.19859, Theorems 2 and 4, Corollary 1.
    """
    if theorem not in JUDGED:
        known = ", ".join(JUDGED)
        raise BadInput(f"theorem: got {theorem!r}{near(str(theorem), JUDGED)}, wanted {known}")
    of_theorem = {
        "target": target,
        "weight_decay": weight_decay,
        "rank": rank,
        "loss": loss,
        "inputs": inputs,
        "outputs": outputs,
        "excess_rank": excess_rank,
        "compressed": compressed,
        "other": other,
        "period": period,
        "optimizer": optimizer,
        "state": state,
        "side": side,
    }
    settings = {name: value for name, value in of_theorem.items() if value is not None}
    if unknown := [name for name in settings if name not in JUDGED[theorem]]:
        wanted = f"of {theorem} {', '.join(JUDGED[theorem])}"
        raise BadInput(f"{unknown[0]}: got it, wanted {wanted}")

    def read(given: Iterable[tuple[Any, Any]], name: str) -> Records:
        chains = theorem != "theorem4"
        return records_of(given, name=name, layers_of=layers_of, order=order, matrices=chains)

    records = read(weights, "weights")
    for name in ("compressed", "other"):
        if name in settings:
            settings[name] = read(settings[name], name)
    # Which loads the theorems, that ``import lrdyn`` does without.
    from lrdyn.recorded_runs import cases

    with scope(records.dtype):
        recorded = getattr(cases, theorem)(records, settings | {"step_size": step_size})
        arrays, extents = jax.tree.map(
            np.asarray, _compute(recorded.kind, recorded.case, recorded.arrays)
        )
    return _judge(theorem, recorded, records, arrays, extents)


@eqx.filter_jit
def _compute(kind: "Kind", case: Any, records: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predict, read the records and measure the hypotheses, as a sweep does with a run of its own.

    Returns:
        Arrays under the names of ``results.nc``; hypothesis -> amount and limit.
    """
    scenario = dataclasses.replace(
        kind.amend(kind.scenario, records),
        case=lambda key: case,
        measure=lambda case: kind.read(case, records),
    )
    measures = {name: measure_of(check) for name, check in scenario.hypotheses.items()}
    extents = {name: tuple(m.extent(case)) for name, m in measures.items() if m is not None}
    return evaluate(scenario, {})(0), extents


def _judge(
    theorem: str,
    recorded: "RecordedCase",
    records: Records,
    arrays: Mapping[str, np.ndarray],
    extents: Mapping[str, Any],
) -> RecordedRun:
    """Judge the arrays of a recorded run by the judge of every run."""
    scenario = recorded.kind.amend(recorded.kind.scenario, recorded.arrays)
    # An experiment, not a theorem, is judged in one precision: that of the records.
    one = Experiment(theorem, "a recorded run", (), (scenario,))
    groups = {"/": _dataset(arrays, scenario, records, recorded.point)}
    verification = verify_groups(one, groups, records.dtype)
    hypotheses = tuple(
        _entry(name, scenario, *extent)
        for name, extent in extents.items()
        if name not in recorded.assumed
    )
    assumptions = (*recorded.assumptions, *recorded.assumed.values())
    verdict = verification.verdict | {
        "hypotheses": [entry.as_json() for entry in hypotheses],
        "assumptions": list(assumptions),
        "not_judged": dict(recorded.left_out),
    }
    lost = [
        f"weights: not finite at step {step}: that run diverged"
        for step, *layers in zip(records.steps, *records.layers, strict=True)
        if not all(np.all(np.isfinite(W)) for W in layers)
    ]
    return RecordedRun(
        verdict,
        verification.results,
        lost[:1],
        verification.legs,
        hypotheses=hypotheses,
        assumptions=assumptions,
        not_judged=recorded.left_out,
    )


def _entry(name: str, scenario: Scenario, amount: np.ndarray, limit: np.ndarray) -> HypothesisEntry:
    measure = measure_of(scenario.hypotheses[name])
    assert measure is not None
    amounts, limits = np.broadcast_arrays(np.ravel(amount), np.ravel(limit))
    with np.errstate(all="ignore"):
        # Of several numbers the one that is nearest to its limit, or furthest beyond it.
        ratios = amounts / limits
        # A NaN meets nothing; 0 of 0 is met.
        ratios = np.where(np.isnan(ratios), np.where(np.isnan(amounts), np.inf, 0.0), ratios)
        worst = int(np.argmax(ratios) if measure.from_above else np.argmin(ratios))
        within = amounts <= limits if measure.from_above else amounts > limits
    return HypothesisEntry(
        name,
        measure.words,
        float(amounts[worst]),
        float(limits[worst]),
        measure.from_above,
        bool(np.all(within)),
    )


def _dataset(
    arrays: Mapping[str, np.ndarray], scenario: Scenario, records: Records, point: Mapping[str, Any]
) -> "xarray.Dataset":
    """The arrays of one point, with the axes that ``results.nc`` would have."""
    import xarray as xr

    lengths: dict[str, int] = {"step": len(records.steps)}
    columns = {}
    for name, array in arrays.items():
        if name == "step":  # counted from the first record; the coordinate has the given ones
            continue
        base = name.removesuffix("_predicted").removesuffix("_measured")
        axes = scenario.axes.get(base, ())
        fits = len(axes) == array.ndim and all(
            lengths.setdefault(axis, n) == n for axis, n in zip(axes, array.shape, strict=True)
        )
        named = axes if fits else tuple(f"{name}_{axis}" for axis in range(array.ndim))
        columns[name] = (("run", *named), array[None])
    assert SIZE in columns
    coordinates = {"run": [0], "step": list(records.steps)}
    return xr.Dataset(columns, coordinates, {"fixed": json.dumps({"seed": 0, **point})})
