"""GaLore and ReLoRA with a frozen factor take one path on a language model under mini-batches.

Theorem 4 with opt an optimiser of gradients, a batch f_t a step and P from the batch of a refresh:

    W <- W + alpha P opt(P^T grad f_t(W))                              (GaLore)
    W + s P A,  A <- A + opt(grad of f_t(W + s P A) in A)              (ReLoRA')

are one path if alpha = s^2 for SGD and momentum, and alpha = s for Adam with its eps over s, on the
projected matrices alone: of parameters that are trained as they are both see the same gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.adapters.algorithm_1 import (
    DescentState,
    Method,
    WeightParts,
    algorithm1,
    begin,
    layered,
    merged,
)
from lrdyn.adapters.memory import model_bytes
from lrdyn.adapters.methods import FULL, GALORE, LORA, RELORA, RELORA_FROZEN
from lrdyn.adapters.projectors import Identity, Projector, is_map
from lrdyn.adapters.state import POLICIES, StatePolicy, reset
from lrdyn.core import linalg
from lrdyn.core.algorithm import Algorithm
from lrdyn.networks import Llama, llama
from lrdyn.studies.low_rank_training.model import (
    PROJECTED,
    choose_maps,
    is_projected,
    next_token_loss,
    read_text,
)
from lrdyn.verification.stating.claims import RESOLVED, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

WIDTH, HIDDEN, HEADS, LETTERS = 16, 24, 2, 32
"""Sizes of the network, of one block. Tokens are bytes modulo 32: letters without their case."""
RANK, PERIOD, STEPS, BATCH, LENGTH = 4, 10, 50, 2, 16
"""r, T, steps, windows of a batch and tokens of a window."""
READ = 2**16
"""Tokens of the text from which windows are drawn."""
SCALES = (1.0, 0.5)
"""s."""
EPSILON = 1e-8
"""Adam's own eps, as everybody has it."""
DECAY = 0.1
"""lambda."""
RATES = {"sgd": 0.5, "momentum": 0.1, "adam": 1e-3}
"""Step size of each optimiser."""
DISTURBANCE = 8
"""Machine epsilons by which a start is moved: 1.8e-15 in float64."""
POLICY_NAMES = tuple(POLICIES)
METHODS = {
    "full": FULL,
    "lora": LORA,
    "galore": GALORE,
    "relora": RELORA,
    "relora_frozen": RELORA_FROZEN,
}
"""Methods whose bytes are counted."""


class PathCase(eqx.Module):
    """A small LLaMA, a batch for each step, and an optimiser."""

    start: Llama
    batches: Int[Array, "refresh period batch length"]
    optimizer: str = eqx.field(static=True)


class PathTheory(NamedTuple):
    """ReLoRA with a frozen factor, by differentiating in the factor."""

    merged: Float[Array, "policy scale refresh weight"] = ABSENT
    """Weights at the end of the first and of the last period, W + s P A formed."""
    layered: Float[Array, "policy scale refresh weight"] = ABSENT
    """The same where a layer computes W x + s P (A x)."""
    decayed: Float[Array, "policy refresh weight"] = ABSENT
    """The same with s = 1 and a decay of W."""
    response: Float[Array, "policy scale"] = ABSENT
    """How far a start that is moved by :data:`DISTURBANCE` roundings ends, over that, relative to
    what training changes; at least 1."""
    start: Float[Array, "weight"] = ABSENT
    """W_0."""
    trained: Int[Array, ""] = ABSENT
    """Entries in which ReLoRA' differentiates, by the shapes."""
    held: Int[Array, "method"] = ABSENT
    """Bytes of weights, of Adam's state and of P, the formulas of Table 1 summed, by method."""


class PathMeasured(NamedTuple):
    """GaLore: projected gradients, and updates that are lifted."""

    galore: Float[Array, "policy scale refresh weight"] = ABSENT
    """Weights at the same steps."""
    decayed: Float[Array, "policy refresh weight"] = ABSENT
    """The same with s = 1 and a decay of W."""
    trained: Int[Array, ""] = ABSENT
    """Entries in which ReLoRA' does differentiate."""
    held: Int[Array, "method"] = ABSENT
    """Bytes of all arrays that a run begins with."""


