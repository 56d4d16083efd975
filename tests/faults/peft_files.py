"""Adapters written here, loaded by PEFT: ``python -m tests.faults.peft_files [PYTHON]``.

PYTHON is an interpreter that has torch, peft and transformers, of whatever release; by default this
one. Where it has not, a line says so and nothing is checked. LoRA, rsLoRA, DoRA and PiSSA are
written again and PEFT's outputs compared with those of the committed ones; the same four are made
of a model of this library, and PEFT's outputs compared with the model's; of a GPT-2 and a Llama,
whose weights move at random, the update is extracted, resized and planned, and PEFT must find the
error that was printed, the rank that was asked for, and the modules that were planned. Of models
of nine architectures and adapters of every kind that is read (``tests/data/make_peft_models.py``),
the diagnosis of an adapter must be that of what PEFT merges, and PEFT must find the error of what
was extracted of each, and of all weights that moved. Stacked experts that PEFT adapts by
``target_parameters`` must be those that it merges.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from lrdyn import adapters, diagnosis
from lrdyn.adapters import peft
from lrdyn.adapters.peft_adapters import stored_of
from lrdyn.data import tensors
from lrdyn.diagnosis.combining import combine
from tests.runs import ROOT

MADE = ROOT / "tests" / "data" / "peft_adapters"
KINDS = ("lora", "rslora", "dora", "pissa", "embedding", "conv1d", "saved")
OUTPUTS, ERRORS = 1e-5, 1e-3
"""Allowed: of PEFT's outputs, and of its error beside the printed one."""

MAKE = ROOT / "tests" / "data" / "make_peft_models.py"
MODULES = {"vit"}
"""Models whose files have other names than their modules: ``state_dict`` has these."""
RANKS = {"mixtral": 2}
"""Rank of all weights that moved: PEFT wants one beside experts, which it stacks."""

MODELS = """
import sys
from pathlib import Path
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
gpt2 = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=90, n_positions=20)
llama = LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, vocab_size=90)
for name, model in (("gpt2", GPT2LMHeadModel(gpt2)), ("llama", LlamaForCausalLM(llama))):
    model.save_pretrained(Path(sys.argv[1], name, "before"))
    torch.save({"state_dict": model.state_dict()}, Path(sys.argv[1], name, "before.pt"))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    model.save_pretrained(Path(sys.argv[1], name, "after"))
"""
METHODS = {
    "LoRA": (adapters.LORA, adapters.over_rank(4)),
    "rsLoRA": (adapters.LORA, adapters.over_root(4)),
    "DoRA": (adapters.DORA, adapters.over_rank(4)),
    "PiSSA": (adapters.PISSA, 1.0),
}
"""Kinds of adapters that are made here -> method and scale."""
APPLIED = """
import json, sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file
folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]
found = {}
for name in sys.argv[2:]:
    net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 5))
    net.load_state_dict(load_file(folder / "base.safetensors"))
    with torch.no_grad():
        found[name] = PeftModel.from_pretrained(net, folder / name)(x).tolist()
print("FOUND", json.dumps(found))
"""
LOADED = """
import json, sys
from pathlib import Path
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
folder = Path(sys.argv[1])
def weights(name, when):
    return AutoModelForCausalLM.from_pretrained(folder / name / when, dtype=torch.float32)
found = {}
for name in ("gpt2", "llama"):
    before, after = (weights(name, when).state_dict() for when in ("before", "after"))
    for kind in ("adapter", "smaller"):
        model = PeftModel.from_pretrained(weights(name, "before"), folder / name / kind)
        merged = model.merge_and_unload().state_dict()
        # A tied head is the embedding, which is counted once.
        keys = [key for key in after if not (name == "gpt2" and key == "lm_head.weight")]
        missed = sum(float(((after[key] - merged[key]) ** 2).sum()) for key in keys)
        moved = sum(float(((after[key] - before[key]) ** 2).sum()) for key in keys)
        found[f"{name} {kind}"] = (missed / moved) ** 0.5
    config = LoraConfig.from_pretrained(folder / name / "plan")
    model = get_peft_model(weights(name, "before"), config)
    ranks = {}
    for path, module in model.named_modules():
        if getattr(module, "r", None):
            ranks[path.removeprefix("base_model.model.")] = module.r["default"]
    found[f"{name} plan"] = ranks
print("FOUND", json.dumps(found))
"""


def run(interpreter: str, *words: str) -> str:
    """Standard output of a program of the other interpreter."""
    command = [interpreter, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0][:40]}: {done.stderr[-400:]}")
    return done.stdout


