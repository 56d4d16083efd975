"""Make the folder peft_adapters: adapters of a tiny network by PEFT, and what it then computes.

Run ``PYTHONHASHSEED=0 python tests/data/make_peft.py [--out DIR]`` in an environment of its own
with torch, peft and transformers; it takes seconds. ``--check DIR`` loads what somebody else wrote
into the folders of DIR, named by their kind (and ``-`` with any word), and prints how far PEFT's
outputs are from the stored ones.

All numbers are float32 and drawn after ``torch.manual_seed(0)``. Of :class:`Network` the weights
are ``base.safetensors``, inputs and outputs ``outputs.safetensors``. For each kind of
:data:`KINDS` every trained tensor is moved at random, so that no factor is zero. PiSSA has the
folders ``_initial`` (before training), ``_residual.safetensors`` (the base beside which it stands)
and ``_converted`` (a LoRA of twice the rank).
"""

# pyright: reportMissingImports=false
import argparse
import copy
import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

HERE = Path(__file__).with_name("peft_adapters")
TWO = ["first", "second"]
KINDS = {
    "lora": {"r": 2, "lora_alpha": 3, "target_modules": TWO},
    "rslora": {"r": 3, "lora_alpha": 5, "target_modules": TWO, "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 3, "target_modules": TWO, "use_dora": True},
    "rsdora": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": "fir.t|.*nd",
        "use_dora": True,
        "use_rslora": True,
    },
    "patterns": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": TWO,
        "rank_pattern": {"sec.nd": 3},
        "alpha_pattern": {"first": 7},
    },
    "saved": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": TWO,
        "modules_to_save": ["head"],
        "bias": "lora_only",
    },
    "biases": {"r": 2, "lora_alpha": 3, "target_modules": ["second"], "bias": "all"},
    "embedding": {"r": 2, "lora_alpha": 3, "target_modules": ["tokens", "first"]},
    "conv1d": {"r": 2, "lora_alpha": 3, "target_modules": ["mixed"], "fan_in_fan_out": True},
    "bfloat16": {"r": 2, "lora_alpha": 3, "target_modules": TWO},
    "pissa": {"r": 2, "lora_alpha": 3, "target_modules": TWO, "init_lora_weights": "pissa"},
    "rspissa": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": TWO,
        "init_lora_weights": "pissa",
        "use_rslora": True,
    },
    "repeated": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["second"],
        "modules_to_save": ["head"],
        "bias": "all",
    },
}


class Network(nn.Module):
    """An embedding plus vectors, three layers with tanh (one stored transposed), a head."""

    def __init__(self):
        """Draw the weights."""
        super().__init__()
        self.tokens = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 8)
        self.mixed = Conv1D(8, 8)
        self.second = nn.Linear(8, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Outputs of a batch."""
        h = torch.tanh(self.first(self.tokens(ids) + x))
        return self.head(torch.tanh(self.second(torch.tanh(self.mixed(h)))))


def network(weights: dict[str, torch.Tensor] | None = None) -> Network:
    """A network, with these weights."""
    made = Network().eval()
    if weights is None:
        with torch.no_grad():
            for one in made.parameters():
                one.copy_(torch.randn_like(one) * (0.5 if one.dim() > 1 else 0.2))
    else:
        made.load_state_dict(weights)
    return made


def train(model: PeftModel) -> None:
    """Move what is trained: not by a gradient, which would leave zeros."""
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad:
                factor = 1 + 0.3 * torch.rand_like(one) if "magnitude" in name else 1
                shift = 0.0 if "magnitude" in name else 0.3
                one.copy_(one * factor + shift * torch.randn_like(one))


def save(model: PeftModel, folder: Path, **how: str) -> None:
    """The two files alone."""
    model.save_pretrained(str(folder), **how)
    (folder / "README.md").unlink()


def make(out: Path) -> None:
    """Write everything."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.manual_seed(0)
    base = network()
    weights = {name: one.clone() for name, one in base.state_dict().items()}
    ids, x = torch.randint(7, (4,)), torch.randn(4, 6)
    found = {"ids": ids, "x": x, "base": base(ids, x)}
    for kind, how in KINDS.items():
        model = get_peft_model(network(weights), LoraConfig(**copy.deepcopy(how))).eval()
        if "pissa" in kind:
            config = model.peft_config["default"]
            config.init_lora_weights = True
            save(model, out / f"{kind}_initial")
            config.init_lora_weights = "pissa"
            residual = {
                name.replace(".base_layer", "").removeprefix("base_model.model."): one
                for name, one in model.state_dict().items()
                if ".lora_" not in name
            }
            save_file(residual, out / f"{kind}_residual.safetensors")
        train(model)
        if kind == "bfloat16":
            with torch.no_grad():
                for name, one in model.named_parameters():
                    if "lora_" in name:
                        one.copy_(one.to(torch.bfloat16))
        found[kind] = model(ids, x)
        if "pissa" in kind:
            save(
                model,
                out / f"{kind}_converted",
                path_initial_model_for_weight_conversion=str(out / f"{kind}_initial"),
            )
        save(model.to(torch.bfloat16) if kind == "bfloat16" else model, out / kind)
    save_file(weights, out / "base.safetensors")
    save_file({name: one.detach() for name, one in found.items()}, out / "outputs.safetensors")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{len(list(out.rglob('*.json')))} adapters, {size} bytes")


def check(folder: Path) -> None:
    """Load what somebody else wrote; print the largest distance from the stored outputs."""
    stored, weights = load_file(HERE / "outputs.safetensors"), load_file(HERE / "base.safetensors")
    for one in sorted(path for path in folder.iterdir() if path.is_dir()):
        kind = one.name.partition("-")[0].removesuffix("_converted")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(network(weights), str(one)).eval()
        distance = (model(stored["ids"], stored["x"]) - stored[kind]).abs().max()
        print(f"{one.name:20} {distance:.1e}", *(str(w.message)[:90] for w in said))


if __name__ == "__main__":
    words = argparse.ArgumentParser(description="make the folder, or check another one")
    words.add_argument("--out", type=Path, default=HERE)
    words.add_argument("--check", type=Path)
    given = words.parse_args()
    check(given.check) if given.check else make(given.out)
