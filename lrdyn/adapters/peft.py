"""PEFT's adapters: ``adapter_model.safetensors`` and ``adapter_config.json``, read and written.

LoRA, rsLoRA (arXiv 2312.03732), DoRA (2402.09353) and PiSSA (2404.02948). Factors are those of the
weight as the base stores it, W of m x n: an embedding, and with ``fan_in_fan_out`` every weight, is
stored transposed, and PEFT's B and A then change places.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters import peft_config, peft_experts, peft_tensors
from lrdyn.adapters.peft_config import PeftConfig
from lrdyn.adapters.peft_tensors import EMBEDDING, LINEAR, NAME, PICKLE, PREFIX
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.data.guarded import refused
from lrdyn.data.tensors import FLOATS, Info, Tensors, opened
from lrdyn.data.tensors import write as write_tensors
from lrdyn.system.whole_files import replace_file


class StoredFactors(NamedTuple):
    """What is added to a weight: s B A, then rows of the given lengths in DoRA."""

    B: Any
    """m x r."""
    A: Any
    """r x n."""
    scale: float | int
    """s = alpha / r, in rsLoRA alpha / sqrt(r)."""
    magnitude: Any = None
    """m, of DoRA."""


class Stored(NamedTuple):
    """An adapter as PEFT stores it."""

    factors: dict[str, StoredFactors]
    """Factors by the name of their module, such as ``encoder.layer.0.attention.self.query``."""
    saved: dict[str, Any]
    """Tensors in the place of the base's (``modules_to_save``, biases), by their name in it."""
    config: dict[str, Any]
    """The content of ``adapter_config.json``."""
    embeddings: frozenset[str] = frozenset()
    """Modules that are embeddings."""


def read(
    path: str | Path,
    config: str | Path | None = None,
    *,
    base: Mapping[str, Any] | Tensors | None = None,
) -> Stored:
    """Read an adapter; names, shapes and types are checked before a tensor is read.

    Args:
        path: the folder, or ``adapter_model.safetensors``.
        config: ``adapter_config.json``, if it does not lie beside that.
        base: the weights of the base by name (arrays, or an open file), of which names and shapes
            are looked at. Without it no module is known to be missing.

    Returns:
        The adapter; arrays of NumPy, in the types of the file.

    Raises:
        Refused: no LoRA, a configuration that asks for what is not read, a damaged file, a pickle,
            or a tensor that is missing, one too many, of another shape or type, or has a NaN.
        FileNotFoundError: there is no such file.

    Example:
        >>> read("a.bin")
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a.bin: got a .bin file, wanted safetensors: it is a pickle, ...
    """
    file = Path(path)
    if file.is_dir():
        # A pickle alone is refused by its name, and not as a file that is missing.
        pickle_alone = (file / PICKLE).is_file() and not (file / NAME).is_file()
        file = file / (PICKLE if pickle_alone else NAME)
    tensors = opened(file)
    # Names, shapes and types come from the header: a refusal costs no reading of tensors.
    known = peft_config.read(Path(config) if config else file.with_name(peft_config.NAME))
    parts, saved = peft_tensors.check_tensors(tensors, known, base)
    if not parts:
        raise refused(file, "no factors", "those of at least one module")
    embeddings = frozenset(
        module for module, names in parts.items() if peft_tensors.is_embedding(names)
    )
    factors = {}
    for module, names in parts.items():
        got = {field: tensors[name] for field, name in names.items()}
        B, A = got["B"], got["A"]
        if peft_tensors.is_stack(known, module):
            scale = known.scale(module)
            for e, part in peft_experts.split_experts(B, A, known.rank(module)):
                factors[f"{module}[{e}]"] = StoredFactors(part.B, part.A, scale)
            continue
        if known.get("fan_in_fan_out") or module in embeddings:
            B, A = A.T, B.T
        factors[module] = StoredFactors(B, A, known.scale(module), got.get("magnitude"))
    whole = {name: tensors[place] for name, place in saved.items()}
    return Stored(factors, whole, known.content, embeddings)


