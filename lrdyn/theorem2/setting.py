"""What Theorem 2 and Corollary 1 share: cases, flags, hypotheses, departures; and descents."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree
from typing_extensions import TypeVar

from lrdyn.core import initialization, linalg
from lrdyn.core.condition import Twins, conditions, perturb_updates, twins
from lrdyn.core.descent import Trajectory, gradient_descent, simulate
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.core.masking import masked_loss, observe
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.core.spectra import numerical_rank, singular_values
from lrdyn.shared_flags import (
    DEPTH,
    DIM,
    INIT_SCALE,
    LEARNING_RATE,
    RANK,
    SIZE,
    STEPS,
    TARGET_CONDITION,
    TARGET_SCALE,
    WEIGHT_DECAY,
)
from lrdyn.theorem2 import optimizers, subspace
from lrdyn.verification.stating.claims import RESOLVED, tolerance
from lrdyn.verification.stating.fields import both_sides, names_of
from lrdyn.verification.stating.flags import Flag, between, one_of
from lrdyn.verification.stating.forms import Equal, Form, Numbers, Zero, start_of
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Claim, Control, Outcome

T = TypeVar("T", default=Any)
"""What a scenario predicts."""
M = TypeVar("M", default=Any)
"""What it measures."""


class Descent(Recorded):
    """Layers at the start, and how they descend."""

    weights: Weights
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, "depth"]
    """lambda_l."""

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Gradient descent at the rates of the run."""
        return gradient_descent(self.learning_rate, self.weight_decay)

    def descend(
        self,
        loss: Callable[[Weights], Float[Array, ""]],
        start: Weights,
        record: Callable[[Weights], PyTree],
        optimizer: optax.GradientTransformation | None = None,
    ) -> Trajectory:
        """Gradient descent on a loss at the rates of the run, or another optimiser."""
        return simulate(loss, start, optimizer or self.optimizer, self.times, record=record)


class OrthogonalDescent(Descent):
    """A descent from multiples of orthogonal layers."""

    scales: Float[Array, "depth"]
    """eps_l."""

    @property
    def rates(self) -> tuple[Float[Array, "depth"], Float[Array, ""], Float[Array, "depth"]]:
        """What decides rho: eps_l, eta and lambda_l."""
        return self.scales, self.learning_rate, self.weight_decay


class DeepFactorization(OrthogonalDescent):
    """One run of deep matrix factorisation, with square layers: everything that decides it."""

    target: Float[Array, "d d"]
    rank: int = eqx.field(static=True)
    """r, the claimed bound on the rank of the target."""
    mask: Float[Array, "d d"] | None = None
    """Observed entries; all of them if None."""
    noise: Float[Array, ""] | None = None
    """Standard deviation of the noise on each entry of the gradients; none if None."""
    key: Key[Array, ""] | None = None
    """Key of that noise."""
    rule: optimizers.Optimizer = eqx.field(static=True, default=optimizers.DESCENT)
    """Gradient descent, or another optimiser that does not see the basis."""

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Optax's own optimiser of the dense layers, at the rates of the run."""
        return self.rule.full(self.learning_rate, self.weight_decay)

    @property
    def spare(self) -> int:
        """Dimensions of the bulk that theory's own run keeps: all, if it has no formula."""
        bulk = len(self.target) - 2 * self.rank
        known = self.rule is optimizers.DESCENT or self.rule.direction is not None
        # The bulk may have a single dimension.
        return min(SPARE, bulk) if known else bulk

    @property
    def reduced_optimizer(self) -> optax.GradientTransformation:
        """The optimiser of theory's own run, in blocks of 2r and ``spare`` dimensions more.

        Gradient descent takes no norm, so that it is the same in blocks of any size. An optimiser
        without a formula runs at the full size, in the frame: that it takes the same path there is
        what its equivariance says.
        """
        if self.rule.direction is None:
            return self.optimizer
        moving = 2 * self.rank
        counts = optimizers.multiplicities(moving, self.spare, len(self.target) - moving)
        counts = counts.astype(self.target.dtype)
        return optimizers.reduced_optimizer(self.rule, *self.rates[1:], counts)

    @property
    def padded_target(self) -> Float[Array, "s s"]:
        """Phi in the frame, in blocks of the size of theory's own run."""
        return jnp.pad(self.reduced_target, ((0, self.spare), (0, self.spare)))

    @property
    def frame(self) -> subspace.Frame:
        """The frame of Theorem 2."""
        return subspace.frame(self.weights, self.target, self.rank)

    @property
    def reduced_target(self) -> Float[Array, "s s"]:
        """Phi in the frame, s = 2 r."""
        return subspace.reduced_target(self.frame, self.target, 2 * self.rank)

    @property
    def bulk(self) -> Float[Array, "times depth"]:
        """rho_l at the recorded steps."""
        return subspace.rho(*self.rates, self.times)

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """The objective, masked if there is a mask."""
        if self.mask is None:
            return factorization_loss(weights, self.target)
        return masked_loss(weights, self.target, self.mask)


