"""Adapters of PEFT diagnosed: as what PEFT merges of them, of each kind and each way of naming.

``tests/data/peft_models`` was written by PEFT (``make_peft_models.py``); ``make faults`` makes all
of its models and kinds anew, and has PEFT load what is extracted. Other adapters are made here, in
PEFT's form, and what they make of a weight is computed here, too.
"""

import json
import re
import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import lrdyn
from lrdyn import __main__ as command
from lrdyn import diagnosis
from lrdyn.adapters import peft
from lrdyn.adapters.peft_convention import WrittenAdapter
from lrdyn.commands import diagnose as diagnose_command
from lrdyn.diagnosis import reading
from lrdyn.diagnosis.products import Products
from tests.test_adapters_peft import BASE, KINDS, MADE

RNG = np.random.default_rng(11)
MODELS = Path(__file__).with_name("data") / "peft_models"
BY_PEFT = sorted(
    (path.parents[1].name, path.parent.name) for path in MODELS.glob("*/*/adapter_config.json")
)
FRONT = "base_model.model."
TIED = {"lm_head.weight": ("model.embed_tokens.weight", "transformer.wte.weight")}


def moved(report):
    return {matrix.name: matrix for matrix in report.matrices if matrix.norm > 0}


def same(found, wanted):
    """Two diagnoses of one update, known by factors and as a matrix in float32."""
    assert found.keys() == wanted.keys()
    for name, matrix in found.items():
        other = wanted[name]
        rank = min(len(matrix.values), len(other.values))
        within = 1e-5 * other.values[0]
        np.testing.assert_allclose(matrix.values[:rank], other.values[:rank], rtol=0, atol=within)
        np.testing.assert_allclose(matrix.norm, other.norm, rtol=1e-5)
        assert (matrix.rows, matrix.columns) == (other.rows, other.columns)
        assert (matrix.rank_90, matrix.rank_99) == (other.rank_90, other.rank_99)
        if not np.isnan(matrix.relative):
            np.testing.assert_allclose(matrix.relative, other.relative, rtol=1e-5)


# What PEFT wrote ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "kind"), BY_PEFT)
def test_the_update_of_an_adapter_is_that_which_peft_merges(model, kind):
    """Tied weights are one in files: what PEFT merges into a head is the embedding's there."""
    base = MODELS / model / "base"
    found = moved(lrdyn.diagnose(base, MODELS / model / kind))
    wanted = moved(lrdyn.diagnose(base, MODELS / model / f"{kind}.safetensors"))
    for name in found.keys() - wanted.keys():
        (place,) = (tied for tied in TIED[name] if tied in wanted)
        wanted[name] = wanted.pop(place)
    same(found, wanted)
    assert {"lm_head.weight", "model.embed_tokens.weight"} & found.keys()


@pytest.mark.parametrize(("model", "kind"), BY_PEFT)
def test_an_adapter_alone_has_the_same_matrices(model, kind):
    adapter = MODELS / model / kind
    if "dora" in kind:
        with pytest.raises(ValueError, match=r"an adapter without its base for lm_head\.weight"):
            lrdyn.diagnose(adapter)
        return
    beside = lrdyn.diagnose(MODELS / model / "base", adapter)
    found = moved(lrdyn.diagnose(adapter))
    assert found.keys() == moved(beside).keys()
    for name, matrix in moved(beside).items():
        # Alone a weight with new rows is known with these.
        if "grown" not in kind:
            np.testing.assert_allclose(found[name].norm, matrix.norm, rtol=1e-6)