@checked
def described(
    factors: Mapping[str, StoredFactors],
    *,
    saved: Mapping[str, Any] | None = None,
    embeddings: Iterable[str] = (),
    rslora: bool = False,
    bias: str = "none",
    others: Iterable[str] = (),
    **more: Any,
) -> Stored:
    """An adapter with the configuration that its factors have: ranks, alphas, modules.

    Args:
        factors: by the name of the module in the base.
        saved: tensors that take the place of the base's, by their name in it.
        embeddings: which of the modules are embeddings.
        rslora: whether alpha is s sqrt(r), in place of s r.
        bias: ``"lora_only"`` or ``"all"`` if ``saved`` has biases of these modules, or all biases.
        others: further modules of the base, see :func:`configuration`.
        more: further keys of ``adapter_config.json``, such as ``task_type``. Beside factors of
            experts (``mlp.experts[3]``) ``target_parameters`` must be among them; the experts of
            all stacks are written with the largest of their ranks, the others filled with zeros.

    Raises:
        ValueError: the factors do not fit together, or a key is not known.

    Example:
        >>> factors = StoredFactors(np.ones((3, 2)), np.ones((2, 4)), 1.5)
        >>> adapter = described({"layers.0.q": factors, "layers.1.q": factors})
        >>> [adapter.config[key] for key in ("r", "lora_alpha", "target_modules")]
        [2, 3, ['layers.0.q', 'layers.1.q']]
    """
    if not factors:
        checks.refuse("factors", factors, "factors by the name of their module")
    for module, stored in factors.items():
        _check_factors(module, stored)
    experts = [own for stack in peft_experts.stacks_of(factors).values() for own in stack.values()]
    modules = {name: own for name, own in factors.items() if not peft_experts.NUMBER.match(name)}
    ranks = {module: int(np.shape(stored.A)[0]) for module, stored in modules.items()}
    alphas = {m: _alpha(stored.scale, ranks[m], rslora) for m, stored in modules.items()}
    if experts:
        # No pattern reaches a parameter: all stacks have the rank and alpha of the configuration.
        rank = max(int(np.shape(stored.A)[0]) for stored in experts)
        more = {"r": rank, "lora_alpha": _alpha(experts[0].scale, rank, rslora)} | more
    biases = {"none": set(), "lora_only": {f"{module}.bias" for module in factors}}.get(bias)
    whole = {
        name.rpartition(".")[0]
        for name in saved or {}
        if not (name.endswith(".bias") if biases is None else name in biases)
    }
    content = configuration(
        ranks,
        alphas,
        others=others,
        **{
            "modules_to_save": sorted(whole - set(factors)) or None,
            "bias": bias,
            "use_rslora": rslora,
            "use_dora": any(stored.magnitude is not None for stored in factors.values()),
        }
        | more,
    )
    adapter = Stored(dict(factors), dict(saved or {}), content, frozenset(embeddings))
    _name_tensors(adapter)
    return adapter


def _alpha(scale: float | int, rank: int, rslora: bool) -> float | int:
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha)
    # An integer, if it was one before s was divided by r: the quotient and the product round.
    was_integer = near and abs(alpha - near) <= 4 * np.finfo(float).eps * abs(near)
    return near if was_integer else alpha


def configuration(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float | int],
    *,
    others: Iterable[str] = (),
    **more: Any,
) -> dict[str, Any]:
    """The content of ``adapter_config.json`` of a LoRA with these ranks.

    Args:
        ranks: r by the name of the module in the base.
        alphas: alpha likewise.
        others: further modules of the base. Where PEFT would take one of them for a target, for it
            looks for a name at the end of a module's, ``target_modules`` is one expression.
        more: further keys; ``r`` and ``lora_alpha`` are else the commonest of the modules'.

    Example:
        >>> content = configuration({"q": 2, "v": 3}, {"q": 2, "v": 3}, others=["x.q"])
        >>> content["r"], content["rank_pattern"], content["target_modules"]
        (2, {'^v': 3}, 'q|v')
    """
    # The commonest value becomes that of all, and only the others need a pattern.
    rank, alpha = (
        more[key] if key in more else Counter(values.values()).most_common(1)[0][0]
        for key, values in (("r", ranks), ("lora_alpha", alphas))
    )
    content = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        # PEFT looks for a pattern at the end of a name: only the whole name is meant.
        "rank_pattern": {f"^{re.escape(m)}": r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(m)}": a for m, a in alphas.items() if a != alpha},
        "modules_to_save": None,
        "bias": "none",
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "lora_dropout": 0.0,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "task_type": None,
    } | more
    config = PeftConfig(Path("adapter.config"), content)
    if "target_modules" not in more and any(
        config.adapts(other) for other in set(others) - set(ranks)
    ):
        content["target_modules"] = "|".join(map(re.escape, sorted(ranks)))
    return content


