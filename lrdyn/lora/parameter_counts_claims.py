"""How many numbers adapters train, from the shapes of known models alone."""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrdyn import adapters
from lrdyn.core.selection import Patterns
from lrdyn.engine.statement import Claim, Control, Scenario

RANK = 8
MATRICES = ["encoder.*", "pooler.*", "embeddings.word_embeddings.weight"]
WITH_POSITIONS = [*MATRICES, "embeddings.position_embeddings.weight"]
SHAPES = {"bert": (768, 3072, 28996, 12), "minilm": (384, 1536, 30522, 6)}
"""Width, width of the perceptron, words and layers of BERT-base (cased) and MiniLM-L6."""
ROWS = [("bert", MATRICES), ("bert", WITH_POSITIONS), ("minilm", MATRICES)]
KNOWN = [
    [74, 1_577_504, 1_582_240, 1_591_712],
    [75, 1_587_744, 1_592_544, 1_602_144],
    [38, 585_168, 587_600, 592_464],
]
"""Matrices, and what LoRA, Deep LoRA (r^2 more a matrix) and its compressed form (3 r^2) train."""


@cache
def shapes(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a model by name."""
    width, inner, words, layers = SHAPES[name]
    found = {
        "embeddings.word_embeddings.weight": (words, width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    squares = [f"attention.self.{x}" for x in ("query", "key", "value")] + [
        "attention.output.dense"
    ]
    for layer in range(layers):
        at = f"encoder.layer.{layer}."
        found |= {f"{at}{x}.weight": (width, width) for x in squares}
        found |= {f"{at}{x}.bias": (width,) for x in squares}
        found[f"{at}intermediate.dense.weight"] = (inner, width)
        found[f"{at}output.dense.weight"] = (width, inner)
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in found.items()}


@cache
def _counted(name: str, select: tuple[str, ...]) -> list[int]:
    net = shapes(name)

    def made(method: adapters.Method) -> dict:
        def begin(net: dict) -> dict:
            how = {"select": list(select), "rank": RANK, "method": method, "gradients": net}
            return adapters.init(jax.random.key(0), net, **how)

        return jax.eval_shape(begin, net)

    methods = (adapters.LORA, adapters.deep_lora(), adapters.compressed_deep_lora())
    trained = [made(_once_a_shape(method)) for method in methods]
    return [len(trained[0]), *map(adapters.count, trained)]


def _once_a_shape(method: adapters.Method) -> adapters.Method:
    """The same, but its choice is traced once for all matrices of a shape."""
    return method._replace(choose=jax.jit(method.choose, static_argnums=(2, 3)))


def counted(name: str, select: Patterns) -> list[int]:
    """Matrices, and what the methods train of them."""
    return list(_counted(name, tuple([select] if isinstance(select, str) else select)))  # pyright: ignore


def make_case(key: Array) -> Array:
    """Nothing is drawn."""
    return jnp.zeros(())


def predict(case: Array) -> dict[str, Array]:
    """The known numbers."""
    return {"parameters": jnp.asarray(KNOWN, jnp.int32)}


def measure(case: Array) -> dict[str, Array]:
    """Count the shapes."""
    return {"parameters": jnp.asarray([counted(*row) for row in ROWS], jnp.int32)}


def _every_large_matrix(case: Array) -> dict[str, Array]:
    found = [counted(name, WITH_POSITIONS) for name, _ in ROWS]
    return {"parameters": jnp.asarray(found, jnp.int32)}


COUNTS = Scenario(
    "counts", make_case, predict, measure,
    (Claim("parameters",
           "r = 8: BERT-base's 74 matrices have 1,577,504 parameters of LoRA and 1,582,240 of Deep "
           "LoRA, 1,591,712 compressed, with positions 1,587,744, 1,592,544 and 1,602,144; "
           "MiniLM's 38 585,168, 587,600 and 592,464",
           kind="exact", carries=False),),
    (Control("every_large_matrix", "positions selected everywhere", "parameters",
             measure=_every_large_matrix),),
    dims={"parameters": ("model", "number")},
    narrow=lambda settings: {name: v[:1] if isinstance(v, tuple) else v
                             for name, v in settings.items()},
    traced=False, sides="known numbers against arrays counted, selected by name",
)  # fmt: skip
