"""Numbers of every public formula are as they were, at arguments that differ from the usual ones.

Tests against references and identities say that a formula is right where they look. This says that
it is the same everywhere else: sides of different length, more layers than two or three, ties,
steps above and below a threshold, full and empty ranks, and calls that must be refused. Each public
function is called as its example calls it and, by rule, with other numbers and other sizes; those
whose example is too plain have calls of their own (:data:`CALLS`). Norms, largest entries and sums
of absolute values stand in ``tests/data/formulas.json``: neither a sign nor the order of equal
values, which a release may choose, changes them. ``LRDYN_RECORD=1 pytest
tests/test_formulas_kept.py`` writes the file anew, after a change that is meant.
"""

import inspect
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrdyn import adapters
from lrdyn.adapters import memory, methods, projectors, state
from lrdyn.adapters.adapter import Frozen
from lrdyn.adapters.array_like import Adapted
from lrdyn.completion import problem, recovery
from lrdyn.core import chance, condition, descent, initialization, masking, spectra
from lrdyn.corollary1 import compression
from lrdyn.registry import REGISTRY
from lrdyn.theorem1 import convergence, landscape, minimisers_claims, rest_points, shrinkage
from lrdyn.theorem1 import setting as setting_of_two_layers
from lrdyn.theorem2 import collapse, subspace
from lrdyn.theorem2 import setting as setting_of_all_layers
from lrdyn.theorem3 import (
    dropblock,
    dropout_minimiser_claims,
    dropout_minimum,
    dropout_penalties,
    masked_autoencoder,
    masked_autoencoder_claims,
    network,
    several_dropout_layers,
)
from lrdyn.theorem4 import gradient_rank, memory_claims, problems
from tests.faults import wrong_calls
from tests.kept_numbers import committed
from tests.oracles import normal

pytestmark = pytest.mark.usefixtures("unchecked")

FILE = Path(__file__).parent / "data" / "formulas.json"
MODULES = (
    *(name for name in wrong_calls.MODULES if name.startswith((*REGISTRY, "core", "adapters"))),
    *"core.chance core.linalg theorem1.rest_points theorem3.statistics theorem3.network".split(),
    *"galore.projectors adapters.adapter".split(),
)
TOLERANCE = 1e-6
TURNED = {
    *("frame", "classifier_frame", "complete_basis", "gradient_basis", "compress", "equalize"),
    *("gradient_modes", "support_factors", "orthogonal_factor", "equalized_factors", "blocks"),
}
"""Functions whose results have a basis that a release may choose: their norm alone is kept."""
LEFT_OUT = {"measured_memory", "principal_angles", "moved_singular_values", "direction_angle"}
"""What compiles programs or draws for seconds, and has tests of its own."""


