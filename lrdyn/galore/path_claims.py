"""The path of ``optax.contrib.galore``: Algorithm 1 on the larger side, with the state kept.

With P from an SVD of the gradient G every T steps and coordinates R = P^T G (G P on the right),

    W <- W + lift(opt(R)),    opt the base optimiser, its state kept at a refresh,

which is GaLore as published but for the side: optax projects the larger one, in float32 and with
the signs that LAPACK leaves. ``weight_decay`` adds -eta lambda W to each update.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.adapters import projectors as adapter_projectors
from lrdyn.adapters.algorithm_1 import low_rank_descent
from lrdyn.adapters.methods import GALORE
from lrdyn.adapters.projectors import Identity, LinearMap, Projector, Side, choose_projectors
from lrdyn.core import linalg
from lrdyn.core.condition import Twins, conditions, twins
from lrdyn.core.descent import divergence_limit, simulate
from lrdyn.core.initialization import gaussians
from lrdyn.core.recording import recorded_steps
from lrdyn.galore.projectors import align_signs, single_precision_projector
from lrdyn.galore.releases import running_release, unseen_release
from lrdyn.theorem4 import problems
from lrdyn.theorem4.problems import OPTIMIZERS, first_lost_step, outputs_with_gap, ravel
from lrdyn.verification.stating.claims import RESOLVED, roundings, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal, start_of
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

DECAY = 0.1
"""lambda of the claim about decay."""

MATRICES = ("first", "second")
"""The weights that have a projector."""

THEIRS: dict[str, optax.GradientTransformation | None] = {
    "sgd": optax.identity(),
    "momentum": optax.trace(0.9),
    "adam": None,
}
"""The optimisers of :data:`lrdyn.theorem4.problems.OPTIMIZERS` as ``base_optimizer``, without a
step size; None is Adam, optax's own choice."""


class GaloreTraining(problems.Refreshed):
    """A network with a tall and a wide layer and a bias, as a user trains it."""

    weights: dict[str, Array]
    """``first`` m x n, ``second`` n x m, ``bias``."""
    inputs: Float[Array, "n examples"]
    outputs: Float[Array, "n examples"]
    learning_rate: Float[Array, ""]
    optimizer: str = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    decay: float = eqx.field(static=True, default=DECAY)
    """lambda, saved with the case for whoever computes both sides again."""

    def loss(self, weights: PyTree) -> Float[Array, ""]:
        """Loss of weights on the data of the case, see :func:`training_loss`."""
        return training_loss(weights, self.inputs, self.outputs)


class PathTheory(NamedTuple):
    """Paths of Algorithm 1, and their condition."""

    optax_same: Float[Array, "step weight"] = ABSENT
    """Weights of Algorithm 1 on the larger side, P from an SVD in float32."""
    optax_precise: Float[Array, "step weight"] = ABSENT
    """Its weights with P from an SVD in the precision of the run, of the same signs."""
    optax_decay: Float[Array, "weight"] = ABSENT
    """-eta lambda W."""
    condition: Float[Array, ""] = ABSENT
    """By how much the path of the precise P amplifies a small error of its data and gradients."""
    gradient_condition: Float[Array, "refresh"] = ABSENT
    """The same of its gradients at each refresh."""
    tie_distance: Float[Array, "refresh"] = ABSENT
    """:func:`distance_from_ties` of the gradients that give P, over their largest entry."""
    galore_diverges_at: Int[Array, ""] = ABSENT
    """First recorded step at which the loss is past its limit, or -1."""


