"""Folders of orbax and accelerate: ``python -m tests.faults.saved_folders [PYTHON]``.

PYTHON is an interpreter in which this library is installed beside orbax-checkpoint, accelerate and
torch, of whatever release; by default this one. What is not there is named and left out. Of every
folder the parameters must come back, and nothing of the optimiser's state.
"""

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.diagnosis import reading
from tests.runs import ROOT


def accelerate_folders(root: Path) -> Iterator[tuple[Path, Any]]:
    """Folders of accelerate with what they must give: states and models, whole and in shards."""
    import torch  # pyright: ignore[reportMissingImports]
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 80), torch.nn.ReLU(), torch.nn.Linear(80, 3)
    accelerator = Accelerator(cpu=True)
    net = torch.nn.Sequential(*layers)
    net, rule = accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
    net(torch.ones(2, 6)).sum().backward()
    rule.step()
    accelerator.save_state(root / "state")
    accelerator.save_state(root / "state of pickles", safe_serialization=False)
    accelerator.save_model(net, root / "model")
    accelerator.save_model(net, root / "shards", max_shard_size="1KB")
    weights = {name: W.detach().numpy() for name, W in net.state_dict().items()}
    for name in ("state", "state of pickles", "model", "shards"):
        yield root / name, weights


def orbax_folders(root: Path) -> Iterator[tuple[Path, Any]]:
    """Folders of orbax: trees, with and without the optimiser's state, and steps of a run."""
    import jax.numpy as jnp
    import optax
    from orbax import checkpoint  # pyright: ignore[reportMissingImports]

    params = {
        "dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.zeros(4)},
        "out": {"kernel": jnp.ones((4, 2), jnp.bfloat16)},
    }
    moments = optax.adam(1e-3).init(params)
    trees = {
        "tree": params,
        "beside its moments": {"params": params, "opt_state": moments, "step": 3},
        "deeper": {"state": {"params": params, "opt_state": moments}, "step": 3},
    }
    for name, tree in trees.items():
        checkpoint.PyTreeCheckpointer().save(root / name, tree)
        yield root / name, params
    whole = checkpoint.args.StandardSave({"params": params, "opt_state": moments})
    parts = checkpoint.args.Composite(
        params=checkpoint.args.StandardSave(params), opt=checkpoint.args.StandardSave(moments)
    )
    for name, saved in (("run", whole), ("run of parts", parts)):
        with checkpoint.CheckpointManager(root / name) as manager:
            manager.save(5, args=saved)
            manager.wait_until_finished()
        yield root / name, params
        yield root / name / "5", params


FOLDERS = {"accelerate": accelerate_folders, "orbax": orbax_folders}


def differing(path: Path, wanted: Any) -> str:
    """What of a folder is read otherwise; empty if nothing is."""
    expected = reading.Leaves("wanted", wanted)
    try:
        found = reading.weights("before", path)
        arrays: Mapping[str, Any] = {name: found[name] for name in found.infos}
    except (ValueError, OSError) as error:
        return str(error)
    if set(arrays) != set(expected.infos):
        return f"{sorted(arrays)}, wanted {sorted(expected.infos)}"
    wrong = [n for n, x in arrays.items() if not np.array_equal(x, np.asarray(expected[n]))]
    return f"other numbers in {wrong}" if wrong else ""


def main(words: list[str]) -> int:
    """Write with what is installed, and read; 1 if a folder is read otherwise."""
    if words:
        command = [words[0], "-m", "tests.faults.saved_folders"]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    bad = count = 0
    for package, folders in FOLDERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed there: none of its folders was read")
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            found = [
                (path.relative_to(folder), differing(path, wanted))
                for path, wanted in folders(Path(folder))
            ]
        count += len(found)
        for path, fault in found:
            bad += bool(fault)
            print(f"{package}, {path}: {fault or 'as it was written'}")
    print(f"{count} folders, {bad} faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
