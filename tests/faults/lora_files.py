"""LoRA of image generators by LyCORIS itself: ``python -m tests.faults.lora_files [PYTHON]``.

PYTHON is an interpreter that has torch and lycoris-lora; by default this one. Where it has not, a
line says so and nothing is checked. LyCORIS makes LoRA, LoHa and LoKr of linear layers and of
convolutions, with Tucker's core and without, and what each adds to a weight: the files must be read
as that, to the rounding of float32, and what is written of them must be loaded by LyCORIS as the
same.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lrdyn.adapters import lora_files
from lrdyn.data import tensors
from tests.runs import ROOT

WITHIN = 1e-5

MADE = """
import sys
import torch
from safetensors.torch import save_file
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
torch.manual_seed(0)
linear = torch.nn.Linear(8, 12)
conv = torch.nn.Conv2d(8, 12, 3)
kinds = {"lora": LoConModule, "loha": LohaModule, "lokr": LokrModule}
for kind, module in kinds.items():
    for core in (False, True):
        content, deltas = {}, {}
        for where, layer in (("linear", linear), ("conv", conv)):
            for dim in (2, 100) if kind == "lokr" else (2,):
                name = f"lora_unet_{where}_{dim}"
                made = module(name, layer, multiplier=1.0, lora_dim=dim, alpha=3.0, use_tucker=core)
                with torch.no_grad():
                    for parameter in made.parameters():
                        parameter.copy_(torch.randn_like(parameter))
                state = {k: v for k, v in made.state_dict().items() if "org_module" not in k}
                for key, value in state.items():
                    content[f"{name}.{key}"] = value.detach().clone().contiguous()
                # What it trains with: get_diff_weight of LoHa has alpha / r twice (3.1.1).
                delta = made.get_weight(made.shape) if kind == "loha" else made.get_diff_weight()[0]
                deltas[name] = delta.reshape(layer.weight.shape).detach().clone().contiguous()
        save_file(content, f"{sys.argv[1]}/{kind}_{core}.safetensors")
        save_file(deltas, f"{sys.argv[1]}/{kind}_{core}.deltas.safetensors")
"""

LOADED = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from lycoris.modules.locon import LoConModule
found = {}
for path in Path(sys.argv[1]).glob("*.written.safetensors"):
    content = load_file(path)
    wanted = load_file(str(path).replace(".written.", ".deltas."))
    for name in wanted:
        own = {k[len(name) + 1:]: v for k, v in content.items() if k.startswith(name + ".")}
        shape = wanted[name].shape
        is_conv = own["lora_down.weight"].ndim == 4
        columns = wanted[name][0].numel()
        layer = torch.nn.Conv2d(8, 12, 3) if is_conv else torch.nn.Linear(columns, 12)
        made = LoConModule.make_module_from_state_dict(
            name, layer, own["lora_up.weight"], own["lora_down.weight"], None, own["alpha"], None)
        made.multiplier = 1.0
        delta = made.get_diff_weight()[0].detach().reshape(shape)
        found[f"{path.name} {name}"] = float((delta - wanted[name]).norm() / wanted[name].norm())
print("FOUND", json.dumps(found))
"""


def check(interpreter: str, folder: Path) -> list[str]:
    """What is read or written otherwise than by LyCORIS."""
    _run(interpreter, MADE, folder)
    faults, count = [], 0
    for path in sorted(folder.glob("*.deltas.safetensors")):
        source = Path(str(path).replace(".deltas.", "."))
        file, wanted = lora_files.read(source), tensors.opened(path)
        if set(file.stored.factors) != set(wanted.keys()):
            faults.append(f"{source.name}: {sorted(file.stored.factors)}")
            continue
        for name in wanted:
            B, A, scale, _ = file.stored.factors[name]
            delta = wanted[name].reshape(len(B), -1)
            missed = np.linalg.norm(scale * B @ A - delta) / np.linalg.norm(delta)
            count += 1
            if not missed <= WITHIN:
                faults.append(f"{source.name} {name}: {missed:.1e} away from LyCORIS")
        lora_files.write(str(path).replace(".deltas.", ".written."), file)
    said = json.loads(_run(interpreter, LOADED, folder).partition("FOUND ")[2])
    faults += [f"{what}: LyCORIS is {x:.1e} away" for what, x in said.items() if not x <= WITHIN]
    print(f"{count} modules read, {len(said)} written ones loaded by LyCORIS")
    return faults


def _run(interpreter: str, program: str, folder: Path) -> str:
    command = [interpreter, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    return done.stdout


def main(words: list[str]) -> int:
    """Print what LyCORIS finds otherwise; 1 if there is any."""
    interpreter = words[0] if words else sys.executable
    there = subprocess.run(
        [interpreter, "-c", "import torch, lycoris"], capture_output=True, check=False
    )
    if there.returncode:
        print("torch and lycoris-lora are not installed there: nothing was checked")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        faults = check(interpreter, Path(folder))
    print(f"{len(faults)} faults")
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