def make_path_case(key: Key[Array, ""], *, text: str, optimizer: str) -> PathCase:
    """Draw a start, and windows of a text."""
    start_key, key = jax.random.split(key)
    start = llama(start_key, vocabulary=LETTERS, width=WIDTH, depth=1, heads=HEADS, hidden=HIDDEN)
    tokens = jnp.asarray(read_text(text, 256).training[:READ] % LETTERS, jnp.int32)
    places = jax.random.randint(key, (STEPS, BATCH), 0, len(tokens) - LENGTH)
    windows = tokens[places[..., None] + jnp.arange(LENGTH + 1)[None, None, :]]
    return PathCase(start, windows.reshape(-1, PERIOD, BATCH, LENGTH + 1), optimizer)


# Optimisers and policies --------------------------------------------------------------------------


def _direction(name: str, eps: Any) -> optax.GradientTransformation:
    """The direction of a step, before its rate."""
    return {
        "sgd": optax.identity,
        "momentum": lambda: optax.trace(0.9),
        "adam": lambda: optax.scale_by_adam(eps=eps),
    }[name]()


def make_optimizer(
    name: str, eps: Any = EPSILON, others_eps: Any = EPSILON, decay: float = 0.0
) -> optax.GradientTransformation:
    """An optimiser with one eps for the projected matrices and one for all other parameters.

    Args:
        name: of :data:`RATES`.
        eps: of the projected matrices.
        others_eps: of all else.
        decay: lambda of a decoupled decay.
    """
    first, second = _direction(name, eps), _direction(name, others_eps)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # Of both Adams the state is one and the same. ``optax.partition`` would split it in two,
        # which ``transport`` takes for a state of maps that are trained.
        projected, after = first.update(updates, state, params)
        others, _ = second.update(updates, state, params)
        chosen = jax.tree_util.tree_map_with_path(
            lambda path, one, other: one if is_projected(path) else other, projected, others
        )
        return chosen, after

    both = optax.GradientTransformation(first.init, update)
    added = optax.add_decayed_weights(decay) if decay else optax.identity()
    return optax.chain(both, added, optax.scale(-RATES[name]))


def one_of_policies(
    number: Int[Array, ""], policies: tuple[StatePolicy, ...] = tuple(POLICIES.values())
) -> StatePolicy:
    """The policy of a number, which may be traced: one program serves all of them."""

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree) -> PyTree:
        every = [one(fresh, state, old, new) for one in policies]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[number], *every)

    return policy


def decay_frozen(rule: Algorithm, factor: float) -> Algorithm:
    """An adapter whose frozen W decays too, as its factor does: together, a decay of W + s P A.

    Args:
        rule: of :data:`lrdyn.RELORA_FROZEN`, whose optimiser decays the factor.
        factor: 1 - rate * lambda.
    """

    def step(cost: Any, held: DescentState) -> tuple[Any, Any, DescentState]:
        value, other, held = rule.step(cost, held)
        W, S = held.split.frozen
        frozen = jax.tree.map(lambda leaf: factor * leaf, W), S
        return value, other, held._replace(split=held.split._replace(frozen=frozen))

    return rule._replace(step=step)


# Paths --------------------------------------------------------------------------------------------

Choice = Callable[[Any, PyTree], PyTree]


def follow(
    rule: Algorithm,
    start: Llama,
    batches: Int[Array, "refresh period batch length"],
    stale: int = 0,
) -> Float[Array, "refresh weight"]:
    """Run Algorithm 1 on a batch a step, and return all weights at the end of each period.

    Args:
        rule: Algorithm 1.
        start: W_0.
        batches: of all steps, by periods.
        stale: periods by which the batch that P comes from lies back, for a control.
    """
    of_refresh = jnp.roll(batches[:, 0], stale, axis=0)

    def cost(batch: Array) -> Callable[[Llama], tuple[Array, None]]:
        return lambda net: (next_token_loss(net, batch), None)

    def period(held: PyTree, batches: tuple[Array, Array]) -> tuple[PyTree, Array]:
        assert rule.refresh is not None
        every, first = batches
        held = rule.refresh(None, cost(first), held)
        held, _ = jax.lax.scan(lambda h, b: (rule.step(cost(b), h)[2], None), held, every)
        return held, ravel_pytree(rule.weights(held))[0]

    return jax.lax.scan(period, rule.begin(start), (batches, of_refresh))[1]


