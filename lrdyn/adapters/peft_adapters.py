"""Between the adapters of a model and those that PEFT stores."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrdyn.adapters.adapter import Adapter, DirectedFactors, Factors, Shift
from lrdyn.adapters.model import Adapters
from lrdyn.adapters.peft import Stored, StoredFactors, described
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.data.tensors import Tensors

WEIGHT = ".weight"


@checked
def adapters_of(stored: Stored, weights: Mapping[str, Any] | Tensors | None = None) -> Adapters:
    """Adapters for :func:`lrdyn.adapters.apply`, of a model whose paths are the names of the base.

    Args:
        stored: as :func:`lrdyn.adapters.peft.read` gives it.
        weights: those of the base by name (arrays, or an open file), where it has tensors saved
            whole.

    Raises:
        ValueError: there are tensors saved whole, and not their base; or it is a PiSSA adapter,
            which does not stand beside the base.

    Example:
        >>> factors = {"q": StoredFactors(np.ones((2, 1)), np.ones((1, 2)), 2.0)}
        >>> list(adapters_of(described(factors)))
        ['q.weight']
    """
    if stored.config.get("init_lora_weights") == "pissa":
        checks.refuse("stored", "PiSSA", "LoRA: lrdyn.adapters.peft.converted makes one of it")
    adapters: Adapters = {}
    for module, factors in stored.factors.items():
        B, A = jnp.asarray(factors.B), jnp.asarray(factors.A)
        adapter = Factors(B, A, jnp.asarray(factors.scale, B.dtype))
        if factors.magnitude is not None:
            magnitude = jnp.asarray(factors.magnitude)
            adapter = DirectedFactors(B, A, adapter.scale, magnitude=magnitude)
        adapters[module + WEIGHT] = adapter
    for name, whole in stored.saved.items():
        if weights is None or name not in weights:
            checks.refuse("weights", f"no {name}", "what the tensors saved whole take the place of")
        adapters[name] = Shift(jnp.asarray(whole) - jnp.asarray(weights[name]))
    return adapters


@checked
def stored_of(adapters: Adapters, weights: Mapping[str, Any] | None = None, **how: Any) -> Stored:
    """What PEFT would store of adapters: :func:`lrdyn.adapters.peft.write` writes it.

    What subtracts its start, such as PiSSA's, becomes a LoRA of rank 2r:
    s B A - s B_0 A_0 = s [B, -B_0] [A; A_0].

    Args:
        adapters: of matrices whose paths end in ``.weight``, as a torch model names them.
        weights: those of the model by path, where it has leaves that are trained as they are.
        how: see :func:`lrdyn.adapters.peft.described`.

    Raises:
        ValueError: an adapter is no product of two factors, or has many seeds.

    Example:
        >>> adapter = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), jnp.asarray(2.0))
        >>> stored_of({"q.weight": adapter}).config["lora_alpha"]
        2
    """
    factors, saved = {}, {}
    for path, adapter in adapters.items():
        if isinstance(adapter, Shift):
            if weights is None or path not in weights:
                checks.refuse("weights", f"no {path}", "what is trained as it is")
            saved[path] = np.asarray(weights[path] + adapter.value)
            continue
        if not path.endswith(WEIGHT):
            checks.refuse("adapters", f"one for {path}", f"paths that end in {WEIGHT}")
        factors[path.removesuffix(WEIGHT)] = _stored_factors(f"adapters[{path!r}]", adapter)
    return described(factors, saved=saved, **how)


def _stored_factors(name: str, adapter: Adapter) -> StoredFactors:
    magnitude = None
    if isinstance(adapter, DirectedFactors):
        magnitude = np.asarray(adapter.magnitude)
    else:
        checks.instance(name, adapter, Factors)
    assert isinstance(adapter, Factors | DirectedFactors)
    if adapter.B.ndim != 2:
        checks.refuse(name, f"B of shape {adapter.B.shape}", "one seed")
    B, A = np.asarray(adapter.B), np.asarray(adapter.A)
    if adapter.start is not None:
        B0, A0 = map(np.asarray, adapter.start)
        B, A = np.concatenate([B, -B0], axis=1), np.concatenate([A, A0])
    return StoredFactors(B, A, float(adapter.scale), magnitude)
