"""Corollary 1: the compressed network and its error.

A network ``f_C`` with layers of 2 r^ x 2 r^, r^ >= r, trained in the frame of Theorem 2, follows
the full one, f:

    ||f(t) - f_C(t)||_F = sqrt(d - 2 r^) prod_l |rho_l(t)|
                       <= sqrt(d - 2 r^) prod_l eps_l,   equal at t = 0,

the bound if ``|1 - eta lambda_l - eta prod_{k != l} rho_k^2| <= 1`` for all l and t.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.corollary1 import compression
from lrdyn.corollary1.compression import CompressedNetwork, compression_error
from lrdyn.theorem2 import optimizers, setting, subspace
from lrdyn.verification.running.evaluate import Once, each_time
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.forms import AtMost, Equal, Form
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario, Theorem

SHAPES = {"dim": (12,), "depth": (3,), "rank": (2,)}
"""Quick values of the flags that are compiled one by one: fewer than for Theorem 2."""

FLAGS = (
    *(dataclasses.replace(f, quick=SHAPES.get(f.name, f.quick)) for f in setting.FLAGS),
    Flag(
        "excess_rank",
        (1,),
        at_least(0),
        int,
        symbol="r^ - r",
        help="compress to r^ = r and to this much more: inner layers are 2 r^ x 2 r^",
        paper=(1, 4),
        shapes=True,
    ),
)


class Compression(setting.DeepFactorization):
    """A run of deep factorisation and the size of its compressed network."""

    ranks: tuple[int, ...] = eqx.field(static=True, kw_only=True)
    """The r^ of the compressed networks: r, and beyond."""


def make_case(key: Key[Array, ""], *, excess_rank: int, **flags: Any) -> Compression:
    """Draw a run that meets the hypotheses of Corollary 1, from the flags."""
    ranks = (flags["rank"], flags["rank"] + excess_rank)
    return setting.make_case(key, **flags, of=partial(Compression, ranks=ranks))


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the corollary."""
    setting.check(point)
    rank = point["rank"] + point["excess_rank"]
    if point["dim"] <= 2 * rank:
        raise ValueError(
            f"--excess-rank: got {point['excess_rank']} with d = {point['dim']} and "
            f"r = {point['rank']}, wanted d > 2 r^"
        )


class CompressionTheory(NamedTuple):
    """Errors, bounds and sizes of compressed networks, from the scalar recursion and formulas."""

    error: Float[Array, "network step"] = ABSENT
    """||f - f_C||_F = sqrt(d - 2 r^) prod_l |rho_l|."""
    bound: Float[Array, "network"] = ABSENT
    """sqrt(d - 2 r^) prod_l eps_l."""
    rho: Float[Array, "step layer"] = ABSENT
    """rho_l of the full network."""
    contraction: Float[Array, ""] = ABSENT
    """Largest |1 - eta lambda_l - eta prod_{k != l} rho_k^2|; of another optimiser than gradient
    descent the largest |rho_l(t)| / eps_l. The bound holds where it is <= 1."""
    condition: Float[Array, ""] = ABSENT
    """By how much theory's own run amplifies a small error of the product of all layers."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which theory's own run diverges, or -1."""
    last_compared: Int[Array, ""] = ABSENT
    """Last step at which both sides are compared; of gradient descent the last of the run."""
    parameters: Int[Array, "network count"] = ABSENT
    """L d^2, 4 d r^ + 4 L r^^2 and 4 L r^^2: full, compressed, its inner layers alone."""


