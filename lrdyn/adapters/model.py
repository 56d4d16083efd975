"""Adapters on the parameters of any model: a dictionary of them, by the paths of its leaves.

``params`` is any PyTree, an equinox model for example, and ``adapters`` what :func:`init` makes for
it: path -> :class:`~lrdyn.adapters.Adapter`. All functions are pure.

Example:
    >>> import equinox as eqx, lrdyn
    >>> key, x = jax.random.key(0), jnp.ones(4)
    >>> net = eqx.nn.MLP(4, 3, width_size=8, depth=1, key=key)
    >>> adapters = init(key, net, select="layers.*.weight", rank=2, extra="layers.1.bias")
    >>> sorted(adapters), count(adapters)
    (['layers.0.weight', 'layers.1.bias', 'layers.1.weight'], 49)
    >>> bool(jnp.allclose(apply(net, adapters)(x), net(x)))
    True
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from zlib import crc32

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from lrdyn.adapters.adapter import Adapter, Frozen
from lrdyn.adapters.algorithm_1 import Method, SplitParts, WeightParts
from lrdyn.adapters.methods import LORA
from lrdyn.adapters.projectors import (
    Identity,
    Parametrization,
    Projector,
    adapter_of,
    begin_coordinates,
    is_map,
    is_matrix,
)
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.selection import (
    Patterns,
    PerPath,
    fits,
    is_floating,
    name_of,
    named_arrays,
    select_leaves,
    value_at_path,
)
from lrdyn.corollary1 import compression

Adapters = dict[str, Any]
"""Path of a leaf -> its :class:`~lrdyn.adapters.Adapter`."""


@checked
def choose_by_path(
    method: Method,
    *,
    select: Patterns = "*",
    rank: PerPath = 8,
    extra: Patterns = (),
    stacks: Patterns = (),
) -> Callable[[Key[Array, ""] | None, PyTree], PyTree]:
    """The argument ``choose`` of :func:`lrdyn.low_rank_descent`, for some leaves of a model.

    Args:
        method: a value of Algorithm 1.
        select: which matrices are adapted.
        rank: r, or patterns with ranks.
        extra: which other leaves are trained as they are; the rest is frozen.
        stacks: which arrays of three axes or more are matrices stacked along the leading axes, as
            the layers of a scan are; each matrix is adapted by itself.

    Raises:
        ValueError: a pattern fits nothing; a stack is adapted by a method that has no projector;
            ``select`` fits an array of three axes or more of which nothing else is said; or
            something is left for GaLore to freeze, which trains the model itself.

    Example:
        >>> import lrdyn
        >>> choose = choose_by_path(lrdyn.LORA, select="W", rank=1)
        >>> maps = choose(jax.random.key(0), {"W": jnp.ones((3, 2)), "V": jnp.ones((3, 2))})
        >>> maps["W"].basis.shape, maps["V"]
        ((2, 1), Frozen())
    """

    def kinds_of(gradients: PyTree) -> dict[str, str]:
        kinds = select_leaves(gradients, select, extra, stacks)
        for name, leaf in named_arrays(gradients):
            # Frozen without a word it would be a layer that is not trained.
            if name not in kinds and fits(name, select):
                is_matrix(name, leaf)
            if name not in kinds and method.projects:
                wanted = f"one that fits {name}, too: this method trains all of a model"
                checks.refuse("extra", repr(extra), wanted)
        return kinds

    return _choice(method, rank, kinds_of)


def _choice(
    method: Method, rank: PerPath, kinds_of: Callable[[PyTree], dict[str, str]]
) -> Callable[[Key[Array, ""] | None, PyTree], PyTree]:
    """The argument ``choose`` for leaves of some kinds: what ``select_leaves`` returns."""

    def choose(key: Key[Array, ""] | None, gradients: PyTree) -> PyTree:
        kinds = kinds_of(gradients)

        def choose_leaf(path: tuple[Any, ...], G: Any) -> Parametrization:
            name = name_of(path)
            if kinds.get(name) != "adapted":
                return Identity() if name in kinds else Frozen()
            # A draw depends on its own path, and not on what else is selected.
            leaf_key = None if key is None else jax.random.fold_in(key, crc32(name.encode()))
            leaf_rank = checks.integer("rank", value_at_path("rank", rank, name))
            return _choose_layers(method, leaf_key, G, leaf_rank)

        return jax.tree_util.tree_map_with_path(choose_leaf, gradients)

    return choose


def _choose_layers(
    method: Method, key: Key[Array, ""] | None, G: Any, rank: int
) -> Parametrization:
    """What a method chooses for a matrix, or for each of the matrices of a stack."""
    if G.ndim == 2:
        return method.choose(key, G, rank, method.side)
    keys = None if key is None else jax.random.split(key, len(G))
    S = jax.vmap(partial(_choose_layers, method, rank=rank), (None if key is None else 0, 0))(
        keys, G
    )
    if not isinstance(S, Projector):
        checks.refuse("stacks", "a method that adapts single matrices", "GaLore, ReLoRA or LoRA")
    return S


@checked
def init(
    key: Key[Array, ""],
    params: PyTree,
    *,
    select: Patterns = "*",
    method: Method = LORA,
    rank: PerPath = 8,
    scale: PerPath = 1.0,
    extra: Patterns = (),
    gradients: PyTree = None,
) -> Adapters:
    """New adapters for a model, as a method of Algorithm 1 starts them.

    Under ``jax.vmap`` over keys one model has the adapters of many seeds.

    Args:
        key: random key.
        params: the model, or its shapes under ``jax.eval_shape``.
        select: which matrices are adapted: a glob or a regular expression on their paths, or a list
            of them. Other leaves that fit are left alone.
        method: what is trained, and where it starts: :data:`lrdyn.LORA`, ``LORA_FA``, ``PISSA``,
            ``DORA``, :func:`~lrdyn.adapters.lora`, :func:`~lrdyn.adapters.deep_lora`,
            :func:`~lrdyn.adapters.compressed_deep_lora`.
        rank: r, min(m, n) if that is less; or patterns with ranks, such as ``{"*.query.*": 4, "*":
            8}``.
        scale: s, or a function of r, such as :func:`~lrdyn.adapters.over_rank`; or patterns with
            either.
        extra: which other leaves are trained as they are: biases, a head.
        gradients: of a loss in ``params``, where a method starts from them.

    Raises:
        ValueError: a pattern fits nothing, a rank is not positive, the method has no adapters, or
            it needs gradients.
    """
    split = method.split(WeightParts("W", "S", "R"))
    if method.parts(split).coordinates is None:
        checks.refuse("method", "one that trains W itself", "one with adapters")
    if method.gradients and gradients is None:
        checks.refuse("gradients", "none", "those of a batch, from which this method starts")
    floating = lambda tree: jax.tree.map(lambda x: x if is_floating(x) else None, tree)  # noqa: E731
    weights = floating(params)
    choose = _choice(method, rank, lambda gradients: select_leaves(gradients, select, extra))
    maps = choose(key, weights if gradients is None else floating(gradients))
    both = "S" in split.trained

    def start(path: str, S: Parametrization, W: Array) -> Adapter:
        s = 1.0 if isinstance(S, Identity) else value_at_path("scale", scale, path)
        # The rank that the matrix really gets: alpha / r of a rank that was cut would be too small.
        s = s(min(value_at_path("rank", rank, path), *W.shape)) if callable(s) else s
        # An array, not a Python number: a scale that is swept must not be compiled into the
        # program.
        s = jnp.asarray(checks.positive("scale", s), W.dtype)
        return adapter_of(*begin_coordinates(method.fit(S, W, s), W), s, both=both)

    leaves = jax.tree_util.tree_leaves_with_path(maps, is_leaf=is_map)
    pairs = zip(leaves, jax.tree.leaves(weights), strict=True)
    chosen = {name_of(path): (S, W) for (path, S), W in pairs if not isinstance(S, Frozen)}
    return {path: start(path, S, W) for path, (S, W) in chosen.items()}


def _replace_leaves(
    params: PyTree, adapters: Adapters, place: Callable[[Adapter, Any], Any]
) -> PyTree:
    """The model, each leaf that has an adapter replaced by what ``place`` makes of both."""
    left = dict(adapters)

    def replace(path: tuple[Any, ...], leaf: Any) -> Any:
        name = name_of(path)
        if name not in left:
            return leaf
        adapter = left.pop(name)
        checks.instance(f"adapters[{name!r}]", adapter, Adapter)
        if not is_floating(leaf):
            checks.refuse("adapters", f"one for {name}", "paths of arrays of params")
        # By shapes alone, so that an adapter of another shape is refused before anything is
        # computed, and broadcasts onto no matrix.
        shape = jax.eval_shape(adapter.onto, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape
        if shape != leaf.shape:
            checks.refuse(f"adapters[{name!r}]", f"one of shape {shape}", f"one of {leaf.shape}")
        return place(adapter, leaf)

    model = jax.tree_util.tree_map_with_path(replace, params)
    if left:
        checks.refuse("adapters", f"one for {min(left)}", "paths of arrays of params")
    return model


@checked
def apply(params: PyTree, adapters: Adapters) -> PyTree:
    """The model with an :class:`~lrdyn.adapters.Adapted` in the place of each adapted matrix.

    That multiplies as ``W @ x``, ``x @ W``, ``W.T`` and ``W[ids]`` in factors, as the layers of
    equinox and of :mod:`lrdyn.networks` do: no array of the size of W is formed, for a gradient in
    the adapters neither. Code that multiplies otherwise gets a TypeError; use :func:`merge`.

    Raises:
        ValueError: an adapter has no leaf, or one of another shape.
    """
    return _replace_leaves(params, adapters, lambda adapter, W: adapter.layer(W))


@checked
def merge(params: PyTree, adapters: Adapters) -> PyTree:
    """The model with arrays W + s B A in the place of the adapted ones.

    Example:
        >>> import lrdyn
        >>> B, A = jnp.ones((2, 1)), jnp.ones((1, 2))
        >>> merge({"W": jnp.eye(2)}, {"W": lrdyn.adapters.Factors(B, A, 2.0)})["W"].tolist()
        [[3.0, 2.0], [2.0, 3.0]]
    """
    return _replace_leaves(params, adapters, lambda adapter, W: adapter.onto(W))


@checked
def unmerge(params: PyTree, adapters: Adapters) -> PyTree:
    """The inverse of :func:`merge`, to round-off.

    Raises:
        ValueError: there is none: DoRA's norms are lost in a merge.

    Example:
        >>> import lrdyn
        >>> B, A = jnp.ones((2, 1)), jnp.ones((1, 2))
        >>> adapters = {"W": lrdyn.adapters.Factors(B, A, 2.0)}
        >>> unmerge(merge({"W": jnp.eye(2)}, adapters), adapters)["W"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return _replace_leaves(params, adapters, lambda adapter, W: adapter.unmerge(W))


@checked
def rebase(params: PyTree, adapters: Adapters) -> tuple[PyTree, Adapters]:
    """Take what adapters subtract, their products at the start, off the model instead.

    The adapted model is the same. Of PiSSA it is the form of the paper: the residual
    W - s B_0 A_0 beside a plain B A.

    Example:
        >>> import lrdyn
        >>> net = {"W": jnp.diag(jnp.array([4.0, 1.0]))}
        >>> adapters = init(jax.random.key(0), net, rank=1, method=lrdyn.adapters.PISSA)
        >>> base, plain = rebase(net, adapters)
        >>> base["W"].round(5).tolist(), plain["W"].start
        ([[0.0, 0.0], [0.0, 1.0]], None)
    """
    base = _replace_leaves(params, adapters, lambda adapter, W: adapter.base(W))
    return base, {path: adapter.without_start() for path, adapter in adapters.items()}


@checked
def count(adapters: Adapters) -> int:
    """How many numbers are trained; of shapes alone too.

    Example:
        >>> import lrdyn
        >>> net = {"W": jax.ShapeDtypeStruct((768, 768), jnp.float32)}
        >>> count(jax.eval_shape(lambda net: init(jax.random.key(0), net), net))
        12288
    """
    return compression.count(split(adapters).trained)


@checked
def split(adapters: Adapters) -> SplitParts:
    """What is trained and what is frozen, None in the place of the other; :func:`joined` undoes it.

    Gradients are taken in the first alone: an optimiser then has no state for the second.

    Example:
        >>> import lrdyn
        >>> B, A = jnp.ones((2, 1)), jnp.ones((1, 2))
        >>> parts = split({"W": lrdyn.adapters.Factors(B, A, trained=("B",))})
        >>> parts.trained["W"].A, parts.frozen["W"].B
        (None, None)
    """
    parts = {path: adapter.partition() for path, adapter in adapters.items()}
    trained, frozen = ({path: pair[i] for path, pair in parts.items()} for i in (0, 1))
    return SplitParts(trained, frozen)


@checked
def joined(trained: Adapters, frozen: Adapters) -> Adapters:
    """The adapters of two parts of :func:`split`.

    Example:
        >>> import lrdyn
        >>> adapters = {"W": lrdyn.adapters.Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))}
        >>> bool(eqx.tree_equal(joined(*split(adapters)), adapters))
        True
    """
    return eqx.combine(trained, frozen)