@pytest.mark.parametrize("kind", ["embedding", "head", "dora_head"])
def test_the_error_of_an_extracted_head_or_embedding_is_that_of_the_weights(kind, tmp_path):
    """Beside PEFT's own merged weights: what is left out of the adapter cannot be an error of 0."""
    folder = MODELS / "llama"
    found = diagnosis.extract(folder / "base", folder / kind, rank=1).write(tmp_path / kind)
    module = "model.embed_tokens" if kind == "embedding" else "lm_head"
    assert module in found.adapter.factors
    before, after = (
        safetensors.numpy.load_file(folder / f"{name}.safetensors") for name in ("base", kind)
    )
    made = peft.merged(peft.read(tmp_path / kind, base=before), before)
    missed, whole = (
        np.sqrt(sum(np.sum((after[name] - other[name]) ** 2) for name in after))
        for other in (made, before)
    )
    assert found.error == pytest.approx(missed / whole, rel=1e-5)
    assert found.error > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_diagnosed_as_its_merged_weights(kind):
    """Kinds that PEFT wrote, whose merged weights are seen to be PEFT's elsewhere."""
    adapter = peft.read(MADE / kind, base=BASE)
    found = lrdyn.diagnose(BASE, adapter)
    wanted = lrdyn.diagnose(BASE, peft.merged(adapter, BASE))
    assert moved(found).keys() == moved(wanted).keys()
    for name, matrix in moved(found).items():
        other = moved(wanted)[name]
        np.testing.assert_allclose(matrix.norm, other.norm, rtol=1e-5)
        rank = min(2, len(matrix.values))
        np.testing.assert_allclose(matrix.values[:rank], other.values[:rank], rtol=1e-5)
    assert found.changed == pytest.approx(wanted.changed)


# What is made here, in PEFT's form ----------------------------------------------------------------


SCHEMES = {
    "gpt2": {"transformer.h.0.attn.c_attn": "conv1d", "transformer.wte": "embedding"},
    "llama": {"model.layers.0.self_attn.q_proj": "linear", "model.embed_tokens": "embedding"},
    "qwen2": {"model.layers.0.mlp.up_proj": "linear", "model.embed_tokens": "embedding"},
    "mixtral": {"model.layers.0.self_attn.q_proj": "linear", "lm_head": "linear"},
    "bert": {
        "bert.encoder.layer.0.attention.self.query": "linear",
        "bert.embeddings.word_embeddings": "embedding",
    },
    "t5": {
        "decoder.block.0.layer.1.EncDecAttention.q": "linear",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "embedding",
        "shared": "embedding",
    },
    "vit": {"vit.layers.0.attention.q_proj": "linear"},
    "clip": {
        "text_model.encoder.layers.0.self_attn.q_proj": "linear",
        "text_model.embeddings.token_embedding": "embedding",
        "vision_model.embeddings.position_embedding": "embedding",
    },
    "whisper": {
        "model.decoder.layers.0.encoder_attn.q_proj": "linear",
        "model.decoder.embed_positions": "embedding",
        "model.decoder.embed_tokens": "embedding",
    },
}
SAVED_BESIDE = ("embed_tokens", "lm_head")
"""Modules beside whose factors PEFT saves the weight."""