class CompressionMeasured(NamedTuple):
    """Differences of full and compressed networks, both trained."""

    error: Float[Array, "network step"] = ABSENT
    """||f - f_C||_F, from the products of both networks."""
    rho: Float[Array, "step layer"] = ABSENT
    """Mean of the diagonal of the bulk block of each dense layer."""
    off_block: Float[Array, "step layer"] = ABSENT
    """Largest entry of its two off-diagonal blocks."""
    singular_values: Float[Array, "step layer index"] = ABSENT
    """Singular values of each dense layer, largest first."""
    loss: Float[Array, "step"] = ABSENT
    """1/2 ||f - Phi||_F^2 of the full network."""
    compressed_loss: Float[Array, "network step"] = ABSENT
    """1/2 ||f_C - Phi||_F^2."""
    scale: Float[Array, ""] = ABSENT
    """Largest ||f||_F at the recorded steps."""
    parameters: Int[Array, "network count"] = ABSENT
    """Numbers in the arrays: of the full network, the compressed one, its inner layers alone."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run of the full network diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def predict(case: Compression) -> CompressionTheory:
    """Error and bound from the scalar recursion alone, parameters from the formula."""
    dim = len(case.target)
    runs = setting.theory_run(
        case, lambda layers: {"layers": jnp.stack(layers), "product": end_to_end(layers)}
    )
    bulk = setting.bulk_of(case, runs.run.records["layers"])
    last, condition = setting.conditions_in_window(case, runs, lambda records: records["product"])
    counts = [compression.parameter_counts(dim, len(case.weights), r) for r in case.ranks]
    bounds = [compression.compression_bound(case.scales, dim, rank) for rank in case.ranks]
    return CompressionTheory(
        error=jnp.stack([compression_error(bulk, dim, rank) for rank in case.ranks]),
        bound=jnp.stack(bounds),
        rho=bulk,
        contraction=_contraction(case, bulk, last),
        condition=condition,
        diverges=runs.run.diverged_at,
        last_compared=last,
        parameters=jnp.asarray([[c["full"], c["compressed"], c["inner"]] for c in counts]),
    )


def _contraction(
    case: Compression, bulk: Float[Array, "times depth"], last: Int[Array, ""]
) -> Float[Array, ""]:
    if case.rule is optimizers.DESCENT:
        return compression.bulk_contracts(*case.rates, case.steps[-1])
    # Momentum and Muon overshoot 0: no factor of a step says how large rho is, but rho itself.
    compared = jnp.where((case.times <= last)[:, None], bulk, 0.0)
    return jnp.max(jnp.abs(compared) / case.scales[None])


def _train_compressed(
    case: Compression, fixed: subspace.Frame, rank: int
) -> tuple[Float[Array, "times d d"], CompressedNetwork]:
    """Train a compressed network, inner layers only, from ``eps_l I``.

    An optimiser that takes norms takes those of the full layers: the compressed network carries the
    scalar rho_l of each layer beside its inner one.
    """
    width, beside = 2 * rank, 0 if case.rule is optimizers.DESCENT else 1
    target = subspace.reduced_target(fixed, case.target, width)
    if not beside:
        rule = case.optimizer
    else:
        counts = optimizers.multiplicities(width, beside, len(case.target) - width)
        counts = counts.astype(target.dtype)
        rule = optimizers.reduced_optimizer(case.rule, *case.rates[1:], counts)
        target = jnp.pad(target, ((0, beside), (0, beside)))

    def network(layers: Weights) -> CompressedNetwork:
        return compression.compress(fixed, tuple(W[:width, :width] for W in layers))

    trained = case.descend(
        lambda layers: factorization_loss(layers, target),
        subspace.reduced_start(case.scales, width + beside),
        lambda layers: compression.compressed_product(network(layers)),
        rule,
    )
    return trained.records, network(trained.params)


def measure(case: Compression) -> CompressionMeasured:
    """Train the full and the compressed networks and subtract them."""
    return _subtract(case, setting.dense_run(case, case.frame))


def read_compression(
    case: Compression,
    records: tuple[Float[Array, "step d d"], ...],
    compressed: tuple[Float[Array, "step _ _"], ...] | None = None,
) -> CompressionMeasured:
    """The same of a full network that somebody else trained, from the records of its layers.

    Args:
        case: target, rank, rates and the steps of the records.
        records: layers of the full network.
        compressed: those of a compressed network, of which one r^ is judged; without them it is
            trained here, from the start of the full one.
    """
    full = setting.read_dense_run(case, case.frame, records)
    if compressed is None:
        return _subtract(case, full)
    counts = [compression.count([W[0] for W in part]) for part in (records, compressed)]
    inner = compression.count([W[0] for W in compressed[1:-1]])
    return _difference(case, full, jax.lax.map(end_to_end, compressed)[None], [[*counts, inner]])


def _subtract(case: Compression, full: setting.DenseRun) -> CompressionMeasured:
    """Train the compressed networks and subtract them from the full one."""
    # Widths differ: a program for each r^.
    trained = [_train_compressed(case, case.frame, rank) for rank in case.ranks]
    compressed = jnp.stack([products for products, _ in trained])
    counts = [[compression.count(x) for x in (case.weights, net, net.inner)] for _, net in trained]
    return _difference(case, full, compressed, counts)


def _difference(
    case: Compression,
    full: setting.DenseRun,
    compressed: Float[Array, "network step d d"],
    counts: list[list[int]],
) -> CompressionMeasured:
    return CompressionMeasured(
        error=linalg.frobenius(full.product[None] - compressed),
        rho=full.rho,
        off_block=full.off_block,
        singular_values=full.singular_values,
        loss=full.loss,
        compressed_loss=0.5 * jnp.sum((compressed - case.target[None, None]) ** 2, axis=(2, 3)),
        scale=jnp.max(linalg.frobenius(full.product)),
        parameters=jnp.asarray(counts),
        diverged_at=full.diverged_at,
        step=full.step,
    )


def _last(theory: Any) -> Any:
    return theory.last_compared


def _compared(outcome: Outcome[CompressionTheory, CompressionMeasured]) -> Any:
    return setting.compared_steps(outcome, _last)


def _error(outcome: Outcome[CompressionTheory, CompressionMeasured]) -> Form:
    # A difference of two products is rounded on the scale of the products. Who knows nothing says
    # that the compressed network is the full one: no error.
    theory, run, within = outcome.predicted, outcome.measured, _compared(outcome)
    return Equal(theory.error[:, within], run.error[:, within], scale=run.scale, null=0.0)


def _below_bound(outcome: Outcome[CompressionTheory, CompressionMeasured]) -> Form:
    bound, run = outcome.predicted.bound, outcome.measured
    # Rounding of the difference is that of the products, however small the bound is.
    error = run.error[:, _compared(outcome)]
    return AtMost(error, bound[:, None], scale=np.maximum(np.max(bound), run.scale))


def _start_error(outcome: Outcome[CompressionTheory, CompressionMeasured]) -> Form:
    return Equal(outcome.predicted.bound, outcome.measured.error[:, 0])


_underflow: Callable[[Outcome[CompressionTheory, CompressionMeasured]], str]
_underflow = setting.undecided_by_underflow(lambda theory: theory.bound)


def _undecided(outcome: Outcome[CompressionTheory, CompressionMeasured]) -> str:
    return _underflow(outcome) or setting.closed_window(_last)(outcome)


def _unstable_bulk(key: Key[Array, ""], case: Compression, amount: Array) -> Compression:
    """Start where the condition of the bound fails: eps = (2, .1), at eta = .6."""
    # The factors of the first step are .994 and -1.4: the product grows (corollary1.md, Why 4).
    scales = jnp.array([2.0, 0.1])
    weights = [W * to / of for W, to, of in zip(case.weights, scales, case.scales, strict=True)]
    return dataclasses.replace(case, weights=tuple(weights), scales=scales)


def _half_of_the_padding(case: Compression) -> CompressionTheory:
    dim, bulk = len(case.target), case.bulk
    # sqrt(d - r^) in the place of sqrt(d - 2 r^).
    errors = [compression_error(bulk, dim - rank, 0) for rank in case.ranks]
    return CompressionTheory(error=jnp.stack(errors))


def _narrow_networks(case: Compression) -> CompressionMeasured:
    """Compressed networks of width 2 r^ - 2."""
    return measure(dataclasses.replace(case, ranks=tuple(rank - 1 for rank in case.ranks)))


def _square_bound(case: Compression) -> CompressionTheory:
    dim = len(case.target)
    bounds = [compression.compression_bound(case.scales**2, dim, rank) for rank in case.ranks]
    return CompressionTheory(bound=jnp.stack(bounds))


def _without_inner_layers(case: Compression, once: Once = each_time) -> CompressionTheory:
    counts = once(predict, case).parameters
    return CompressionTheory(parameters=counts.at[:, 1].add(-counts[:, 2]))


COMPRESSION = Scenario[Compression, CompressionTheory, CompressionMeasured](
    "compression",
    make_case,
    predict,
    measure,
    apart=True,
    theory=CompressionTheory,
    measured=CompressionMeasured,
    claims=(
        Claim(
            "error_identity",
            "the compressed network f_C of width 2 r^, r^ >= r, has the error ||f(t) - "
            "f_C(t)||_F = sqrt(d - 2 r^) prod_l |rho_l(t)| for all t",
            form=_error,
            reads=lambda theory, run: (
                *(theory.error, run.error, run.scale, theory.bound),
                *setting.window_fields(theory, run, _last),
            ),
            condition=lambda theory: theory.condition,
            undecided=_undecided,
        ),
        Claim(
            "error_bound",
            "if |1 - eta lambda_l - eta prod_{k != l} rho_k^2| <= 1 for all l and t (under another "
            "optimiser than gradient descent: |rho_l(t)| <= eps_l), ||f(t) - f_C(t)||_F <= sqrt(d "
            "- 2 r^) prod_l eps_l for all t, f_C the compressed network of width 2 r^",
            kind="bound",
            form=_below_bound,
            reads=lambda theory, run: (
                *(run.error, theory.bound, run.scale, theory.contraction),
                *setting.window_fields(theory, run, _last),
            ),
            applies=lambda outcome: outcome.predicted.contraction <= 1,
            condition=lambda theory: theory.condition,
            undecided=_undecided,
        ),
        Claim(
            "bound_attained",
            "at t = 0 the bound of Corollary 1 is attained: ||f(0) - f_C(0)||_F = sqrt(d - 2 r^) "
            "prod_l eps_l",
            form=_start_error,
            reads=lambda theory, run: (run.error, theory.bound),
            undecided=_underflow,
        ),
        Claim(
            "parameters",
            "the full network has L d^2 parameters and the compressed one 4 d r^ + 4 L r^^2, of "
            "which 4 L r^^2 are those of its inner layers",
            kind="exact",
            carries=False,
        ),
    ),
    controls=(
        *setting.departures("error_identity", prefix="compressed_"),
        Control(
            "compressed_below_r",
            "compressed network with r^ = r - 1",
            "error_identity",
            # Two of the 2r directions that move are then left out of the inner layers.
            case=lambda key, case, amount: dataclasses.replace(case, ranks=(case.rank - 1,)),
            breaks="compressed_rank_at_least_r",
        ),
        Control(
            "bound_without_condition",
            "the bound at eta = .6, eps = (2, .1), where its condition fails",
            "error_bound",
            case=_unstable_bulk,
            breaks="applies",
            # Two layers, for two scales; five steps, before other steps shrink the product again.
            at={"depth": 2, "learning_rate": 0.6, "steps": 5},
        ),
        Control(
            "error_with_r",
            "error with d - r^ in place of d - 2 r^",
            "error_identity",
            predict=_half_of_the_padding,
        ),
        *(
            Control(
                f"{claim}_narrower",
                "compressed network of width 2 r^ - 2",
                claim,
                measure=_narrow_networks,
            )
            for claim in ("error_identity", "error_bound", "bound_attained", "parameters")
        ),
        *(
            Control(
                f"{claim}_squared",
                "prod_l eps_l^2 in the bound",
                claim,
                predict=_square_bound,
                at={"init_scale": 0.7},
            )
            for claim in ("error_bound", "bound_attained")
        ),
        Control(
            "parameters_without_inner",
            "parameter count without the inner layers",
            "parameters",
            predict=_without_inner_layers,
        ),
    ),
    hypotheses=setting.HYPOTHESES
    | {"compressed_rank_at_least_r": lambda case: jnp.asarray(min(case.ranks) >= case.rank)},
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    at=setting.AT,
    sides="rho and formulas against the difference of two trained networks and against arrays "
    "counted",
)

COROLLARY1 = Theorem(
    "corollary1",
    "a compressed network of width 2 r^ follows the full one with a known error",
    FLAGS,
    (COMPRESSION,),
    prepare=setting.prepare,
    check=check,
    axes=setting.AXES,
    numbers=setting.numbers,
    title="Corollary 1",
    page="docs/theorems/corollary1.md",
    source="Yaras et al. as for Theorem 2, and Kwon et al. on compressing overparameterised "
    "deep models",
    small=setting.SMALL,
)