def paths(
    case: PathCase,
    method: Method,
    *,
    start: Llama | None = None,
    choose: Choice | None = None,
    policies: tuple[StatePolicy, ...] = tuple(POLICIES.values()),
    network: Callable[[WeightParts, Any], PyTree] = merged,
    eps: Callable[[Any], tuple[Any, Any]] | None = None,
    stale: int = 0,
) -> Float[Array, "policy scale two weight"]:
    """Follow a method with every policy and scale: weights after the first and the last period.

    Args:
        case: the problem.
        method: GaLore, whose alpha is matched to s, or an adapter of scale s.
        start: W_0 in the place of that of the case.
        choose: maps in the place of GaLore's.
        policies: in the place of keep, reset and transport.
        network: what the loss is given.
        eps: of the projected matrices and of all others, as a function of s.
        stale: see :func:`follow`.
    """
    start = case.start if start is None else start
    matched = (lambda s: (EPSILON / s, EPSILON)) if method.projects else lambda s: (EPSILON,) * 2
    squared = method.projects and case.optimizer != "adam"

    def run(number: Array, scale: Array) -> Array:
        rule = algorithm1(
            method,
            make_optimizer(case.optimizer, *(eps or matched)(scale)),
            period=PERIOD,
            choose=choose or choose_maps(GALORE, RANK),
            state=one_of_policies(number, policies),
            scale=scale**2 if squared else scale,
            network=network,
        )
        return follow(rule, start, case.batches, stale)[np.array([0, -1])]

    scales = jnp.asarray(SCALES, case.start.head.dtype)
    over_scales = jax.vmap(run, (None, 0))
    return jax.vmap(over_scales, (0, None))(jnp.arange(len(policies)), scales)


def decayed_paths(
    case: PathCase, method: Method, of_all: bool = True
) -> Float[Array, "policy two weight"]:
    """Follow a method with s = 1 and a decay: of all of W, or of what the optimiser is given."""

    def run(number: Array) -> Array:
        rule = algorithm1(
            method,
            make_optimizer(case.optimizer, decay=DECAY),
            period=PERIOD,
            choose=choose_maps(GALORE, RANK),
            state=one_of_policies(number),
        )
        if of_all and not method.projects:
            rule = decay_frozen(rule, 1 - RATES[case.optimizer] * DECAY)
        return follow(rule, case.start, case.batches)[np.array([0, -1])]

    return jax.vmap(run)(jnp.arange(len(POLICIES)))


def moved_start(start: Llama) -> Llama:
    """W_0, each array moved by :data:`DISTURBANCE` roundings of its largest entry.

    The pattern is a cosine of squares, without symmetries that an invariant could hide behind.
    """

    def move(leaf: Array) -> Array:
        place = jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
        size = DISTURBANCE * jnp.finfo(leaf.dtype).eps * jnp.max(jnp.abs(leaf))
        return leaf + size * jnp.cos(place**2)

    return jax.tree.map(move, start)


def count_entries(case: PathCase, rank: int = RANK) -> int:
    """Entries that ReLoRA' trains: r times the longer side of a projected matrix, and the rest."""
    return sum(
        rank * max(leaf.shape) if is_projected(path) else leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(case.start)
    )


def predict_held(case: PathCase, rank: int = RANK) -> Int[Array, "method"]:
    """Bytes that each method holds, by the formulas of Table 1 for every matrix."""
    net = jax.eval_shape(lambda net: net, case.start)
    held = [model_bytes(method, net, rank, PROJECTED) for method in METHODS.values()]
    return jnp.asarray(held, jnp.int32)


def measure_held(case: PathCase) -> Int[Array, "method"]:
    """Bytes of the arrays with which a run of each method begins under Adam."""

    def begun(method: Method, net: Llama) -> DescentState:
        everything = method.choose(jax.random.key(0), net, RANK, method.side)
        maps = everything if method is FULL else choose_maps(method, RANK)(jax.random.key(0), net)
        return begin(method, optax.adam(RATES["adam"]), net, maps)

    runs = [jax.eval_shape(partial(begun, method), case.start) for method in METHODS.values()]
    held = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run)) for run in runs]
    return jnp.asarray(held, jnp.int32)


