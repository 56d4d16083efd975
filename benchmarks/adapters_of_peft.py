"""Smaller adapters and sums beside PEFT's own: ``python -m benchmarks.adapters_of_peft PYTHON``.

PYTHON is an interpreter with torch and peft, which stand in no lock. Two LoRAs of square layers are
made smaller, added up and cut, here and by PEFT's ``add_weighted_adapter``, each in a process of
its own. The error is that of the files: of what they add to the weights, beside the exact sum.
Memory is what the peak lies above what the process had when the adapters were loaded.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import table
from lrdyn.adapters import peft

HEADER = ("what", "how", "r", "error", "CPU s", "memory, MiB")
COSTS = """
import re, time
from pathlib import Path
def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s*(\\d+)", status)[1]) / 1024
def begin():
    return time.process_time(), memory("VmRSS")
def end(start):
    used, peak = time.process_time() - start[0], memory("VmHWM") - start[1]
    print("COST", used, max(peak, 0.0))
"""
HERE = """
import json, sys
from lrdyn.adapters import peft
from lrdyn.diagnosis import combine
folder, out, names, weights, _, rank = sys.argv[1:]
adapters = [peft.read(f"{folder}/{name}") for name in names.split()]
start = begin()
made = combine(adapters, json.loads(weights), rank=int(rank) or None)
end(start)
peft.write(out, made.adapter)
"""
THERE = """
import json, sys
import torch
from peft import PeftModel
torch.set_num_threads(1)
folder, out, names, weights, how, rank = sys.argv[1:]
size, layers = json.loads(open(f"{folder}/size.json").read())
net = torch.nn.Sequential(*[torch.nn.Linear(size, size, bias=False) for _ in range(layers)])
first, *others = names.split()
model = PeftModel.from_pretrained(net, f"{folder}/{first}", adapter_name=first)
for name in others:
    model.load_adapter(f"{folder}/{name}", adapter_name=name)
start = begin()
with torch.no_grad():
    model.base_model.add_weighted_adapter(
        names.split(), json.loads(weights), "made", combination_type=how, svd_rank=int(rank) or None
    )
end(start)
model.save_pretrained(out, selected_adapters=["made"])
"""


class Case(NamedTuple):
    """Sizes."""

    size: int
    layers: int
    rank: int


class Way(NamedTuple):
    """One way to do one thing."""

    what: str
    adapters: dict[str, float]
    rank: int
    """0 for all that the sum has."""
    peft: str
    """PEFT's ``combination_type``; empty for this library."""


def ways(rank: int) -> list[Way]:
    """What is compared."""
    both = {"one": 0.7, "two": 0.3}
    tasks = [
        (f"r = {rank} to {rank // 4}", {"one": 1.0}, rank // 4, ("", "svd")),
        (f"sum, r = {rank // 2}", both, rank // 2, ("", "svd")),
        ("sum, exact", both, 0, ("", "cat")),
        (f"sum, r = {rank}", both, rank, ("", "svd", "linear")),
    ]
    return [
        Way(what, adapters, r if how != "linear" else 0, how)
        for what, adapters, r, hows in tasks
        for how in hows
    ]


def products(folder: Path) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight."""
    factors = peft.read(folder).factors
    return {
        m: x.scale * np.asarray(x.B, float) @ np.asarray(x.A, float) for m, x in factors.items()
    }


def report(interpreter: str, case: Case) -> str:
    """Measure and lay out."""
    rng, rows = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "size.json").write_text(f"[{case.size}, {case.layers}]")
        falling = (0.8 ** np.arange(case.rank)).astype(np.float32)
        for adapter in ("one", "two"):
            factors = {}
            for layer in range(case.layers):
                B, A = (
                    rng.standard_normal(shape, np.float32)
                    for shape in ((case.size, case.rank), (case.rank, case.size))
                )
                factors[str(layer)] = peft.StoredFactors(B * falling, A, 0.5)
            peft.write(folder / adapter, peft.described(factors))
        for way in ways(case.rank):
            program = COSTS + (THERE if way.peft else HERE)
            out = folder / "made"
            words = [
                *(str(folder), str(out), " ".join(way.adapters)),
                *(str(list(way.adapters.values())), way.peft, str(way.rank)),
            ]
            command = [interpreter if way.peft else sys.executable, "-c", program, *words]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            used, memory = map(float, printed.partition("COST ")[2].split()[:2])
            products_of = products(out / "made" if way.peft else out)
            each = {adapter: products(folder / adapter) for adapter in way.adapters}
            wanted = {
                m: sum(w * each[adapter][m] for adapter, w in way.adapters.items())
                for m in products_of
            }
            missed = sum(float(np.sum((products_of[m] - wanted[m]) ** 2)) for m in products_of)
            moved = sum(float(np.sum(x**2)) for x in map(np.asarray, wanted.values()))
            rank = max(
                x.A.shape[0] for x in peft.read(out / "made" if way.peft else out).factors.values()
            )
            how = f"PEFT, {way.peft}" if way.peft else "lrdyn"
            error = f"{np.sqrt(missed / moved):.2e}"
            rows.append((way.what, how, str(rank), error, f"{used:.2f}", f"{memory:.0f}"))
    return table(HEADER, rows)


if __name__ == "__main__":
    print(report(sys.argv[1], Case(1024, 8, 16)))
