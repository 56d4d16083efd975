"""Stacked experts in an adapter of PEFT (``target_parameters``): factors of each, and their names.

A parameter of three axes, E x a x b, has one lora_A of E r rows and one lora_B of E r columns. Rows
of lora_A have the expert first, its ranks side by side; columns of lora_B have the rank first, all
experts of it side by side. Of two parameters of one module the wrapper of one lies in that of the
other (``base_layer``), and no name says whose factors they are: shapes do, beside the base.

Since release 0.18 or so PEFT takes b for the inputs unless the module says that it is transposed;
before, always a. Shapes tell this, too, but for square experts.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from lrdyn.core import checks

WEIGHT = ".weight"
INNER = ".base_layer"
NUMBER = re.compile(r"^(?P<stack>.+)\[(?P<expert>\d+)\]$")


class ExpertFactors(NamedTuple):
    """Factors of one expert of a stack."""

    B: np.ndarray
    A: np.ndarray


def weight_name(module: str) -> str:
    """Name of the array that a module's factors are added to: an expert is one itself.

    Example:
        >>> weight_name("layers.0.q"), weight_name("layers.0.mlp.experts.up_proj[3]")
        ('layers.0.q.weight', 'layers.0.mlp.experts.up_proj[3]')
    """
    return module if NUMBER.match(module) else module + WEIGHT


def module_name(weight: str) -> str | None:
    """The module whose factors are added to an array; None if it is none that can have some.

    Example:
        >>> module_name("q.weight"), module_name("experts.up[3]"), module_name("q.bias")
        ('q', 'experts.up[3]', None)
    """
    if NUMBER.match(weight):
        return weight
    return weight.removesuffix(WEIGHT) if weight.endswith(WEIGHT) else None


def holder(module: str) -> tuple[str, int]:
    """The module that has the parameters, and in how many wrappers it lies.

    Example:
        >>> holder("mlp.experts.base_layer"), holder("mlp.experts")
        (('mlp.experts', 1), ('mlp.experts', 0))
    """
    depth = 0
    while module.endswith(INNER):
        module, depth = module.removesuffix(INNER), depth + 1
    return module, depth


def split_experts(B: np.ndarray, A: np.ndarray, rank: int) -> Iterator[tuple[int, ExpertFactors]]:
    """Factors of each expert, out x r and r x in, of those of a stack.

    Args:
        B: lora_B, out x r E.
        A: lora_A, E r x in.
        rank: r.

    Example:
        >>> A, B = np.arange(4.0)[:, None], np.arange(4.0)[None]
        >>> [(e, (part.B @ part.A).item()) for e, part in split_experts(B, A, 2)]
        [(0, 2.0), (1, 11.0)]
    """
    experts = len(A) // rank
    for e in range(experts):
        yield e, ExpertFactors(B[:, e::experts], A[e * rank : (e + 1) * rank])


def join_experts(parts: Mapping[int, Any], rank: int) -> ExpertFactors:
    """lora_B and lora_A of a stack, of the factors of its experts; :func:`split_experts` undoes it.

    Args:
        parts: expert -> factors B and A, of any ranks up to that of the stack; others are 0.
        rank: r of the stack.

    Raises:
        ValueError: an expert has a higher rank, or two have other shapes.

    Example:
        >>> one = ExpertFactors(np.ones((2, 1)), np.ones((1, 3)))
        >>> joined = join_experts({0: one, 2: one}, 2)
        >>> joined.B.shape, joined.A.sum(axis=1).tolist()
        ((2, 6), [3.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    """
    first, experts = next(iter(parts.values())), max(parts) + 1
    out, into = len(first.B), first.A.shape[1]
    B = np.zeros((out, rank, experts), np.asarray(first.B).dtype)
    A = np.zeros((experts, rank, into), np.asarray(first.A).dtype)
    for e, part in parts.items():
        own, r = (len(part.B), part.A.shape[1]), part.A.shape[0]
        if own != (out, into) or r > rank:
            got = f"{own[0]} x {own[1]} of rank {r}"
            checks.refuse(f"expert {e}", got, f"{out} x {into} of rank {rank} at most, as others")
        B[:, :r, e], A[e, :r] = part.B, part.A
    return ExpertFactors(B.reshape(out, -1), A.reshape(-1, into))


def stacks_of(factors: Mapping[str, Any]) -> dict[str, dict[int, Any]]:
    """Stack -> expert -> factors, of those whose names are of experts.

    Example:
        >>> stacks_of({"mlp.experts[1]": "B A", "q": "B A"})
        {'mlp.experts': {1: 'B A'}}
    """
    stacks: dict[str, dict[int, Any]] = {}
    for module, own in factors.items():
        if match := NUMBER.match(module):
            stacks.setdefault(match["stack"], {})[int(match["expert"])] = own
    return stacks


def named_as_base(stored: Any, infos: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Experts' factors under the names of the base's experts, the way round that these are stored.

    Args:
        stored: a :class:`lrdyn.adapters.peft.Stored`.
        infos: name -> info of the base's matrices, an expert of a stack each.

    Returns:
        The adapter, and notes on what is not told.

    Raises:
        ValueError: the base has no such experts, or shapes do not tell which of them are meant.
    """
    levels_of: dict[str, dict[int, dict[int, Any]]] = {}
    for stack, experts in stacks_of(stored.factors).items():
        place, depth = holder(stack)
        levels_of.setdefault(place, {})[depth] = experts
    factors = {name: own for name, own in stored.factors.items() if not NUMBER.match(name)}
    notes: dict[str, str] = {}
    for place, levels in levels_of.items():
        for depth, name in _assign(place, levels, stored.config, infos).items():
            shape = infos[f"{name}[0]"].shape
            own = levels[depth]
            product = len(own[0].B), own[0].A.shape[1]
            if shape[0] == shape[1]:
                notes[f"{name}[*]"] = (
                    "experts are square: which way round the factors lie is not known, and ranks "
                    "do not tell"
                )
            for e, part in own.items():
                turned = part if product == shape else part._replace(B=part.A.T, A=part.B.T)
                factors[f"{name}[{e}]"] = turned
    return stored._replace(factors=factors), notes


def _assign(
    place: str,
    levels: Mapping[int, Mapping[int, Any]],
    config: Mapping[str, Any],
    infos: Mapping[str, Any],
) -> dict[int, str]:
    """Wrapper -> the parameter whose factors lie in it, by the shapes of both."""
    targets = config.get("target_parameters") or ()
    known = [
        name.removesuffix("[0]")
        for name in infos
        if name.startswith(f"{place}.") and name.endswith("[0]")
    ]
    # A file of weights may call a parameter ``down_proj`` or ``down_proj.weight``.
    known = [
        name
        for name in known
        if any(f".{name.removesuffix(WEIGHT)}".endswith(f".{target}") for target in targets)
    ]
    sizes = {depth: (len(own), {len(own[0].B), own[0].A.shape[1]}) for depth, own in levels.items()}
    of_base = {
        name: (
            sum(1 for other in infos if other.startswith(f"{name}[")),
            set(infos[f"{name}[0]"].shape),
        )
        for name in known
    }
    depths = sorted(levels)
    fitting = [
        dict(zip(depths, order, strict=True))
        for order in permutations(known, len(depths))
        if all(sizes[d] == of_base[name] for d, name in zip(depths, order, strict=True))
    ]
    if len(fitting) != 1:
        got = "no experts of these shapes" if not fitting else "several experts of these shapes"
        wanted = f"one way to give {len(depths)} of target_parameters to {', '.join(known) or '-'}"
        checks.refuse(f"after: {place}", f"{got} in its base", wanted)
    return fitting[0]
