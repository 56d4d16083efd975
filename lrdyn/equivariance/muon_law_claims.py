"""Muon's law: differences of singular values are conserved, and each mode arrives at its step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import initialization
from lrdyn.core.condition import perturb_updates, twins
from lrdyn.core.descent import Trajectory, gradient_descent, simulate
from lrdyn.core.factorization import Weights, factorization_loss
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.equivariance.muon_law import arrival_steps, muon_values, polar_muon
from lrdyn.theorem2 import setting
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Count, Equal, Form, Zero
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

START = (0.05, 0.4)
"""Singular values at the start are drawn between these; products of two are below .16."""
MODES = (0.2, 1.5)
"""Singular values of the target."""


class AlignedRun(Recorded):
    """Layers whose singular vectors are those of the target and of one another."""

    bases: Float[Array, "sides d d"]
    """O_0, ..., O_L."""
    start: Float[Array, "depth d"]
    """a_{l,i}(0)."""
    modes: Float[Array, "d"]
    """m_i."""
    learning_rate: Float[Array, ""]
    moved: Float[Array, "depth d d"]
    """What a control adds to the layers at the start; 0."""

    @property
    def weights(self) -> Weights:
        """The layers at the start."""
        after, before = self.bases[1:], self.bases[:-1]
        aligned = after * self.start[:, None, :] @ jnp.swapaxes(before, 1, 2)
        return tuple(aligned + self.moved)

    @property
    def target(self) -> Float[Array, "d d"]:
        """``O_L diag(m) O_0^T``."""
        return self.bases[-1] * self.modes[None] @ self.bases[0].T

    def loss(self, layers: Weights) -> Float[Array, ""]:
        """``1/2 ||W_L ... W_1 - Phi||_F^2``."""
        return factorization_loss(layers, self.target)


class MuonTheory(NamedTuple):
    """Closed forms: nothing is run."""

    muon_law: Float[Array, "step layer mode mode_before"] = ABSENT
    """diag(a_l(t)): up by eta at each step until n_i, then to and fro."""
    muon_arrival: Int[Array, "mode"] = ABSENT
    """n_i, or -1 if it is beyond the last step."""
    squares: Float[Array, ""] = ABSENT
    """Largest change of a difference of squares, what descent conserves but for O(eta^2)."""
    distance_from_ties: Float[Array, ""] = ABSENT
    """Least |prod_l a_{l,i}(t) - m_i| / m_i at an n_i or the step before."""
    gradient_squared: Float[Array, ""] = ABSENT
    """Largest squared Frobenius norm of a gradient, which Muon divides by."""
    muon_condition: Float[Array, ""] = ABSENT
    """By how much theory's own run, in the frame, amplifies a small error."""
    muon_compared: Int[Array, ""] = ABSENT
    """Last step that is compared: modes that have arrived, by large steps, become chaotic."""


class MuonMeasured(NamedTuple):
    """Dense layers under optax's Muon."""

    muon_law: Float[Array, "step layer mode mode_before"] = ABSENT
    """``O_l^T W_l O_{l-1}``, all entries."""
    muon_arrival: Int[Array, "mode"] = ABSENT
    """First step at which the entry i of the diagonal of ``O_L^T W_L ... W_1 O_0`` is m_i or more,
    or -1."""
    differences: Float[Array, "step pair mode"] = ABSENT
    """``a_{l+1,i} - a_{l,i}`` less what it was at the start."""
    differences_of_squares: Float[Array, "step pair mode"] = ABSENT
    """``a_{l+1,i}^2 - a_{l,i}^2`` less what it was at the start."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def make_case(
    key: Key[Array, ""], *, dim: int, depth: int, learning_rate: Any, steps: int
) -> AlignedRun:
    """Draw orthogonal sides, and singular values that start below the target's."""
    of_bases, of_start, of_modes = jax.random.split(key, 3)
    sides = jnp.ones(depth + 1)
    start = jax.random.uniform(of_start, (depth, dim), minval=START[0], maxval=START[1])
    modes = jax.random.uniform(of_modes, (dim,), minval=MODES[0], maxval=MODES[1])
    return AlignedRun(
        steps=recorded_steps(steps, at_most=26),
        bases=jnp.stack(initialization.orthogonal_layers(of_bases, (dim,) * (depth + 2), sides)),
        start=start,
        modes=modes,
        learning_rate=jnp.asarray(learning_rate, start.dtype),
        moved=jnp.zeros((depth, dim, dim)),
    )