def outputs(interpreter: str, folder: Path) -> list[str]:
    """What PEFT computes with adapters that were read and written here."""
    for kind in KINDS:
        peft.write(folder / kind, peft.read(MADE / kind))
    said = run(interpreter, str(ROOT / "tests" / "data" / "make_peft.py"), "--check", str(folder))
    distances = {line.split()[0]: float(line.split()[1]) for line in said.splitlines()}
    missing = [f"{kind}: not loaded" for kind in set(KINDS) - set(distances)]
    return missing + [
        f"{kind}: PEFT's outputs are {distance:.1e} away"
        for kind, distance in distances.items()
        if not distance <= OUTPUTS
    ]


def of_a_model(interpreter: str, folder: Path) -> list[str]:
    """PEFT's outputs with adapters of a model of this library, whose factors all moved."""
    keys = jax.random.split(jax.random.key(0), 5)
    weights = {
        "0.weight": jax.random.normal(keys[0], (9, 6)),
        "0.bias": jax.random.normal(keys[1], (9,)),
        "2.weight": jax.random.normal(keys[2], (5, 9)),
        "2.bias": jnp.zeros(5),
    }
    x = jax.random.normal(keys[3], (7, 6))
    tensors.write(folder / "base.safetensors", {n: np.float32(W) for n, W in weights.items()})
    tensors.write(folder / "x.safetensors", {"x": np.float32(x)})
    wanted, untouched = {}, _outputs(weights, x)
    for name, (method, scale) in METHODS.items():
        made = adapters.init(
            keys[4], weights, select="*.weight", rank=2, method=method, scale=scale
        )
        trained, frozen = adapters.split(made)
        trained = jax.tree.map(
            lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), trained
        )
        made = adapters.joined(trained, frozen)
        peft.write(folder / name, stored_of(made, weights))
        wanted[name] = _outputs(adapters.merge(weights, made), x)
        assert np.abs(wanted[name] - untouched).max() > 0.1
    said = run(interpreter, "-c", APPLIED, str(folder), *METHODS)
    faults = []
    for name, outputs in json.loads(said.partition("FOUND ")[2]).items():
        distance = np.abs(np.array(outputs) - wanted[name]).max() / np.abs(wanted[name]).max()
        if not distance <= OUTPUTS:
            faults.append(f"{name} of a model: PEFT's outputs are {distance:.1e} away")
    return faults


def _outputs(weights: Mapping[str, jax.Array], x: jax.Array) -> np.ndarray:
    hidden = jnp.tanh(x @ weights["0.weight"].T + weights["0.bias"])
    return np.asarray(hidden @ weights["2.weight"].T + weights["2.bias"])


def updates(interpreter: str, folder: Path) -> list[str]:
    """Errors, ranks and modules that PEFT finds in what was extracted, resized and planned."""
    run(interpreter, "-c", MODELS, str(folder))
    wanted = {}
    for name in ("gpt2", "llama"):
        before, after = folder / name / "before", folder / name / "after"
        found = diagnosis.extract(before, after, energy=0.9).write(folder / name / "adapter")
        wanted[f"{name} adapter"] = found.error
        small = combine([folder / name / "adapter"], rank=4)
        smaller = found._replace(adapter=small.adapter).write(folder / name / "smaller")
        wanted[f"{name} smaller"] = smaller.error
        way = found.orientation.fan_in_fan_out
        plan = diagnosis.plan(found.diagnosis, budget=4000, fan_in_fan_out=way)
        plan.write(folder / name / "plan")
        ranks = {n.removesuffix(".weight"): r for n, r in plan.chosen.ranks.items() if r}
        wanted[f"{name} plan"] = ranks
    said = run(interpreter, "-c", LOADED, str(folder))
    seen = json.loads(said.partition("FOUND ")[2])
    faults = []
    for what, value in wanted.items():
        if isinstance(value, dict):
            same = seen[what] == value
        else:
            same = bool(np.isclose(seen[what], value, rtol=ERRORS))
        if not same:
            faults.append(f"{what}: PEFT finds {seen[what]}, wanted {value}")
    return faults


def spectra(base: Path, after: Path) -> dict[str, np.ndarray]:
    """Singular values of every update that there is."""
    report = lrdyn.diagnose(base, after)
    return {matrix.name: matrix.values for matrix in report.matrices if matrix.norm > 0}


