"""Other devices' arithmetic, emulated on a CPU: ``python -m tests.emulated DEVICE WORD ...``.

The words are those of the command ``lrdyn``: ``python -m tests.emulated tpu verify theorem2``; or
``measured``, which prints what products are found to be. JAX lowers every program by rules of its
primitives; here the rules for a CPU are exchanged by

- JAX's own rules of decompositions for a TPU, which are programs of other primitives
  (``decompositions``);
- dots and convolutions of float32 whose factors are rounded to TF32 or bfloat16, in one pass or,
  for HIGHEST on a TPU, in six passes of bfloat16 (``dots``);
- rules that round every float64 to 48 bits and to the range of float32, as a pair of float32 holds
  it (``pairs``);
- decompositions of matrices that are off by K eps, and whose factors are (``errors``); the device
  is called ``off:K`` then, or ``off:K:svd`` if only one decomposition is; ``alone:K`` decomposes
  what elsewhere the host does.

What is emulated with decompositions of its own is an accelerator: programs have the branches of a
``platform``, so that they call the host where they would on it.

The exchange is for the whole process, so an emulated device has one of its own. It uses private
names of JAX: a release without one of them raises :class:`NoRules`, which names it.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import primitives

TF32, BFLOAT16 = 10, 7
"""Bits of a mantissa behind its first."""
FLOAT32, PAIR = (8, 23), (8, 47)
"""Bits of exponent and mantissa."""


class NoRules(Exception):
    """This release of JAX lacks a name by which rules are exchanged."""


class Device(NamedTuple):
    """What is exchanged for an emulated device."""

    dots: Mapping[str, str] = {}
    """Precision that a dot of float32 asks for -> what it gets, a key of :data:`PASSES`; what is
    not named is done in float32."""
    decompositions: bool = False
    """Whether svd, eigh and qr are those of a TPU."""
    pairs: bool = False
    """Whether a float64 is a pair of float32."""
    batches: bool = False
    """Whether its dots are those of batches alone."""
    errors: float = 0.0
    """Backward error of svd, eigh and qr over the norm of the matrix, and distance of their factors
    from orthogonal ones, both in eps and in Frobenius norm."""
    off: Sequence[str] = ("svd", "eigh", "qr")
    """Decompositions with these errors."""
    platform: str = ""
    """Platform whose branches programs have; those of a CPU if empty."""


PASSES: Mapping[str, tuple[int, int]] = {
    "TF32": (TF32, 1),
    "bfloat16": (BFLOAT16, 1),
    "bfloat16 in three passes": (BFLOAT16, 3),
    "bfloat16 in six passes": (BFLOAT16, 6),
}
"""Arithmetic of a dot -> mantissa of what is multiplied, and how many products are added."""

WORDS = ("DEFAULT", "HIGH", "HIGHEST", "TF32_TF32_F32", "BF16_BF16_F32")
DEVICES = {
    "gpu": Device(
        dict.fromkeys(("DEFAULT", "HIGH", "TF32_TF32_F32"), "TF32") | {"BF16_BF16_F32": "bfloat16"}
    ),
    "tpu": Device(
        {
            "DEFAULT": "bfloat16",
            "BF16_BF16_F32": "bfloat16",
            "HIGH": "bfloat16 in three passes",
            "HIGHEST": "bfloat16 in six passes",
        },
        decompositions=True,
        pairs=True,
        platform="tpu",
    ),
    "deaf": Device(dict.fromkeys(WORDS, "TF32")),
    "deaf_to_batches": Device(dict.fromkeys(WORDS, "TF32"), batches=True),
    "tpu_decompositions": Device(decompositions=True, platform="tpu"),
    "pairs": Device(pairs=True),
}
"""``deaf`` computes every dot in TF32, whatever is asked for.
``deaf_to_batches`` does so with those of a batch."""


def emulate(device: Device) -> None:
    """Exchange the rules of this process, before anything is lowered.

    Raises:
        NoRules: the release of JAX has none that can be exchanged.
    """
    try:
        from jax._src.interpreters import mlir
        from jax._src.lib.mlir.dialects import hlo
    except ImportError as error:
        raise NoRules(str(error)) from None
    rules = _Rules(mlir, hlo)
    if device.decompositions:
        rules.decompose_as_a_tpu()
    if device.dots:
        rules.round_factors(device.dots, batches=device.batches)
    if device.errors:
        rules.disturb(device.errors, device.off)
    if device.pairs:
        rules.round_results()
    if device.platform:
        rules.take_branches_of(device.platform)


ROUNDED = (
    "add sub mul div sqrt rsqrt cbrt square pow integer_pow exp exp2 log log1p expm1 tanh sin cos "
    "tan erf erf_inv logistic dot_general reduce_sum reduce_prod cumsum cumprod scatter_add "
    "add_jaxvals convert_element_type conv_general_dilated svd eigh householder_product lu "
    "cholesky triangular_solve"
).split()
"""Primitives whose results a device rounds."""


class _Rules:
    """The tables of rules of a release."""

    def __init__(self, mlir: Any, hlo: Any):
        self.mlir, self.hlo = mlir, hlo

    def of(self, primitive: Any) -> Callable:
        """The rule of a primitive for a CPU."""
        try:
            own = self.mlir._platform_specific_lowerings["cpu"].get(primitive)
            return (own or self.mlir._lowerings[primitive]).rule
        except AttributeError as error:
            raise NoRules(f"jax._src.interpreters.mlir: {error}") from None

    def exchange(self, primitive: Any, rule: Callable) -> None:
        self.mlir.register_lowering(primitive, rule, platform="cpu")

    def rounded(self, value: Any, bits: tuple[int, int]) -> Any:
        exponent, mantissa = map(self.mlir.i32_attr, bits)
        return self.hlo.reduce_precision(value, exponent, mantissa)

    def decompose_as_a_tpu(self) -> None:
        try:
            from jax._src.lax import linalg
            from jax._src.tpu.linalg import eigh, svd

            exchanged = {
                linalg.svd_p: svd._svd_tpu_lowering_rule,
                linalg.eigh_p: eigh._eigh_tpu_lowering,
                linalg.geqrf_p: linalg._geqrf_lowering_rule,
                linalg.householder_product_p: linalg._householder_product_lowering,
            }
        except (ImportError, AttributeError) as error:
            raise NoRules(str(error)) from None
        for primitive, rule in exchanged.items():
            self.exchange(primitive, rule)

    def take_branches_of(self, platform: str) -> None:
        """Lower what depends on the platform as for another one, the host's calls included."""
        from lrdyn.core import linalg
        from lrdyn.verification.running import programs

        linalg.has_accelerator = lambda: True
        programs.traced_for = lambda _: contextlib.nullcontext()  # its name is that of a CPU
        # A call of the host waits for its arguments, which threads of the same pool bring: all of
        # XLA's threads on a CPU can wait so. An accelerator's programs hold none of them.
        os.environ.setdefault("NPROC", "32")
        try:
            from jax._src.lax.control_flow.conditionals import cond_p
        except ImportError as error:
            raise NoRules(str(error)) from None
        rule = self.of(cond_p)

        def lower(ctx: Any, *operands: Any, branches: Any, **params: Any) -> Any:
            if platforms := params.pop("branches_platforms", None):
                mine = next(n for n, of in enumerate(platforms) if of is None or platform in of)
                branches = branches[mine : mine + 1]  # which any index then chooses
            return rule(ctx, *operands, branches=branches, **params)

        self.exchange(cond_p, lower)

    def disturb(self, errors: float, off: Sequence[str]) -> None:
        try:
            from jax._src.lax import linalg

            # Q is what ``householder_product`` makes of the factors that ``geqrf`` leaves.
            each = {
                "svd": [(linalg.svd_p, True, (1, 2))],
                "eigh": [(linalg.eigh_p, True, (0,))],
                "qr": [(linalg.geqrf_p, True, ()), (linalg.householder_product_p, False, (0,))],
            }
        except (ImportError, AttributeError) as error:
            raise NoRules(str(error)) from None
        for primitive, backward, factors in (one for name in off for one in each[name]):
            lower = partial(self._disturbed, self.of(primitive), errors, backward, factors)
            self.exchange(primitive, lower)

    def _disturbed(
        self,
        rule: Callable,
        errors: float,
        backward: bool,
        factors: Sequence[int],
        ctx: Any,
        matrix: Any,
        *others: Any,
        **params: Any,
    ) -> list[Any]:
        """What is found of a matrix nearby, with factors that are off by as much."""

        def lowered(function: Callable, aval: Any, value: Any) -> Any:
            lower = self.mlir.lower_fun(function, multiple_results=False)
            (changed,) = lower(ctx.replace(avals_in=[aval], avals_out=[aval]), value)
            return changed

        near = partial(disturbed, errors=errors)
        if backward:
            matrix = lowered(near, ctx.avals_in[0], matrix)
        found = list(rule(ctx, matrix, *others, **params))
        for place in [place for place in factors if place < len(found)]:  # values alone have none
            found[place] = lowered(near, ctx.avals_out[place], found[place])
        return found

    def round_factors(self, dots: Mapping[str, str], *, batches: bool) -> None:
        self.batches = batches
        for primitive in (primitives.dot_general_p, primitives.conv_general_dilated_p):
            self.exchange(primitive, partial(self._product, dots, self.of(primitive)))

    def _product(
        self, dots: Mapping[str, str], rule: Callable, ctx: Any, lhs: Any, rhs: Any, **params: Any
    ) -> Any:
        asked = params["precision"]
        asked = asked[0] if isinstance(asked, tuple) else asked
        word = "DEFAULT" if asked is None else getattr(asked, "name", str(asked))
        params["precision"] = None  # what the CPU is asked for
        product = partial(rule, ctx, **params)
        numbers = params["dimension_numbers"]
        if self.batches and not (isinstance(numbers, tuple) and numbers[1][0]):
            return product(lhs, rhs)
        if word not in (*WORDS, *dots):
            raise ValueError(f"The precision {word} is not supported by this device")
        if word == "TF32_TF32_F32" and word not in dots:
            raise ValueError(f"The precision {word} is not supported by this device")
        if word not in dots or any(aval.dtype != np.float32 for aval in ctx.avals_in):
            return product(lhs, rhs)
        mantissa, passes = PASSES[dots[word]]
        parts = [self._parts(x, mantissa, {1: 1, 3: 2, 6: 3}[passes]) for x in (lhs, rhs)]
        pairs = [(i, j) for i in range(3) for j in range(3) if i + j < {1: 1, 3: 2, 6: 3}[passes]]
        total = None
        for i, j in sorted(pairs, key=sum, reverse=True):  # the smallest first
            (one,) = product(parts[0][i], parts[1][j])
            total = one if total is None else self.hlo.add(total, one)
        return [total]

    def _parts(self, value: Any, mantissa: int, count: int) -> list[Any]:
        """A float32 as a sum of shorter ones, the largest first."""
        parts = []
        for _ in range(count):
            parts.append(self.rounded(value, (8, mantissa)))
            value = self.hlo.subtract(value, parts[-1])
        return parts

    def round_results(self) -> None:
        try:
            named = [getattr(primitives, f"{name}_p") for name in ROUNDED]
        except AttributeError as error:
            raise NoRules(str(error)) from None
        for primitive in named:
            self.exchange(primitive, partial(self._rounding, self.of(primitive)))

    def _rounding(self, rule: Callable, ctx: Any, *args: Any, **params: Any) -> list[Any]:
        found = rule(ctx, *args, **params)
        values = [v[0] if isinstance(v, tuple | list) else v for v in found]
        return [
            self.rounded(value, PAIR) if aval.dtype == np.float64 else whole
            for value, whole, aval in zip(values, found, ctx.avals_out, strict=True)
        ]


