"""LoRA of image generators: files of kohya's sd-scripts, LyCORIS and diffusers.

One ``.safetensors`` without a configuration. Each kind of module is a product of two factors:

* LoRA: s B A; of a convolution W is (out, in k k), and a core G of r x r x k x k (Tucker's form)
  goes into A: A[i, (c, k)] = sum_j G[i, j, k] A_0[j, c];
* LoHa (arXiv 2108.06098): s (B_1 A_1) o (B_2 A_2) entry by entry, a product of rank r^2: row i of B
  is the Kronecker product of the rows i of B_1 and B_2, and the columns of A likewise;
* LoKr (arXiv 2212.10650): s W_1 (x) W_2 = s (B_1 (x) B_2) (A_1 (x) A_2).

s = alpha / r. Where no alpha is given it is r; a LoKr whose two parts are both whole has s = 1.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters.peft import Stored, StoredFactors, described
from lrdyn.adapters.peft_config import PeftConfig, check_config
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.data.guarded import refused
from lrdyn.data.tensors import FLOATS, Tensors, missing, opened
from lrdyn.data.tensors import write as write_tensors

KOHYA, DIFFUSERS = "kohya", "diffusers"
ENDS = {
    ".lora_down.weight": ("A", KOHYA),
    ".lora_up.weight": ("B", KOHYA),
    ".lora_mid.weight": ("core", KOHYA),
    ".lora_A.weight": ("A", DIFFUSERS),
    ".lora_B.weight": ("B", DIFFUSERS),
    ".lora.down.weight": ("A", DIFFUSERS),
    ".lora.up.weight": ("B", DIFFUSERS),
    ".alpha": ("alpha", None),
} | {
    f".{name}": (name, KOHYA)
    for name in "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w1_a "
    "lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2".split()
}
"""End of a tensor's name -> what it is, and who writes it so."""
PEFT = "base_model."
"""Front of the names in a file of PEFT, which has its configuration beside it."""
PART = re.compile(r"lora_(unet|te\d?|transformer)_")
"""Front of kohya's names: the part of the generator; behind it dots are underscores."""
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration of each part, as JSON."""
STALE = (METADATA, "sshs_model_hash", "sshs_legacy_hash")
"""Words in a header that say what the tensors were before they changed."""


class LoraFile(NamedTuple):
    """What such a file holds."""

    stored: Stored
    """Factors by the module's name in the file, and the configuration that PEFT has of such."""
    kernels: dict[str, tuple[int, ...]]
    """Sizes of the kernels of convolutions, whose factors are those of W as (out, in k k)."""
    style: str
    """Whose names they are: ``"kohya"`` or ``"diffusers"``."""
    metadata: dict[str, str]
    """The words in the header."""


def is_lora_file(names: Iterable[str]) -> bool:
    """Whether the names of a file's tensors are those of factors, and not in PEFT's form.

    Example:
        >>> is_lora_file(["lora_unet_mid_q.lora_down.weight"]), is_lora_file(["q.weight"])
        (True, False)
    """
    factors = tuple(end for end, (field, _) in ENDS.items() if field != "alpha")
    return any(name.endswith(factors) and not name.startswith(PEFT) for name in names)


def read(path: str | Path) -> LoraFile:
    """Read a file of kohya, LyCORIS or diffusers; names and shapes are checked first.

    Args:
        path: the ``.safetensors``.

    Raises:
        Refused: a damaged file, DoRA, or a tensor that is missing, not known or of a wrong shape.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lora.safetensors")
        >>> down, up = np.ones((2, 3, 1, 1), np.float32), np.ones((4, 2, 1, 1), np.float32)
        >>> tensors = {"lora_unet_q.lora_down.weight": down, "lora_unet_q.lora_up.weight": up}
        >>> write_tensors(path, tensors | {"lora_unet_q.alpha": np.float32(1.0)})
        >>> file = read(path)
        >>> file.stored.factors["lora_unet_q"].scale, file.kernels
        (0.5, {'lora_unet_q': (1, 1)})
    """
    tensors = opened(path)
    groups, styles = _grouped(tensors)
    if not groups:
        raise refused(tensors.path, "no factors", "a LoRA of kohya, LyCORIS or diffusers")
    configs = _configurations(tensors)
    factors, kernels = {}, {}
    for module, names in groups.items():
        kernel = _kernel(tensors, names)
        if kernel is not None:
            kernels[module] = kernel
        factors[module] = _factors(tensors, module, names, configs)
    return LoraFile(described(factors), kernels, styles.most_common(1)[0][0], tensors.metadata)