def models(interpreter: str, folder: Path) -> list[str]:
    """What PEFT merges of adapters of many kinds and models, and what it misses of extracted ones.

    Of two tied weights PEFT moves both when it merges, and files name the first: the update is then
    that of another name.
    """
    run(interpreter, str(MAKE), "--out", str(folder))
    faults, wanted = [], {}
    for model in sorted(folder.iterdir()):
        end = ".safetensors" if model.name in MODULES else ""
        base = model / f"base{end}"
        kinds = sorted(path.parent.name for path in model.glob("*/adapter_config.json"))
        for kind in kinds:
            found, merged = (
                spectra(base, after) for after in (model / kind, model / f"{kind}.safetensors")
            )
            what, names = f"{model.name} {kind}", sorted(found)
            theirs, ours = sorted(set(merged) - set(found)), sorted(set(found) - set(merged))
            if len(theirs) == len(ours) == 1:
                merged[ours[0]] = merged.pop(theirs[0])
            if names != sorted(merged):
                faults.append(f"{what}: {names} moved, and with PEFT {sorted(merged)}")
                continue
            for name, values in found.items():
                rank = min(len(values), len(merged[name]))
                within = 1e-4 * merged[name][0]
                if not np.allclose(values[:rank], merged[name][:rank], rtol=0, atol=within):
                    faults.append(f"{what}: {name}: {values}, and with PEFT {merged[name]}")
            extracted = diagnosis.extract(base, model / kind, rank=1)
            wanted[what] = extracted.write(model / "found" / kind).error
        moved = model / f"moved{end}"
        rank = RANKS.get(model.name)
        energy = None if rank else 0.9
        extracted = diagnosis.extract(base, moved, rank=rank, energy=energy)
        wanted[f"{model.name} moved"] = extracted.write(model / "found" / "moved").error
    said = run(interpreter, str(MAKE), "--check", str(folder))
    seen = json.loads(said.partition("FOUND ")[2])
    for what, error in wanted.items():
        if not (isinstance(seen[what], float) and np.isclose(seen[what], error, rtol=ERRORS)):
            faults.append(f"{what}: PEFT finds {seen[what]}, wanted {error}")
    print(
        f"{len(wanted)} extracted adapters of {len(list(folder.iterdir()))} models loaded by PEFT"
    )
    return faults


EXPERTS = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
torch.manual_seed(0)
model = Qwen3MoeForCausalLM(Qwen3MoeConfig(hidden_size=16, intermediate_size=20,
    moe_intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    head_dim=8, vocab_size=50, num_experts=3, num_experts_per_tok=2))
def kept(name):
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items() if "experts" in k}
    save_file({k: v for k, v in state.items() if "lora" not in k}, f"{sys.argv[1]}/{name}")
kept("base.safetensors")
targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=5, target_modules=[],
    target_parameters=targets))
with torch.no_grad():
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.copy_(0.3 * torch.randn_like(weight))
adapted.save_pretrained(f"{sys.argv[1]}/adapter")
model = adapted.merge_and_unload()
kept("merged.safetensors")
"""
"""A mixture of experts that PEFT adapts by ``target_parameters`` (release 0.17 and later)."""
AGAIN = (
    EXPERTS.partition("targets = ")[0].replace('kept("base.safetensors")', "")
    + """
from peft import PeftModel
model = PeftModel.from_pretrained(model, f"{sys.argv[1]}/smaller").merge_and_unload()
kept("again.safetensors")
"""
)
"""The same base with an adapter that this library wrote."""


def experts(interpreter: str, folder: Path) -> list[str]:
    """Updates of stacked experts: those of an adapter's factors, and those that PEFT merges."""
    run(interpreter, "-c", EXPERTS, str(folder))
    base = folder / "base.safetensors"
    found, merged = (
        spectra(base, after) for after in (folder / "adapter", folder / "merged.safetensors")
    )
    # Of rank 1, so that what PEFT reads is what was written, and not what it had.
    smaller = combine([folder / "adapter"], rank=1)
    peft.write(folder / "smaller", smaller.adapter)
    run(interpreter, "-c", AGAIN, str(folder))
    again = spectra(base, folder / "again.safetensors")
    if not found.keys() == merged.keys() == again.keys() or not found:
        return [f"experts: {sorted(found)} moved, with PEFT {sorted(merged)}, {sorted(again)}"]
    faults = []
    for name, values in found.items():
        near = {"rtol": 0, "atol": 1e-4 * values[0]}
        if not np.allclose(values, merged[name][: len(values)], **near):
            faults.append(f"experts: {name}: {values}, and with PEFT {merged[name]}")
        if not np.allclose(again[name], [values[0], *np.zeros(len(again[name]) - 1)], **near):
            faults.append(f"experts: {name}: PEFT has {again[name]} of {values[:1]}")
    return faults


def main(words: list[str]) -> int:
    """Print what PEFT finds otherwise; 1 if there is any."""
    interpreter = words[0] if words else sys.executable
    probe = "import torch, peft, transformers; print(peft.__version__, torch.__version__)"
    there = subprocess.run([interpreter, "-c", probe], capture_output=True, text=True, check=False)
    if there.returncode:
        print("torch, peft and transformers are not installed there: nothing was checked")
        return 0
    faults = []
    for check in (outputs, of_a_model, updates, models, experts):
        with tempfile.TemporaryDirectory() as folder:
            faults += check(interpreter, Path(folder))
    print(f"peft and torch: {there.stdout.strip()}; {len(faults)} faults")
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