def predict(case: AlignedRun) -> MuonTheory:
    """Where every singular value is, from its start and its arrival."""
    dim = case.start.shape[1]
    every = np.arange(case.steps[-1] + 1)
    path = muon_values(case.start, case.modes, case.learning_rate, every)
    arrival = arrival_steps(case.start, case.modes, case.learning_rate)
    recorded = path[case.times]
    # At a step that lands on m_i rounding decides the sign.
    sides = jnp.stack([arrival - 1, arrival])[:, None, :].astype(case.start.dtype)
    around = jnp.prod(case.start[None] + case.learning_rate * sides, axis=1)
    ties = jnp.min(jnp.abs(around - case.modes[None]) / case.modes[None])
    last, condition = _window(case)
    product = jnp.prod(path, axis=1, keepdims=True)
    gradients = product / path * (product - case.modes[None, None])
    squares = jnp.diff(recorded**2, axis=1)
    return MuonTheory(
        muon_law=recorded[..., None] * jnp.eye(dim)[None, None],
        muon_arrival=jnp.where(arrival <= case.steps[-1], arrival, -1),
        squares=jnp.max(jnp.abs(squares - squares[:1])),
        distance_from_ties=ties,
        gradient_squared=jnp.max(jnp.sum(gradients**2, axis=2)),
        muon_condition=condition,
        muon_compared=last,
    )


def _window(case: AlignedRun) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Run the diagonal layers, and twins of them that are not diagonal."""
    start = tuple(jnp.diag(values) for values in case.start)

    def run(data: tuple[Array, Weights, Weights]) -> Trajectory:
        goal, layers, push = data
        rule = perturb_updates(polar_muon(case.learning_rate), push, case.steps[-1])
        return simulate(
            lambda W: factorization_loss(W, goal), layers, rule, case.times, record=jnp.stack
        )

    runs = twins(run, (jnp.diag(case.modes), start, jax.tree.map(jnp.ones_like, start)))
    return setting.windowed_conditions(case.times, len(case.modes), runs, lambda records: records)


def measure(
    case: AlignedRun, optimizer: optax.GradientTransformation | None = None
) -> MuonMeasured:
    """Train dense layers with optax's Muon, its polar factors exact, or with another optimiser."""
    after, before = case.bases[1:], case.bases[:-1]

    def record(layers: Weights) -> dict[str, Array]:
        turned = jnp.swapaxes(after, 1, 2) @ jnp.stack(layers) @ before
        whole = turned[0]
        for layer in turned[1:]:
            whole = layer @ whole
        return {"layers": turned, "product": jnp.diagonal(whole)}

    # Every step is recorded: an arrival is one of them.
    run = simulate(
        case.loss,
        case.weights,
        optimizer or polar_muon(case.learning_rate),
        np.arange(case.steps[-1] + 1),
        record=record,
    )
    there = run.records["product"] >= case.modes[None]
    layers = run.records["layers"][case.times]
    values = jnp.diagonal(layers, axis1=2, axis2=3)
    changes = [jnp.diff(of, axis=1) - jnp.diff(of, axis=1)[:1] for of in (values, values**2)]
    return MuonMeasured(
        muon_law=layers,
        muon_arrival=jnp.where(jnp.any(there, axis=0), jnp.argmax(there, axis=0), -1),
        differences=changes[0],
        differences_of_squares=changes[1],
        step=jnp.asarray(case.steps),
    )


@at_most("largest prod_l a_{l,i}(0) / m_i, or -a_{l,i}(0)")
def below_target(case: AlignedRun) -> Extent:
    """Check that every mode starts positive and below the target: 0 < prod_l a_{l,i}(0) < m_i."""
    ratio = jnp.max(jnp.prod(jnp.abs(case.start), axis=0) / case.modes)
    return Extent(jnp.where(jnp.min(case.start) > 0, ratio, jnp.inf), 1.0)


@at_most("largest entry of O_l^T W_l(0) O_{l-1} beside the diagonal")
def aligned(case: AlignedRun) -> Extent:
    """Check that the layers share the singular vectors of their neighbours and of the target."""
    after, before = case.bases[1:], case.bases[:-1]
    turned = jnp.swapaxes(after, 1, 2) @ jnp.stack(case.weights) @ before
    dim = case.modes.shape[0]
    beside = jnp.max(jnp.abs(turned * (1 - jnp.eye(dim)[None])))
    return Extent(beside, tolerance("identity", case.modes.dtype, size=dim))


def _law(outcome: Outcome[MuonTheory, MuonMeasured]) -> Form:
    within = setting.compared_steps(outcome, _last)
    predicted = outcome.predicted.muon_law[within]
    return Equal(predicted, outcome.measured.muon_law[within], null=predicted[:1])


def _last(theory: Any) -> Any:
    return theory.muon_compared


def _arrival(outcome: Outcome[MuonTheory, MuonMeasured]) -> Form:
    last = outcome.predicted.muon_compared
    # Behind the last step that is compared no mode has arrived, on either side. (A NaN is no larger
    # than it, and stays.)
    sides = (outcome.predicted.muon_arrival, outcome.measured.muon_arrival)
    return Count(*(np.where(side > last, -1, side) for side in sides))