def disturbed(matrix: Any, errors: float) -> Any:
    """A matrix whose distance from this one is ``errors`` eps of its norm, as if by chance.

    Of a symmetric matrix it is not symmetric: eigh reads one triangle.
    """
    import jax.numpy as jnp

    norm = jnp.sqrt(jnp.sum(matrix**2, (-2, -1), keepdims=True))
    places = jnp.arange(matrix.shape[-1] * matrix.shape[-2], dtype=matrix.dtype)
    phases = matrix / jnp.where(norm > 0, norm, 1.0) * 1234.5 + 12.9898 * places.reshape(
        matrix.shape[-2:]
    )
    drawn = jnp.sin(phases) * 4375.5  # whose fractional part looks like chance
    noise = drawn - jnp.floor(drawn) - 0.5
    size = jnp.sqrt(jnp.sum(noise**2, (-2, -1), keepdims=True))
    return matrix + errors * float(jnp.finfo(matrix.dtype).eps) * norm * noise / size


def device_of(name: str) -> Device:
    """The device of a name: of :data:`DEVICES`, or one whose decompositions are off.

    Example:
        >>> device_of("off:40:svd").errors, device_of("off:40").off
        (40.0, ('svd', 'eigh', 'qr'))
    """
    kind, *rest = name.split(":")
    if kind not in ("off", "alone"):
        return DEVICES[name]
    errors, *off = rest
    platform = "cuda" if kind == "off" else ""
    return Device(errors=float(errors), platform=platform, off=off or Device().off)