class PathMeasured(NamedTuple):
    """Weights and updates of optax, initialised, updated and applied as its users do."""

    optax_same: Float[Array, "step weight"] = ABSENT
    """Weights at the recorded steps."""
    optax_precise: Float[Array, "step weight"] = ABSENT
    """Those weights, for the claim about the other prediction."""
    optax_decay: Float[Array, "weight"] = ABSENT
    """Difference of two first updates, of which one decays the weights."""
    update_scale: Float[Array, ""] = ABSENT
    """Largest entry of the first update."""
    optax_release: Int[Array, "release_number"] = ABSENT
    """The release of optax that ran."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


PathOutcome = Outcome[PathTheory, PathMeasured]


def make_training(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    period: int,
    optimizer: str,
    learning_rate: Any,
    steps: int,
    gradient_gap: Any = 1.0,
) -> GaloreTraining:
    """Draw a start and data."""
    shapes = [(rows, cols), (cols, rows), (1, rows), (cols, cols), (cols, cols)]
    first, second, bias, inputs, outputs = gaussians(key, shapes)
    scale = np.sqrt(rows + cols)
    weights = {"first": first / scale, "second": second / scale, "bias": 0.1 * bias[0]}
    inputs, outputs = inputs / np.sqrt(4 * cols), outputs / np.sqrt(cols)
    hidden = hidden_units(weights, inputs)
    return GaloreTraining(
        weights=weights,
        inputs=inputs,
        outputs=outputs_with_gap(outputs, weights["second"] @ hidden, hidden, rank, gradient_gap),
        learning_rate=jnp.asarray(learning_rate, first.dtype),
        optimizer=optimizer,
        rank=rank,
        period=period,
        # The end of the first period is recorded: a run in float32 is compared up to there.
        steps=np.union1d(min(period, steps), recorded_steps(steps, 11)).astype(np.int32),
    )


def hidden_units(weights: PyTree, inputs: Array) -> Float[Array, "m examples"]:
    """W_1 X + b 1^T."""
    return weights["first"] @ inputs + weights["bias"][:, None]


def training_loss(weights: PyTree, inputs: Array, outputs: Array) -> Float[Array, ""]:
    """1/2 ||W_2 (W_1 X + b 1^T) - Y||_F^2."""
    return jnp.sum((weights["second"] @ hidden_units(weights, inputs) - outputs) ** 2) / 2


def _run_sequentially(function: Callable[[PyTree], PyTree], data: PyTree) -> PyTree:
    """Run one case at a time on a CPU: there a batched SVD over several devices can deadlock."""
    arrays, rest = eqx.partition(data, eqx.is_array)
    return linalg.sequential_on_cpu(lambda arrays: function(eqx.combine(arrays, rest)))(arrays)


# Theory: Algorithm 1 --------------------------------------------------------------------------


def galore_path(
    case: GaloreTraining, choose: Callable[[PyTree], PyTree]
) -> Float[Array, "step weight"]:
    """Weights of Algorithm 1 with a choice of projectors."""
    return low_rank_descent(
        GALORE,
        case.loss,
        case.weights,
        OPTIMIZERS[case.optimizer](case.learning_rate),
        choose=lambda key, G: choose(G),
        period=case.period,
        steps=case.steps,
        record=ravel,
    ).records


def _optax_projectors(gradients: PyTree, rank: int, side: Side) -> PyTree:
    """Projectors as optax chooses them, on any side; a bias is trained as it is."""

    def choose(G: Array) -> LinearMap:
        return single_precision_projector(G, rank, side) if G.ndim == 2 else Identity()

    return jax.tree.map(choose, gradients)


def _run_twins(case: GaloreTraining) -> Twins:
    """Algorithm 1 with SVDs in float32 and in the run's precision, and twins of the latter.

    Both take their steps together, since the second has the signs of the first at each refresh: an
    SVD in float32 of its own gradients, which differ in the last digit, may have others.
    """
    ones = jax.tree.map(jnp.ones_like, case.weights)
    data = (case.weights, case.inputs, case.outputs, ones)

    def projector(G: Array, single: Any) -> Any:
        if G.ndim != 2:
            return single
        return align_signs(
            adapter_projectors.top_singular_projector(G, case.rank, "larger"), single
        )

    def run_lane(lane: Any) -> Array:
        plain, disturbed, factors = lane

        def choose(gradients: PyTree) -> PyTree:
            single = _optax_projectors(gradients[0], plain.rank, "larger")
            # What the SVD sees has rounding errors of its own: a twin sees another matrix.
            rounded = jax.tree.map(jnp.multiply, gradients[1], factors)
            return single, jax.tree.map(projector, rounded, single)

        run = low_rank_descent(
            GALORE,
            lambda both: plain.loss(both[0]) + disturbed.loss(both[1]),
            (plain.weights, disturbed.weights),
            OPTIMIZERS[plain.optimizer](plain.learning_rate),
            choose=lambda key, G: choose(G),
            period=plain.period,
            steps=problems.record_times(plain),
            record=lambda both: jnp.stack([ravel(both[0]), ravel(both[1])]),
        )
        return jnp.swapaxes(run.records, 0, 1)

    def run(twin: PyTree) -> Array:
        # The path in float32 has no twin: it would respond by more than the disturbance.
        weights, inputs, outputs, factors = twin
        disturbed = dataclasses.replace(case, weights=weights, inputs=inputs, outputs=outputs)
        return _run_sequentially(run_lane, (case, disturbed, factors))

    return twins(run, data, rounded=True)


def distance_from_ties(numbers: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Smallest distance of a number from one half way between two neighbours of float32.

    There the last digit changes that the number has in float32.

    Args:
        numbers: in float64.

    Example:
        >>> float(distance_from_ties(jnp.array([1.0, 4.0]))) == 2**-25
        True
    """
    nearest = numbers.astype(jnp.float32)

    def distance(direction: float) -> Array:
        neighbour = jnp.nextafter(nearest, jnp.float32(direction)).astype(numbers.dtype)
        return jnp.abs((nearest + neighbour) / 2 - numbers)

    return jnp.min(jnp.minimum(distance(-jnp.inf), distance(jnp.inf)))


