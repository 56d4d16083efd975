"""What differs from platform to platform: which branch a program has, and who knows it when."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

ANY = "any"
_TRACED_FOR = jax.make_user_context(None)  # JAX traces a function again where it is another


def traced_for(platform: str) -> AbstractContextManager:
    """While it lasts, what is traced is for one platform: the branches of others are left out.

    It saves the tracing, which of a small program is a third of the time to its first number. What
    JAX is to lower for several platforms is traced within :func:`for_any_platform`.

    Args:
        platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``, as devices name theirs.

    Example:
        >>> def opposite(x):
        ...     return platform_dependent(x, cpu=jax.lax.neg, default=lambda x: 0 - x)
        >>> with traced_for("cpu"):
        ...     jax.make_jaxpr(opposite)(1.0).eqns[0].primitive.name
        'neg'
    """
    return nullcontext() if _TRACED_FOR.value == ANY else _TRACED_FOR(platform)


def for_any_platform() -> AbstractContextManager:
    """While it lasts, what is traced has the branches of all platforms, whoever asks for one's.

    Example:
        >>> with for_any_platform(), traced_for("cpu"):
        ...     branches = lambda x: platform_dependent(x, cpu=jax.lax.neg, default=jax.lax.abs)
        ...     jax.make_jaxpr(branches)(1.0).eqns[-1].primitive.name
        'cond'
    """
    return _TRACED_FOR(ANY)


def platform_dependent(
    *operands: PyTree, default: Callable[..., Any], **of_platform: Callable[..., Any]
) -> PyTree:
    """What one function returns on some platforms and another elsewhere.

    Which of them a program has is decided where it is lowered, as by
    ``jax.lax.platform_dependent``, whose functions must return arrays and nothing else; within
    :func:`traced_for` it is decided here.

    Args:
        *operands: the arguments of each function.
        default: the function on a platform that is not named.
        **of_platform: the function on ``cpu``, ``cuda``, ``rocm`` or ``tpu``; results of all differ
            in arrays alone.

    Example:
        >>> import jax.numpy as jnp
        >>> once, twice = (lambda x, n=n: ("name", n * x) for n in (1, 2))
        >>> name, array = platform_dependent(jnp.ones(2), cpu=once, default=twice)  # here a CPU
        >>> name, array.tolist()
        ('name', [1.0, 1.0])
    """
    platform = _TRACED_FOR.value
    # A device says "gpu" whose maker's name decides.
    of_makers = platform == "gpu" and not {"cuda", "rocm"}.isdisjoint(of_platform)
    if platform not in (None, ANY) and not of_makers:
        return of_platform.get(platform, default)(*operands)
    names = of_platform.keys()
    *branches, default, whole = partition_results(*of_platform.values(), default)
    of_platform = dict(zip(names, branches, strict=True))
    return whole(jax.lax.platform_dependent(*operands, default=default, **of_platform))


def partition_results(*functions: Callable) -> tuple[Callable, ...]:
    """Functions without what is no array among their results, and what puts that back into them.

    Example:
        >>> arrays_of, whole = partition_results(lambda x: {"x": x, "f": "name"})
        >>> arrays_of(1.0), whole({"x": 2.0, "f": None})
        ({'f': None, 'x': 1.0}, {'f': 'name', 'x': 2.0})
    """
    others = []

    def arrays_of(function: Callable, *operands: PyTree) -> PyTree:
        arrays, other = eqx.partition(function(*operands), eqx.is_array_like)
        others.append(other)  # no tracer in it: it may leave the trace
        return arrays

    return *(partial(arrays_of, f) for f in functions), lambda arrays: eqx.combine(
        arrays, others[-1]
    )
