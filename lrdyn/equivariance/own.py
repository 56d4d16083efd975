"""Theorem 2 for an optimiser of one's own: tried for equivariance first, then verified."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Weights
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.equivariance.trial import descend, distance, draw_problem
from lrdyn.theorem2 import setting
from lrdyn.theorem2.optimizers import Optimizer
from lrdyn.theorem2.statement import FACTORIZATION, THEOREM2
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Theorem

TRIAL_STEPS = 30
"""Steps of the run that tries an optimiser."""
OF_THE_OPTIMIZER = ("weight_decay", "decay_spread", "learning_rate", "optimizer")
"""Flags of Theorem 2 that an optimiser of one's own has itself."""


class OwnFactorization(setting.DeepFactorization):
    """A run of deep factorisation by an optimiser that is given, with its rate and its decay."""

    trial_key: Key[Array, ""] = eqx.field(kw_only=True)
    """Of the run in which the optimiser is tried."""


@at_most("the same run in random bases less the run, over how far it moved")
def equivariant(case: OwnFactorization) -> Extent:
    """Check that the optimiser takes the same path in random bases, from a Gaussian start."""

    def run(layers: Weights, target: Array) -> Weights:
        return descend(case.optimizer, layers, target, TRIAL_STEPS)[0]

    problem = draw_problem(case.trial_key, len(case.target), len(case.weights), case.rank)
    apart, moved = distance(run, problem.layers, problem.target, problem.turned)
    # Half of the digits: rounding is far below, and what sees the basis is far above.
    return Extent(apart / moved, half_of_the_digits(case.target.dtype))


@checked
def theorem2_for(optimizer: optax.GradientTransformation) -> Theorem:
    """Theorem 2 for an optimiser of one's own, to be given to :func:`lrdyn.verify`.

    Theory's own run is that of the same optimiser from ``eps_l I`` on ``blkdiag(Phi~, 0)``, the
    problem in its frame. A case is judged if the optimiser passes a trial (hypothesis
    ``equivariant``); the verdict says how far it is from that.

    Args:
        optimizer: any of optax, with its rate and decay. Layers are a tuple of d x d arrays. It
            must take a step from gradients, its state and the layers: one that asks for the loss
            besides, as a line search does, is refused when it is verified.

    Example:
        >>> import lrdyn
        >>> mine = theorem2_for(optax.chain(optax.clip_by_block_rms(0.01), optax.sgd(0.1)))
        >>> small = {"dim": 9, "depth": 2, "rank": 2, "init_scale": 0.5, "steps": 9, "seeds": 1}
        >>> lrdyn.verify(mine, **small).outcome
        <Decision.HOLDS: 'holds'>
    """
    rule = Optimizer("own", lambda *_: optimizer)

    def make_case(
        key: Key[Array, ""],
        *,
        dim: int,
        depth: int,
        rank: int,
        init_scale: Any,
        init_spread: Any,
        target_scale: Any,
        target_condition: Any,
        steps: int,
        target: np.ndarray | None = None,
    ) -> OwnFactorization:
        drawn, tried = jax.random.split(key)
        none = jnp.zeros_like(init_scale)
        run = setting.make_case(
            drawn,
            dim=dim,
            depth=depth,
            rank=rank,
            init_scale=init_scale,
            init_spread=init_spread,
            weight_decay=none,
            decay_spread=none + 1,
            learning_rate=none,
            target_scale=target_scale,
            target_condition=target_condition,
            steps=steps,
            target=target,
        )
        fields: dict[str, Any] = vars(run) | {"rule": rule}
        return OwnFactorization(**fields, trial_key=tried)

    def check(point: Mapping[str, Any]) -> None:
        setting.check(point)
        _refuse_unless_it_steps(optimizer, point["depth"], point["dim"])

    controls = tuple(c for c in FACTORIZATION.controls if c.id in CONTROLS)
    hypotheses: dict[str, Any] = {**FACTORIZATION.hypotheses, "equivariant": equivariant}
    scenario = dataclasses.replace(
        FACTORIZATION,
        case=make_case,
        controls=controls,
        hypotheses=hypotheses,
        sides="the optimiser in the frame against the optimiser on dense layers",
    )
    return Theorem(
        "theorem2_own",
        "an optimiser of one's own keeps the blocks of Theorem 2",
        tuple(flag for flag in THEOREM2.flags if flag.name not in OF_THE_OPTIMIZER),
        (scenario,),
        prepare=lambda settings, given: _without_rates(settings, given),
        check=check,
        axes=setting.AXES,
        numbers=setting.numbers,
    )


CONTROLS = ("gaussian_start", "rank_above_r", "masked_loss", "frame_of_the_rows")
"""Controls of Theorem 2 that break a claim about any optimiser."""


def _refuse_unless_it_steps(optimizer: optax.GradientTransformation, depth: int, dim: int) -> None:
    """Trace one step, of layers as many and as large as those of the run."""
    layers = tuple(jax.ShapeDtypeStruct((dim, dim), float) for _ in range(depth))

    def step(params: Any) -> Any:
        return optimizer.update(params, optimizer.init(params), params)[0]

    wanted = "an optimiser that takes a step from gradients, state and layers"
    try:
        updates = jax.eval_shape(step, layers)
    except Exception as error:  # anything: it is somebody else's
        first = next(iter(str(error).splitlines()), "")
        checks.refuse("optimizer", f"one that raises {type(error).__name__}: {first}", wanted)
    shapes = [getattr(update, "shape", None) for update in jax.tree.leaves(updates)]
    if shapes != [layer.shape for layer in layers]:
        checks.refuse("optimizer", f"updates of shape {shapes} of {depth} layers", wanted)


def _without_rates(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    rates = {"optimizer": (), "learning_rate": ()}
    prepared = setting.prepare(settings | rates, given)
    return {name: value for name, value in prepared.items() if name in settings}