def _check_factors(module: str, stored: StoredFactors) -> None:
    name = f"factors[{module!r}]"
    checks.instance(name, stored, StoredFactors)
    for field, axes in (("B", 2), ("A", 2), ("magnitude", 1)):
        array = getattr(stored, field)
        if field == "magnitude" and array is None:
            continue
        shape, dtype = getattr(array, "shape", ()), getattr(array, "dtype", np.dtype("O"))
        if dtype.name not in FLOATS:
            got = f"{type(array).__name__} of {dtype}"
            checks.refuse(f"{name}.{field}", got, "an array of floating-point numbers")
        if len(shape) != axes or 0 in shape:
            checks.refuse(f"{name}.{field}", f"shape {shape}", f"{axes} axes, none empty")
    if stored.B.shape[1] != stored.A.shape[0]:
        checks.refuse(
            f"{name}.B", f"shape {stored.B.shape}", f"(m, {stored.A.shape[0]}), as A has rows"
        )
    if stored.magnitude is not None and stored.magnitude.shape != stored.B.shape[:1]:
        got = f"shape {stored.magnitude.shape}"
        checks.refuse(f"{name}.magnitude", got, f"({stored.B.shape[0]},), as B has rows")
    checks.floats(f"{name}.scale", stored.scale, (), np.isfinite, "a finite number")


@checked
def write(folder: str | Path, adapter: Stored) -> None:
    """Write the two files, each whole or not at all; the folder is made if it is not there.

    Args:
        folder: where.
        adapter: as :func:`read` or :func:`described` gives it.

    Raises:
        ValueError: factors, saved tensors and configuration do not fit together.
        OSError: a file could not be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> factors = {"q": StoredFactors(np.ones((3, 2)), np.ones((2, 4)), 1.5)}
        >>> write(folder, described(factors))
        >>> read(folder).factors["q"].scale
        1.5
    """
    # All is checked, and the text is made, before the first file is touched: a refusal leaves none.
    arrays = _name_tensors(adapter)
    text = json.dumps(adapter.config, indent=2, sort_keys=True, allow_nan=False)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / NAME, arrays, metadata={"format": "pt"})
    with replace_file(folder / peft_config.NAME) as temporary:
        temporary.write_text(text)


def _name_tensors(adapter: Stored) -> dict[str, Any]:
    """The tensors by their names in the file; all is checked as when it is read."""
    config = PeftConfig(Path("adapter.config"), dict(adapter.config))
    peft_config.check_config(config)
    arrays: dict[str, Any] = {}
    for module, stored in adapter.factors.items():
        _check_factors(module, stored)
        expert = peft_experts.NUMBER.match(module)
        scale = config.scale(expert["stack"] if expert else module)
        # A scale is a quotient of alpha, which was rounded, and r or its root.
        if abs(scale - stored.scale) > 8 * np.finfo(float).eps * abs(scale):
            wanted = f"{scale}, as r and lora_alpha in its config say"
            checks.refuse(f"factors[{module!r}].scale", stored.scale, wanted)
        if expert:
            continue
        turned = module in adapter.embeddings or config.get("fan_in_fan_out")
        names = LINEAR | (EMBEDDING if module in adapter.embeddings else {})
        B, A = (stored.A.T, stored.B.T) if turned else (stored.B, stored.A)
        for field, array in (("A", A), ("B", B), ("magnitude", stored.magnitude)):
            if array is not None:
                arrays[PREFIX + module + names[field]] = array
    for stack, parts in peft_experts.stacks_of(adapter.factors).items():
        if not peft_tensors.is_stack(config, stack):
            checks.refuse(f"factors[{stack!r}]", "experts", "target_parameters that name the stack")
        B, A = peft_experts.join_experts(parts, config.rank(stack))
        arrays |= {PREFIX + stack + LINEAR["A"]: A, PREFIX + stack + LINEAR["B"]: B}
    for name, array in adapter.saved.items():
        module, _, leaf = name.rpartition(".")
        inside = f"{module}.base_layer.{leaf}" if module in adapter.factors else name
        arrays[PREFIX + inside] = np.asarray(array)
    place = Path("adapter")
    infos = {name: Info(place, x.dtype.name, tuple(x.shape)) for name, x in arrays.items()}
    peft_tensors.check_tensors(Tensors(place, infos, {}), config, None)
    return arrays


