"""Checkpoints in common formats: where their weights are, and readers other than safetensors.

A folder of the hub's cache, a model's name in it, a folder of transformers, of accelerate or of
orbax. Nothing is downloaded. Pickles of torch are read by torch's own reader of weights only, which
runs no code of the file, where torch is installed; quantised weights are refused by name.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import guarded
from lrdyn.data.guarded import reading, refused
from lrdyn.data.tensors import NAMES, PICKLES

ADAPTER = "adapter_config.json"
TORCH_INDEX, TORCH = "pytorch_model.bin.index.json", "pytorch_model.bin"
ORBAX = ("_METADATA", "manifest.ocdbt")
"""Files of which a tree that orbax wrote has one."""
ORBAX_STEP = "_CHECKPOINT_METADATA"
"""File of a step of orbax's ``CheckpointManager``, whose folders are trees."""
ITEMS = ("params", "model", "state", "default")
"""Names of the tree with the parameters in a step."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
STATES = ("state_dict", "model_state_dict", "model", "module", "params")
"""Keys under which training scripts keep the weights beside their optimiser's state."""
PARAMETERS = ("params", "parameters", "model", "state.params", "train_state.params")
"""Where a tree of orbax has the parameters."""
QUANTISED = re.compile(
    r".*\.(qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|quant_state\..*|SCB|"
    r"weight_scale|weight_scale_inv|weight_format|weight_packed)"
)
"""Names of arrays beside quantised weights: GPTQ, AWQ, bitsandbytes, block-scaled fp8.

``scales`` is not among them: a norm of full weights may be called so, and where GPTQ and AWQ have
them ``qweight`` stands beside.
"""
FULL = "weights that are not quantised"


def located(path: str | Path) -> Path:
    """The file or folder that has the weights.

    Args:
        path: a file; a folder of transformers, accelerate, PEFT or orbax; one of the hub's cache
            (``models--ORG--NAME``); or a model's name, ``ORG/NAME``, in that cache.

    Raises:
        Refused: GGUF; a folder without weights, or with several files and no index; a link that
            leads out of its folder of the hub's cache.
        FileNotFoundError: there is no such file, and no such model in the cache.

    Example:
        >>> located("a.gguf")
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a.gguf: got GGUF, wanted weights that are not quantised: ...
    """
    path = Path(path)
    if path.suffix == ".gguf":
        raise _gguf(path)
    if not os.path.exists(path) and HUB_NAME.fullmatch(os.fspath(path)):
        path = _cached(os.fspath(path))
    if not path.is_dir():
        return path
    if (path / "snapshots").is_dir():
        path = _snapshot(path)
    named = [path / name for name in (*NAMES, ADAPTER, TORCH_INDEX, TORCH)]
    weights = next((file for file in named if file.is_file()), None)
    if weights is not None:
        # An adapter is read as a folder, with its configuration and its tensors.
        weights = path if weights.name == ADAPTER else weights
    elif (tree := _orbax_tree(path)) is not None:
        return tree
    else:
        weights = _only(path)
    if weights.is_file() and path.parent.name == "snapshots":
        _check_inside(weights, path.parent.parent)
    return weights


def _gguf(path: Path) -> Exception:
    wanted = f"{FULL}: the safetensors that the file was made of"
    return refused(path, "GGUF", wanted)


def _only(folder: Path) -> Path:
    """The only file of weights of a folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix == ".safetensors")
    files = files or sorted(file for file in folder.iterdir() if file.suffix in PICKLES[:3])
    if len(files) == 1:
        return files[0]
    if files:
        some = ", ".join(file.name for file in files[:3])
        raise refused(
            folder, f"{len(files)} files of weights ({some})", "one file, or an index of all"
        )
    if any(file.suffix == ".gguf" for file in folder.iterdir()):
        raise _gguf(folder)
    wanted = ", ".join((*NAMES, TORCH, ADAPTER)) + ", or a folder of orbax"
    raise refused(folder, "a folder without weights", wanted)


def _orbax_tree(folder: Path) -> Path | None:
    """The tree of orbax in a folder: itself, one of a step, or that of the only step of a run."""
    if _is_tree(folder):
        return folder
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if (folder / ORBAX_STEP).is_file():
        trees = [tree for tree in inside if _is_tree(tree)]
        named = [tree for name in ITEMS for tree in trees if tree.name == name]
        if named or len(trees) == 1:
            return (named or trees)[0]
        got = f"a step with {', '.join(tree.name for tree in trees[:3]) or 'no tree'}"
        raise refused(folder, got, "the folder of the tree that has the parameters")
    steps = [step for step in inside if (step / ORBAX_STEP).is_file()]
    if len(steps) > 1:
        names = ", ".join(step.name for step in steps[:3])
        raise refused(folder, f"{len(steps)} steps of orbax ({names})", "the folder of one of them")
    return _orbax_tree(steps[0]) if steps else None


def _is_tree(folder: Path) -> bool:
    return any((folder / name).exists() for name in ORBAX)


def hub_cache() -> Path:
    """The folder in which the hub's library keeps what it downloaded."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    return Path(home) / "hub"


def _cached(name: str) -> Path:
    folder = hub_cache() / ("models--" + name.replace("/", "--"))
    if folder.is_dir():
        return folder
    where = f"{name}, nor a model of this name in the hub's cache here; nothing is downloaded"
    raise FileNotFoundError(2, "No such file", where)


