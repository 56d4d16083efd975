"""How many numbers adapters train, from the shapes of known models alone."""

from functools import cache

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrdyn import adapters
from lrdyn.adapters.selection import Patterns
from lrdyn.theorem import Claim, Control, Scenario

RANK = 8
MATRICES = ["encoder.*", "pooler.*", "embeddings.word_embeddings.weight"]
WITH_POSITIONS = [*MATRICES, "embeddings.position_embeddings.weight"]
SHAPES = {"bert": (768, 3072, 28996, 12), "minilm": (384, 1536, 30522, 6)}
"""Width, width of the perceptron, words and layers of BERT-base (cased) and MiniLM-L6."""
ROWS = [("bert", MATRICES), ("bert", WITH_POSITIONS), ("minilm", MATRICES)]
KNOWN = [
    [74, 1_577_504, 1_582_240],
    [75, 1_587_744, 1_592_544],
    [38, 585_168, 587_600],
]
"""Matrices, and what LoRA and Deep LoRA (r^2 more a matrix) train."""


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

    lora, deep = made(adapters.LORA), made(adapters.deep_lora(depth=3))
    return [len(lora), adapters.count(lora), adapters.count(deep)]


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


def _every_matrix(case: Array) -> dict[str, Array]:
    return {"parameters": jnp.asarray([counted(name, "*") for name, _ in ROWS], jnp.int32)}


COUNTS = Scenario(
    "counts", make_case, predict, measure,
    (Claim("parameters",
           "r = 8: BERT-base's 74 matrices have 1,577,504 parameters of LoRA and 1,582,240 of Deep "
           "LoRA, with positions 1,587,744 and 1,592,544; MiniLM's 38 585,168 and 587,600",
           kind="exact", carries=False),),
    (Control("every_matrix", "all matrices selected", "parameters", measure=_every_matrix),),
    dims={"parameters": ("model", "number")},
    narrow=lambda settings: {name: v[:1] if isinstance(v, tuple) else v
                             for name, v in settings.items()},
    traced=False, sides="known numbers against arrays counted, selected by name",
)  # fmt: skip
