"""One traced and compiled function of a training, its digest, and arrays on several devices."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


class Program:
    """A function of PyTrees of arrays, compiled for arguments like these.

    What the function closes over is passed beside the arguments: built in, frozen weights would be
    copied by the compiler. The first argument is used up unless ``donate`` is false.
    """

    def __init__(self, function: Callable[..., PyTree], like: tuple, *, donate: bool = True):
        # Traced once, for the digest and for the program.
        closed, self.out = jax.make_jaxpr(function, return_shape=True)(*like)
        # Addresses of functions change from process to process; the digest of a run must not.
        self.text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))
        self.closed, self.like, self.donate = closed, like, donate
        self.compiled: Any = None

    def compile(self) -> Any:
        """The compiled program; it is compiled when it is first asked for."""
        if self.compiled is None:
            structure, jaxpr = jax.tree.structure(self.out), self.closed.jaxpr

            def call(first: Any, rest: Any, constants: Any) -> PyTree:
                leaves = jax.tree.leaves((first, rest))
                outputs = jaxpr_as_fun(ClosedJaxpr(jaxpr, list(constants)))(*leaves)
                return jax.tree.unflatten(structure, outputs)

            donated = (0,) if self.donate else ()
            first, *rest = self.like
            lowered = jax.jit(call, donate_argnums=donated).lower(first, rest, self.closed.consts)
            self.compiled = lowered.compile()
        return self.compiled

    def __call__(self, first: PyTree, *rest: PyTree) -> Any:
        """Run the program, compiled at the first call."""
        return self.compile()(first, list(rest), self.closed.consts)


def digest_of(parts: Iterable[Any], *texts: str) -> str:
    """SHA-256 of programs, arrays and texts, and of what else decides the bits of a run."""
    device = jax.devices()[0].device_kind
    digest = hashlib.sha256(f"{jax.__version__}{device}{texts}".encode())
    for part in parts:
        arrays = part
        if isinstance(part, Program):
            digest.update(part.text.encode())
            arrays = part.closed.consts
        for array in jax.tree.leaves(arrays):
            update_digest(digest, array)
    return digest.hexdigest()


def update_digest(digest: Any, array: Any) -> None:
    """Add type, shape and bytes of an array, or of the numbers behind a random key, to a digest.

    Example:
        >>> digest = hashlib.sha256()
        >>> update_digest(digest, np.ones(2))
        >>> digest.hexdigest()[:8]
        'cd6283f6'
    """
    keys = eqx.is_array(array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    numbers = np.asarray(jax.random.key_data(array) if keys else array)
    digest.update(f"{numbers.dtype}{numbers.shape}".encode())
    # As bytes: bfloat16 has no buffer of its own.
    digest.update(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data)


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.asarray(devices), ("run",))


def replicate(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """Arrays, with a copy of each on every device."""
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def shard(batch: PyTree, devices: Sequence[Any]) -> PyTree:
    """Give each device its part of the examples of a batch, inside a program."""
    if len(devices) == 1:
        return batch
    share = NamedSharding(_mesh(devices), PartitionSpec("run"))
    return jax.tree.map(partial(jax.lax.with_sharding_constraint, shardings=share), batch)