def predict_paths(case: PathCase) -> PathTheory:
    """ReLoRA' with all policies and scales, and how far it carries an error of its start."""
    weights = paths(case, RELORA_FROZEN)
    start = ravel_pytree(case.start)[0]
    moved = paths(case, RELORA_FROZEN, start=moved_start(case.start))
    change = jnp.max(jnp.abs(weights - start[None, None, None, :]), axis=(2, 3))
    apart = jnp.max(jnp.abs(weights - moved), axis=(2, 3)) / change
    return PathTheory(
        merged=weights,
        layered=paths(case, RELORA_FROZEN, network=layered),
        decayed=decayed_paths(case, RELORA_FROZEN),
        response=jnp.maximum(1.0, apart / (DISTURBANCE * jnp.finfo(start.dtype).eps)),
        start=start,
        trained=jnp.asarray(count_entries(case), jnp.int32),
        held=predict_held(case),
    )


def _differentiated(case: PathCase) -> Int[Array, ""]:
    rule = algorithm1(
        RELORA_FROZEN, optax.identity(), period=PERIOD, choose=choose_maps(GALORE, RANK)
    )
    trained = jax.eval_shape(rule.begin, case.start).split.trained
    return jnp.asarray(sum(leaf.size for leaf in jax.tree.leaves(trained)), jnp.int32)


def measure_paths(case: PathCase) -> PathMeasured:
    """GaLore with all policies and scales."""
    return PathMeasured(
        galore=paths(case, GALORE),
        decayed=decayed_paths(case, GALORE),
        trained=_differentiated(case),
        held=measure_held(case),
    )


# Claims -------------------------------------------------------------------------------------------

PathOutcome = Outcome[PathTheory, PathMeasured]


def _compare(theirs: Any, ours: Any, start: Any, factor: Any) -> Equal:
    """Compare relative to what training changes, times what an error grows to."""
    scale = np.max(np.abs(theirs - start))
    return Equal(theirs / factor, ours / factor, scale, null=start / factor)


def _each_lane(field: str) -> Callable[[PathOutcome], tuple[Equal, ...]]:
    """Compare each policy and scale by itself, each with the response of its own."""

    def forms(outcome: PathOutcome) -> tuple[Equal, ...]:
        theory = outcome.predicted
        weights, response = getattr(theory, field), theory.response
        lanes = np.ndindex(response.shape)
        return tuple(
            _compare(weights[lane], outcome.measured.galore[lane], theory.start, response[lane])
            for lane in lanes
        )

    return forms


def _each_policy(outcome: PathOutcome) -> tuple[Equal, ...]:
    theory = outcome.predicted
    return tuple(
        _compare(theirs, ours, theory.start, response)
        for theirs, ours, response in zip(
            theory.decayed, outcome.measured.decayed, theory.response[:, 0], strict=True
        )
    )


def _ill_conditioned(outcome: PathOutcome) -> str:
    """Whether the precision leaves no digits of a path that carries errors so far."""
    limit = tolerance("identity", outcome.dtype, steps=STEPS, size=outcome.size)
    worst = limit * np.max(outcome.predicted.response)
    return "" if worst <= RESOLVED else "ill-conditioned"


# Controls -----------------------------------------------------------------------------------------


def gram_projector(gradient: Float[Array, "m n"], rank: int) -> Projector:
    """The first eigenvectors of G G^T (G^T G on the right), with the signs that LAPACK gives."""
    m, n = gradient.shape
    gram = gradient @ gradient.T if m <= n else gradient.T @ gradient
    return Projector(linalg.eigh(gram)[1][:, ::-1][:, :rank], "left" if m <= n else "right")


def _choose_gram(key: Any, gradients: PyTree) -> PyTree:
    maps = choose_maps(GALORE, RANK)(key, gradients)
    return jax.tree.map(
        lambda S, G: S if isinstance(S, Identity) else gram_projector(G, RANK),
        maps,
        gradients,
        is_leaf=is_map,
    )


def _other_policy(case: PathCase) -> PathMeasured:
    keep, *others = POLICIES.values()
    return PathMeasured(galore=paths(case, GALORE, policies=(*others, keep)))


def _count_kept(case: PathCase) -> PathMeasured:
    policies = POLICIES | {"reset": reset(count=False)}
    return PathMeasured(galore=paths(case, GALORE, policies=tuple(policies.values())))


