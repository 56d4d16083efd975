"""The precision of products of matrices: full, unless somebody asked JAX for another."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def matmul_precision() -> str:
    """The precision that a variable, a setting or a context gave to JAX; else ``highest``.

    By itself JAX takes TF32 on a GPU and bfloat16 on a TPU.

    Example:
        >>> with jax.default_matmul_precision("tensorfloat32"):
        ...     matmul_precision()
        'tensorfloat32'
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function trace and run its products as :func:`matmul_precision` says.

    Example:
        >>> product = full_precision(lambda A, B: A @ B)
        >>> A = jax.numpy.ones((2, 2))
        >>> "HIGHEST" in str(jax.make_jaxpr(product)(A, A))
        True
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # At each call, not when the function is made: somebody may set it in between.
        with jax.default_matmul_precision(matmul_precision()):
            return function(*args, **kwargs)

    return call
