"""``adapter_model.safetensors``: which tensors there are, and what shapes and types they have.

Nothing is read here: all of it stands in the header.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lrdyn.adapters import peft_config, peft_experts
from lrdyn.adapters.peft_config import PeftConfig
from lrdyn.data.guarded import refused
from lrdyn.data.tensors import FLOATS, Tensors, extra, missing

NAME, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
LINEAR = {"A": ".lora_A.weight", "B": ".lora_B.weight", "magnitude": ".lora_magnitude_vector"}
EMBEDDING = {"A": ".lora_embedding_A", "B": ".lora_embedding_B"}
ENDS = {end: field for kind in (LINEAR, EMBEDDING) for field, end in kind.items()}

PAIRS = 10**8
"""Pairs of a tensor and an entry of the configuration, at most, of some 0.1 microseconds each; an
image generator of 800 modules, each with a rank and an alpha of its own, has 4 million."""

Sizes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors of the base, by their names."""


def check_tensors(
    tensors: Tensors, config: PeftConfig, base: Mapping[str, Any] | Tensors | None
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Names of tensors: those of each module's factors by field, and by their name in the base.

    Args:
        tensors: the open file.
        config: the checked configuration.
        base: weights of the base by name, if known.

    Raises:
        Refused: a tensor is missing, one too many, or of another shape or type.

    Example:
        >>> from pathlib import Path
        >>> check_tensors(Tensors(Path("a"), {}, {}), PeftConfig(Path("b"), {}), None)
        ({}, {})
    """
    parts, others = _group_names(tensors)
    if (pairs := len(tensors) * config.entries) > PAIRS:
        got = f"{len(tensors)} tensors beside {config.entries} names and patterns"
        wanted = f"at most {PAIRS:,} pairs of them, which are compared, not {pairs:,}"
        raise refused(tensors.path, got, wanted)
    for module, names in parts.items():
        _check_names(tensors, config, module, names)
    saved = _whole_tensors(tensors, config, set(parts), others)
    sizes: Sizes | None = None
    if isinstance(base, Tensors):
        sizes = {name: info.shape for name, info in base.infos.items()}
    elif base is not None:
        sizes = {name: tuple(getattr(x, "shape", np.shape(x))) for name, x in base.items()}
    for module, names in parts.items():
        _check_shapes(tensors, config, module, names, sizes, saved)
    if sizes is not None:
        _check_against(tensors, config, set(parts), saved, sizes)
    return parts, saved


def is_embedding(names: Mapping[str, str]) -> bool:
    """Whether these are the factors of an embedding.

    Example:
        >>> is_embedding({"A": "tokens.lora_embedding_A"})
        True
    """
    return names["A"].endswith(EMBEDDING["A"])


def is_stack(config: PeftConfig, module: str) -> bool:
    """Whether a module's factors are those of a parameter, a stack of experts for example."""
    return config.holds_parameters(peft_experts.holder(module)[0]) and not config.adapts(module)


def _group_names(tensors: Tensors) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The names of each module's factors by their field, and the other names."""
    parts: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for name in tensors:
        end = next((end for end in ENDS if name.endswith(end)), None)
        if not name.startswith(PREFIX):
            raise refused(tensors.path, "this name", f"one that begins with {PREFIX}", name)
        if end is None:
            others.append(name)
            continue
        field = ENDS[end]
        names = parts.setdefault(name.removeprefix(PREFIX).removesuffix(end), {})
        if field in names:
            raise extra(tensors.path, name)
        names[field] = name
    return parts, others


def _check_names(tensors: Tensors, config: PeftConfig, module: str, names: dict[str, str]) -> None:
    """A and B of one kind, with a magnitude in DoRA only, of a module that is adapted."""
    of_embedding = any(name.endswith(tuple(EMBEDDING.values())) for name in names.values())
    kind, dora = EMBEDDING if of_embedding else LINEAR, bool(config.get("use_dora"))
    if dora and of_embedding:
        wanted = "none beside use_dora: its magnitudes are not read"
        raise refused(tensors.path, "an adapter of an embedding", wanted, PREFIX + module)
    needed = {field: end for field, end in kind.items() if field != "magnitude" or dora}
    for field, end in needed.items():
        if names.get(field) != PREFIX + module + end:
            raise missing(tensors.path, PREFIX + module + end)
    if others := set(names) - set(needed):
        raise extra(tensors.path, names[min(others)])
    if is_stack(config, module):
        if dora or of_embedding:
            wanted = "LoRA of linear layers beside target_parameters"
            raise refused(tensors.path, "another adapter of a parameter", wanted, names["A"])
        return
    if not config.adapts(module):
        got = f"a module that is none of target_modules in {config.path.name}"
        raise refused(tensors.path, got, "no tensor of it: it is extra", names["A"])


def _whole_tensors(tensors: Tensors, config: PeftConfig, adapted: set[str], names: Iterable[str]):
    """Name in the base -> name in the file, of the tensors that are saved whole."""
    places: dict[str, str] = {}
    for place in names:
        module, _, leaf = place.removeprefix(PREFIX).rpartition(".")
        above, _, wrapper = module.rpartition(".")
        wrapped = wrapper in ("modules_to_save", "original_module")
        # With all biases PEFT also saves those in its wrapper of a module that is saved whole.
        if wrapped and config.get("bias") == "all" and config.saves_module(above):
            continue
        inner = module.removesuffix(".base_layer")
        name = f"{inner if inner in adapted else module}.{leaf}".removeprefix(".")
        if name in places or not config.saves(name, adapted):
            raise extra(tensors.path, place)
        places[name] = place
    return places


def _check_shapes(
    tensors: Tensors,
    config: PeftConfig,
    module: str,
    names: dict[str, str],
    sizes: Sizes | None,
    saved: Mapping[str, str],
) -> None:
    """A of r x n, B of m x r, m lengths, floating-point numbers; the base's m and n, if known."""
    infos = {field: tensors.infos[name] for field, name in names.items()}
    weight = f"{module}.weight"
    if weight in saved:  # it takes the place of the base's
        sizes = {weight: tensors.infos[saved[weight]].shape}
    m: Any = infos["B"].shape[0] if infos["B"].shape else "m"
    n: Any = infos["A"].shape[-1] if infos["A"].shape else "n"
    if sizes is not None and not is_stack(config, module):
        if len(sizes.get(weight, ())) != 2:
            got = f"a weight of shape {sizes[weight]}" if weight in sizes else "no such module"
            raise refused(tensors.path, f"{got} in the base", "a matrix", names["A"])
        turned = config.get("fan_in_fan_out") or is_embedding(names)
        m, n = reversed(sizes[weight]) if turned else sizes[weight]
    rank = config.rank(module)
    if is_stack(config, module):
        # E r rows and columns; of the base the experts have their own shapes.
        (rows, n), (m, columns) = (infos[field].shape for field in ("A", "B"))
        if rows % rank or rows != columns or not rows:
            got = f"shapes {infos['A'].shape} and {infos['B'].shape}"
            raise refused(tensors.path, got, f"E x {rank} rows, and as many columns", names["A"])
        rank = rows
    for field, wanted in (("A", (rank, n)), ("B", (m, rank)), ("magnitude", (m,))):
        if field not in infos:
            continue
        _, dtype, shape = infos[field]
        if shape != wanted or 0 in shape:
            form = "(" + ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "") + ")"
            raise refused(tensors.path, f"shape {shape}", form, names[field])
        if dtype not in FLOATS:
            raise refused(tensors.path, f"type {dtype}", "floating-point numbers", names[field])


