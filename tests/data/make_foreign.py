"""Make the folder foreign: a small file for each reader of other people's files, to be damaged.

Run ``python -m tests.data.make_foreign`` from the root of the repository. Inputs that
``python -m tests.faults.foreign_files`` found lie beside them, in ``foreign/found``.
"""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import xarray as xr

from lrdyn.data import tensors
from lrdyn.verification.storing import checkpoints, files, parts

FOLDER = Path(__file__).with_name("foreign")
RAMP = np.arange(6, dtype=np.float32).reshape(2, 3)
LEG = {"drawn": 2, "judged": 1, "left_out": {"ill-conditioned": 1}}
CLAIM = {
    "id": "rho",
    "kind": "identity",
    "statement": "the reduced dynamics are those of the weights",
    "hypotheses_met": True,
    "residual": 1e-15,
    "tolerance": 1e-13,
    "holds": True,
    "cases": 1,
    "cases_total": 2,
    "judged": {"float64": LEG, "float32": LEG},
    "worst_case": {"seed": 1, "depth": 2},
    "residual_float32": 1e-7,
    "tolerance_float32": 1e-5,
    "scales_with_epsilon": True,
}
VERDICT = {
    "schema": 2,
    "name": "theorem2",
    "holds": True,
    "config": {
        "depth": [2],
        "target": {"shape": [8, 8], "sha256": 64 * "0"},
        "preset": "quick",
        "seed": 0,
        "seeds": 2,
        "dtype": "float64",
        "perturb": False,
    },
    "claims": [CLAIM],
    "undecided": [],
    "statistics": {"false_alarm": 1e-6, "tests": 0},
    "environment": {"jax": "0.10.2", "dtype": "float64", "git": None},
    "results_sha256": 64 * "0",
}


def results() -> dict[str, xr.Dataset]:
    """Numbers that are stored as they are, compressed ones, texts, and a group."""
    large = np.linspace(0, 1, 1024).reshape(2, 512)
    root = xr.Dataset(
        {"rho": (("seed", "step"), large), "kind": ("seed", np.array(["a", "b"]))},
        {"seed": [0, 1]},
        {"name": "theorem2", "config": json.dumps(VERDICT["config"]), "digest": 64 * "0"},
    )
    return {"/": root, "/float32": xr.Dataset({"met": ("seed", np.array([True, False]))})}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    tensors.write(FOLDER / "weights.safetensors", {"W": RAMP, "b": RAMP[0]}, metadata={"a": "b"})
    np.savez_compressed(FOLDER / "weights.npz", W=RAMP, b=RAMP[0])
    np.save(FOLDER / "array.npy", RAMP)
    files.write_netcdf(FOLDER / "results.nc", results())
    files.write_json(FOLDER / "verdict.json", VERDICT)
    parts.Store(FOLDER, print).save("part", {"W": RAMP, "b": RAMP[0] > 1})
    checkpoints.write(FOLDER / "step-0000000001.ckpt", "key", 1, {"W": RAMP})
    labels = struct.pack(">II", 0x801, 4) + bytes([1, 2, 3, 4])
    (FOLDER / "labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, mtime=0))
    lines = ["sentence1\tsentence2\tscore", "a cat\tsome cat\t4.5", "a dog\ta man\t0.2"]
    (FOLDER / "pairs.tsv").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