def of_scheme(folder, name, modules, r=2, alpha=3):
    """A base and an adapter of it in two folders, and the weights with the adapter in them."""
    for side in ("base", "adapter"):
        (folder / side).mkdir(parents=True)
    config = {"model_type": name, "tie_word_embeddings": name == "qwen2", "vocab_size": 9}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    base, after, tensors = {}, {}, {}
    for module, kind in modules.items():
        A, B = (RNG.standard_normal(shape).astype(np.float32) for shape in ((r, 9), (6, r)))
        delta = np.float32(alpha / r) * (B @ A)
        delta = delta if kind == "linear" else delta.T
        W = RNG.standard_normal(delta.shape).astype(np.float32)
        base[f"{module}.weight"], after[f"{module}.weight"] = W, W + delta
        ends = ("lora_embedding_A", "lora_embedding_B")
        if kind != "embedding":
            ends = ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{FRONT}{module}.{end}": X for end, X in zip(ends, (A, B), strict=True)}
        if module.rpartition(".")[2] in SAVED_BESIDE:
            tensors[f"{FRONT}{module}.base_layer.weight"] = W
    content = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": sorted(modules),
        "fan_in_fan_out": "conv1d" in modules.values(),
    }
    safetensors.numpy.save_file(base, folder / "base" / "model.safetensors")
    safetensors.numpy.save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(content))
    return base, after


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_way_of_naming_is_diagnosed_as_the_merged_weights(scheme, tmp_path):
    base, after = of_scheme(tmp_path, scheme, SCHEMES[scheme])
    sides = tmp_path / "base", tmp_path / "adapter"
    same(moved(lrdyn.diagnose(*sides)), moved(lrdyn.diagnose(base, after)))
    merged = peft.merged(peft.read(tmp_path / "adapter"), base)
    same(moved(lrdyn.diagnose(*sides)), moved(lrdyn.diagnose(base, merged)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_embeddings_are_taken_for_such_by_their_names(scheme, tmp_path):
    """Of weights alone; PEFT would leave out what is written as if it were of a Linear."""
    base, after = of_scheme(tmp_path, scheme, SCHEMES[scheme])
    (tmp_path / "after").mkdir()
    safetensors.numpy.save_file(after, tmp_path / "after" / "model.safetensors")
    found = diagnosis.extract(tmp_path / "base", tmp_path / "after", energy=1 - 1e-9)
    wanted = {module for module, kind in SCHEMES[scheme].items() if kind == "embedding"}
    assert found.adapter.embeddings == wanted
    assert found.write(tmp_path / "made").error < 1e-5
    written = WrittenAdapter(tmp_path / "made")
    for name, W in base.items():
        is_conv1d = SCHEMES[scheme][name.removesuffix(".weight")] == "conv1d"
        applied = written.apply(name, W, is_conv1d=is_conv1d)
        assert applied is not None
        np.testing.assert_allclose(applied, after[name], atol=1e-4)


def head(own, r=2):
    """An adapter of a head that brings the weight beside which its factors stand."""
    factors = {
        "lm_head": peft.StoredFactors(
            RNG.standard_normal((len(own), r)).astype(np.float32),
            RNG.standard_normal((r, own.shape[1])).astype(np.float32),
            1.0,
        )
    }
    return peft.described(factors, saved={"lm_head.weight": own})


@pytest.mark.parametrize("change", ["none", "rounded", "trained", "grown"])
def test_what_stands_beside_the_factors_takes_the_place_of_the_base(change):
    W = RNG.standard_normal((9, 6)).astype(np.float32)
    own = {
        "none": W,
        "rounded": W.astype(ml_dtypes.bfloat16),
        "trained": W + np.float32(0.1),
        "grown": np.concatenate([W, np.ones((2, 6), np.float32)]),
    }[change]
    adapter, base = head(own), {"lm_head.weight": W}
    found = lrdyn.diagnose(base, adapter)
    factors = adapter.factors["lm_head"]
    wanted = own.astype(np.float32)[:9] + (factors.B @ factors.A)[:9] - W
    values = np.linalg.svd(wanted, compute_uv=False)
    (matrix,) = found.matrices
    np.testing.assert_allclose(matrix.norm, np.linalg.norm(wanted), rtol=1e-5)
    np.testing.assert_allclose(matrix.values[:2], values[:2], rtol=1e-4)
    # W itself is no change: then the update is known by its factors.
    assert (len(matrix.values) == 2) == (change in ("none", "grown"))
    notes = {"shape (9, 6) before and (11, 6) after: compared on the first 9 rows"}
    assert set(found.notes.values()) == (notes if change == "grown" else set())


def test_what_is_written_is_read_back_beside_the_weight_that_it_brings(tmp_path):
    W = RNG.standard_normal((9, 6)).astype(np.float32)
    adapter = head(W + 1)
    peft.write(tmp_path, adapter)
    factors = adapter.factors["lm_head"]
    applied = WrittenAdapter(tmp_path).apply("lm_head.weight", W)
    assert applied is not None
    np.testing.assert_allclose(applied, W + 1 + factors.B @ factors.A, atol=1e-5)


def test_a_head_that_is_tied_is_known_by_its_factors(tmp_path):
    """Files of a model have one of two tied weights; PEFT saves no ``proj_out`` beside factors."""
    modules = {"model.embed_tokens": "embedding"}
    of_scheme(tmp_path, "qwen2", modules)
    factors = peft.StoredFactors(np.ones((9, 1)), np.ones((1, 6)), 1.0)
    adapter = peft.described({"proj_out": factors})
    found = lrdyn.diagnose(tmp_path / "base", adapter)
    assert [matrix.name for matrix in found.matrices] == ["proj_out.weight"]
    assert "not in the base, as if tied" in found.notes["proj_out.weight"]
    beside = lrdyn.diagnose(tmp_path / "base", tmp_path / "adapter").notes
    assert "a head tied with it" in beside["model.embed_tokens.weight"]
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"proj_out\.weight: got no such weight in its base"):
        lrdyn.diagnose(tmp_path / "base", adapter)


def test_factors_lie_as_the_modules_of_the_base_do(tmp_path):
    """Beside a head, a Linear, PEFT writes those of a Conv1D the other way round, too.

    ``c_proj`` is square: its shape does not tell.
    """
    modules = {"h.0.c_proj": "conv1d", "lm_head": "linear"}
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    factors = {
        module: peft.StoredFactors(
            RNG.standard_normal((6, 1)).astype(np.float32),
            RNG.standard_normal((1, 6)).astype(np.float32),
            1.0,
        )
        for module in modules
    }
    base = {f"{module}.weight": np.eye(6, dtype=np.float32) for module in modules}
    safetensors.numpy.save_file(base, tmp_path / "model.safetensors")
    found = lrdyn.diagnose(tmp_path, peft.described(factors), bulk=True, k=1)
    products = {module: one.B @ one.A for module, one in factors.items()}
    for matrix in found.matrices:
        module = matrix.name.removesuffix(".weight")
        product = products[module].T if modules[module] == "conv1d" else products[module]
        values = np.linalg.svd(np.eye(6) + product, compute_uv=False)
        np.testing.assert_allclose(matrix.mean_after, values[1:].mean(), rtol=1e-5)
    both = Products("after", tmp_path, peft.described(factors)).with_base(
        reading.weights("before", tmp_path), {"model_type": "gpt2"}
    )
    for module, kind in modules.items():
        product = products[module].T if kind == "conv1d" else products[module]
        np.testing.assert_allclose(both[f"{module}.weight"], np.eye(6) + product, rtol=1e-6)


# Two adapters, one alone --------------------------------------------------------------------------


def test_two_adapters_of_heads_differ_by_their_factors():
    W = RNG.standard_normal((9, 6)).astype(np.float32)
    one, other = head(W), head(W)
    (matrix,) = lrdyn.diagnose(one, other).matrices
    first, second = ((x.B @ x.A) for x in (one.factors["lm_head"], other.factors["lm_head"]))
    np.testing.assert_allclose(matrix.norm, np.linalg.norm(second - first), rtol=1e-5)
    assert len(matrix.values) == 4
    (matrix,) = lrdyn.diagnose(one, other._replace(saved={"lm_head.weight": W + 1})).matrices
    np.testing.assert_allclose(matrix.norm, np.linalg.norm(1 + second - first), rtol=1e-5)


def test_two_adapters_of_other_modules_are_compared():
    one, other = (
        peft.described({name: peft.StoredFactors(np.ones((4, 1)), np.ones((1, 3)), scale)})
        for name, scale in (("q", 1.0), ("k", 2.0))
    )
    found = {matrix.name: matrix.norm for matrix in lrdyn.diagnose(one, other).matrices}
    assert found == pytest.approx({"q.weight": 12**0.5, "k.weight": 2 * 12**0.5})


def test_what_an_adapter_alone_saves_whole_is_named():
    factors = {"q": peft.StoredFactors(np.ones((4, 1)), np.ones((1, 3)), 1.0)}
    saved = {"head.weight": np.ones((2, 3)), "head.bias": np.ones(2)}
    adapter = peft.described(factors, saved=saved)
    assert lrdyn.diagnose(adapter).notes == dict.fromkeys(
        saved, "saved whole: what changed is seen beside its base"
    )
    # A new head is noted as one of weights is.
    base = {"q.weight": np.ones((4, 3))}
    notes = lrdyn.diagnose(base, adapter).notes
    assert notes == lrdyn.diagnose(base, peft.merged(adapter, base)).notes
    assert notes["head.weight"] == "only after, of shape (2, 3)"


def test_an_adapter_keeps_the_way_round_that_it_has(tmp_path):
    """Alone: no configuration of a model says it, and the adapter's own does."""
    factors = {"mixed": peft.StoredFactors(np.ones((4, 1)), np.ones((1, 3)), 1.0)}
    adapter = peft.described(factors, fan_in_fan_out=True)
    found = diagnosis.extract(adapter, rank=1).write(tmp_path)
    assert peft.read(tmp_path).config["fan_in_fan_out"] is True
    assert found.error < 1e-6


# Names and messages -------------------------------------------------------------------------------


VIT = {"vit.encoder.layer.0.attention.attention.query": "linear"}


def test_names_of_an_adapter_are_changed(tmp_path):
    """The model's modules are called otherwise than the weights in its files."""
    of_scheme(tmp_path, "vit", VIT)
    stored = peft.read(tmp_path / "adapter")
    (factors,) = stored.factors.values()
    adapter = peft.described({"vit.layers.0.attention.q_proj": factors})
    with pytest.raises(ValueError, match=r"no such weight in its base.*model\.state_dict\(\)"):
        lrdyn.diagnose(tmp_path / "base", adapter)
    rename = {r"vit\.layers": "vit.encoder.layer", "q_proj": "attention.query"}
    found = lrdyn.diagnose(tmp_path / "base", adapter, rename=rename)
    same(moved(found), moved(lrdyn.diagnose(tmp_path / "base", tmp_path / "adapter")))
    two = peft.described({"a": factors, "b": factors})
    with pytest.raises(ValueError, match="rename: got x for two, wanted a name for each"):
        lrdyn.diagnose({"x.weight": np.ones((6, 9))}, two, rename={r"^[ab]\.": "x."})


def run(*words):
    return command.main(["diagnose", *map(str, words)])


def test_names_that_were_not_looked_up_in_a_model_are_said(tmp_path, capsys):
    of_scheme(tmp_path, "vit", VIT)
    sides = tmp_path / "base", tmp_path / "adapter"
    assert run(*sides, "--extract", tmp_path / "made") == 0
    out = capsys.readouterr().out
    assert "names of modules are those of the files, not looked up in the model" in out
    assert "torch.save(model.state_dict(), FILE)" in out
    assert "as PEFT reads it" not in out
    (tmp_path / "base" / "config.json").unlink()
    assert run(*sides, "--extract", tmp_path / "made") == 0
    assert "not looked up" not in capsys.readouterr().out


def test_experts_of_several_ranks_are_said(tmp_path):
    modules = {f"layers.0.experts.{i}.w1": "linear" for i in range(2)}
    base, after = of_scheme(tmp_path, "mixtral", modules)
    found = diagnosis.extract(tmp_path / "base", after, rank={f"{m}.weight": 1 for m in modules})
    assert "experts" not in " ".join(found.lines()[len(modules) + 1 :])
    ranks = {f"{m}.weight": r for r, m in enumerate(modules, 1)}
    found = diagnosis.extract(tmp_path / "base", after, rank=ranks)
    assert any("PEFT wants one rank of all: --rank 1" in line for line in found.lines())
    assert base.keys() == after.keys()


def test_a_tied_head_beside_conv1d_is_not_counted_as_left_out(tmp_path):
    """The ``state_dict`` of a GPT-2 has both; a head is a Linear, which gets no factors there."""
    wte = RNG.standard_normal((9, 6))
    sides = [
        {"wte.weight": W, "h.0.c_attn.weight": np.full((6, 18), x), "lm_head.weight": W}
        for W, x in ((wte, 0.0), (wte + np.outer(np.ones(9), np.arange(6.0)), 1.0))
    ]
    found = diagnosis.extract(*sides, rank=1, fan_in_fan_out=True).write(tmp_path)
    assert found.notes["lm_head.weight"].startswith("tied with wte.weight")
    assert found.left_out == {}
    assert found.error < 1e-6


def test_matrices_that_did_not_change_are_named():
    names = [f"layers.{i}.{kind}.weight" for i in range(3) for kind in "qkv"]
    start = {name: np.eye(4) for name in [*names, "head.weight"]}
    one = start | {name: np.eye(4) + 1 for name in names}
    said = " ".join(lrdyn.diagnose(start, one).answer())
    assert "1 of 10 matrices did not change: head." in said
    some = start | {name: np.eye(4) + 1 for name in names if ".q." in name or name[7] == "0"}
    said = " ".join(lrdyn.diagnose(start, some).answer())
    assert "5 of 10 matrices did not change: head, k (2 of 3), v (2 of 3)." in said


def test_a_module_of_torch_is_its_state_dict_and_within_a_tree_is_told_of_it():
    W = np.diag([3.0, 1.0])
    module = types.SimpleNamespace(state_dict=lambda: {"q.weight": W}, named_parameters=list)
    recorder = lrdyn.watch(module)
    W = W + np.outer([1.0, 0.0], [0.0, 1.0])
    recorder(module, 1)
    assert recorder.dataset["matrix"].values.tolist() == ["q.weight"]
    assert recorder.dataset["norm"].item() == 1
    said = r"params0: got a module of torch \(SimpleNamespace\), wanted .*: model\.state_dict\(\)"
    with pytest.raises(ValueError, match=said):
        lrdyn.watch({"model": module})
    with pytest.raises(ValueError, match=r"before: got a module of torch .*model\.state_dict\(\)"):
        lrdyn.diagnose([module], [module])


def test_no_message_names_a_flag_that_there_is_not():
    """All texts of the files behind the command, against its own flags and those of merge."""
    root = Path(lrdyn.__file__).parent
    from lrdyn.commands import merge

    known = set()
    for parser in (diagnose_command.parser(), merge.parser()):
        known |= {word for action in parser._actions for word in action.option_strings}
    files = [*(root / "diagnosis").glob("*.py"), root / "commands" / "diagnose.py"]
    named = {flag for file in files for flag in re.findall(r"--[a-z][a-z-]+", file.read_text())}
    assert named <= known, named - known


# Stacked experts ----------------------------------------------------------------------------------


def adapter_of_experts(folder, ranks, *, turned, dtype, targets=("gate_up_proj", "down_proj")):
    """An adapter as PEFT's ParamWrapper has it, the base, and the base with its deltas added.

    The formula is that of PEFT's source: ``einsum("o r e, e r i -> e o i")`` of lora_B and lora_A,
    or ``-> e i o`` where the experts are stored in x out.
    """
    E, h, inner, alpha = 3, 8, 6, 5
    place, sizes = "layers.0.mlp.experts", {"gate_up_proj": (2 * inner, h), "down_proj": (h, inner)}
    base, after, content = {}, {}, {}
    for depth, name in enumerate(reversed(targets)):
        out, into = sizes[name]
        A = RNG.standard_normal((E * ranks, into)).astype(dtype)
        B = RNG.standard_normal((out, ranks * E)).astype(dtype)
        front = FRONT + place + depth * ".base_layer"
        content |= {f"{front}.lora_A.weight": A, f"{front}.lora_B.weight": B}
        parts = B.astype(float).reshape(out, ranks, E), A.astype(float).reshape(E, ranks, into)
        form = "ore,eri->eio" if turned else "ore,eri->eoi"
        delta = alpha / ranks * np.einsum(form, *parts)
        base[f"{place}.{name}"] = RNG.standard_normal(delta.shape)
        after[f"{place}.{name}"] = base[f"{place}.{name}"] + delta
    folder.mkdir()
    safetensors.numpy.save_file(content, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": ranks, "lora_alpha": alpha, "target_modules": None}
    config["target_parameters"] = [f"mlp.experts.{name}" for name in targets]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return base, after


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_experts_of_an_adapter_are_those_that_peft_merges(tmp_path, turned, dtype):
    base, after = adapter_of_experts(tmp_path / "a", 2, turned=turned, dtype=dtype)
    found = lrdyn.diagnose(base, tmp_path / "a")
    wanted = moved(lrdyn.diagnose(base, after))
    assert len(wanted) == 6
    same(moved(found), wanted)
    assert {matrix.rank for matrix in found.matrices} == {2}
    way = "in x out" if turned else "out x in"
    assert way in found.notes["layers.*.mlp.experts.down_proj"]


def test_one_stack_of_an_adapter_needs_no_wrapper(tmp_path):
    how = {"turned": False, "dtype": np.float32, "targets": ("down_proj",)}
    base, after = adapter_of_experts(tmp_path / "a", 3, **how)
    same(moved(lrdyn.diagnose(base, tmp_path / "a")), moved(lrdyn.diagnose(base, after)))
    # Alone it has no names of parameters, and the same ranks.
    alone = lrdyn.diagnose(tmp_path / "a")
    assert [matrix.name for matrix in alone.matrices] == [
        f"layers.0.mlp.experts[{e}]" for e in range(3)
    ]
    assert {matrix.rank for matrix in alone.matrices} == {3}


def test_experts_that_the_base_lacks_or_that_shapes_do_not_tell_are_refused(tmp_path):
    base, _ = adapter_of_experts(tmp_path / "a", 2, turned=False, dtype=np.float32)
    few = {name: W[:2] for name, W in base.items()}
    with pytest.raises(ValueError, match="got no experts of these shapes in its base"):
        lrdyn.diagnose(few, tmp_path / "a")
    alike = {name.replace("down", "other_down"): W for name, W in base.items()}
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["target_parameters"].append("experts.other_down_proj")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="got several experts of these shapes in its base"):
        lrdyn.diagnose(base | alike, tmp_path / "a")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_experts_are_written_as_they_were_read(tmp_path, dtype):
    adapter_of_experts(tmp_path / "a", 2, turned=True, dtype=dtype)
    peft.write(tmp_path / "b", peft.read(tmp_path / "a"))
    first, again = (
        safetensors.numpy.load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab"
    )
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])