def _control(id: str, statement: str, measure: Any, claim: str = "merged", **how: Any) -> Control:
    # Of gradients alone, SGD has no state to be treated in another way.
    return Control(id, statement, claim, measure=measure, at={"optimizer": "adam"}, **how)


PATHS = Scenario[PathCase, PathTheory, PathMeasured](
    "paths",
    make_path_case,
    predict_paths,
    measure_paths,
    theory=PathTheory,
    measured=PathMeasured,
    claims=(
        Claim(
            "merged",
            "GaLore and ReLoRA' are one path on a LLaMA, 50 mini-batches, T = 10, with the state "
            "kept, reset or transported, s = 1 and 1/2, SGD, momentum, Adam",
            form=_each_lane("merged"),
            reads=lambda theory, run: (theory.merged, theory.response, theory.start, run.galore),
            undecided=_ill_conditioned,
            steps=STEPS,
            precision="float64",
        ),
        Claim(
            "layered",
            "so they are where a layer computes W x + s P (A x)",
            form=_each_lane("layered"),
            reads=lambda theory, run: (theory.layered, theory.response, theory.start, run.galore),
            undecided=_ill_conditioned,
            steps=STEPS,
            precision="float64",
        ),
        Claim(
            "decayed",
            "so they are with a decoupled decay of W in both: of ReLoRA' the frozen W decays with "
            "the factor",
            form=_each_policy,
            reads=lambda theory, run: (
                theory.decayed,
                theory.response,
                theory.start,
                run.decayed,
            ),
            undecided=_ill_conditioned,
            steps=STEPS,
            precision="float64",
        ),
        Claim(
            "trained",
            "ReLoRA' differentiates in r times the longer side of each projected matrix, and in "
            "all of the others: what predicts is not GaLore again",
            kind="exact",
            carries=False,
            sides="shapes against the arrays that are trained",
        ),
        Claim(
            "held",
            "every method holds what Table 1 says of each projected matrix, and three times what "
            "is trained as it is, to the byte",
            kind="exact",
            sides="formulas of Table 1 against the arrays of a run",
        ),
    ),
    controls=(
        _control("other_policy", "another policy", _other_policy),
        _control("count_kept", "moments reset, Adam's count kept", _count_kept),
        _control(
            "one_eps",
            "eps / s for all parameters",
            lambda case: PathMeasured(
                galore=paths(case, GALORE, eps=lambda s: (EPSILON / s, EPSILON / s))
            ),
            precision="float64",
        ),
        _control(
            "equal_eps",
            "the eps of the adapter",
            lambda case: PathMeasured(galore=paths(case, GALORE, eps=lambda s: (EPSILON, EPSILON))),
            precision="float64",
        ),
        _control(
            "both_trained",
            "both factors trained, from GaLore's P",
            # A state of both has no transport.
            lambda case: PathMeasured(
                galore=paths(case, RELORA, policies=(POLICIES["keep"], *[POLICIES["reset"]] * 2))
            ),
        ),
        _control(
            "stale",
            "P from the batch of the refresh before",
            lambda case: PathMeasured(galore=paths(case, GALORE, stale=1)),
        ),
        _control(
            "without_signs",
            "eigenvectors of G G^T without a rule for signs",
            lambda case: PathMeasured(galore=paths(case, GALORE, choose=_choose_gram)),
        ),
        Control(
            "layered_other_policy",
            "another policy",
            "layered",
            measure=_other_policy,
            at={"optimizer": "adam"},
        ),
        _control(
            "decay_of_the_factor",
            "the factor alone decays",
            lambda case: PathMeasured(decayed=decayed_paths(case, RELORA_FROZEN, of_all=False)),
            "decayed",
        ),
        Control(
            "trained_another_rank",
            "the count of another rank",
            "trained",
            predict=lambda case: PathTheory(
                trained=jnp.asarray(count_entries(case, RANK + 1), jnp.int32)
            ),
        ),
        Control(
            "held_another_rank",
            "the bytes of another rank",
            "held",
            predict=lambda case: PathTheory(held=predict_held(case, RANK + 1)),
        ),
    ),
    sides="an adapter by differentiation in its factor against projected gradients, lifted",
)
