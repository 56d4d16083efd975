"""What the methods of Theorem 4 and their relatives hold: the weights and states of Table 1.

For W of m x n, m <= n, and rank r, with Adam, in entries beside an int32 for the steps:

    full training   mn of weights           2mn of state
    LoRA, ReLoRA    mn + r(m + n)           2r(m + n)
    B frozen        mn + r(m + n)           2nr
    GaLore          mn                      mr + 2nr    (P and the moments)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.adapters import memory
from lrdyn.adapters.algorithm_1 import Method, begin
from lrdyn.adapters.methods import FULL, GALORE, LORA, RELORA, RELORA_FROZEN
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Claim, Control, Scenario

METHODS: dict[str, Method] = {
    "full": FULL,
    "lora": LORA,
    "relora": RELORA,
    "relora_frozen": RELORA_FROZEN,
    "galore": GALORE,
}
"""The rows of Table 1 that are methods of this library."""


class LayerShape(NamedTuple):
    """Shapes alone: nothing is drawn and nothing is run."""

    weight: Float[Array, "m n"]
    rank: int


class MemoryHeld(NamedTuple):
    """Weights and state of each method, by its formula or counted in arrays."""

    weights_held: Int[Array, "method"] = ABSENT
    """Entries of the weights, and of the factors of an adapter."""
    state_held: Int[Array, "method"] = ABSENT
    """Bytes of the optimiser's state, and of P where the network does not know it."""


def make_layer(key: Key[Array, ""], *, rows: int, cols: int, rank: int) -> LayerShape:
    """Make one matrix in the precision of the run."""
    return LayerShape(jnp.zeros((rows, cols)), rank)


def predict_memory(case: LayerShape) -> MemoryHeld:
    """The formulas of each method."""
    m, n = case.weight.shape
    size, methods = case.weight.dtype.itemsize, METHODS.values()
    return MemoryHeld(
        weights_held=jnp.asarray([memory.weights_held(each, m, n, case.rank) for each in methods]),
        state_held=jnp.asarray(
            [memory.state_bytes(each, m, n, case.rank, size) for each in methods]
        ),
    )


def count_arrays(
    method: Method, rule: optax.GradientTransformation, case: LayerShape
) -> MemoryHeld:
    """Entries of the weights and bytes of the state with P, in the arrays of a new run."""

    def start(W: Array, key: Array) -> tuple[PyTree, PyTree]:
        maps = method.choose(key, W, case.rank, method.side)
        split, *inner = begin(method, rule, W, maps)
        parts = method.parts(split)
        if parts.coordinates is None:  # P is no factor of the network: it is held beside the state
            return parts.weights, (inner, parts.maps)
        return (parts.weights, parts.maps, parts.coordinates), inner

    # Shapes decide: no array of the size of a layer is made.
    weights, state = jax.eval_shape(start, case.weight, jax.eval_shape(lambda: jax.random.key(0)))
    return MemoryHeld(
        weights_held=jnp.asarray(sum(leaf.size for leaf in jax.tree.leaves(weights))),
        state_held=jnp.asarray(
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        ),
    )


def measure_memory(
    case: LayerShape, optimizer: optax.GradientTransformation | None = None
) -> MemoryHeld:
    """Count the arrays of each method, with Adam unless another optimiser is given."""
    rule = optimizer or optax.adam(1.0)
    # The rate of Adam is no array, and counts nothing.
    counts = [count_arrays(method, rule, case) for method in METHODS.values()]
    return MemoryHeld(*map(jnp.stack, zip(*counts, strict=True)))


def _without_factor(case: LayerShape) -> MemoryHeld:
    """Formulas less m r: a factor is missing from the weights, and P from the state."""
    formulas, least = predict_memory(case), case.rank * min(case.weight.shape)
    less = least * np.array([0, 1, 1, 1, 1])
    return MemoryHeld(formulas.weights_held - less, formulas.state_held - less)


def _first_shapes(settings: dict) -> dict:
    """The first value of each flag that decides a shape."""
    return settings | {name: settings[name][:1] for name in ("rows", "cols", "rank")}


MEMORY = Scenario[LayerShape, MemoryHeld, MemoryHeld](
    "memory",
    make_layer,
    predict_memory,
    measure_memory,
    theory=MemoryHeld,
    measured=MemoryHeld,
    claims=(
        Claim(
            "weights_held",
            "full training and GaLore hold the mn entries of W, LoRA and ReLoRA r(m + n) more",
            kind="exact",
            carries=False,
        ),
        Claim(
            "state_held",
            "for m <= n Adam and P hold 2mn entries (full training), 2r(m + n) (LoRA, ReLoRA), "
            "2nr (ReLoRA with B frozen) or mr + 2nr (GaLore), and an int32, in bytes",
            kind="exact",
            carries=False,
        ),
    ),
    controls=(
        Control(
            "factors_forgotten",
            "one factor, of m x r, not counted",
            "weights_held",
            predict=_without_factor,
        ),
        Control(
            "wider_factors",
            "factors of one column more",
            "weights_held",
            measure=lambda case: measure_memory(case._replace(rank=case.rank + 1)),
        ),
        Control(
            "projector_forgotten",
            "m r less for all but full training",
            "state_held",
            predict=_without_factor,
        ),
        Control(
            "state_of_momentum",
            "momentum in the place of Adam",
            "state_held",
            measure=lambda case: measure_memory(case, optax.trace(0.9)),
        ),
    ),
    narrow=_first_shapes,
    traced=False,
    sides="formulas in m, n, r against arrays counted",
    at={"rows": 8, "cols": 12, "rank": 2},
)