def digest(name, result):
    """Path of each array of a result -> its shape, its norm, its largest and its weighted entry."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(result, is_leaf=lambda x: x is None)[0]:
        place = jax.tree_util.keystr(path)
        if leaf is None or isinstance(leaf, str | bool):
            found[place] = leaf
            continue
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            continue
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        flat = np.abs(np.ravel(np.asarray(leaf, float)))
        lost, finite = int(np.sum(~np.isfinite(flat))), np.where(np.isfinite(flat), flat, 0.0)
        numbers = [np.linalg.norm(finite)]
        if name not in TURNED:
            numbers += [np.max(finite, initial=0.0), finite @ np.cos(np.arange(flat.size) / 9)]
        found[place] = [*np.shape(leaf), lost, *(float(f"{x:.9g}") for x in numbers)]
    return found


def answer(name, call):
    """What comes of a call: its numbers, or with which words it is refused."""
    try:
        with np.errstate(all="ignore"):
            return digest(name, call())
    except (ValueError, TypeError) as refused:
        ours = re.match(r"[\w\[\].]+: got .*?(?=, for which| at 0x|$)", str(refused))
        return {"refused": ours[0][:160] if ours else type(refused).__name__}


SPECTRA = ("values", "singular_values", "shrunk", "scales", "rho")
CHANCES = ("keep_prob", "fraction", "at_block")


def other(name, x: Any):
    """Another number, or array of the same shape, of the same kind."""
    if isinstance(x, bool | str | None) or callable(x):
        return x
    if isinstance(x, float) or (wrong_calls._is_array(x) and x.dtype.kind == "f"):
        if name in CHANCES:
            return 0.6 * x
        if not np.ndim(x) or name in SPECTRA:
            return 1.3 * x
        pattern = np.cos(np.arange(np.size(x)) ** 2).reshape(np.shape(x))
        return x + 0.1 * pattern.astype(np.asarray(x).dtype)
    if type(x) is tuple and x and all(map(wrong_calls._is_array, x)):
        return tuple(other("", each) for each in x)
    return x


def by_rule(module, name, function):
    """Words -> a call: that of the example, one with other numbers, one for each other size."""
    right = wrong_calls.right_call(module, name, function)
    signature = inspect.signature(function)

    def call(arguments):
        bound = inspect.BoundArguments(signature, arguments)
        return function(*bound.args, **bound.kwargs)

    yield "", partial(call, right)
    changed = {n: other(n, x) for n, x in right.items()}
    if any(changed[n] is not right[n] for n in right):
        yield "other numbers", partial(call, changed)
    for argument, x in right.items():
        if type(x) is int:
            yield f"{argument} more", partial(call, right | {argument: x + 1})
        if type(x) in (int, float):
            yield f"{argument} below", partial(call, right | {argument: type(x)(-1)})
        elif argument in SPECTRA and hasattr(x, "dtype"):
            yield f"{argument} below", partial(call, right | {argument: -x})


WIDE, TALL, SQUARE, FLAT = (jnp.asarray(x) for x in normal(3, (4, 6), (6, 4), (4, 4), (2, 6)))
VALUES, TIED = np.array([1.9, 1.1, 0.7, 0.2]), np.array([1.0, 0.8, 0.8, 0.3])
FIRST, LAST = (0.1 * x for x in normal(5, (3, 4), (4, 3)))
START = convergence.Start((LAST + FIRST.T) / 2, FIRST @ FIRST.T, LAST.T @ LAST)
STEPS = jnp.array([0, 2, 3, 7])
KEY = jax.random.key(5)


def bound_of_distance(values, decay, depth, *, rank=2, close=0.0, scale=1e-3):
    """Bound near the minimum of a target, with gradients that leave the subspaces of the layers.

    ``values`` are what is kept of the target, and behind the rank its own.
    """
    first, last, *gradients, rest = (
        scale * x for x in normal(8, (rank, 4), (4, rank), (rank, 4), (4, rank), (4, 4))
    )
    root = np.diag(values[:rank] ** (1 / depth))
    first[:, :rank] += root
    last[:rank] += root
    kept = np.where(np.arange(4) < rank, values, 0.0)
    above = np.where(np.arange(4) < rank, decay * values ** (2 / depth - 1), 0.0)
    product = np.diag(kept) + rest
    end = convergence.End(first, last, gradients[0], gradients[1], product)
    return convergence.distance_bound(end, np.diag(values + above), rank, decay, depth, close=close)


def of_adapters(call):
    """What each adapter makes of a call, with a scale and, where it has one, a start."""
    B, A, ones = WIDE[:, :2], FLAT, jnp.ones((4, 2)) / 3
    start = (ones, FLAT / 2)
    return [
        call(adapter)
        for adapter in (
            adapters.Factors(B, A, jnp.asarray(1.7), start=start),
            adapters.DirectedFactors(B, A, jnp.asarray(0.6), magnitude=jnp.arange(1.0, 5.0)),
            adapters.DeepFactors((B, SQUARE[:2, :2], A), jnp.asarray(1.3), start),
        )
    ]


def in_factors(adapter):
    W = Adapted(WIDE, adapter)
    rows = W[jnp.array([0, 3])]
    return W @ TALL, FLAT[0] @ W.T, W.T @ WIDE[:, 0], W.T @ WIDE, SQUARE @ W, TALL.T @ W.T, rows


def of_chosen(method, **how):
    """What a method chooses for two weights, both of them wider or taller than the other."""
    weights = {"wide": WIDE, "tall": TALL, "bias": jnp.ones(3)}
    return method.choose(KEY, weights, 2, how.get("side", method.side))


def kept_by_adam(policy):
    """Moments of Adam behind a change of the map, on the longer and on the shorter side."""
    old, new = (projectors.Projector(basis, "left") for basis in (WIDE[:, :2], SQUARE[:, :2]))
    rule = optax.adam(0.1)
    before = rule.update(FLAT, rule.init(FLAT))[1]
    return policy(rule.init(FLAT), before, old, new)


STAND_IN: Any = SimpleNamespace
"""A case or a network of which a formula reads a few fields alone."""
FROZEN: Any = Frozen
SHAPE: Any = jax.ShapeDtypeStruct((5, 9), "float64")
TEXT: Any = "text"
CURVATURES: Any = (
    (convergence.curvature_at_minimum, 2, (4, 5)),
    (convergence.curvature_at_minimum, 3, (4, 4)),
    (convergence.autoencoder_curvature, 2),
    (convergence.autoencoder_curvature, 3),
)
CONTINUED = masked_autoencoder.masked_moments(WIDE, jnp.array([0, 0, 1, 2]), 0.7)
CALLS = {
    # core
    "direction_share": lambda: chance.direction_share(7, 3),
    "gaussian_singular_values": lambda: chance.gaussian_singular_values(5, 9),
    "conditions": lambda: condition.conditions(
        condition.twins(lambda x: {"a": 9 * x[:1] - x[1:2], "b": x**2}, jnp.array([1.0, 3.0, -5.0]))
    ),
    "perturb_updates": lambda: _pushed_twice(),
    "simulate": lambda: descent.simulate(
        lambda w: jnp.sum((w[0] @ w[1] - WIDE) ** 2) / 2,
        (SQUARE, WIDE),
        descent.gradient_descent(0.02, jnp.array([0.1, 0.3])),
        STEPS,
    ),
    "spaced_singular_values": lambda: initialization.spaced_singular_values(4, 0.7),
    "gaussian_layers": lambda: initialization.gaussian_layers(
        KEY, (4, 2, 5), jnp.array([0.3, 2.0])
    ),
    "layer_scales": lambda: initialization.layer_scales(0.7, 3.0, 4),
    "block_covariance": lambda: masking.block_covariance(6, 3, 0.2),
    "effective_rank": lambda: spectra.effective_rank(jnp.asarray(VALUES)),
    "numerical_rank": lambda: [
        spectra.numerical_rank(jnp.array([1.0, 1e-3, least]), 9) for least in (1e-15, 1e-13)
    ],
    # theorem 1
    "shrink at the jump": lambda: shrinkage.shrink(jnp.array([2.0, 2.01, 1.99]), 1.0, 3),
    "shrink": lambda: [
        f(jnp.asarray(VALUES), decay, depth)
        for f in (shrinkage.shrink, shrinkage.local_minimum, shrinkage.barrier)
        for decay, depth in ((0.15, 3), (0.4, 4), (0.9, 5))
    ],
    "minimum": lambda: [
        shrinkage.minimum(jnp.asarray(VALUES), rank, decay, depth)
        for rank, decay, depth in ((1, 0.2, 2), (3, 0.4, 3), (4, 0.1, 4))
    ],
    "rest points": lambda: [
        (
            rest_points.rest_losses(values, rank, decay, depth),
            rest_points.next_critical_value(values, rank, decay, depth),
            rest_points.sublevel_curvature(3.0, values, rank, decay, depth),
            [
                rest_points.rest_condition(values, rank, shape, decay, depth, gradient)
                for shape in ((4, 4), (4, 6))
                for gradient in (1e-14, 0.3)
            ],
        )
        for spectrum, rank, decay, depth in (
            *((VALUES, 2, 0.1, 3), (VALUES, 4, 0.3, 4), (VALUES, 4, 3.0, 3)),
            *((TIED, 3, 0.4, 3), (TIED, 1, 0.9, 4)),
            # Values with a larger root that costs more than 0.
            (np.array([1.9, 0.95, 0.93, 0.2]), 4, 0.4, 3),
        )
        for values in [jnp.asarray(spectrum)]
    ],
    "deep_curvature": lambda: [
        rest_points.deep_curvature(VALUES, np.asarray(kept), rank, shape, decay, depth)
        for rank, decay, depth in ((2, 0.1, 3), (4, 0.15, 4), (3, 0.05, 5), (2, 4.0, 3))
        for kept in [shrinkage.shrink(jnp.asarray(VALUES), decay, depth)]
        for shape in ((4, 4), (4, 6))
    ],
    "curvature of layers that are no minimiser": lambda: [
        rest_points.deep_curvature(np.array([5.0]), np.ones(1), 1, shape, 0.1, 3)
        for shape in ((1, 1), (1, 2))
    ],
    "steps": lambda: [
        convergence._arrival_steps(wait, convergence.Curvature(0.5, 4.0), rate, 1e3)
        for wait in (0.0, 7.0)
        for rate in (0.1, 0.45, 0.6, 3.0)
    ],
    "steps_to_approach": lambda: [
        rest_points.steps_to_approach(0.3, convergence.Curvature(0.4, 2.5), rate, 1e-5)
        for rate in (0.1, 0.7, 0.9)
    ],
    "threshold": lambda: [convergence.threshold(0.3, depth) for depth in (2, 3, 5)],
    "curvatures": lambda: [
        f(values, *more, decay, close=close)
        for values in (VALUES, TIED)
        for decay in (0.0, 0.3, 0.75, 1.5)
        for close in (0.0, 0.06)
        for f, *more in CURVATURES
    ],
    "curvature of a square near the decay": lambda: convergence.autoencoder_curvature(
        np.array([2.0, 0.5]), 2, 0.25 + 0.09, close=0.1
    ),
    "sharpness": lambda: [convergence.sharpness(START, *at) for at in ((1.3, 0.2), (0.1, 0.4))],
    "steps_to_arrive": lambda: [
        convergence.steps_to_arrive(START, values, (4, 5), decay, rate, 1e-5, close=1e-9)
        for values in (VALUES, TIED)
        for decay in (0.0, 0.3, 0.75)
        for rate in (0.05, 0.4, 0.5, 3.0)
    ],
    "autoencoder_steps": lambda: [
        convergence.autoencoder_steps(START, values, decay, rate, 1e-5, close=1e-9)
        for values in (VALUES, np.array([0.6, 0.5, 0.45, 0.2]))
        for decay in (0.0, 0.1, 0.3, 5.0)
        for rate in (0.02, 0.06, 0.1, 0.5, 0.8)
    ],
    "distance_bound": lambda: [
        bound_of_distance(values, decay, depth, close=close, scale=scale)
        for values in (VALUES, np.array([1.9, 1.1, 1.1, 0.2]), np.array([1.2, 0.6, 0.3, 0.3]))
        for decay in (0.0, 0.05, 0.4)
        for depth in (2, 3, 4)
        for close in (0.0, 1e-9)
        for scale in (1e-4, 3e-3)
    ],
    "distance_bound where nothing is kept": lambda: [
        bound_of_distance(0.1 * VALUES, decay, depth) for decay in (0.5, 3.0) for depth in (2, 3)
    ],
    "start_fields": lambda: setting_of_two_layers.start_fields(
        (FLAT, TALL[:, :2]), WIDE.T @ SQUARE, WIDE
    ),
    "root of another power": lambda: minimisers_claims._root_of_another_power(
        STAND_IN(values=jnp.array([100.0, 3.0, 1.4, 0.33]), decay=jnp.asarray(0.1), depth=4)
    ),
    "landscape": lambda: [
        (
            landscape.admissible(sets, values, decay),
            landscape.critical_values(values, sets, decay),
            landscape.smallest_curvature(values, sets, decay),
            landscape.hessian_spectrum(values, sets, (4, 6), decay),
        )
        for values in map(jnp.asarray, (VALUES, TIED))
        for sets in [landscape.index_sets(4, 2)]
        for decay in (0.0, 0.25, 0.75)
    ],
    # theorem 2 and corollary 1
    "largest_change": lambda: setting_of_all_layers.largest_change(
        np.array([[3.0, 1.0], [1.0, 2.0]])
    ),
    "target_values": lambda: setting_of_all_layers.target_values(3, 0.7, 5.0),
    "rho": lambda: subspace.rho(jnp.array([0.9, 0.5, 1.2]), 0.2, jnp.array([0.1, 0.0, 0.3]), STEPS),
    "reduced_dynamics": lambda: subspace.reduced_dynamics(
        SQUARE[:2, :2], jnp.array([0.9, 0.5, 1.2]), 0.05, jnp.array([0.1, 0.0, 0.3]), STEPS
    ),
    "collapse": lambda: [
        (collapse.collapse_ratio(0.4, 7, depth), collapse.collapse_lower_bound(0.2, 40, 3, depth))
        for depth in (2, 5)
    ],
    "compression_error": lambda: [
        f(jnp.array([0.9, 0.5, 1.2]), 11, rank)
        for f in (compression.compression_error, compression.compression_bound)
        for rank in (0, 2, 5)
    ],
    "bulk_contracts": lambda: [
        compression.bulk_contracts(jnp.array([0.9, 0.5, 1.2]), rate, 0.1, 7) for rate in (0.2, 2.5)
    ],
    "parameter_counts": lambda: compression.parameter_counts(31, 4, 3),
    "gradient_gap_bound": lambda: compression.gradient_gap_bound(
        jnp.array([0.3, 0.2, 0.4]), jnp.asarray(0.7)
    ),
    # completion
    "sharpness of a target": lambda: recovery.sharpness(WIDE @ WIDE.T, 2, lambda X: 0.4 * X, 30),
    "tangent_curvature": lambda: recovery.tangent_curvature(WIDE, 2, lambda X: X * WIDE**2),
    "measurements without their values": lambda: problem.Recovery.loss(
        STAND_IN(measurements=WIDE[None], values=None, target=WIDE, mask=1.0 * (WIDE > 0)),
        WIDE[::-1],
    ),
    "surrogate": lambda: recovery.surrogate(WIDE, jnp.asarray(WIDE > 0, float)),
    # theorem 3
    "support norms": lambda: [
        (
            dropblock.support_norm(values, support),
            dropblock._support_split(values, support),
            dropblock._shares(values, support),
        )
        for values in map(jnp.array, (VALUES, [5.0, 0.4, 0.3, 0.2], [1.0, 0.5, 0.4, 0.3]))
        for support in (1, 2, 3, 4)
    ],
    "unit vectors of given weights": lambda: [
        (jnp.sum(units, axis=0), units.T @ units)
        for weights in ([3.0, 2.3, 3.7], [2.0, 3.0], [1.5, 2.5, 1.3, 3.7])
        for units in [dropblock._tetris(jnp.array(weights), round(sum(weights)))]
    ],
    "support_factors": lambda: [
        (left @ right, jnp.linalg.norm(left), dropblock.enough_blocks(WIDE, block, blocks))
        for block, blocks in ((2, 9), (3, 4), (3, 25), (6, 2))
        for left, right in [dropblock.support_factors(WIDE, block, blocks)]
    ],
    "shrink_squared_values": lambda: [
        dropout_minimum.shrink_squared_values(jnp.asarray(VALUES), strength, width)
        for strength, width in ((0.5, 2), (0.5, 4), (0.02, 4), (7.0, 3), (1e17, 3))
    ],
    "penalties": lambda: [
        dropout_penalties.dropout_penalty(WIDE, TALL, keep_prob, block=block)
        for keep_prob, block in ((0.3, 1), (0.8, 2), (0.5, 3))
    ],
    "width_free_keep_prob": lambda: [
        dropout_penalties.width_free_keep_prob(0.4, width, block=2) for width in (2, 6, 10)
    ],
    "layers_penalty": lambda: [
        several_dropout_layers.layers_penalty((FLAT, SQUARE[:, :2], WIDE[:2, :4]), TALL @ TALL.T, p)
        for p in (0.4, jnp.array([0.4, 0.9]))
    ],
    "layers": lambda: (
        several_dropout_layers.layers_strength(0.4, (3, 5)),
        several_dropout_layers.layers_schatten_bound(jnp.asarray(VALUES), 0.4, (3, 5)),
    ),
    "masked autoencoder": lambda: [
        f(SQUARE, CONTINUED)
        for f in (
            masked_autoencoder.masking_penalty,
            masked_autoencoder.masked_autoencoder_loss,
            masked_autoencoder.masked_only_loss,
        )
    ],
    "optimal autoencoders": lambda: [
        masked_autoencoder.optimal_autoencoder(CONTINUED),
        masked_autoencoder.optimal_masked_only(CONTINUED),
        masked_autoencoder.bottleneck_autoencoder(CONTINUED, 2),
        masked_autoencoder.nuclear_norm_bound(SQUARE, WIDE, 0.4),
    ],
    "data of one dimension less": lambda: [
        masked_autoencoder_claims._conditions(
            STAND_IN(width=2), moments, jnp.asarray(VALUES)
        ).regular
        for seed in range(12)
        for (data,) in [normal(seed, (4, 6))]
        for lost in (0, 1)
        for moments in [
            masked_autoencoder.masked_moments(
                jnp.asarray(data).at[:lost].set(0.0), jnp.array([0, 0, 1, 2]), 0.7
            )
        ]
    ],
    "curvature of dropout": lambda: [
        dropout_minimiser_claims._curvature(
            eqx.tree_at(lambda c: c.weights, case, tuple(scale * W for W in case.weights))
        )
        for case in [
            dropout_minimiser_claims.make_case(
                *(KEY,), rows=4, cols=5, width=3, keep_prob=0.6, learning_rate=0.1, steps=10
            )
        ]
        for scale in (1.0, 8.0)
    ],
    "odds_condition": lambda: [network.odds_condition(jnp.asarray(0.7), h) for h in (1, 3, 7)],
    # theorem 4
    "stable_rank_bounds": lambda: gradient_rank.stable_rank_bounds(
        WIDE, 0.3 * WIDE[::-1], 0.8, STEPS
    ),
    "distance": lambda: problems.distance(4 * WIDE, FLAT[:1] + 2 * WIDE),
    "problems": lambda: [
        (network_of, data, problems.LOSS[name](network_of, data))
        for name, draw in problems.DRAW.items()
        for network_of, data in [draw(KEY, 3, 5)]
    ],
    "measure_memory": lambda: memory_claims.measure_memory(
        memory_claims.LayerShape(weight=SHAPE, rank=2),
        optax.sgd(0.1, momentum=0.9),
    ),
    # adapters
    "onto": lambda: of_adapters(lambda adapter: adapter.onto(WIDE)),
    "scaled": lambda: of_adapters(lambda adapter: adapter.scaled(0.4).onto(WIDE)),
    "base": lambda: of_adapters(lambda adapter: adapter.without_start().onto(adapter.base(WIDE))),
    "Adapter.unmerge": lambda: of_adapters(lambda adapter: _unmerged(adapter)),
    "in factors": lambda: of_adapters(in_factors),
    "one entry of an adapted matrix": lambda: of_adapters(lambda a: Adapted(WIDE, a)[0, 1]),
    "a row of a transpose": lambda: of_adapters(lambda a: Adapted(WIDE, a).T[jnp.array(0)]),
    "nothing is added": lambda: (Frozen(), Frozen().onto(WIDE)),
    "nothing is added, and nothing subtracted": lambda: FROZEN(start=None),
    "choices": lambda: {
        name: of_chosen(method, side=side)
        for name, method in (
            *memory_claims.METHODS.items(),
            ("Deep", methods.deep_lora(depth=4, init_scale=0.2)),
            ("Deep, centred", methods.deep_lora(depth=4, init_scale=0.2, centred=True)),
            ("Compressed", methods.compressed_deep_lora(depth=3, init_scale=0.2)),
            (
                "Compressed, centred",
                methods.compressed_deep_lora(depth=3, init_scale=0.2, centred=True),
            ),
        )
        for side in ("left", "right", "smaller")
    },
    "directed_factors": lambda: [
        methods.directed_factors(projectors.Projector(basis, side), WIDE, jnp.ones(()))
        for basis, side in ((SQUARE[:, :2], "left"), (TALL[:, :2], "right"))
    ],
    "policies": lambda: [kept_by_adam(policy) for policy in state.POLICIES.values()],
    "transport without a moment": lambda: state.transport_moments(
        (jnp.zeros((), int), FLAT), (jnp.zeros((), int), FLAT), *_two_maps()
    ),
    "transport of a schedule beside moments": lambda: state.transport_moments(
        *[(optax.TraceState(FLAT), optax.ScaleByScheduleState(jnp.ones((), int)))] * 2, *_two_maps()
    ),
    "no matrix, and a rank of 0": lambda: projectors.choose_projectors({"b": FLAT[0]}, 0),
    "what is no map": lambda: projectors.adapter_of(TEXT, FLAT, 1.0),
    "memory": lambda: [
        f(method, 20, 30, 3)
        for method in memory_claims.METHODS.values()
        for f in (memory.weights_held, memory.adam_state, memory.state_bytes)
    ],
    "temporaries": lambda: [
        memory.temporaries(method, 20, 30, 3, 4, layered=layered, refresh=refresh)
        for method, layered, refresh in (
            *((methods.GALORE, False, False), (methods.GALORE, False, True)),
            *((methods.RELORA, False, False), (methods.RELORA, True, False)),
        )
    ],
    # refused
    "patches of a huge number of rows": lambda: masked_autoencoder.patches(2**60, 3),
    "layers of a huge number": lambda: methods.full_width_layers(KEY, (3, 5), 2**50, 0.1),
    "one layer": lambda: methods.full_width_layers(KEY, (3, 5), 1, 0.1),
    "a covariance of a huge size": lambda: masking.block_covariance(2**40, 2, 0.5),
    "fewer steps than between two looks": lambda: descent.simulate_until(
        lambda w: w**2,
        jnp.ones(()),
        descent.gradient_descent(0.1),
        1e-3,
        check_every=5,
        max_steps=0,
    ),
}


def _two_maps():
    return (projectors.Projector(basis, "left") for basis in (WIDE[:, :2], SQUARE[:, :2]))


def _unmerged(adapter):
    try:
        return adapter.unmerge(adapter.onto(WIDE))
    except ValueError as refused:
        return str(refused)


def _pushed_twice():
    rule = condition.perturb_updates(optax.sgd(1.0), (jnp.full((2, 6), 1.2),), 9)
    held = rule.init((FLAT,))
    first, held = rule.update((FLAT / 3,), held, (FLAT,))
    return first, rule.update((FLAT / 3,), held, (FLAT,))[0]


def found_in(path):
    """Function and what is put in -> what comes of it, for one module."""
    found = {}
    for module, name, function in wrong_calls.public([path]):
        if name not in LEFT_OUT and ">>>" in (function.__doc__ or ""):
            for words, call in by_rule(module, name, function):
                found[f"{name}, {words}".strip(", ")] = answer(name, call)
    return found


def same(found, wanted):
    """Whether two answers agree, numbers as far as a release may round them."""
    if found.keys() != wanted.keys():
        return False
    return all(_alike(found[place], wanted[place]) for place in wanted)


def _alike(one, another):
    if not isinstance(one, list) or not isinstance(another, list) or len(one) != len(another):
        return one == another
    size = max((abs(x) for x in another if x is not None), default=0.0)
    return one == pytest.approx(another, rel=TOLERANCE, abs=1e-12 + TOLERANCE * 1e-3 * size)


@pytest.mark.parametrize("path", MODULES)
def test_a_public_function_gives_what_it_gave(path):
    found = found_in(path)
    wanted = committed(FILE, path, found)
    assert found.keys() == wanted.keys()
    assert {n: (found[n], wanted[n]) for n in wanted if not same(found[n], wanted[n])} == {}


@pytest.mark.parametrize("name", CALLS)
def test_formulas_give_what_they_gave_far_from_their_examples(name):
    found = answer("", CALLS[name])
    wanted = committed(FILE, name, found)
    assert same(found, wanted), (found, wanted)


def test_a_large_state_is_not_kept_at_every_recorded_step():
    """Whichever array of it is the large one: only what is recorded is kept."""
    huge = 2**27

    def run(small, large):
        step = lambda t, state: (state[0] + t, 2 * state[1])  # noqa: E731
        return descent.iterate(step, (small, large), np.array([0, 3, 4]), lambda s: s[0])

    shapes = jax.ShapeDtypeStruct((), "float64"), jax.ShapeDtypeStruct((huge,), "float64")
    assert f"[3,{huge}]" not in str(jax.make_jaxpr(run)(*shapes))