def main(words: Sequence[str]) -> int:
    """Run a command of ``lrdyn`` on an emulated device; its exit status."""
    name, *rest = words
    try:
        emulate(device_of(name))
    except NoRules as error:
        print(f"emulated: no rules in JAX {jax.__version__}: {error}")
        return NO_RULES
    os.environ["LRDYN_CACHE"] = ""  # nothing that another device left, and nothing for another
    if rest == ["measured"]:
        print(json.dumps(products()))
        return 0
    from lrdyn.__main__ import main as command

    return command(rest)


def products() -> dict[str, str]:
    """What is measured to be the arithmetic of a product, for whatever JAX is asked."""
    from lrdyn.verification.judging import rounding
    from lrdyn.verification.running import arithmetic_probe

    found = {"float64": arithmetic_probe.measure_rounding("float64")["product"]}
    for word in WORDS:
        rounding.MATMULS[word] = word if "_" in word else word.lower()
        with contextlib.suppress(ValueError, jax.errors.JaxRuntimeError):
            found[word] = arithmetic_probe.measure_rounding("float32", word)["product"]
    return {
        word: rounding.name_of("float64" if word == "float64" else "float32", error)
        for word, error in found.items()
    }


NO_RULES = 77
"""Exit status where this release of JAX cannot be told to round."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
