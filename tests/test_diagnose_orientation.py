"""Which way round weights are stored: of families, by flag, and what a written file really does."""

import json

import numpy as np
import pytest

import lrdyn
from lrdyn import diagnosis
from lrdyn.adapters import peft
from lrdyn.adapters.peft_convention import WrittenAdapter
from lrdyn.data import tensors
from lrdyn.diagnosis.orientation import FAMILIES, orientation

RNG = np.random.default_rng(4)
NAMES = {
    "wte": (20, 12),
    "h.0.attn.c_attn": (12, 36),
    "h.0.attn.c_proj": (12, 12),
    "h.0.mlp.c_fc": (12, 48),
    "score": (3, 12),
}
"""A small GPT-2 with a head of three classes, as transformers stores it."""
BEFORE = {f"{name}.weight": RNG.standard_normal(shape) for name, shape in NAMES.items()}
AFTER = {name: W + RNG.standard_normal(W.shape) for name, W in BEFORE.items()}


@pytest.fixture
def model(tmp_path):
    """Two folders of a model, with its configuration in the first."""
    for when, weights in (("before", BEFORE), ("after", AFTER)):
        (tmp_path / when).mkdir()
        tensors.write(tmp_path / when / "model.safetensors", weights)
    (tmp_path / "before" / "config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path


def by_peft(folder, name):
    """The weight of a module as PEFT's lora.Linear makes it: in NumPy, from the two files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = dict(tensors.opened(folder / "adapter_model.safetensors"))
    front, base = f"base_model.model.{name}", BEFORE[f"{name}.weight"]
    r = config["rank_pattern"].get("^" + name.replace(".", r"\."), config["r"])
    alpha = config["alpha_pattern"].get("^" + name.replace(".", r"\."), config["lora_alpha"])
    if f"{front}.lora_embedding_A" in stored:
        made = (stored[f"{front}.lora_embedding_B"] @ stored[f"{front}.lora_embedding_A"]).T
    else:
        made = stored[f"{front}.lora_B.weight"] @ stored[f"{front}.lora_A.weight"]
        # A Conv1D of transformers: PEFT goes by the module, whatever the file says.
        made = made.T if name.rpartition(".")[2].startswith("c_") else made
    return base + alpha / r * made


def relative(made, name):
    moved = AFTER[name] - BEFORE[name]
    return np.linalg.norm(AFTER[name] - made) / np.linalg.norm(moved)


def test_a_gpt2_gets_transposed_factors_from_its_configuration(model):
    found = diagnosis.extract(model / "before", model / "after", energy=0.9)
    written = found.write(model / "adapter")
    assert found.adapter.config["fan_in_fan_out"] is True
    assert set(written.errors) == {"wte", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc"}
    for name, error in written.errors.items():
        measured = relative(by_peft(model / "adapter", name), f"{name}.weight")
        np.testing.assert_allclose(measured, error, rtol=1e-12)
        np.testing.assert_allclose(error, found.errors[name], rtol=1e-12)
        assert error < 0.35
    assert "config.json says gpt2" in "\n".join(written.lines())
    # Its head is a Linear, which an adapter of Conv1D does not hold.
    assert "a Linear beside Conv1D: one adapter cannot hold both" in written.notes["score.weight"]
    assert set(written.left_out) == {"score.weight"}
    whole = diagnosis.extract(model / "before", model / "after", save="score")
    assert not whole.left_out


def test_the_printed_error_is_that_of_the_file(model):
    """A wrong flag beside a square Conv1D: what the writer thinks is not what PEFT does."""
    wrong = diagnosis.extract(
        model / "before", model / "after", select="*.attn.c_proj.weight", fan_in_fan_out=False
    )
    right = diagnosis.extract(model / "before", model / "after", select="*.attn.c_proj.weight")
    assert wrong.errors["h.0.attn.c_proj"] < 0.35
    wrong = wrong._replace(orientation=right.orientation)
    error = wrong.write(model / "wrong").errors["h.0.attn.c_proj"]
    assert error > 1
    np.testing.assert_allclose(
        error, relative(by_peft(model / "wrong", "h.0.attn.c_proj"), "h.0.attn.c_proj.weight")
    )


def test_a_file_that_peft_does_not_load_is_refused(model):
    peft.write(
        model / "wrong",
        peft.described({"h.0.mlp.c_fc": peft.StoredFactors(np.ones((12, 1)), np.ones((1, 48)), 1)}),
    )
    written = WrittenAdapter(model / "wrong")
    with pytest.raises(ValueError, match=r"c_fc.weight: got a product of shape \(48, 12\)"):
        written.apply("h.0.mlp.c_fc.weight", BEFORE["h.0.mlp.c_fc.weight"], is_conv1d=True)


def test_without_a_configuration_such_names_need_the_flag(model, unchecked):
    (model / "before" / "config.json").unlink()
    sides = model / "before", model / "after"
    with pytest.raises(ValueError, match=r"fan_in_fan_out: got none for h.0.attn.c_attn and no"):
        diagnosis.extract(*sides)
    lrdyn.diagnose(*sides)  # ranks are the same either way
    found = diagnosis.extract(*sides, fan_in_fan_out=True)
    assert found.orientation.is_transposed("h.0.attn.c_proj")
    assert not found.orientation.is_transposed("score")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family):
    modules = ["model.h.0.mlp.c_fc", "model.h.0.attn.q_proj", "lm_head"]
    config = {"decoder": {"model_type": family}, "model_type": "vision-encoder-decoder"}
    found = orientation(modules, config, None)
    assert [found.is_transposed(module) for module in modules] == [True, False, False]
    assert family in found.said


def test_other_models_get_one_line_that_says_what_was_assumed():
    modules = ["model.layers.0.q_proj"]
    assert "no config.json: weights were taken" in orientation(modules, None, None).said
    found = orientation(["h.0.mlp.c_fc"], {"model_type": "gpt_bigcode"}, None)
    assert not found.fan_in_fan_out
    assert "config.json says gpt_bigcode: weights are stored out x in" in found.said