@pytest.mark.parametrize("how", [{}, {"rank": 1}, {"error": 0.5}, {"budget": 200}])
def test_a_smaller_adapter_of_experts_is_the_nearest_of_each(tmp_path, how):
    """Ranks differ from expert to expert, and some of them are 0; the file has one for all."""
    base, after = adapter_of_experts(tmp_path / "a", 3, turned=False, dtype=np.float32)
    smaller = diagnosis.combine([tmp_path / "a"], **how)
    peft.write(tmp_path / "b", smaller.adapter)
    whole, cut = (moved(lrdyn.diagnose(base, x)) for x in (after, tmp_path / "b"))
    ranks = {name: cut[name].rank if name in cut else 0 for name in whole}
    assert sum(ranks.values()) < 18 if how else set(ranks.values()) == {3}
    missed = {name: np.sum(matrix.values[ranks[name] :] ** 2) for name, matrix in whole.items()}
    for name, matrix in cut.items():
        kept = slice(ranks[name])
        np.testing.assert_allclose(matrix.values[kept], whole[name].values[kept], rtol=1e-4)
    total = sum(np.sum(matrix.values**2) for matrix in whole.values())
    np.testing.assert_allclose(smaller.error, np.sqrt(sum(missed.values()) / total), atol=1e-5)


