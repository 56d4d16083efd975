"""Make small models of transformers, adapters of them by PEFT, and what PEFT merges of these.

Run ``PYTHONHASHSEED=0 python tests/data/make_peft_models.py --out DIR [MODEL ...]`` in an
environment of its own with torch, peft and transformers; it takes seconds. Without ``--out`` it
writes ``tests/data/peft_models``, which has the kinds of :data:`COMMITTED` only. ``--check DIR``
looks for adapters that somebody wrote into ``DIR/MODEL/found``, named by a kind or ``moved``, loads
them with PEFT and prints by how much they miss the update.

All numbers are float32. Of each model of :data:`MODELS` there are ``base``, as transformers saves
it, and ``moved``, with all weights moved at random; beside them the same under the names of its
modules, ``base.safetensors`` and ``moved.safetensors``. Of each kind of adapter there is its
folder, with every trained tensor moved at random, and ``KIND.safetensors``, the weights of the
model into which PEFT merged it.
"""

# pyright: reportMissingImports=false
import argparse
import copy
import json
import logging
import shutil
import warnings
from pathlib import Path

import torch
import transformers as t
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

HERE = Path(__file__).with_name("peft_models")
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = SIZES | {"vocab_size": 14, "num_key_value_heads": 1}
PICTURES = {"image_size": 8, "patch_size": 4}
WHISPER = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "vocab_size": 14,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "max_source_positions": 9,
    "max_target_positions": 9,
}
MODELS = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**TEXT, tie_word_embeddings=True)),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=14, n_positions=9)
    ),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**TEXT, num_local_experts=2)),
    "bert": lambda: t.BertForSequenceClassification(
        t.BertConfig(**SIZES, vocab_size=14, max_position_embeddings=9, num_labels=3)
    ),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, vocab_size=14)
    ),
    "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**SIZES, **PICTURES, num_labels=3)),
    "clip": lambda: t.CLIPModel(
        t.CLIPConfig(
            text_config=SIZES | {"vocab_size": 14, "max_position_embeddings": 9},
            vision_config=SIZES | PICTURES,
            projection_dim=6,
        )
    ),
    "whisper": lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(**WHISPER)),
}
QV = ["q_proj", "v_proj"]
KINDS = {
    "llama": {
        "lora": {"target_modules": QV},
        "rslora": {"target_modules": QV, "use_rslora": True},
        "dora": {"target_modules": QV, "use_dora": True},
        "pissa": {"target_modules": QV, "init_lora_weights": "pissa"},
        "patterns": {
            "target_modules": QV,
            "rank_pattern": {"v_proj": 3},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 7},
        },
        "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
        "head": {"target_modules": ["q_proj", "lm_head"]},
        "dora_head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        "saved": {"target_modules": QV, "modules_to_save": ["lm_head", "norm"]},
        "grown": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    },
    "qwen2": {
        "lora": {"target_modules": QV},
        "bias": {"target_modules": QV, "bias": "lora_only"},
        "biases": {"target_modules": QV, "bias": "all"},
        "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
        "head": {"target_modules": ["q_proj", "lm_head"]},
    },
    "gpt2": {
        "lora": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        "embedding": {"target_modules": ["c_attn", "wte", "wpe"], "fan_in_fan_out": True},
        "head": {"target_modules": ["c_attn", "c_proj", "lm_head"], "fan_in_fan_out": True},
    },
    "mixtral": {"lora": {"target_modules": QV}},
    "bert": {
        "lora": {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},
        "embedding": {"target_modules": ["query", "word_embeddings"], "task_type": "SEQ_CLS"},
    },
    "t5": {
        "lora": {"target_modules": ["q", "v"]},
        "embedding": {"target_modules": ["q", "shared"]},
    },
    "vit": {"lora": {"target_modules": QV, "modules_to_save": ["classifier"]}},
    "clip": {
        "lora": {"target_modules": QV},
        "embedding": {"target_modules": ["q_proj", "token_embedding"]},
    },
    "whisper": {
        "lora": {"target_modules": QV},
        "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
        "head": {"target_modules": ["q_proj", "proj_out"]},
    },
}
COMMITTED = {
    "llama": ("embedding", "head", "dora_head", "grown"),
    "qwen2": ("embedding", "head"),
    "gpt2": ("head",),
}
MOVED = "moved"


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of the modules, of tied ones the first."""
    names = {}
    for name, weight in model.state_dict().items():
        names.setdefault(weight.data_ptr(), name)
    state = model.state_dict()
    return {name: state[name].detach().clone().contiguous() for name in sorted(names.values())}


def model_of(name: str, folder: Path) -> torch.nn.Module:
    """The model with the weights of the base."""
    model = MODELS[name]().eval()
    model.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
    model.tie_weights()
    return model


def move(weights, size: float) -> None:
    """Move what is trained: not by a gradient, which would leave zeros."""
    with torch.no_grad():
        for weight in weights:
            if weight.requires_grad:
                weight += size * torch.randn_like(weight)


def make(out: Path, names: list[str], kinds: dict) -> None:
    """Write everything."""
    for name in names:
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        move(model.parameters(), 0.1)
        model.save_pretrained(folder / "base")
        save_file(own_weights(model), folder / "base.safetensors")
        if MOVED in kinds[name]:
            move(model.parameters(), 0.05)
            model.save_pretrained(folder / MOVED)
            save_file(own_weights(model), folder / f"{MOVED}.safetensors")
        for kind in kinds[name]:
            if kind == MOVED:
                continue
            model = model_of(name, folder)
            if kind == "grown":
                model.resize_token_embeddings(16)
            how = {"r": 2, "lora_alpha": 3} | copy.deepcopy(KINDS[name][kind])
            adapted = get_peft_model(model, LoraConfig(**how)).eval()
            move(adapted.parameters(), 0.3)
            adapted.save_pretrained(folder / kind)
            (folder / kind / "README.md").unlink()
            merged = own_weights(adapted.merge_and_unload())
            save_file(merged, folder / f"{kind}.safetensors")
        for extra in folder.rglob("generation_config.json"):
            extra.unlink()


def missed(name: str, folder: Path, adapter: Path) -> float:
    """Norm of what a loaded adapter misses of an update, over the norm of that."""
    model = PeftModel.from_pretrained(model_of(name, folder), str(adapter))
    found = own_weights(model.merge_and_unload())
    base, after = (
        load_file(folder / "base.safetensors"),
        load_file(folder / f"{adapter.name}.safetensors"),
    )
    left = moved = 0.0
    for key, weight in base.items():
        target = after[key][: len(weight)] if weight.dim() else after[key]
        left += float(((target - found[key]) ** 2).sum())
        moved += float(((target - weight) ** 2).sum())
    return (left / moved) ** 0.5


def check(out: Path) -> None:
    """Print for every adapter that somebody wrote what it misses, or how PEFT refuses it."""
    errors: dict[str, float | str] = {}
    for adapter in sorted(out.glob("*/found/*")):
        folder = adapter.parents[1]
        try:
            errors[f"{folder.name} {adapter.name}"] = missed(folder.name, folder, adapter)
        except Exception as error:  # whatever PEFT raises is what is to be seen
            errors[f"{folder.name} {adapter.name}"] = f"{type(error).__name__}: {error}"[:300]
    print("FOUND", json.dumps(errors))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    words = argparse.ArgumentParser(description="make the models and adapters, or check some")
    words.add_argument("names", nargs="*", help="models (default: all)")
    words.add_argument("--out", type=Path)
    words.add_argument("--check", type=Path)
    given = words.parse_args()
    if given.check:
        check(given.check)
    elif given.out:
        every = {name: (*kinds, MOVED) for name, kinds in KINDS.items()}
        make(given.out, given.names or list(MODELS), every)
    else:
        make(HERE, list(COMMITTED), COMMITTED)
