"""Adapters of a model made from those that PEFT stores, and the other way round."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrdyn.adapters.adapter import Adapter, DirectedFactors, Factors, Shift
from lrdyn.adapters.model import Adapters
from lrdyn.adapters.peft import Stored, StoredFactors, described
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.data.tensors import Tensors

WEIGHT, BIAS = ".weight", ".bias"
FLAX = (".kernel", ".embedding", ".scale")
"""What flax calls a weight: of a layer, transposed; of an embedding; of a norm."""


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
def stored_of(
    adapters: Adapters,
    weights: Mapping[str, Any] | Tensors | None = None,
    *,
    names: Callable[[str], str] | None = None,
    **how: Any,
) -> Stored:
    """What PEFT would store of adapters: :func:`lrdyn.adapters.peft.write` writes it.

    What subtracts its start, such as PiSSA's, becomes a LoRA of rank 2r:
    s B A - s B_0 A_0 = s [B, -B_0] [A; A_0]. A ``kernel`` of flax is the transposed ``weight`` of
    torch, with factors A^T and B^T; its ``embedding`` and ``scale`` are ``weight``, too.

    PEFT keeps biases of all adapted modules or of none, or all: where one that is trained asks for
    others, ``weights`` has them.

    Args:
        adapters: of matrices whose paths end in ``.weight``, as a torch model names them, or in
            ``.kernel`` or ``.embedding``, as flax does.
        weights: those of the model by path, where it has leaves that are trained as they are.
        names: path of a leaf -> the path that PEFT's model has of it, such as
            ``layers_0.query.kernel`` -> ``layers.0.query.kernel``; the ends are as in ``adapters``.
        how: see :func:`lrdyn.adapters.peft.described`.

    Raises:
        ValueError: an adapter is no product of two factors, or has many seeds; DoRA of a kernel,
            whose magnitudes are of the other side; two leaves have one name.

    Example:
        >>> adapter = Factors(jnp.ones((2, 1)), jnp.ones((1, 3)), jnp.asarray(2.0))
        >>> stored_of({"q.weight": adapter}).config["lora_alpha"]
        2
        >>> stored_of({"q.kernel": adapter}).factors["q"].B.shape
        (3, 1)
    """
    factors, saved, embeddings = {}, {}, set(how.pop("embeddings", ()))
    for path, adapter in adapters.items():
        place = names(path) if names else path
        if isinstance(adapter, Shift):
            if weights is None or path not in weights:
                checks.refuse("weights", f"no {path}", "what is trained as it is")
            whole = np.asarray(weights[path] + adapter.value)
            _add_unique(
                "adapters", saved, _torch_name(place), whole.T if _is_kernel(path) else whole
            )
            continue
        stored = _stored_factors(f"adapters[{path!r}]", adapter)
        if not path.endswith((WEIGHT, *FLAX)) or path.endswith(".scale"):
            wanted = f"paths that end in {WEIGHT}, .kernel or .embedding"
            checks.refuse("adapters", f"one for {path}", wanted)
        if _is_kernel(path):
            if stored.magnitude is not None:
                checks.refuse(f"adapters[{path!r}]", "DoRA of a kernel", "LoRA, or a weight")
            # A kernel of flax is the transpose of torch's weight: (B A)^T = A^T B^T.
            stored = stored._replace(B=stored.A.T, A=stored.B.T)
        module = _torch_name(place).removesuffix(WEIGHT)
        if path.endswith(".embedding"):
            embeddings.add(module)
        _add_unique("adapters", factors, module, stored)
    if "bias" not in how:
        how["bias"] = _bias_setting(factors, saved, weights, names)
    return described(factors, saved=saved, embeddings=embeddings, **how)


def _is_kernel(path: str) -> bool:
    return path.endswith(".kernel")


def _torch_name(path: str) -> str:
    """The name that torch has for a leaf of flax."""
    head, _, leaf = path.rpartition(".")
    return head + WEIGHT if f".{leaf}" in FLAX else path


def _add_unique(argument: str, by_name: dict[str, Any], name: str, value: Any) -> None:
    if name in by_name:
        checks.refuse(argument, f"two for {name}", "a name for each")
    by_name[name] = value


def _bias_setting(
    factors: Mapping[str, Any],
    saved: dict[str, Any],
    weights: Mapping[str, Any] | Tensors | None,
    names: Callable[[str], str] | None,
) -> str:
    """Which biases PEFT keeps, and those among them that were not trained, from the weights."""
    alone = {
        name.removesuffix(BIAS)
        for name in saved
        if name.endswith(BIAS) and name.removesuffix(BIAS) + WEIGHT not in saved
    }
    if not alone:
        return "none"
    kind = "lora_only" if alone <= set(factors) else "all"
    # PEFT loads every bias of the kind that its configuration names: those that were not trained
    # are saved as they are.
    for path in weights.keys() if weights is not None else ():
        place = _torch_name(names(path) if names else path)
        asked = kind == "all" or place.removesuffix(BIAS) in factors
        if place.endswith(BIAS) and asked and place not in saved:
            saved[place] = np.asarray(weights[path] if weights is not None else None)
    return kind


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
        # B A - B_0 A_0 is one product of twice the rank, which is all that PEFT knows.
        B, A = np.concatenate([B, -B0], axis=1), np.concatenate([A, A0])
    return StoredFactors(B, A, float(adapter.scale), magnitude)