def test_the_sum_of_two_adapters_of_experts_is_that_of_their_changes(tmp_path):
    summed: dict[str, Any] = {}
    for name, ranks, weight in (("a", 2, 2.0), ("b", 3, 0.5)):
        base, after = adapter_of_experts(tmp_path / name, ranks, turned=False, dtype=np.float32)
        summed = {n: summed.get(n, 0) + weight * (after[n] - base[n]) for n in base}
    both = diagnosis.combine([tmp_path / "a", tmp_path / "b"], [2.0, 0.5])
    peft.write(tmp_path / "sum", both.adapter)
    zero = {n: np.zeros_like(W) for n, W in summed.items()}
    same(moved(lrdyn.diagnose(zero, tmp_path / "sum")), moved(lrdyn.diagnose(zero, summed)))


def test_experts_without_names_of_parameters_or_of_a_higher_rank_are_refused(tmp_path):
    adapter_of_experts(tmp_path / "a", 2, turned=False, dtype=np.float32)
    stored = peft.read(tmp_path / "a")
    config = stored.config | {"target_parameters": None, "target_modules": ["q"]}
    with pytest.raises(ValueError, match=r"got experts, wanted target_parameters that name the"):
        peft.write(tmp_path / "b", stored._replace(config=config))
    config = stored.config | {"r": 1, "lora_alpha": stored.config["lora_alpha"] / 2}
    with pytest.raises(ValueError, match=r"expert 0: got .* of rank 2, wanted .* of rank 1 at"):
        peft.write(tmp_path / "b", stored._replace(config=config))
    assert not (tmp_path / "b").exists()