def predict_path(case: GaloreTraining) -> PathTheory:
    """Algorithm 1 with both SVDs, and a decay of the weights."""
    runs = _run_twins(case)
    recorded = problems.time_indices(case, case.steps)
    refreshes = problems.time_indices(case, problems.refresh_steps(case))
    single, double = runs.run[:, recorded]
    unflatten = ravel_pytree(case.weights)[1]

    def svd_gradients(path: Array) -> Array:
        """The gradients of which an SVD is taken: refresh x entry."""
        slopes = jax.vmap(lambda weights: jax.grad(case.loss)(unflatten(weights)))(path[refreshes])
        return jnp.concatenate([slopes[name].reshape(len(refreshes), -1) for name in MATRICES], 1)

    def refresh_condition(run: Array, far: Array, near: Array) -> Array:
        return conditions(Twins(run, far, near, runs.disturbances))

    rounded = svd_gradients(runs.run[0])
    losses = jax.vmap(lambda weights: case.loss(unflatten(weights)))(single)
    limit = divergence_limit(case.loss(case.weights))
    return PathTheory(
        optax_same=single,
        optax_precise=double,
        optax_decay=-case.learning_rate * DECAY * ravel(case.weights),
        condition=conditions(
            runs,
            lambda paths: paths[:, recorded],
            roundings=problems.roundings_of(case),
        ),
        gradient_condition=jax.vmap(refresh_condition)(
            *(svd_gradients(side[1]) for side in runs[:3])
        ),
        tie_distance=jax.vmap(distance_from_ties)(rounded) / jnp.max(jnp.abs(rounded), axis=1),
        galore_diverges_at=first_lost_step(losses, limit, np.asarray(case.steps)),
    )


# Measurement: optax ---------------------------------------------------------------------------


def optax_galore(case: GaloreTraining, **options: Any) -> optax.GradientTransformation:
    """``optax.contrib.galore`` at the settings of a case."""
    return optax.contrib.galore(
        case.learning_rate,
        rank=case.rank,
        update_proj_gap=case.period,
        base_optimizer=THEIRS[case.optimizer],
        **options,
    )


def train(
    case: GaloreTraining, **options: Any
) -> tuple[Float[Array, "step weight"], Int[Array, ""]]:
    """Weights of optax's GaLore at the recorded steps, and when it diverged."""
    run = simulate(case.loss, case.weights, optax_galore(case, **options), case.times, record=ravel)
    return run.records, run.diverged_at


def _decay_change(case: GaloreTraining) -> tuple[Array, Array]:
    """Change of the first update by a decay of the wrapper, and the largest entry of an update."""
    rule = optax_galore(case, weight_decay=DECAY)
    gradient = jax.grad(case.loss)(case.weights)

    def update(share: Array) -> Array:
        # The gradient and the projector are the same: only the decay sees these weights.
        decayed = jax.tree.map(lambda W: share * W, case.weights)
        return ravel(rule.update(gradient, rule.init(case.weights), decayed)[0])

    whole, plain = jax.vmap(update)(jnp.array([1.0, 0.0], case.inputs.dtype))
    return whole - plain, jnp.max(jnp.abs(plain))


def measure_path(case: GaloreTraining) -> PathMeasured:
    """Run optax as its users do: init, update, apply."""
    (path, diverged_at), (decay, scale) = _run_sequentially(
        lambda c: (train(c), _decay_change(c)), case
    )
    return PathMeasured(
        optax_same=path,
        optax_precise=path,
        optax_decay=decay,
        update_scale=scale,
        optax_release=running_release(),
        diverged_at=diverged_at,
        step=jnp.asarray(case.steps),
    )


