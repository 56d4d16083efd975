"""Diagnosis of large checkpoints: ``python -m benchmarks.large_checkpoints exact|sketch [SHARE]``.

``exact``: 1 GB of float32 on each side, 256 matrices of 1024 x 1024. ``sketch``: 13.5 GB of
bfloat16 on each side, the shapes of a Llama of 7 billion numbers. SHARE (default 1) does that part
of it. Both sides are written matrix by matrix into a temporary folder, which needs twice that room,
and are deleted. The update has rank 8 and, where it is exact, a Gaussian rest.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks.common import machine, table
from benchmarks.diagnosis import DIAGNOSED, HOW, PROGRAM

LLAMA = {
    **{f"self_attn.{name}_proj": (4096, 4096) for name in "qkvo"},
    **{f"mlp.{name}_proj": (11008, 4096) for name in ("gate", "up")},
    "mlp.down_proj": (4096, 11008),
}
"""Matrices of one of 32 layers."""


def shapes(how: str, share: float) -> dict[str, tuple[int, int]]:
    """Matrices by name."""
    if how == "exact":
        return {f"layers.{i}.weight": (1024, 1024) for i in range(max(1, round(256 * share)))}
    layers = max(1, round(32 * share))
    matrices = {"model.embed_tokens.weight": (32000, 4096)}
    for i in range(layers):
        matrices |= {f"model.layers.{i}.{name}.weight": shape for name, shape in LLAMA.items()}
    return matrices | {"lm_head.weight": (32000, 4096)}


def write(folder: Path, matrices: Mapping[str, tuple[int, int]], kind: str) -> list[Path]:
    """Both sides as safetensors, each matrix written before the next is drawn."""
    dtype, rng = np.dtype(getattr(ml_dtypes, kind, kind)), np.random.default_rng(0)
    header, end = {}, 0
    for name, (m, n) in matrices.items():
        size = m * n * dtype.itemsize
        code = {"bfloat16": "BF16", "float32": "F32"}[kind]
        header[name] = {"dtype": code, "shape": [m, n], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    paths = [folder / f"{side}.safetensors" for side in ("before", "after")]
    with paths[0].open("wb") as before, paths[1].open("wb") as after:
        for file in (before, after):
            file.write(len(text).to_bytes(8, "little") + text)
        for m, n in matrices.values():
            W = 0.02 * rng.standard_normal((m, n), np.float32)
            before.write(W.astype(dtype).tobytes())
            left, right = (rng.standard_normal(shape, np.float32) for shape in ((m, 8), (8, n)))
            W += (0.001 * left) @ right
            if kind == "float32":
                W += 0.001 * rng.standard_normal((m, n), np.float32)
            after.write(W.astype(dtype).tobytes())
    return paths


def report(how: str, share: float = 1.0) -> str:
    """Write, measure in a process of its own, and lay out."""
    name, kind = HOW[how]
    matrices = shapes(how, share)
    with tempfile.TemporaryDirectory() as folder:
        files = write(Path(folder), matrices, kind)
        size = files[0].stat().st_size
        command = [sys.executable, "-c", PROGRAM, name, *map(str, files)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, seconds, used, peak = map(float, printed.split())
    assert count == len(matrices)
    row = (
        name,
        f"{len(matrices)}, {size / 1e9:.1f} GB of {kind}",
        f"{seconds:.1f}",
        f"{used:.1f}",
        f"{used * 1e9 / size:.0f}",
        f"{peak / 2**20:.0f}",
    )
    return table(DIAGNOSED, [row])


if __name__ == "__main__":
    print(machine())
    print(report(sys.argv[1], *map(float, sys.argv[2:3])))