@checked
def merged(
    adapter: Stored, weights: Mapping[str, Any], *, residual: bool = False
) -> dict[str, np.ndarray]:
    """The weights of the base with the adapter in them: W + s B A, or m (W + s B A) / ||.||.

    Args:
        adapter: the adapter.
        weights: those of the base, by name: ``<module>.weight`` for each module with factors.
        residual: whether they are what PiSSA left of the base, not the base itself. Without it,
            what an adapter with ``init_lora_weights`` "pissa" stands beside is computed from
            ``weights``, as PEFT does: W without its r largest singular values.

    Returns:
        All weights, in their types; products are taken in float32, or float64 if they are.

    Raises:
        ValueError: a weight is not there or has another shape.

    Example:
        >>> adapter = described({"q": StoredFactors(np.ones((2, 1)), np.ones((1, 2)), 2.0)})
        >>> merged(adapter, {"q.weight": np.eye(2)})["q.weight"]
        array([[3., 2.],
               [2., 3.]])
    """
    result = {name: np.asarray(array) for name, array in {**weights, **adapter.saved}.items()}
    start = adapter.config.get("init_lora_weights") == "pissa" and not residual
    for module, stored in adapter.factors.items():
        name, shape = peft_experts.weight_name(module), (len(stored.B), stored.A.shape[1])
        got = result[name].shape if name in result else "no such weight"
        # A convolution's weight is the matrix (out, in k k).
        whole_shape = got
        if name in result and len(got) > 2:
            result[name] = result[name].reshape(len(result[name]), -1)
            got = result[name].shape
        if got != shape:
            checks.refuse(f"weights[{name!r}]", got, f"shape {shape}")
        # float32 at least: products of half-precision factors would overflow or lose their digits.
        kind = np.result_type(result[name].dtype, np.float32)
        W, B, A = (np.asarray(x, kind) for x in (result[name], stored.B, stored.A))
        # In the type of the product: a scale of another would change that of the sum.
        whole = (pissa_residual(W, stored.A.shape[0]) if start else W) + kind.type(stored.scale) * (
            B @ A
        )
        if stored.magnitude is not None:
            norms = np.linalg.norm(whole, axis=1)
            # A row of zeros stays one, as in a training: it has no direction.
            rows = np.asarray(stored.magnitude, kind) / np.where(norms > 0, norms, 1)
            whole = rows[:, None] * whole
        result[name] = whole.astype(result[name].dtype).reshape(whole_shape)
    return result


def pissa_residual(weight: np.ndarray, rank: int) -> np.ndarray:
    """What PiSSA leaves of a weight: it without its largest singular values.

    Args:
        weight: W, m x n.
        rank: how many.

    Example:
        >>> pissa_residual(np.diag([3.0, 2.0]), 1).round(12)
        array([[0., 0.],
               [0., 2.]])
    """
    left, values, right = np.linalg.svd(weight.astype(float), full_matrices=False)
    rest = (left[:, rank:] * values[rank:]) @ right[rank:]
    return rest.astype(weight.dtype)


@checked
def converted(adapter: Stored, initial: Stored) -> Stored:
    """A PiSSA adapter as a LoRA of rank 2r beside the base itself.

    s B A - s B_0 A_0 = s [B, -B_0] [A; A_0], as PEFT's
    ``path_initial_model_for_weight_conversion``; tensors saved whole stay.

    Args:
        adapter: after training.
        initial: before it.

    Raises:
        ValueError: they are adapters of different modules, ranks or scales; DoRA; or rsLoRA with a
            ``rank_pattern`` or ``alpha_pattern``.

    Example:
        >>> adapter = described({"q": StoredFactors(np.ones((2, 1)), np.ones((1, 2)), 2.0)})
        >>> converted(adapter, adapter).factors["q"].B
        array([[ 1., -1.],
               [ 1., -1.]])
    """
    config = dict(adapter.config)
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")
    if config.get("use_dora"):
        checks.refuse("adapter", "DoRA", "LoRA or rsLoRA: its lengths are of no sum of two factors")
    if config.get("use_rslora") and patterns:
        checks.refuse(
            "adapter", "rsLoRA with rank_pattern or alpha_pattern", "rsLoRA without, or LoRA"
        )
    if set(initial.factors) != set(adapter.factors):
        got = min(set(initial.factors) ^ set(adapter.factors))
        checks.refuse("initial", f"{got} in one of the two alone", "the same modules in both")
    factors = {}
    for module, stored in adapter.factors.items():
        start = initial.factors[module]
        if (start.B.shape, start.A.shape, start.scale) != (
            stored.B.shape,
            stored.A.shape,
            stored.scale,
        ):
            got = f"shapes {start.B.shape} and {start.A.shape}, scale {start.scale}"
            wanted = f"{stored.B.shape}, {stored.A.shape}, {stored.scale}"
            checks.refuse(f"initial.factors[{module!r}]", got, wanted)
        # The sign goes to what the file calls B.
        turned = config.get("fan_in_fan_out") or module in adapter.embeddings
        B0, A0 = (start.B, -start.A) if turned else (-start.B, start.A)
        factors[module] = StoredFactors(
            np.concatenate([stored.B, B0], axis=1), np.concatenate([stored.A, A0]), stored.scale
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            config[key] = {name: 2 * value for name, value in config[key].items()}
    # The rank doubles and s stays: alpha is s r, or in rsLoRA s r^(1/2).
    twice = 2**0.5 if config.get("use_rslora") else 2
    config |= {"r": 2 * config["r"], "lora_alpha": twice * config["lora_alpha"]}
    return adapter._replace(factors=factors, config=config | {"init_lora_weights": True})