def _snapshot(folder: Path) -> Path:
    """The snapshot of ``refs/main``, or the only one."""
    head = folder / "refs" / "main"
    snapshots = sorted(entry for entry in (folder / "snapshots").iterdir() if entry.is_dir())
    if head.is_file():
        revision = guarded.content(head, most=200).decode(errors="replace").strip()
        if re.fullmatch(r"[\w.-]+", revision) and (folder / "snapshots" / revision).is_dir():
            return folder / "snapshots" / revision
    if len(snapshots) != 1:
        got = f"{len(snapshots)} snapshots and no refs/main that names one"
        raise refused(folder, got, "the folder of one of them")
    return snapshots[0]


def _check_inside(file: Path, folder: Path) -> None:
    """Refuse a link in the hub's cache that leads out of its blobs."""
    files = [file]
    if file.name.endswith(".index.json"):
        files += [
            entry for entry in file.parent.iterdir() if entry.suffix in (".safetensors", ".bin")
        ]
    for path in files:
        # The hub's cache is all links, into the blobs of the same model: others were put there by
        # somebody.
        if not path.resolve().is_relative_to(folder.resolve()):
            raise refused(
                path, "a link that leads out of its folder", "one to the blobs of this model"
            )


def check_full(path: Path, names: Iterable[str], config: Mapping[str, Any] | None) -> None:
    """Refuse quantised weights, which other arrays or settings beside them reveal.

    Args:
        path: of the weights.
        names: of the arrays.
        config: the content of ``config.json``, if there is one.

    Raises:
        Refused: they are quantised.

    Example:
        >>> check_full(Path("a"), ["q.qweight"], None)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: q.qweight: got quantised weights, wanted weights ...
    """
    how = (config or {}).get("quantization_config")
    if isinstance(how, Mapping):
        method = str(how.get("quant_method", "of an unknown method"))
        raise refused(path, f"quantised weights ({method})", FULL, "config.json")
    for name in names:
        if QUANTISED.fullmatch(name):
            raise refused(path, "quantised weights", FULL, name)


def config_beside(path: Path) -> dict[str, Any] | None:
    """The content of ``config.json`` beside weights; None if there is none.

    Raises:
        Refused: it is damaged.

    Example:
        >>> config_beside(Path("no such folder"))
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file():
        return None
    content = guarded.read_json(file, "the configuration of a model")
    return content if isinstance(content, dict) else None


# Torch --------------------------------------------------------------------------------------------


def is_torch(path: Path) -> bool:
    """Whether a file's name is that of a file of torch.

    Example:
        >>> is_torch(Path("pytorch_model.bin"))
        True
    """
    return path.suffix in PICKLES or path.name.endswith(".bin.index.json")


def torch_weights(path: Path) -> dict[str, Any]:
    """Tensors by name of a file that torch wrote, or of the shards of an index.

    Raises:
        Refused: torch is not installed, or refuses the file, or it has no tensors by name.

    Example:
        >>> torch_weights(Path("a.pkl"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a.pkl: got a .pkl file, wanted ...
    """
    if path.suffix not in (".bin", ".pt", ".pth", ".ckpt", ".json"):
        wanted = "safetensors or a file of torch: to read another pickle runs the code in it"
        raise refused(path, f"a {path.suffix} file", wanted)
    if path.suffix == ".json":
        content = guarded.read_json(path, "the index of a sharded checkpoint", most=2**25)
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict):
            raise refused(path, "no weight_map", "the index of a sharded checkpoint")
        tensors: dict[str, Any] = {}
        for file in dict.fromkeys(places.values()):
            # An index must not lead out of its folder.
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".bin"):
                raise refused(path, f"{file!r}", "a .bin file of the same folder")
            tensors |= torch_weights(path.with_name(file))
        return tensors
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        wanted = (
            "safetensors, or torch, whose reader of weights runs no code of a pickle: pip install "
            "torch, or convert: model.save_pretrained(FOLDER)"
        )
        raise refused(path, f"a {path.suffix} file", wanted) from None
    # Refuses what is no regular file; torch opens it by its name.
    guarded.opened(path).close()
    with reading(path, "weights that torch's weights-only reader takes"):
        # ``mmap`` reads a tensor when it is used; files from before torch 1.6 are no zips, and have
        # none.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    for key in STATES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = content if isinstance(content, dict) else {}
    named = {n: x for n, x in tensors.items() if isinstance(n, str) and torch.is_tensor(x)}
    if not named:
        raise refused(path, f"a {type(content).__name__} without tensors by name", "a state_dict")
    return named


def _is_zip(path: Path) -> bool:
    with guarded.opened(path) as file:
        return file.read(4) == b"PK\3\4"


# Orbax --------------------------------------------------------------------------------------------


def orbax_weights(path: Path) -> Any:
    """The parameters in a folder of orbax, as a tree of arrays.

    Raises:
        Refused: orbax is not installed, or cannot read the folder.
    """
    try:
        from orbax import checkpoint  # pyright: ignore[reportMissingImports]
    except ImportError:
        wanted = "safetensors, or the package that reads it: pip install orbax-checkpoint"
        raise refused(path, "a folder of orbax", wanted) from None
    with reading(path, "a checkpoint of orbax"):
        tree = checkpoint.PyTreeCheckpointer().restore(path.resolve())
    for place in PARAMETERS:
        inner = tree
        for key in place.split("."):
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if inner is not None:
            return inner
    return tree
