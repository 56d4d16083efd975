"""Leaves of a model by the names of their paths, such as ``blocks.0.attention.value.weight``."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from lrdyn.core import checks

Pattern = str | re.Pattern[str]
"""A glob (``*.weight``; ``*`` also crosses dots), or a regular expression for the whole path."""
Patterns = Pattern | Sequence[Pattern]
PerPath = Any | Mapping[Any, Any]
"""A value for all paths, or a dictionary from patterns to values: the first that fits counts."""


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a path: attributes, keys and positions, with dots between.

    Example:
        >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"blocks": [{"weight": 1.0}]})
        >>> name_of(path)
        'blocks.0.weight'
    """
    return jax.tree_util.keystr(path, simple=True, separator=".")


def fits(path: str, patterns: Patterns) -> bool:
    r"""Whether a path matches a pattern, or one of several.

    Example:
        >>> fits("head.bias", "*.weight"), fits("head.bias", [re.compile(r"head\..*"), "x"])
        (False, True)
    """
    if isinstance(patterns, str):
        return fnmatchcase(path, patterns)
    if isinstance(patterns, re.Pattern):
        return patterns.fullmatch(path) is not None
    return any(fits(path, pattern) for pattern in patterns)


def checked_patterns(name: str, patterns: Any) -> Patterns:
    """Check a pattern, or several.

    Example:
        >>> checked_patterns("select", 3)
        Traceback (most recent call last):
        ValueError: select: got 3, wanted a glob, a regular expression, or a list of them
    """
    listed = patterns if isinstance(patterns, list | tuple) else [patterns]
    if not all(isinstance(pattern, str | re.Pattern) for pattern in listed):
        checks.refuse(name, patterns, "a glob, a regular expression, or a list of them")
    return patterns


def value_at_path(name: str, value: Any, path: str) -> Any:
    """A value for a path: the value itself, or that of the first pattern that fits.

    Raises:
        ValueError: there are patterns, and none fits.

    Example:
        >>> [value_at_path("rank", {"*.query": 4, "*": 8}, path) for path in ("a.query", "a.key")]
        [4, 8]
    """
    if not isinstance(value, Mapping):
        return value
    for pattern, choice in value.items():
        if fits(path, checked_patterns(name, pattern)):
            return choice
    wanted = f"one of them for {path}"
    checks.refuse(name, f"patterns {', '.join(map(str, value))}", wanted)


def named_arrays(params: PyTree) -> Iterator[tuple[str, Any]]:
    """Every leaf of floating-point numbers, or its shape, with the name of its path.

    Example:
        >>> import jax.numpy as jnp
        >>> net = {"W": jnp.ones(2), "f": jnp.tanh, "ids": jnp.arange(2)}
        >>> [path for path, _ in named_arrays(net)]
        ['W']
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if is_floating(leaf):
            yield name_of(path), leaf


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array of floating-point numbers, or the shape of one.

    Example:
        >>> import jax.numpy as jnp
        >>> is_floating(jax.ShapeDtypeStruct((2,), jnp.float32)), is_floating(1.0)
        (True, False)
    """
    shape = isinstance(leaf, jax.ShapeDtypeStruct)
    return eqx.is_inexact_array(leaf) or (shape and leaf.dtype.kind in "fcV")


def select_leaves(
    params: PyTree, select: Patterns, extra: Patterns = (), stacks: Patterns = ()
) -> dict[str, str]:
    """Select leaves that are adapted, or trained as they are: path -> ``adapted`` or ``extra``.

    Matrices that fit ``select`` are adapted, and those stacked in arrays that fit ``stacks``. What
    fits ``extra`` and is not adapted is trained as it is. All else is left alone: functions,
    integers, kernels of a convolution.

    Raises:
        ValueError: a pattern fits none.

    Example:
        >>> import jax.numpy as jnp
        >>> net = {"W": jnp.ones((2, 2)), "b": jnp.ones(2), "g": jnp.ones(2), "f": jnp.tanh}
        >>> select_leaves(net, "*", "b")
        {'W': 'adapted', 'b': 'extra'}
    """
    select, extra = checked_patterns("select", select), checked_patterns("extra", extra)
    stacks = checked_patterns("stacks", stacks)
    kinds: dict[str, str] = {}
    for path, leaf in named_arrays(params):
        if (leaf.ndim == 2 and fits(path, select)) or (leaf.ndim > 2 and fits(path, stacks)):
            kinds[path] = "adapted"
        elif fits(path, extra):
            kinds[path] = "extra"
    of_name = {
        "select": [
            p for p, leaf in named_arrays(params) if leaf.ndim == 2 or kinds.get(p) == "adapted"
        ],
        "extra": [p for p, _ in named_arrays(params)],
        "stacks": [p for p, leaf in named_arrays(params) if leaf.ndim > 2],
    }
    for name, patterns, wanted in (
        ("select", select, "matrices"),
        ("extra", extra, "arrays"),
        ("stacks", stacks, "arrays of three axes or more"),
    ):
        for pattern in [patterns] if isinstance(patterns, str | re.Pattern) else patterns:
            fitting = of_name[name]
            if not any(fits(path, pattern) for path in fitting):
                text = pattern if isinstance(pattern, str) else pattern.pattern
                paths = [path for path, _ in named_arrays(params)]
                some = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
                checks.refuse(name, repr(text), f"a pattern of some {wanted} among {some}")
    return kinds