def _grouped(tensors: Tensors) -> tuple[dict[str, dict[str, str]], Counter[str]]:
    """Module -> field -> name of the tensor; and how often each style of names is seen."""
    groups: dict[str, dict[str, str]] = {}
    styles: Counter[str] = Counter()
    for name, info in tensors.infos.items():
        end = next((end for end in ENDS if name.endswith(end)), None)
        if end is None:
            wanted = "factors of LoRA, LoHa or LoKr and their alpha; DoRA and others are not read"
            raise refused(tensors.path, "a tensor of another kind", wanted, name)
        if info.dtype not in FLOATS:
            raise refused(tensors.path, f"type {info.dtype}", "floating-point numbers", name)
        field, style = ENDS[end]
        names = groups.setdefault(name.removesuffix(end), {})
        if field in names:
            raise refused(tensors.path, f"it beside {names[field]}", "one of the two", name)
        names[field] = name
        if style is not None:
            styles[style] += 1
    return groups, styles


def _kernel(tensors: Tensors, names: Mapping[str, str]) -> tuple[int, ...] | None:
    """Size of a convolution's kernel; None of a matrix."""
    shapes = {field: tensors.infos[name].shape for field, name in names.items()}
    for field in ("core", "hada_t1", "lokr_t2", "A", "lokr_w2"):
        if len(shape := shapes.get(field, ())) > 2:
            return shape[2:]
    # LyCORIS stores the factors of a convolution without Tucker's form as matrices (r, in k k):
    # the file does not tell k.
    return None


def _factors(
    tensors: Tensors, module: str, names: Mapping[str, str], configs: Mapping[str, PeftConfig]
) -> StoredFactors:
    """B, A and s of one module."""

    def matrix(field: str) -> np.ndarray:
        if field not in names:
            raise missing(tensors.path, f"{module} ({field})")
        array = tensors[names[field]]
        if array.ndim < 2 or 0 in array.shape:
            got = f"shape {array.shape}"
            raise refused(tensors.path, got, "two axes or those of a convolution", names[field])
        return array.reshape(len(array), -1)

    def pair(B_field: str, A_field: str, core_field: str) -> tuple[np.ndarray, np.ndarray]:
        """Two factors; with a core the second one is that of the convolution."""
        B, A = matrix(B_field), matrix(A_field)
        if core_field in names:
            core = tensors[names[core_field]]
            # LyCORIS has the first factor of LoHa and LoKr the other way round beside a core.
            B = B if B_field == "B" else B.T
            if core.ndim < 3 or core.shape[:2] != (B.shape[1], len(A)):
                wanted = f"({B.shape[1]}, {len(A)}, kernel)"
                raise refused(tensors.path, f"shape {core.shape}", wanted, names[core_field])
            wide = np.result_type(A.dtype, np.float32)
            A = np.einsum("ij...,jc->ic...", core.astype(wide), A.astype(wide))
            B, A = B.astype(wide), A.reshape(len(A), -1)
        if B.shape[1] != len(A):
            wanted = f"(..., {len(A)}), as the other factor has rows"
            raise refused(tensors.path, f"shape {B.shape}", wanted, names[B_field])
        return B, A

    if any(field.startswith("hada") for field in names):
        first = pair("hada_w1_a", "hada_w1_b", "hada_t1")
        second = pair("hada_w2_a", "hada_w2_b", "hada_t2")
        if (len(first[0]), first[1].shape[1]) != (len(second[0]), second[1].shape[1]):
            got = f"products of {len(first[0])} and {len(second[0])} rows"
            raise refused(tensors.path, got, "two of one shape", names["hada_w2_a"])
        rank = len(first[1])
        B, A = entrywise_factors(first, second)
    elif any(field.startswith("lokr") for field in names):
        parts, ranks = [], []
        for part in ("lokr_w1", "lokr_w2"):
            if part in names:
                parts.append(_whole_pair(matrix(part)))
            else:
                core = "lokr_t2" if part == "lokr_w2" else "no core"
                parts.append(pair(f"{part}_a", f"{part}_b", core))
                ranks.append(len(parts[-1][1]))
        rank = ranks[-1] if ranks else None
        B, A = kronecker_factors(*parts)
    else:
        B, A = pair("B", "A", "core")
        rank = len(A)
    return StoredFactors(B, A, _scale(tensors, module, names, rank, configs))


