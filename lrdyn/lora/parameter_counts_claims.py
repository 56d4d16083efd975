"""How many numbers adapters train, from the shapes of known models alone.

For each m x n matrix LoRA trains r (m + n) numbers, Deep LoRA of three layers r^2 more, and its
compressed form 3 r^2 more than LoRA.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrdyn import adapters
from lrdyn.core.selection import Patterns
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Claim, Control, Scenario

RANK = 8
"""r, of all adapters that are counted."""
MATRICES = ["encoder.*", "pooler.*", "embeddings.word_embeddings.weight"]
"""Patterns of the names of the matrices that have adapters."""
WITH_POSITIONS = [*MATRICES, "embeddings.position_embeddings.weight"]
"""These, and the table of positions."""
SHAPES = {"bert": (768, 3072, 28996, 12), "minilm": (384, 1536, 30522, 6)}
"""Width, width of the perceptron, words and layers of BERT-base (cased) and MiniLM-L6."""
ROWS = [("bert", MATRICES), ("bert", WITH_POSITIONS), ("minilm", MATRICES)]
"""Models and selections that are counted."""
KNOWN = [
    [74, 1_577_504, 1_582_240, 1_591_712],
    [75, 1_587_744, 1_592_544, 1_602_144],
    [38, 585_168, 587_600, 592_464],
]
"""Matrices, and what LoRA, Deep LoRA (r^2 more a matrix) and its compressed form (3 r^2) train."""


class Counts(NamedTuple):
    """Numbers of trained parameters, known or counted."""

    parameters: Int[Array, "model number"] = ABSENT
    """Number of matrices and of parameters of each method, for each model and selection."""


@cache
def shapes(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a model by name."""
    width, inner, words, layers = SHAPES[name]
    sizes = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    squares = [f"attention.self.{part}" for part in ("query", "key", "value")]
    squares += ["attention.output.dense"]
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}."
        sizes |= {f"{prefix}{part}.weight": (width, width) for part in squares}
        sizes |= {f"{prefix}{part}.bias": (width,) for part in squares}
        sizes[f"{prefix}intermediate.dense.weight"] = (inner, width)
        sizes[f"{prefix}output.dense.weight"] = (width, inner)
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in sizes.items()}


@cache
def _count_cached(name: str, select: tuple[str, ...]) -> list[int]:
    net = shapes(name)

    def init_shapes(method: adapters.Method) -> dict:
        # The choice is traced once for all matrices of a shape.
        once = method._replace(choose=jax.jit(method.choose, static_argnums=(2, 3)))

        def begin(net: dict) -> dict:
            how = {"select": list(select), "rank": RANK, "method": once, "gradients": net}
            return adapters.init(jax.random.key(0), net, **how)

        # Shapes alone: the weights of BERT-base would take 400 MB.
        return jax.eval_shape(begin, net)

    methods = (adapters.LORA, adapters.deep_lora(), adapters.compressed_deep_lora())
    trained = [init_shapes(method) for method in methods]
    return [len(trained[0]), *map(adapters.count, trained)]


def count_parameters(name: str, select: Patterns) -> list[int]:
    """Count the matrices of a model that are selected, and the parameters of each method.

    Args:
        name: of the model, one of :data:`SHAPES`.
        select: which matrices have adapters, by their names.
    """
    return list(_count_cached(name, tuple([select] if isinstance(select, str) else select)))  # pyright: ignore


def make_nothing(key: Key[Array, ""]) -> Float[Array, ""]:
    """Make a case without content: shapes alone decide."""
    return jnp.zeros(())


def measure_counts(case: Float[Array, ""]) -> Counts:
    """Count what each method trains of each model, from its shapes."""
    return Counts(jnp.asarray([count_parameters(*row) for row in ROWS], jnp.int32))


def _every_large_matrix(case: Float[Array, ""]) -> Counts:
    return Counts(
        jnp.asarray([count_parameters(name, WITH_POSITIONS) for name, _ in ROWS], jnp.int32)
    )


COUNTS = Scenario[Array, Counts, Counts](
    "counts",
    make_nothing,
    lambda case: Counts(jnp.asarray(KNOWN, jnp.int32)),
    measure_counts,
    theory=Counts,
    measured=Counts,
    claims=(
        Claim(
            "parameters",
            "with r = 8, of BERT-base's 74 matrices LoRA trains 1,577,504 parameters, Deep LoRA "
            "1,582,240 and its compressed form 1,591,712 (with positions 1,587,744, 1,592,544 "
            "and 1,602,144), of MiniLM's 38 matrices 585,168, 587,600 and 592,464",
            kind="exact",
            carries=False,
        ),
    ),
    controls=(
        Control(
            "every_large_matrix",
            "positions selected everywhere",
            "parameters",
            measure=_every_large_matrix,
        ),
    ),
    # The flags decide nothing: one value of each is enough.
    narrow=lambda settings: {
        name: values[:1] if isinstance(values, tuple) else values
        for name, values in settings.items()
    },
    traced=False,
    sides="known numbers against arrays counted, selected by name",
)