SPREAD = between(1e-6, 1e6)
"""Ratios of the last layer to the first."""

FLAGS = (
    DIM.at((16,), paper=(30, 100)),
    DEPTH.at((2, 4), paper=(2, 3, 5, 8)),
    RANK.at((3,), paper=(1, 3, 10)),
    INIT_SCALE.at((0.3, 1.0), paper=(0.01, 0.1, 0.3, 1.0)),
    Flag(
        "init_spread",
        (1.0, 3.0),
        SPREAD,
        symbol="eps_L / eps_1",
        help="ratio of the last layer's init scale to the first's",
    ),
    WEIGHT_DECAY.at(
        (0.0, 0.03), paper=(0.0, 0.01, 0.1), help="weight decay, geometric mean over the layers"
    ),
    Flag(
        "decay_spread",
        (1.0, 3.0),
        SPREAD,
        symbol="lambda_L / lambda_1",
        help="ratio of the last layer's decay to the first's",
    ),
    LEARNING_RATE.at((0.1,)),
    TARGET_SCALE.at(
        (1.0,), help="largest singular value of the default target, factor on a given one"
    ),
    TARGET_CONDITION.at((2.0,)),
    STEPS.at((100,), paper=(500,)),
    Flag(
        "optimizer",
        (optimizers.DESCENT.name,),
        one_of(*optimizers.OPTIMIZERS),
        str,
        help="what trains the layers: gradient descent, momentum or Nesterov's momentum of 0.9, "
        "gradients clipped to the norm 0.1 or divided by their norm, or optax's Muon; all decay "
        "the weights by eta lambda W; mean losses and classifiers descend, and are left out beside "
        "another optimiser",
        shapes=True,
    ),
    Flag("target", (), None, "array", "Phi", "run on your own square matrix", swept=False),
)

AXES = ("init_scale", "depth", "rank")
"""What a sweep is drawn over: abscissa, curves, panels."""
SMALL = {"dim": (9,), "depth": (3,), "rank": (2,), "steps": 1000, "target_scale": (0.7,)}
"""Settings of a run of seconds. The scale is none of which all powers are alike, as those of 1."""


def numbers(point: Mapping[str, Any]) -> int:
    """Count the numbers of a case: layers at their start, layers in training, and target."""
    return (2 * point["depth"] + 1) * point["dim"] ** 2


def start_of_run(
    key: Key[Array, ""],
    widths: tuple[int, ...],
    *,
    init_scale: Any,
    init_spread: Any,
    weight_decay: Any,
    decay_spread: Any,
    learning_rate: Any,
    steps: int,
) -> dict[str, Any]:
    """The fields of an :class:`OrthogonalDescent`, from the flags."""
    depth = len(widths) - 1
    scales = initialization.layer_scales(init_scale, init_spread, depth)
    return {
        "weights": initialization.orthogonal_layers(key, widths, scales),
        "scales": scales,
        "learning_rate": jnp.asarray(learning_rate, scales.dtype),
        "weight_decay": initialization.layer_scales(weight_decay, decay_spread, depth),
        "steps": recorded_steps(steps, at_most=26),
    }