def _scale(
    tensors: Tensors,
    module: str,
    names: Mapping[str, str],
    rank: int | None,
    configs: Mapping[str, PeftConfig],
) -> float:
    """The scale s of a module; of a LoKr of two whole parts, which has no r, it is 1."""
    if "alpha" in names and rank is not None:
        array = np.asarray(tensors[names["alpha"]])
        if array.size != 1 or not np.isfinite(alpha := float(array.reshape(()))):
            raise refused(tensors.path, f"{array!r}", "one finite number", names["alpha"])
        return alpha / rank
    part, _, inner = module.partition(".")
    if rank is not None and part in configs:
        return float(configs[part].scale(inner))
    return 1.0


def _configurations(tensors: Tensors) -> dict[str, PeftConfig]:
    """Part of the generator -> the ranks and alphas that diffusers keeps in the header."""
    if METADATA not in tensors.metadata:
        return {}
    try:
        content = json.loads(tensors.metadata[METADATA])
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise refused(tensors.path, "no JSON of a configuration", "what diffusers writes", METADATA)
    parts: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        part, _, inner = key.partition(".")
        parts.setdefault(part, {})[inner] = value
    configs = {}
    for part, own in parts.items():
        if {"r", "lora_alpha"} <= own.keys():
            known = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
            if own.get("use_dora"):
                raise refused(tensors.path, "DoRA", "LoRA", f"{METADATA}: {part}.use_dora")
            chosen = {key: own[key] for key in known if own.get(key) is not None}
            # Modules are those of the tensors: only ranks and scales are asked for.
            whole = {"peft_type": "LORA", "target_modules": [part], **chosen}
            configs[part] = check_config(PeftConfig(tensors.path, whole))
    return configs