def _check_against(
    tensors: Tensors,
    config: PeftConfig,
    adapted: set[str],
    saved: Mapping[str, str],
    sizes: Sizes,
) -> None:
    """Every module of the base that is adapted, and every tensor saved whole, is there and fits."""
    for name, shape in sizes.items():
        module, _, leaf = name.rpartition(".")
        # PEFT saves an embedding unasked when its vocabulary has changed: it may be there or not.
        unasked = peft_config.is_embedding(module) and not config.saves_module(module)
        if config.saves(name, adapted) and not unasked and name not in saved:
            raise missing(tensors.path, PREFIX + name)
        is_target = leaf == "weight" and len(shape) == 2 and config.adapts(module)
        asked = is_target and config.get("target_modules") != peft_config.ALL_LINEAR
        if asked and module not in adapted:
            raise missing(tensors.path, PREFIX + module + LINEAR["A"])
    for name, place in saved.items():
        if name not in sizes:
            raise extra(tensors.path, place)
        got, wanted = tensors.infos[place].shape, sizes[name]
        # Tokens that were added are rows at the end; the length of their vectors stays.
        grown = peft_config.is_embedding(name.rpartition(".")[0]) and got[1:] == wanted[1:]
        if got != wanted and not grown:
            raise refused(tensors.path, f"shape {got}", f"{wanted}", place)