def target_values(rank: int, scale: Any, condition: Any = 2.0) -> Float[Array, "r"]:
    """Singular values of a target, ``sigma_i = scale (1 - (i-1)/(2(r-1)))^{log2 condition}``.

    They go from ``scale`` down to ``scale / condition``, evenly spaced for a condition of 2.

    Example:
        >>> target_values(3, 1.0).tolist(), target_values(3, 1.0, 4.0).tolist()
        ([1.0, 0.75, 0.5], [1.0, 0.5625, 0.25])
    """
    even = initialization.spaced_singular_values(rank)
    # log2(2) and a power of 1 may round: the usual target is to be evenly spaced exactly.
    return scale * jnp.where(condition == 2, even, even ** jnp.log2(condition))


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    target_scale: Any,
    target_condition: Any = 2.0,
    target: np.ndarray | None = None,
    optimizer: str = optimizers.DESCENT.name,
    of: Callable[..., Any] = DeepFactorization,
    **of_run: Any,
) -> Any:
    """Draw a run that meets the hypotheses of Theorem 2, from the flags.

    Args:
        key: random key.
        dim: d.
        depth: L.
        rank: r.
        target_scale: largest singular value of the target.
        target_condition: the largest over the smallest that is not 0.
        target: a target of one's own, in the place of a random one.
        optimizer: name of the optimiser.
        of: makes the case of its fields: that of another scenario has more of them.
        of_run: the other flags, see :func:`start_of_run`.
    """
    weights_key, target_key = jax.random.split(key)
    start = start_of_run(weights_key, (dim,) * (depth + 1), **of_run)
    if target is None:
        values = target_values(rank, target_scale, target_condition)
        phi = initialization.low_rank_target(target_key, (dim, dim), values)
    else:
        phi = target_scale * jnp.asarray(target, start["scales"].dtype)
    return of(target=phi, rank=rank, rule=optimizers.OPTIMIZERS[optimizer], **start)


FIXED_LENGTH = ("normalized", "muon")
"""Optimisers whose steps are as long as eta says, whatever the gradient is."""
SHORT_STEP = 5e-3
"""Their default eta: 100 steps move a singular value by about 1/2, so that a usual run is compared
for some time before it arrives."""


def prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Complete the settings from the optimisers, and from a target of one's own."""
    if "learning_rate" not in given and set(FIXED_LENGTH) & set(settings["optimizer"]):
        settings = settings | {"learning_rate": (SHORT_STEP,)}
    target = settings["target"]
    if target is None:
        return settings
    if target.ndim != 2 or target.shape[0] != target.shape[1]:
        raise ValueError(f"--target: got an array of shape {target.shape}, wanted a square matrix")
    if "dim" in given:
        raise ValueError(f"--dim: got {settings['dim']} beside --target, wanted one of the two")
    values = np.linalg.svd(target, compute_uv=False)
    if not SIZE.contains(values[0]):
        wanted = f"a largest singular value {SIZE.wanted.removeprefix('a number ')}"
        raise ValueError(f"--target: got a matrix of norm {values[0]:g}, wanted {wanted}")
    dim, rank = target.shape[0], int(numerical_rank(values, target.shape[0]))
    if dim <= 2 * rank and "rank" not in given:
        raise ValueError(
            f"--target: got a matrix of rank {rank} and width {dim}, wanted a width above twice "
            "the rank (--perturb shows what a tail beyond rank r does)"
        )
    # The curvature at the minimum grows at most like sigma_1^2: the default step stays stable.
    rates = tuple(eta / max(1.0, values[0]) ** 2 for eta in settings["learning_rate"])
    of_target = {"dim": (dim,), "rank": (rank,), "learning_rate": rates}
    return settings | {name: value for name, value in of_target.items() if name not in given}


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    if point["dim"] <= 2 * point["rank"]:
        raise ValueError(f"--rank: got {point['rank']} with d = {point['dim']}, wanted d > 2 rank")


