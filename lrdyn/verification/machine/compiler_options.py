"""Options for XLA, for the outermost ``jax.jit`` of a program."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

ON_A_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
    "xla_cpu_prefer_vector_width": 512,
}
"""The first leaves products and convolutions to the kernels of XLA's library YNNPACK, and sums to
XLA's own loops. By default the library takes sums as well, with the products inside of them: the
loss of a network of 1000 x 1000 then takes sixteen times as long (``python -m benchmarks sums``).
With the second, loops work on eight numbers of float64 at a time where the processor can (AVX-512),
and not on four: ``python -m benchmarks cells``."""


def compiler_options(platform: str | None = None) -> dict[str, Any]:
    """Options for XLA with which :func:`lrdyn.sweep` and the commands compile.

    JAX takes such options at the outermost ``jax.jit`` alone, so that the functions of this library
    cannot bring them along. The numbers stay the same up to rounding.

    Args:
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``; by default that on which JAX computes.

    Returns:
        Name -> value, of the options that this release of XLA knows; none on a GPU or TPU.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> double = jax.jit(lambda x: x + x, compiler_options=compiler_options())
        >>> double(jnp.ones(2)).tolist(), compiler_options("gpu")
        ([2.0, 2.0], {})
    """
    return dict(_on_a_cpu()) if (platform or jax.default_backend()) == "cpu" else {}


@cache
def _on_a_cpu() -> Mapping[str, Any]:
    return known(ON_A_CPU)


def known(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options for XLA that its release knows.

    Example:
        >>> known({"xla_backend_optimization_level": 0, "xla_of_another_release": 0})
        {'xla_backend_optimization_level': 0}
    """
    # All at once, for each question is a compilation.
    if _are_known(options):
        return dict(options)
    return {name: value for name, value in options.items() if _are_known({name: value})}


def _are_known(options: Mapping[str, Any]) -> bool:
    try:
        # The release is asked by trying: XLA refuses an option that it does not know.
        jax.jit(jnp.negative).lower(0.0).compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError:
        return False
    return True