def _conserved(outcome: Outcome[MuonTheory, MuonMeasured]) -> Form:
    within = setting.compared_steps(outcome, _last)
    return Zero(
        np.abs(outcome.measured.differences[within]),
        scale=np.max(np.abs(outcome.predicted.muon_law)),
        alternative=outcome.predicted.squares,
    )


def _undecided(outcome: Outcome[MuonTheory, MuonMeasured]) -> str:
    # The product of the layers is rounded like any: its distance from m must be above that.
    rounding = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    if outcome.predicted.distance_from_ties <= rounding:
        return "a mode lands on its target"
    if not outcome.predicted.gradient_squared < np.finfo(outcome.dtype).max:
        return "a squared gradient is beyond the largest number"
    if outcome.predicted.muon_compared == 0:
        return "errors grow from the first steps on: the step is too large"
    return ""


def _unaligned(key: Key[Array, ""], case: AlignedRun, amount: Array) -> AlignedRun:
    depth, dim = case.start.shape
    noise = jax.random.normal(key, (depth, dim, dim)) / jnp.sqrt(1.0 * dim)
    return dataclasses.replace(case, moved=0.2 * amount * noise)


def _negative(key: Key[Array, ""], case: AlignedRun, amount: Array) -> AlignedRun:
    # The first mode of the first layer starts on the other side of 0.
    return dataclasses.replace(case, start=case.start.at[0, 0].multiply(-amount))


def _squares(case: AlignedRun) -> MuonMeasured:
    return MuonMeasured(differences=measure(case).differences_of_squares)


def _descent(case: AlignedRun) -> MuonMeasured:
    return measure(case, gradient_descent(case.learning_rate))


def _aol(case: AlignedRun) -> MuonMeasured:
    return measure(case, optax.contrib.muon(case.learning_rate, preconditioning="aol"))


READS = {
    "undecided": _undecided,
    "condition": lambda theory: theory.muon_condition,
}

MUON_LAW = Scenario[AlignedRun, MuonTheory, MuonMeasured](
    "muon_law",
    make_case,
    predict,
    measure,
    theory=MuonTheory,
    measured=MuonMeasured,
    claims=(
        Claim(
            "muon_law",
            "under Muon with exact polar factors, from aligned layers with 0 < prod_l a_{l,i}(0) < "
            "m_i, O_l^T W_l(t) O_{l-1} is diag(a_l(t)) at all t: a_{l,i} rises by eta until step "
            "n_i, the least n with prod_l (a_{l,i}(0) + n eta) >= m_i, then alternates",
            form=_law,
            reads=lambda theory, run: (
                *(theory.muon_law, run.muon_law, theory.distance_from_ties),
                theory.gradient_squared,
                *setting.window_fields(theory, run, _last),
            ),
            **READS,
        ),
        Claim(
            "muon_differences",
            "under Muon with exact polar factors the differences a_{l,i} - a_{k,i} of the singular "
            "values of two layers stay as they were",
            form=_conserved,
            reads=lambda theory, run: (
                *(run.differences, theory.muon_law, theory.squares, theory.distance_from_ties),
                theory.gradient_squared,
                *setting.window_fields(theory, run, _last),
            ),
            **READS,
        ),
        Claim(
            "muon_arrival",
            "under Muon with exact polar factors the singular value i of the product first reaches "
            "m_i at step n_i, the least n with prod_l (a_{l,i}(0) + n eta) >= m_i",
            kind="exact",
            form=_arrival,
            reads=lambda theory, run: (
                *(theory.muon_arrival, run.muon_arrival),
                *(theory.distance_from_ties, theory.gradient_squared, theory.muon_compared),
            ),
            undecided=_undecided,
        ),
    ),
    controls=(
        Control(
            "unaligned_start",
            "noise on the layers of the start",
            "muon_law",
            case=_unaligned,
            breaks="aligned",
        ),
        Control(
            "negative_mode",
            "a mode whose product starts below 0",
            "muon_law",
            case=_negative,
            breaks="below_target",
        ),
        Control(
            "differences_of_squares",
            "differences of squares, which descent conserves",
            "muon_differences",
            measure=_squares,
        ),
        *(
            Control(f"{id}_by_descent", "gradient descent", claim, measure=_descent)
            for id, claim in {
                "law": "muon_law",
                "differences": "muon_differences",
                "arrival": "muon_arrival",
            }.items()
        ),
        Control("law_by_aol", "Muon with the rescaling 'aol'", "muon_law", measure=_aol),
    ),
    hypotheses={"below_target": below_target, "aligned": aligned},
    steps="steps",
    sides="closed forms of singular values and steps against dense layers under optax's Muon",
)