class DenseRun(NamedTuple):
    """Dense layers while they descend, in the frame and by their SVD."""

    rho: Float[Array, "step layer"]
    """rho_l, the mean of the diagonal of the bulk block of U_l^T W_l V_l."""
    reduced: Float[Array, "step layer row column"]
    """The moving block, 2r x 2r."""
    off_block: Float[Array, "step layer"]
    """Largest entry outside of both blocks."""
    bulk_deviation: Float[Array, "step layer"]
    """Largest entry of the bulk block less rho_l I."""
    product: Float[Array, "step output input"]
    """W_L ... W_1."""
    singular_values: Float[Array, "step layer index"]
    """Those of each layer, largest first."""
    loss: Float[Array, "step"]
    """1/2 ||W_L ... W_1 - Phi||_F^2, whatever loss is descended on."""
    diverged_at: Int[Array, ""]
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"]
    """Recorded steps."""


def dense_run(
    case: DeepFactorization,
    fixed: subspace.Frame,
    loss: Callable[[Weights], Float[Array, ""]] | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> DenseRun:
    """Train the dense layers and measure them in a frame and by their SVD.

    Args:
        case: start, target and rates.
        fixed: the frame, which does not move with the layers.
        loss: another loss than that of the case, for a control or the mean loss.
        optimizer: another optimiser than gradient descent at the rates of the case.
    """
    optimizer = optimizer or case.optimizer
    if case.noise is not None:
        # optax takes a variance, and lets it fall like t^-gamma: with gamma = 0 it stays.
        optimizer = optax.chain(optax.add_noise(case.noise**2, 0.0, case.key), optimizer)
    # Reduced while the run goes on: only blocks and spectra of the records are kept.
    record = dense_record(case, fixed)
    run = case.descend(loss or case.loss, case.weights, record, optimizer)
    return DenseRun(**run.records, diverged_at=run.diverged_at, step=jnp.asarray(case.steps))


def dense_record(
    case: DeepFactorization, fixed: subspace.Frame
) -> Callable[[Weights], dict[str, Array]]:
    """Make the function that measures layers at one step, the fields of a :class:`DenseRun`.

    Args:
        case: target and rank.
        fixed: the frame, which does not move with the layers.
    """

    def record(weights: Weights) -> dict[str, Array]:
        blocks = subspace.blocks(fixed, weights, 2 * case.rank)
        return {
            "rho": blocks.rho,
            "reduced": blocks.inner,
            "off_block": blocks.off_block,
            "bulk_deviation": blocks.bulk_deviation,
            "product": end_to_end(weights),
            "singular_values": singular_values(jnp.stack(weights)),
            "loss": factorization_loss(weights, case.target),
        }

    return record


def read_dense_run(
    case: DeepFactorization, fixed: subspace.Frame, records: tuple[Float[Array, "step d d"], ...]
) -> DenseRun:
    """Measure dense layers that somebody else trained and recorded, as :func:`dense_run` does.

    Args:
        case: target, rank and the steps of the records.
        fixed: the frame.
        records: the layers at each recorded step.
    """
    measured = jax.lax.map(dense_record(case, fixed), records)
    lost = first_lost_record(records, case.times)
    return DenseRun(**measured, diverged_at=lost, step=jnp.asarray(case.steps))


def first_lost_record(records: PyTree, times: np.ndarray) -> Int[Array, ""]:
    """First recorded step at which an entry is not finite, or -1."""
    finite = [jnp.all(jnp.isfinite(W), axis=range(1, W.ndim)) for W in jax.tree.leaves(records)]
    lost = ~jnp.all(jnp.stack(finite), axis=0)
    first = jnp.asarray(times, jnp.int32)[jnp.argmax(lost)]
    return jnp.where(jnp.any(lost), first, -1)


SPARE = 2
"""Dimensions of the bulk that theory's own run keeps: with one alone the bulk block would be a
multiple of the identity whatever happened."""


def theory_run(
    case: DeepFactorization, record: Callable[[Weights], PyTree], centred: Any = 0.0
) -> Twins:
    """Theory's own run and twins of it, in blocks of 2r and up to two dimensions of the bulk.

    The product at the start is subtracted from that of the layers ``centred`` times: it is added to
    the target as often, where all layers are multiples of one frame.

    The theorem is exact for blocks of any size >= 2r. A twin leaves the subspace: its error has
    parts inside the block of 2r, outside, and in the bulk, whose directions decouple from each
    other to first order. It is pushed at every step, too: from a small start one mode is there long
    before the next, which the rounding of the first reaches while it is small; and where an orbit
    becomes unstable what leaves it has been small for long. All three are a
    :class:`~lrdyn.core.Trajectory`.

    Args:
        case: start, target and rates.
        record: maps the layers of theory's own run to what its twins are compared in.
        centred: how many times the product at the start is subtracted, 0 or 1.
    """

    def run(data: tuple[Array, Weights, Weights]) -> Trajectory:
        goal, start, push = data
        rule = perturb_updates(case.reduced_optimizer, push, case.steps[-1])
        return case.descend(lambda W: factorization_loss(W, goal), start, record, rule)

    start = subspace.reduced_start(case.scales, 2 * case.rank + case.spare)
    target = case.padded_target + centred * end_to_end(start)
    return twins(run, (target, start, jax.tree.map(jnp.ones_like, start)))


AMPLIFIED = 1e3
"""By how much errors may be amplified in what is compared of optimisers other than gradient
descent. Before it arrives a run of Muon amplifies them up to a hundred times, about as much as its
five steps of Newton-Schulz amplify a small singular value over eta steps; where a run is chaotic
they grow without end, within a few steps."""


def bulk_of(case: DeepFactorization, layers: Float[Array, "times depth s s"]) -> Array:
    """rho_l at the recorded steps: by its recursion, or the bulk of theory's own run.

    Args:
        case: start, rates and optimiser.
        layers: of theory's own run.
    """
    if case.rule is optimizers.DESCENT:
        return case.bulk
    return layers[:, :, 2 * case.rank, 2 * case.rank]


def conditions_in_window(
    case: DeepFactorization, runs: Twins, look: Callable[[PyTree], PyTree]
) -> tuple[Int[Array, ""], PyTree]:
    """Last step that is compared, and the condition of each array of theory's own run up to there.

    A run of gradient descent is compared as a whole, or left out; of other optimisers what lies
    within :func:`windowed_conditions`.

    Args:
        case: the case.
        runs: theory's own run and its twins.
        look: maps records, over steps, to the arrays whose condition is asked for.
    """
    if case.rule is optimizers.DESCENT:
        last = jnp.asarray(case.steps[-1], jnp.int32)
        return last, conditions(runs, lambda run: look(run.records))
    return windowed_conditions(case.times, len(case.target), runs, look)


def windowed_conditions(
    times: np.ndarray, size: int, runs: Twins, look: Callable[[PyTree], PyTree]
) -> tuple[Int[Array, ""], PyTree]:
    """Last step at which a run still has its digits, and the condition of its arrays up to there.

    A run is compared as long as theory's own one amplifies a small error at most :data:`AMPLIFIED`
    times, and two digits are left. Muon's steps, for example, are as long as eta says however small
    the gradient is: once it has arrived, its run is chaotic, and no theory says where a computed
    one goes.

    Args:
        times: recorded steps.
        size: length of the longest dot product.
        runs: theory's own run and its twins.
        look: maps records, over steps, to the arrays whose condition is asked for.
    """
    steps = jnp.asarray(times, jnp.int32)

    def conditions_up_to(last: Array) -> PyTree:
        def cut(records: Array) -> Array:
            shape = (-1, *(1,) * (records.ndim - 1))
            return jnp.where(jnp.reshape(steps <= last, shape), records, 0.0)

        return conditions(runs, lambda run: look(jax.tree.map(cut, run.records)))

    each = jax.vmap(conditions_up_to)(steps)
    worst = jnp.max(jnp.stack(jax.tree.leaves(each)), axis=0)
    # In float32 fewer errors may grow before the last two digits are lost.
    digits = tolerance("identity", worst.dtype, steps=int(times[-1]), size=size)
    # Step 0 always counts: there the errors are those of the data.
    place = jnp.maximum(jnp.sum(jnp.cumprod(worst <= min(AMPLIFIED, RESOLVED / digits))) - 1, 0)
    return steps[place], jax.tree.map(lambda condition: condition[place], each)


def layer_blocks(layers: Float[Array, "... s s"], moving: int) -> dict[str, Array]:
    """The moving block of each layer, its two off-diagonal blocks side by side, and the bulk."""
    across = jnp.swapaxes(layers[..., moving:, :moving], -1, -2)
    return {
        "inner": layers[..., :moving, :moving],
        "off_block": jnp.concatenate([layers[..., :moving, moving:], across], axis=-1),
        "bulk": layers[..., moving:, moving:],
    }


@at_most("largest entry of |W_l W_l^T / eps_l^2 - I| at the start")
def orthogonal_start(case: OrthogonalDescent) -> Extent:
    """Check that every layer starts as its scale times a matrix with orthonormal rows."""

    def error(W: Array, scale: Array) -> Array:
        return jnp.max(jnp.abs((W / scale) @ (W / scale).T - jnp.eye(W.shape[0])))

    # Layers of one shape in one batch, which compiles once.
    if len({W.shape for W in case.weights}) == 1:
        errors = jax.vmap(error)(jnp.stack(case.weights), case.scales)
    else:
        errors = jnp.stack(list(map(error, case.weights, case.scales)))
    size = case.weights[0].shape[1]
    return Extent(jnp.max(errors), tolerance("identity", case.scales.dtype, size=size))


@at_most("sigma_{r+1} of the target")
def _rank_at_most_r(case: DeepFactorization) -> Extent:
    values = singular_values(case.target)
    # The next singular value of a target of rank r is rounding, on the scale of sigma_1.
    limit = tolerance("identity", values.dtype, size=len(case.target))
    return Extent(values[case.rank], limit * values[0])


HYPOTHESES = {
    "orthogonal_start": orthogonal_start,
    "rank_at_most_r": _rank_at_most_r,
    "all_entries_observed": lambda case: jnp.asarray(case.mask is None or jnp.all(case.mask == 1)),
    "exact_gradient": lambda case: jnp.asarray(case.noise is None or case.noise == 0),
}


def move_toward_gaussian(
    key: Key[Array, ""], case: DeepFactorization, amount: Array
) -> DeepFactorization:
    """Move the start from orthogonal (0) to Gaussian (1), at the same norm."""
    dim, depth = case.target.shape[0], len(case.weights)
    gaussian = initialization.gaussian_layers(key, (dim,) * (depth + 1), case.scales)
    mixed = [(1 - amount) * W + amount * G for W, G in zip(case.weights, gaussian, strict=True)]
    # The norm of eps_l times an orthogonal matrix: the start is as large as before.
    sizes = case.scales * jnp.sqrt(1.0 * dim)
    weights = [W * (size / linalg.frobenius(W)) for W, size in zip(mixed, sizes, strict=True)]
    return dataclasses.replace(case, weights=tuple(weights))


def add_tail(key: Key[Array, ""], case: DeepFactorization, amount: Array) -> DeepFactorization:
    """Add singular values beyond rank r: a Gaussian matrix of norm ``amount ||Phi||_F``."""
    tail = jax.random.normal(key, case.target.shape)
    tail *= linalg.frobenius(case.target) / linalg.frobenius(tail)
    return dataclasses.replace(case, target=case.target + amount * tail)


def add_noise(key: Key[Array, ""], case: DeepFactorization, amount: Array) -> DeepFactorization:
    """Add noise to every gradient; its norm is ``amount ||Phi||_F``."""
    spread = amount * linalg.frobenius(case.target) / case.target.shape[0]
    return dataclasses.replace(case, noise=spread, key=key)


def hide_entries(key: Key[Array, ""], case: Any, amount: Array) -> Any:
    """Hide the fraction ``amount`` of the entries of a target, in a case with a mask."""
    rows, columns = case.target.shape
    return dataclasses.replace(case, mask=observe(key, (rows, columns), 1 - amount))


USUAL_CONDITION = 2.0
"""sigma_1 / sigma_r of the default target."""

# Where the breaks are plain to see: scale 1, so that the bulk moves and the gradient is large.
AT = {"dim": 16, "depth": 3, "rank": 2, "init_scale": 1.0, "steps": 50}


def departures(claim: str, prefix: str = "") -> tuple[Control[Any, Any, Any], ...]:
    """Controls that leave the hypotheses by degrees, until a claim fails."""
    # From where nothing shows in float64 to where everything does. Entries are hidden in whole
    # numbers: a smaller share than 0.004 hides none of 16 x 16.
    wide, entries = (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0), (0.004, 0.02, 0.1, 0.3, 0.5)
    return (
        Control(
            f"{prefix}gaussian_start",
            "Gaussian start",
            claim,
            case=move_toward_gaussian,
            breaks="orthogonal_start",
            amount=wide[-1],
            amounts=wide,
            amount_label="from orthogonal (0) to Gaussian (1)",
        ),
        Control(
            f"{prefix}rank_above_r",
            "tail beyond rank r",
            claim,
            case=add_tail,
            breaks="rank_at_most_r",
            amount=wide[-1],
            amounts=wide,
            amount_label=r"$\Vert$tail$\Vert_F$ / $\Vert \Phi \Vert_F$",
        ),
        Control(
            f"{prefix}noisy_gradient",
            "noisy gradients",
            claim,
            case=add_noise,
            breaks="exact_gradient",
            amount=wide[-1],
            amounts=wide,
            amount_label=r"$\Vert$noise$\Vert_F$ / $\Vert \Phi \Vert_F$",
        ),
        Control(
            f"{prefix}masked_loss",
            "hidden entries",
            claim,
            case=hide_entries,
            breaks="all_entries_observed",
            amount=entries[-1],
            amounts=entries,
            amount_label="fraction of entries hidden",
        ),
    )


def weights_claim(
    id: str,
    statement: str,
    *compares: Callable[[T, M], tuple[Any, Any]],
    scale: Callable[[M], Any],
    condition: Callable[[T], Any],
    last: Callable[[T], Any] | None = None,
) -> Claim[T, M]:
    """Claim that arrays of weights agree, on the scale of the weights.

    Args:
        id: short name of the claim.
        statement: the claim in words and formula.
        compares: ``lambda theory, run: (theory.bulk, run.rho)``, for each pair of arrays; the
            fields of the claim's id if there is none.
        scale: ``lambda run: run.singular_values``, whose largest entry is the scale.
        condition: that of the claim.
        last: ``lambda theory: theory.last_compared``, the last step that is compared; all are if it
            is not given.
    """
    each = compares or (both_sides(id),)

    def reads(theory: T, run: M) -> tuple[Any, ...]:
        fields = (*(field for pair in each for field in pair(theory, run)), scale(run))
        return (*fields, *window_fields(theory, run, last))

    def form(outcome: Outcome[T, M]) -> tuple[Form, ...]:
        within = compared_steps(outcome, last)
        largest = np.max(scale(outcome.measured)[within])
        pairs = [
            [side[within] for side in pair(outcome.predicted, outcome.measured)] for pair in each
        ]
        return tuple(
            # Who knows nothing says that nothing moves.
            Equal(predicted, measured, scale=largest, null=start_of(predicted))
            for predicted, measured in pairs
        )

    return Claim(
        id,
        statement,
        form=form,
        reads=reads,
        condition=condition,
        undecided=None if last is None else closed_window(last),
    )


def window_fields(theory: Any, run: Any, last: Callable[[T], Any] | None) -> tuple[Any, ...]:
    """The fields that say which steps are compared."""
    return () if last is None else (last(theory), run.step)


def compared_steps(outcome: Outcome[T, M], last: Callable[[T], Any] | None) -> Any:
    """Which of the recorded steps are compared, as an index."""
    if last is None:
        return slice(None)
    run: Any = outcome.measured
    # Theory counts from the first record, which of a run from elsewhere can be a later step.
    within = run.step - run.step[0] <= last(outcome.predicted)
    # The start always: a file that was changed must leave something to be judged.
    return within | (np.arange(len(within)) == 0)


def closed_window(last: Callable[[T], Any]) -> Callable[[Outcome[T, M]], str]:
    """Make the ``undecided`` of a claim that is compared up to a step: why none is left.

    Args:
        last: ``lambda theory: theory.last_compared``.
    """

    def reason(outcome: Outcome[T, M]) -> str:
        # At step 0 both sides are the start, whatever the theory says.
        moved = np.sum(compared_steps(outcome, last)) > 1
        return "" if moved else "errors grow from the first steps on: the step is too large"

    return reason


def zero_claim(
    id: str,
    statement: str,
    zero: Callable[[M], Any],
    *,
    moves: Callable[[T], Any],
    scale: Callable[[M], Any],
    condition: Callable[[T], Any],
    last: Callable[[T], Any] | None = None,
) -> Claim[T, M]:
    """Claim that an array without negative entries is zero, on the scale of the weights.

    Args:
        id: short name of the claim.
        statement: the claim in words and formula.
        zero: ``lambda run: run.off_block``, the array.
        moves: ``lambda theory: theory.reduced``, what theory lets move, over steps. In a frame that
            is not the theorem's what moves is seen in all blocks: that is the alternative.
        scale: ``lambda run: run.singular_values``, whose largest entry is the scale.
        condition: that of the claim.
        last: as of :func:`weights_claim`.
    """

    def form(outcome: Outcome[T, M]) -> Form:
        within = compared_steps(outcome, last)
        return Zero(
            zero(outcome.measured)[within],
            scale=np.max(scale(outcome.measured)[within]),
            alternative=largest_change(moves(outcome.predicted)[within]),
        )

    return Claim(
        id,
        statement,
        form=form,
        reads=lambda theory, run: (
            *(zero(run), scale(run), moves(theory)),
            *window_fields(theory, run, last),
        ),
        condition=condition,
        undecided=None if last is None else closed_window(last),
    )


def largest_change(values: Numbers) -> float:
    """Largest change of an entry since the first of the recorded steps, the first axis."""
    return float(np.max(np.abs(values - start_of(values))))


def undecided_by_underflow(product: Callable[[T], Any]) -> Callable[[Outcome[T, M]], str]:
    """Make the ``undecided`` of a claim about products of layers: why they have no digits.

    Args:
        product: ``lambda theory: theory.loss``, the products that theory predicts.
    """
    (name,) = names_of(product)

    def reason(outcome: Outcome[T, M]) -> str:
        size, kind = np.max(np.abs(product(outcome.predicted))), np.finfo(outcome.dtype)
        if size > kind.max:
            return f"{name} is infinite"
        # Below this a product loses digits to underflow.
        return "underflow" if size < kind.tiny / kind.eps else ""

    return reason


def first_shapes(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a side scenario: all but dimension and rank, which the main one sweeps."""
    return descent_alone(settings | {name: settings[name][:1] for name in ("dim", "rank")})


def descent_alone(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a scenario of gradient descent, which is left out where others are asked for."""
    asked = (name for name in settings["optimizer"] if name == optimizers.DESCENT.name)
    return settings | {"optimizer": tuple(asked)}