# Claims ---------------------------------------------------------------------------------------


def _svd_error(outcome: PathOutcome) -> float:
    """Error that an SVD in float32 causes: one rounding at each refresh, and those of the steps."""
    refreshes = -(-outcome.steps // int(outcome.point["period"]))
    # At each refresh one more rounding of float32, and at each step one of the run's precision.
    chosen = tolerance("identity", "float32", steps=refreshes, size=outcome.size)
    own = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    return float(outcome.predicted.condition) * (chosen + own)


def _comparable_records(outcome: PathOutcome) -> np.ndarray:
    """Which records are compared; in float32, where there is a state, those of the first period.

    Runs in float64 give LAPACK the same numbers of float32. In float32 they differ in the last
    digit, and by that LAPACK may choose another sign, which a kept state notices.
    """
    every = outcome.dtype == np.float64 or outcome.point["optimizer"] == "sgd"
    last = outcome.steps if every else int(outcome.point["period"])
    return np.asarray(outcome.measured.step <= last)


def _same_digits(outcome: PathOutcome) -> np.ndarray:
    """Up to which record both sides give every SVD the same matrix of float32.

    In float32 they do so for the first period only. In float64 they do while no entry lies nearer
    to a tie than its rounding: that of an identity, without the factor for the maximum over many
    cases, which would leave out what can be compared.
    """
    period, theory = int(outcome.point["period"]), outcome.predicted
    if outcome.dtype != np.float64:
        return np.asarray(outcome.measured.step <= period)
    steps = period * np.arange(len(theory.tie_distance))
    several = np.array([roundings(t, outcome.size) for t in steps.tolist()])
    rounding = np.finfo("float64").eps * several * np.asarray(theory.gradient_condition)
    near = steps[np.asarray(theory.tie_distance) <= rounding]
    return np.asarray(outcome.measured.step <= np.min(near, initial=outcome.steps))


def _compare_same(outcome: PathOutcome) -> Equal:
    records = _same_digits(outcome)
    path, run = outcome.predicted.optax_same[records], outcome.measured.optax_same[records]
    return Equal(path, run, null=start_of(path))


def _compare_precise(outcome: PathOutcome) -> Equal:
    records = _comparable_records(outcome)
    path, run = outcome.predicted.optax_precise[records], outcome.measured.optax_precise[records]
    scale = _svd_error(outcome) * max(np.max(np.abs(side)) for side in (path, run))
    return Equal(path, run, scale, null=start_of(path))


def _signs_undecided(outcome: PathOutcome) -> str:
    if unseen := unseen_release(outcome.measured.optax_release):
        return unseen
    # The start is recorded, too, and says nothing.
    return "" if np.any(_comparable_records(outcome)[1:]) else "signs by rounding"


def _digits_undecided(outcome: PathOutcome) -> str:
    rounding = "" if np.any(_same_digits(outcome)[1:]) else "digits of float32 by rounding"
    return _signs_undecided(outcome) or rounding


def _resolution_undecided(outcome: PathOutcome) -> str:
    return _signs_undecided(outcome) or (
        "" if _svd_error(outcome) <= RESOLVED else "ill-conditioned"
    )


# Controls -------------------------------------------------------------------------------------


def _smaller_side(case: GaloreTraining) -> PathTheory:
    """GaLore on the smaller side."""
    path = _run_sequentially(
        lambda c: galore_path(c, lambda G: _optax_projectors(G, c.rank, "smaller")), case
    )
    return PathTheory(optax_same=path)


def _signs_by_rule(case: GaloreTraining) -> PathTheory:
    """GaLore with the P of this library, whose largest entries are positive."""
    path = _run_sequentially(
        lambda c: galore_path(c, lambda G: choose_projectors(G, c.rank, "larger")), case
    )
    return PathTheory(optax_precise=path)


def _decay_in_coordinates(case: GaloreTraining) -> PathTheory:
    """Decay of the part of W in r directions, which a base optimiser sees (any: here the first)."""

    def part(W: Array) -> Array:
        # Which r directions does not matter: a decay in any of them leaves the others alone.
        axes = Projector(jnp.eye(len(W), case.rank, dtype=W.dtype), "left")
        return axes.lift(axes.project(W)) if W.ndim == 2 else W

    parts = jax.tree.map(part, case.weights)
    return PathTheory(optax_decay=-case.learning_rate * DECAY * ravel(parts))


def _another_run(case: GaloreTraining) -> PathMeasured:
    """Optax with a refresh each T + 1 steps; a decay that the optimiser sees in its gradients."""

    def train_both(case: GaloreTraining) -> tuple[Array, Array]:
        # Both runs in one program: the controls of two claims share it.
        later = dataclasses.replace(case, period=case.period + 1)
        return train(later)[0], _decay_in_gradients(case)

    path, decay = _run_sequentially(train_both, case)
    return PathMeasured(optax_same=path, optax_precise=path, optax_decay=decay)


def _decay_in_gradients(case: GaloreTraining) -> Float[Array, "weight"]:
    rule, gradient = optax_galore(case), jax.grad(case.loss)(case.weights)
    decayed = jax.tree.map(lambda G, W: G + DECAY * W, gradient, case.weights)

    def update(gradients: PyTree) -> Array:
        return ravel(rule.update(gradients, rule.init(case.weights), case.weights)[0])

    return update(decayed) - update(gradient)


AT = {
    "rows": 8,
    "cols": 5,
    "rank": 2,
    "period": 5,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "steps": 30,
}
"""Where the controls run, those about the state too."""

PATH = Scenario[GaloreTraining, PathTheory, PathMeasured](
    "optax",
    make_training,
    predict_path,
    measure_path,
    theory=PathTheory,
    measured=PathMeasured,
    claims=(
        Claim(
            "optax_same",
            "optax.contrib.galore takes the path of Algorithm 1 on the larger side, state kept, if "
            "both take P from an SVD in float32 with LAPACK's signs (as long as both give the SVD "
            "the same digits: a run in float32 for one period, one in float64 until an entry of a "
            "gradient lies within its rounding of a tie between two numbers of float32)",
            form=_compare_same,
            reads=lambda theory, run: (
                theory.optax_same,
                run.optax_same,
                run.step,
                theory.condition,
                theory.gradient_condition,
                theory.tie_distance,
                run.optax_release,
            ),
            undecided=_digits_undecided,
            condition=lambda theory: theory.condition,
        ),
        Claim(
            "optax_precise",
            "optax.contrib.galore takes the path of Algorithm 1 with P from an SVD in the "
            "precision of the run, of the same signs, up to the rounding of float32 at each "
            "refresh times the run's response to it (the residual is in units of that: the "
            "tolerance of an identity in float32 of t/T steps plus that of the run itself, times "
            "the condition)",
            kind="limit",
            form=_compare_precise,
            reads=lambda theory, run: (
                theory.optax_precise,
                run.optax_precise,
                run.step,
                theory.condition,
                run.optax_release,
            ),
            tolerance=1.0,
            undecided=_resolution_undecided,
        ),
        Claim(
            "optax_decay",
            "weight_decay of optax.contrib.galore adds -eta lambda W to an update, in all "
            "directions",
            # A difference of two updates is rounded like them.
            form=lambda outcome: Equal(
                outcome.predicted.optax_decay,
                outcome.measured.optax_decay,
                outcome.measured.update_scale,
            ),
            reads=lambda theory, run: (
                theory.optax_decay,
                run.optax_decay,
                run.update_scale,
                run.optax_release,
            ),
            undecided=lambda outcome: unseen_release(outcome.measured.optax_release),
            sides="-eta lambda W against the difference of two updates",
        ),
    ),
    controls=(
        Control(
            "smaller_side",
            "GaLore on the smaller side, as published",
            "optax_same",
            predict=_smaller_side,
        ),
        Control(
            "signs_by_rule",
            "P with its largest entries positive, while Adam's state is kept",
            "optax_precise",
            predict=_signs_by_rule,
            precision="float64",
        ),
        Control(
            "another_period",
            "optax with a refresh each T + 1 steps",
            "optax_same",
            measure=_another_run,
            precision="float64",
        ),
        Control(
            "another_period_precise",
            "optax with a refresh each T + 1 steps",
            "optax_precise",
            measure=_another_run,
            precision="float64",
        ),
        Control(
            "decay_in_coordinates",
            "a decay of the part of W in r directions",
            "optax_decay",
            predict=_decay_in_coordinates,
        ),
        Control(
            "decay_in_gradients",
            "lambda W added to the gradient, which Adam then divides",
            "optax_decay",
            measure=_another_run,
        ),
    ),
    steps="steps",
    diverges=lambda theory: theory.galore_diverges_at,
    diverged=lambda run: run.diverged_at,
    sides="Algorithm 1 against optax, initialised, updated and applied as its users do",
    at=AT,
)