def test_factors_of_a_stack_that_do_not_fit_are_refused(tmp_path):
    adapter_of_experts(tmp_path / "a", 2, turned=False, dtype=np.float32)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    with pytest.raises(ValueError, match=r"got shapes .*, wanted E x 4 rows, and as many columns"):
        peft.read(tmp_path / "a")


# Every form in every type -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_form_in_each_type_is_diagnosed_as_its_merge(tmp_path, kind, dtype):
    """Factors are cast; the merge is one in float64, of the factors as they were cast."""
    stored = peft.read(MADE / kind)
    factors = {
        module: own._replace(
            B=np.asarray(own.B, dtype),
            A=np.asarray(own.A, dtype),
            magnitude=None if own.magnitude is None else np.asarray(own.magnitude, dtype),
        )
        for module, own in stored.factors.items()
    }
    peft.write(tmp_path / kind, stored._replace(factors=factors))
    base = {name: np.asarray(W, np.float64) for name, W in BASE.items()}
    merged = peft.merged(peft.read(tmp_path / kind), base)
    found, wanted = (moved(lrdyn.diagnose(base, after)) for after in (tmp_path / kind, merged))
    assert found
    same(found, {name: matrix for name, matrix in wanted.items() if name in found})
    assert not {name for name, m in wanted.items() if name not in found and m.relative > 1e-12}