def _whole_pair(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W as a product of W and an identity, of the shorter side."""
    m, n = W.shape
    return (W, np.eye(n, dtype=W.dtype)) if n <= m else (np.eye(m, dtype=W.dtype), W)


def entrywise_factors(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the entrywise product (B_1 A_1) o (B_2 A_2), of rank r_1 r_2.

    (B_1 A_1)_ij (B_2 A_2)_ij = sum_kl B_1ik B_2il A_1kj A_2lj.

    Args:
        first: B_1 (m x r_1) and A_1 (r_1 x n).
        second: B_2 and A_2 likewise.

    Example:
        >>> B, A = entrywise_factors((np.eye(2), np.ones((2, 2))), (np.eye(2), np.eye(2)))
        >>> (B @ A).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Reference:
        Hyeon-Woo, Ye-Bin and Oh, FedPara, arXiv 2108.06098.
    """
    (B1, A1), (B2, A2) = (_widened(pair) for pair in (first, second))
    B = (B1[:, :, None] * B2[:, None, :]).reshape(len(B1), -1)
    A = (A1[:, None, :] * A2[None, :, :]).reshape(-1, A1.shape[1])
    return B, A


def kronecker_factors(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Factors of (B_1 A_1) (x) (B_2 A_2) = (B_1 (x) B_2) (A_1 (x) A_2), of rank r_1 r_2.

    Args:
        first: B_1 (m_1 x r_1) and A_1 (r_1 x n_1).
        second: B_2 and A_2, of other shapes or not.

    Example:
        >>> one = np.ones((1, 1))
        >>> B, A = kronecker_factors((np.eye(2), np.eye(2)), (one, 3 * one))
        >>> (B @ A).tolist()
        [[3.0, 0.0], [0.0, 3.0]]

    Reference:
        Edalati et al., KronA, arXiv 2212.10650.
    """
    (B1, A1), (B2, A2) = (_widened(pair) for pair in (first, second))
    return np.kron(B1, B2), np.kron(A1, A2)


def _widened(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    # Products of half-precision numbers would be rounded once more.
    B, A = (x.astype(np.result_type(x.dtype, np.float32)) for x in pair)
    return B, A


@checked
def write(path: str | Path, file: LoraFile) -> None:
    """Write a file of kohya or of diffusers, whole or not at all; LoHa and LoKr become LoRA.

    kohya keeps alpha = s r beside the factors; diffusers has alpha = r, and s goes into B.

    Args:
        path: a ``.safetensors``.
        file: as :func:`read` gives it, with other factors or not.

    Raises:
        ValueError: it is DoRA, has tensors saved whole, or a kernel does not fit the factors.
        OSError: it could not be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lora.safetensors")
        >>> factors = StoredFactors(np.ones((4, 2)), np.ones((2, 27)), 1.5)
        >>> stored = described({"lora_unet_c": factors})
        >>> write(path, LoraFile(stored, {"lora_unet_c": (3, 3)}, KOHYA, {}))
        >>> opened(path).infos["lora_unet_c.lora_down.weight"].shape
        (2, 3, 3, 3)
    """
    if file.stored.saved:
        checks.refuse("file", "tensors saved whole", "factors alone")
    kohya, tensors, ranks = file.style == KOHYA, {}, set()
    down, up = (
        (".lora_down.weight", ".lora_up.weight") if kohya else (".lora_A.weight", ".lora_B.weight")
    )
    for module, (B, A, scale, magnitude) in file.stored.factors.items():
        if magnitude is not None:
            checks.refuse(f"factors[{module!r}]", "DoRA", "LoRA")
        B, A, rank = np.asarray(B), np.asarray(A), len(A)
        ranks.add(rank)
        if not kohya:
            B = (B * np.asarray(scale, np.result_type(B.dtype, np.float32))).astype(B.dtype)
        if (kernel := file.kernels.get(module)) is not None:
            if A.shape[1] % int(np.prod(kernel)):
                wanted = f"a multiple of the {kernel} of its kernel"
                checks.refuse(f"factors[{module!r}].A", f"{A.shape[1]} columns", wanted)
            A, B = A.reshape(rank, -1, *kernel), B.reshape(*B.shape, *(1,) * len(kernel))
        tensors[module + down], tensors[module + up] = A, B
        if kohya:
            tensors[module + ".alpha"] = np.asarray(scale * rank, np.float32)
    words = {key: text for key, text in file.metadata.items() if key not in STALE}
    if kohya:
        alphas = {float(tensors[module + ".alpha"]) for module in file.stored.factors}
        # sd-scripts' own word for ranks that differ.
        for key, values in (("ss_network_dim", ranks), ("ss_network_alpha", alphas)):
            words[key] = f"{min(values):g}" if len(values) == 1 else "Dynamic"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, metadata=words)


def named_as_base(stored: Stored, modules: Iterable[str]) -> tuple[Stored, dict[str, str]]:
    """The factors by the names that the base has of their modules, and notes on those left out.

    kohya's names have underscores for dots, diffusers' have the part of the generator in front. Of
    a part of which the base has no module at all nothing is compared.

    Args:
        stored: the adapter.
        modules: names of the base's.

    Raises:
        ValueError: two modules of the base have the same name with underscores.

    Example:
        >>> factors = {"lora_unet_mid_to_q": StoredFactors(np.ones((2, 1)), np.ones((1, 2)), 1.0)}
        >>> found, notes = named_as_base(described(factors), ["mid.to_q"])
        >>> list(found.factors), notes
        (['mid.to_q'], {})
    """
    known, by_flat_name = set(modules), {}
    for name in known:
        by_flat_name.setdefault(name.replace(".", "_"), []).append(name)
    places: dict[str, str | None] = {}
    parts: dict[str, list[str]] = {}
    for module in stored.factors:
        match = PART.match(module)
        if module in known or not (match or is_part(module)):
            places[module] = module
            continue
        part, inner = (match[0], module[match.end() :]) if match else module.split(".", 1)
        fitting = by_flat_name.get(inner, []) if match else [inner] if inner in known else []
        if len(fitting) > 1:
            checks.refuse(
                "after", f"{module} for {' and '.join(sorted(fitting))}", "one of the two"
            )
        places[module] = fitting[0] if fitting else None
        parts.setdefault(part, []).append(module)
    notes = {
        f"{part}*": f"{len(own)} modules of a part that the base does not have"
        for part, own in parts.items()
        if not any(places[module] for module in own)
    }
    left_out = {m for part, own in parts.items() if f"{part}*" in notes for m in own}
    if left_out == set(stored.factors):
        some = ", ".join(sorted(known)[:3])
        checks.refuse(
            "after", f"{next(iter(left_out))} and no module of the base", f"such as {some}"
        )
    # What a part lacks alone stays under its own name, and is refused beside the base.
    factors = {places[m] or m: own for m, own in stored.factors.items() if m not in left_out}
    return stored._replace(factors=factors), notes


def is_part(module: str) -> bool:
    """Whether a name begins with a part of a generator, as diffusers calls them.

    Example:
        >>> is_part("unet.mid.to_q"), is_part("layers.0.q")
        (True, False)
    """
    return bool(re.match(r"(unet|transformer|text_encoder(_\d)?|diffusion_model)\.", module))
