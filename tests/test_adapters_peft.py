"""Adapters that PEFT made: read, applied, written again; what is wrong in them is named.

``python -m tests.test_adapters_peft DIR`` writes all of them, for ``make_peft.py --check DIR``.
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from lrdyn.adapters import peft, peft_config, peft_tensors
from lrdyn.adapters.peft import (
    StoredFactors,
    converted,
    described,
    merged,
    pissa_residual,
    read,
    write,
)
from lrdyn.data import Refused
from lrdyn.data.patterns import Patterns
from lrdyn.data.tensors import opened

MADE = Path(__file__).with_name("data") / "peft_adapters"
BASE = safetensors.numpy.load_file(MADE / "base.safetensors")
STORED = safetensors.numpy.load_file(MADE / "outputs.safetensors")
KINDS = sorted(set(STORED) - {"ids", "x", "base"})
FOLDERS = sorted(path.name for path in MADE.iterdir() if path.is_dir())
EPS = float(np.finfo(np.float32).eps)


def outputs(weights):
    """The network of make_peft.py, in float64."""
    W = {name: np.asarray(one, float) for name, one in weights.items()}
    h = W["tokens.weight"][STORED["ids"]] + STORED["x"]
    h = np.tanh(h @ W["first.weight"].T + W["first.bias"])
    h = np.tanh(h @ W["mixed.weight"] + W["mixed.bias"])  # stored transposed
    h = np.tanh(h @ W["second.weight"].T + W["second.bias"])
    return h @ W["head.weight"].T + W["head.bias"]


def off(weights, kind):
    """Largest distance from what PEFT computed, which rounds in float32."""
    return float(np.abs(outputs(weights) - STORED[kind]).max())


def files(folder):
    """The two files as they are, by other readers."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, safetensors.numpy.load_file(folder / "adapter_model.safetensors")


REPEATED = tuple(
    f"base_model.model.head.{wrapper}.bias" for wrapper in ("modules_to_save", "original_module")
)
"""What PEFT saves beside ``head.bias``: the same bias, and one that it does not use."""


def same_files(one, other, less: frozenset[str] = frozenset()):
    (config, tensors), (config2, tensors2) = files(one), files(other)
    assert config == config2
    assert set(tensors) == set(tensors2) - less
    for name in tensors:
        assert tensors[name].dtype == tensors2[name].dtype, name
        np.testing.assert_array_equal(tensors[name], tensors2[name], err_msg=name)


def test_the_network_is_the_one_of_peft():
    assert off(BASE, "base") < 1e-6
    assert all(off(BASE, kind) > 0.1 for kind in KINDS), "an adapter that changes nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapted_network_is_that_of_peft(kind):
    """Outputs of order 1: 1e-6 is 8 roundings of float32; for PiSSA the base is decomposed."""
    adapter = read(MADE / kind, base=BASE)
    assert off(merged(adapter, BASE), kind) < 1e-6
    assert adapter.config["peft_version"]


def test_a_row_of_zeros_with_a_magnitude_stays_one():
    factors = StoredFactors(np.zeros((2, 1)), np.ones((1, 2)), 1.0, magnitude=np.array([3.0, 4.0]))
    adapter = described({"q": factors})
    found = merged(adapter, {"q.weight": np.diag([0.0, 2.0])})["q.weight"]
    np.testing.assert_array_equal(found, np.diag([0.0, 4.0]))


@pytest.mark.parametrize("kind", ["pissa", "rspissa"])
def test_pissa_beside_its_residual_or_converted(kind):
    adapter, residual = read(MADE / kind), opened(MADE / f"{kind}_residual.safetensors")
    assert off(merged(adapter, dict(residual), residual=True), kind) < 1e-6
    assert off(merged(adapter, BASE, residual=True), kind) > 0.1  # the control
    for name in ("first.weight", "second.weight"):
        # PEFT's residual is W less a product of factors rounded in float32.
        scale = 16 * EPS * float(np.linalg.norm(BASE[name], 2))
        np.testing.assert_allclose(
            pissa_residual(BASE[name], 2), residual[name], rtol=0, atol=scale
        )
    whole = read(MADE / f"{kind}_converted")
    assert {one.A.shape[0] for one in whole.factors.values()} == {4}
    assert off(merged(whole, BASE), kind) < 1e-6


@pytest.mark.parametrize("kind", ["pissa", "rspissa"])
def test_the_conversion_is_that_of_peft(kind, tmp_path):
    write(tmp_path, converted(read(MADE / kind), read(MADE / f"{kind}_initial")))
    same_files(tmp_path, MADE / f"{kind}_converted")


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_is_read_is_written_again(kind, tmp_path):
    write(tmp_path / "made", read(MADE / kind))
    same_files(tmp_path / "made", MADE / kind, frozenset(REPEATED if kind == "repeated" else ()))
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


BIAS = {"saved": "lora_only", "biases": "all", "repeated": "all"}


def anew(kind):
    """An adapter with a configuration of our own."""
    adapter = read(MADE / kind)
    return described(
        adapter.factors,
        saved=adapter.saved,
        embeddings=adapter.embeddings,
        rslora=bool(adapter.config["use_rslora"]),
        bias=BIAS.get(kind, "none"),
        fan_in_fan_out=adapter.config["fan_in_fan_out"],
        init_lora_weights=adapter.config["init_lora_weights"],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_of_our_own_is_the_same_adapter(kind, tmp_path):
    write(tmp_path, anew(kind))
    found = read(tmp_path, base=BASE)
    assert off(merged(found, BASE), kind) < 1e-6
    wanted = read(MADE / kind)
    for module, one in wanted.factors.items():
        assert found.factors[module].scale == pytest.approx(one.scale, rel=1e-15)
    assert files(tmp_path)[1].keys() == files(MADE / kind)[1].keys() - set(REPEATED)


def test_ranks_and_alphas_of_patterns():
    factors = read(MADE / "patterns").factors
    assert {name: (one.A.shape[0], one.scale) for name, one in factors.items()} == {
        "first": (2, 7 / 2),
        "second": (3, 3 / 3),
    }
    assert read(MADE / "rslora").factors["first"].scale == 5 / 3**0.5


def test_one_pattern_is_of_one_module():
    """``q`` also ends the name of ``layer.q``: PEFT looks for a pattern at the end."""
    one, other = (StoredFactors(np.ones((3, r)), np.ones((r, 4)), 1.0) for r in (1, 2))
    made = described({"layer.k": one, "layer.q": one, "q": other})
    config = peft_config.PeftConfig(Path(), made.config)
    assert [config.rank(name) for name in ("layer.q", "q", "layer.k")] == [1, 2, 1]


def test_embeddings_and_transposed_weights_are_of_the_stored_weight():
    found = read(MADE / "embedding")
    assert found.embeddings == {"tokens"}
    assert found.factors["tokens"].B.shape == (7, 2)
    assert found.factors["tokens"].A.shape == (2, 6)
    conv = read(MADE / "conv1d").factors["mixed"]
    _, tensors = files(MADE / "conv1d")
    np.testing.assert_array_equal(conv.B, tensors["base_model.model.mixed.lora_A.weight"].T)


def test_an_embedding_that_peft_saved_whole_takes_the_place_of_the_base(tmp_path):
    """More tokens than the base has; the name has ``base_layer`` where there are factors."""
    one = StoredFactors(np.ones((9, 2), np.float32), np.ones((2, 6), np.float32), 1.0)
    grown = np.ones((9, 6), np.float32)
    names = {"model.embed_tokens.weight": grown}
    base = {"model.embed_tokens.weight": np.zeros((7, 6))}
    write(
        tmp_path,
        described({"model.embed_tokens": one}, saved=names, embeddings=["model.embed_tokens"]),
    )
    assert "base_model.model.model.embed_tokens.base_layer.weight" in files(tmp_path)[1]
    found = merged(read(tmp_path, base=base), base)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found, grown + one.B @ one.A)


def test_half_precision_is_read_and_kept():
    adapter = read(MADE / "bfloat16")
    assert adapter.factors["first"].A.dtype == ml_dtypes.bfloat16
    half = {name: one.astype(ml_dtypes.bfloat16) for name, one in BASE.items()}
    found = merged(adapter, half)["first.weight"]
    assert found.dtype == ml_dtypes.bfloat16
    one = adapter.factors["first"]
    wanted = half["first.weight"].astype(float) + one.scale * (
        one.B.astype(float) @ one.A.astype(float)
    )
    # One rounding of bfloat16 at the end, which has 8 bits.
    np.testing.assert_allclose(found.astype(float), wanted, rtol=2.0**-8)


def test_arrays_of_jax_are_written(tmp_path):
    adapter = read(MADE / "dora")
    factors = {
        name: StoredFactors(
            jnp.asarray(one.B), jnp.asarray(one.A), one.scale, jnp.asarray(one.magnitude)
        )
        for name, one in adapter.factors.items()
    }
    write(tmp_path, adapter._replace(factors=factors))
    same_files(tmp_path, MADE / "dora")


# What is refused ----------------------------------------------------------------------------------


P = "base_model.model."
A, B, M = (P + f"first.lora_{part}" for part in ("A.weight", "B.weight", "magnitude_vector"))


def damaged(folder, kind="lora", config=(), tensors=(), drop=()):
    """A copy of an adapter with keys and tensors changed."""
    folder.mkdir()
    content, arrays = files(MADE / kind)
    content |= dict(config)
    arrays |= dict(tensors)
    (folder / "adapter_config.json").write_text(json.dumps(content))
    kept = {name: one for name, one in arrays.items() if name not in drop}
    safetensors.numpy.save_file(kept, folder / "adapter_model.safetensors")
    return folder


def refused(file, said, folder, base=None):
    """One line: the file, the tensor or key, what it is."""
    with pytest.raises(Refused, match=said) as caught:
        read(folder, base=base)
    assert str(caught.value).startswith(f"{folder / file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("peft_type", "ADALORA", "peft_type: got ADALORA, wanted LORA: of PEFT's adapters LoRA, r"),
        ("peft_type", None, "peft_type: got None, wanted LORA"),
        ("r", 0, "r: got 0, wanted an integer >= 1"),
        ("r", 2.0, "r: got 2.0, wanted an integer"),
        ("r", True, "r: got True, wanted an integer"),
        ("lora_alpha", "3", "lora_alpha: got 3, wanted a number"),
        ("lora_alpha", float("inf"), ": got Infinity, wanted a number"),
        pytest.param(
            "lora_alpha", 10**400, "lora_alpha: got an integer of more than 64 bits", id="10**400"
        ),
        ("r", 2**31, "r: got 2147483648, wanted an integer >= 1"),
        ("rank_pattern", {r"(q)\1": 2}, "rank_pattern: got .*, wanted regular expressions with"),
        ("target_modules", "(?i)first", r"target_modules: got \(\?i\)first, wanted names"),
        ("layers_pattern", "(l+)+", r"layers_pattern: got .*, wanted .*without repetitions and gr"),
        ("rank_pattern", {"(": 2}, "rank_pattern: got .*, wanted regular expressions with integer"),
        ("rank_pattern", {"first": 0}, "rank_pattern: got .*'first': 0"),
        ("alpha_pattern", {"first": "x"}, "alpha_pattern: got .*, wanted regular expressions with"),
        ("use_rslora", 1, "use_rslora: got 1, wanted true or false"),
        ("target_modules", None, "target_modules: got None, wanted names of modules or a regular"),
        ("target_modules", "(", r"target_modules: got \(, wanted"),
        ("exclude_modules", 5, "exclude_modules: got 5, wanted names or a regular expression"),
        ("modules_to_save", "head", "modules_to_save: got head, wanted names of modules"),
        ("layers_to_transform", "1", "layers_to_transform: got 1, wanted integers"),
        ("layers_pattern", ["("], "layers_pattern: got .*, wanted regular expressions"),
        ("bias", "some", "bias: got some, wanted none, all or lora_only"),
        ("init_lora_weights", "olora", "got olora, wanted a start that leaves the base as it is, "),
        ("init_lora_weights", "pissa_niter_4", "pissa_niter_4, .* PEFT's path_initial_model_for_w"),
        ("lora_bias", True, "lora_bias: got True, wanted it off .null, false or empty.: it is not"),
        ("use_qalora", True, "use_qalora: got True, wanted it off"),
        ("layer_replication", [[0, 1]], "layer_replication: got .*, wanted it off"),
        ("trainable_token_indices", [1], "trainable_token_indices: got .*, wanted it off"),
        ("target_parameters", ["w"], "target_parameters: got .*, wanted names of parameters of"),
        ("a_later_key", {"on": 1}, "a_later_key: got .*, wanted it off"),
    ],
)
def test_a_configuration_that_is_not_read_is_named(key, value, said, tmp_path):
    refused("adapter_config.json", said, damaged(tmp_path / "a", config={key: value}))


def test_patterns_take_polynomial_time():
    """Python's own ``re`` takes more than a minute for each of these."""
    name, hostile = 34 * "a", "((a+)+!)|(a*)"
    content = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": hostile,
        "exclude_modules": "(a+)+!",
        "rank_pattern": {"(a+)+!": 2},
        "alpha_pattern": {"(a|a)*!": 2, "(a*)*": 3},
    }
    config, begin = peft_config.PeftConfig(Path("a"), content), time.process_time()
    assert config.adapts(name)
    assert (config.rank(name), config.alpha(name)) == (4, 3)
    assert time.process_time() - begin < 1


def test_patterns_that_take_too_long_are_named():
    pattern = "(.*a)*[!?]"
    content = {"target_modules": pattern, "rank_pattern": {pattern: 2}, "r": 1}
    config = peft_config.PeftConfig(Path("a"), content, Patterns(10))
    with pytest.raises(Refused, match=r"a: target_modules: got .*, wanted .*: it takes too long"):
        config.adapts(34 * "a")
    with pytest.raises(Refused, match=r"a: rank_pattern: got .*, wanted .*: it takes too long"):
        config.rank(34 * "a")


def test_many_names_beside_many_tensors_are_refused(monkeypatch):
    tensors = opened(MADE / "lora" / "adapter_model.safetensors")
    names = [str(number) for number in range(1000)]
    config = peft_config.PeftConfig(Path("a"), {"target_modules": names, "rank_pattern": {"b": 1}})
    assert config.entries == 1001
    monkeypatch.setattr(peft_tensors, "PAIRS", 1000)
    with pytest.raises(Refused, match=r"got \d+ tensors beside 1001 names and patterns, wanted"):
        peft_tensors.check_tensors(tensors, config, None)


def test_a_layer_of_many_digits_is_none():
    content = {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "h"}
    config = peft_config.PeftConfig(Path("a"), content)
    assert config.adapts("h.1.q")
    assert not config.adapts(f"h.{5000 * '1'}.q")


def test_a_later_key_that_is_off_is_read(tmp_path):
    for number, value in enumerate((None, False, "", [], {})):
        assert read(damaged(tmp_path / str(number), config={"a_later_key": value})).factors


def test_a_transposed_weight_or_embedding_has_no_magnitudes(tmp_path):
    on = {"fan_in_fan_out": True}
    said = "fan_in_fan_out: got True, wanted false beside use_dora: magnitudes of a transposed"
    refused("adapter_config.json", said, damaged(tmp_path / "a", "dora", on))
    folder = damaged(tmp_path / "b", "embedding", {"use_dora": True}, drop=(A, B))
    said = f"{P}tokens: got an adapter of an embedding, wanted none beside use_dora"
    refused("adapter_model.safetensors", said, folder)


ONES = np.ones((2, 6), np.float32)


@pytest.mark.parametrize(
    ("kind", "how", "part", "said"),
    [
        ("lora", {"drop": [B]}, B, "no tensor of this name, wanted one: it is missing"),
        ("lora", {"drop": [A]}, A, "it is missing"),
        ("lora", {"config": {"use_dora": True}}, M, "it is missing"),
        ("dora", {"config": {"use_dora": False}}, M, "an extra"),
        (
            "embedding",
            {"drop": [f"{P}tokens.lora_embedding_B"]},
            f"{P}tokens.lora_embedding_B",
            "it is missing",
        ),
        (
            "lora",
            {"tensors": {f"{P}first.lora_embedding_A": ONES}},
            f"{P}first.lora_embedding_A",
            "an extra tensor",
        ),
        ("lora", {"tensors": {f"{P}head.weight": ONES}}, f"{P}head.weight", "an extra tensor"),
        ("lora", {"tensors": {f"{P}first.bias": ONES}}, f"{P}first.bias", "an extra tensor"),
        ("saved", {"tensors": {f"{P}first.bias": ONES}}, f"{P}first.bias", "an extra tensor"),
        ("saved", {"config": {"bias": "none"}}, f"{P}first.base_layer.bias", "an extra tensor"),
        (
            "lora",
            {"tensors": {"first.lora_A.weight": ONES}},
            "first.lora_A.weight",
            "this name, wanted one that begins with base_model.model.",
        ),
        (
            "lora",
            {"config": {"target_modules": ["second"]}},
            A,
            "a module that is none of target_modules in adapter_config.json, wanted no tensor of "
            "it",
        ),
        ("lora", {"config": {"exclude_modules": ["first"]}}, A, "none of target_modules"),
        ("lora", {"config": {"r": 3}}, A, r"shape \(2, 6\), wanted \(3, 6\)"),
        ("lora", {"tensors": {A: ONES[None]}}, A, r"shape \(1, 2, 6\), wanted \(2, 6\)"),
        ("lora", {"tensors": {A: ONES[:, :0]}}, A, r"shape \(2, 0\), wanted \(2, 0\)"),
        ("lora", {"tensors": {A: ONES.astype(np.int32)}}, A, "type int32, wanted floating-point n"),
        ("lora", {"tensors": {B: np.ones((8, 3), np.float32)}}, B, r"shape \(8, 3\), wanted \(8, "),
        ("dora", {"tensors": {M: ONES[0]}}, M, r"shape \(6,\), wanted \(8,\)"),
        ("lora", {"tensors": {A: ONES * np.nan}}, A, "12 NaN, wanted numbers"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(kind, how, part, said, tmp_path):
    folder = damaged(tmp_path / "a", kind, **how)
    refused("adapter_model.safetensors", f"{part}: got .*{said}", folder)


@pytest.mark.parametrize(
    ("kind", "base", "part", "said"),
    [
        ("lora", {"first.weight": np.ones((8, 7))}, A, r"shape \(2, 6\), wanted \(2, 7\)"),
        ("lora", {"first.weight": np.ones((9, 6))}, B, r"shape \(8, 2\), wanted \(9, 2\)"),
        ("lora", {"first.weight": None}, A, "no such module in the base, wanted a matrix"),
        ("lora", {"first.weight": np.ones((8, 6, 3))}, A, r"a weight of shape \(8, 6, 3\) in the"),
        ("lora", {"more.second.weight": np.ones((2, 2))}, f"{P}more.second.lora_A.weight", "it is"),
        ("conv1d", {"mixed.weight": np.ones((7, 8))}, f"{P}mixed.lora_A.weight", r"wanted \(2, 7"),
        (
            "embedding",
            {"tokens.weight": np.ones((9, 6))},
            f"{P}tokens.lora_embedding_A",
            r"shape \(2, 7\), wanted \(2, 9\)",
        ),
        ("saved", {"head.weight": np.ones((4, 5))}, f"{P}head.weight", r"shape \(3, 5\), wanted "),
        ("saved", {"head.weight": None}, f"{P}head.weight", "an extra tensor"),
        ("saved", {"head.more": np.ones(1)}, f"{P}head.more", "it is missing"),
        ("biases", {"more.bias": np.ones(1)}, f"{P}more.bias", "it is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_the_base_is_named(kind, base, part, said, tmp_path):
    folder = damaged(tmp_path / "a", kind)
    weights = {name: one for name, one in (BASE | base).items() if one is not None}
    refused("adapter_model.safetensors", f"{part}: got .*{said}", folder, weights)
    assert read(folder, base=opened(MADE / "base.safetensors")).factors


def test_an_adapter_without_factors_is_refused(tmp_path):
    folder = damaged(tmp_path / "a")
    safetensors.numpy.save_file({}, folder / "adapter_model.safetensors")
    refused("adapter_model.safetensors", "got no factors, wanted those of at least one", folder)


def test_shapes_alone_are_a_base():
    shapes = {name: jax.ShapeDtypeStruct(one.shape, one.dtype) for name, one in BASE.items()}
    assert read(MADE / "saved", base=shapes).factors
    shapes["first.weight"] = jax.ShapeDtypeStruct((8, 7), np.float32)
    with pytest.raises(Refused, match=r"first.lora_A.weight: got shape \(2, 6\), wanted \(2, 7\)"):
        read(MADE / "saved", base=shapes)


def test_a_pickle_and_what_is_not_there(tmp_path):
    folder = damaged(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused("adapter_model.bin", "a .bin file, wanted safetensors: it is a pickle, and to", folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors"):
        read(folder)
    folder = damaged(tmp_path / "b")
    config = (folder / "adapter_config.json").rename(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match=r"adapter_config.json"):
        read(folder)
    assert read(folder / "adapter_model.safetensors", config).factors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"r": 1, "r": 2}', "r: got this name twice, wanted it once"),
        ("[]", "a list, wanted the configuration of an adapter"),
        ("{", r"a damaged file \(JSONDecodeError\), wanted the configuration of an adapter"),
    ],
)
def test_a_configuration_that_is_none_is_refused(text, said, tmp_path):
    folder = damaged(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text)
    refused("adapter_config.json", said, folder)


# Which modules are adapted: as PEFT's documentation says ------------------------------------------


@pytest.mark.parametrize(
    ("content", "yes", "no"),
    [
        ({"target_modules": ["q"]}, ["q", "a.q"], ["aq", "q.a"]),
        ({"target_modules": r".*\.(q|k)"}, ["a.q", "a.k"], ["q", "a.q.b"]),
        ({"target_modules": "all-linear"}, ["q", "a.q"], []),
        ({"target_modules": ["q"], "exclude_modules": ["1.q"]}, ["a.0.q"], ["a.1.q"]),
        ({"target_modules": ["q"], "exclude_modules": r".*1\.q"}, ["a.0.q"], ["a.1.q"]),
        ({"target_modules": ["q"], "modules_to_save": ["head"]}, ["a.q"], ["head.q", "a.head.0.q"]),
        ({"target_modules": ["q"], "layers_to_transform": 1}, ["a.l.1.q"], ["a.l.0.q", "q"]),
        ({"target_modules": ["q"], "layers_to_transform": [0, 2]}, ["a.l.2.q"], ["a.l.1.q"]),
        (
            {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": ["h", "l"]},
            ["a.l.0.q", "h.0.q"],
            ["a.m.0.q", "a.l.1.q"],
        ),
        (
            {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "l"},
            ["a.l.0.q"],
            ["a.h.0.q"],
        ),
    ],
)
def test_which_modules_are_adapted(content, yes, no):
    config = peft_config.PeftConfig(Path(), content)
    assert [name for name in (*yes, *no) if config.adapts(name)] == yes


# Wrong calls --------------------------------------------------------------------------------------


GOOD = StoredFactors(np.ones((3, 2)), np.ones((2, 4)), 1.0)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ({}, "factors: got {}, wanted factors by the name of their module"),
        ({"q": 5}, r"factors\['q'\]: got type int, wanted a StoredFactors"),
        ({"q": GOOD._replace(B=np.ones((3, 1)))}, r"\['q'\].B: got shape \(3, 1\), wanted \(m, 2"),
        ({"q": GOOD._replace(A=np.ones(4))}, r"\['q'\].A: got shape \(4,\), wanted 2 axes"),
        ({"q": GOOD._replace(A=np.ones((2, 0)))}, r"\['q'\].A: got shape \(2, 0\), wanted 2 axes,"),
        ({"q": GOOD._replace(A=np.ones((2, 4), int))}, r"\['q'\].A: got ndarray of int64, wanted "),
        ({"q": GOOD._replace(A=None)}, r"\['q'\].A: got NoneType of object, wanted an array"),
        ({"q": GOOD._replace(magnitude=np.ones(4))}, r"magnitude: got shape \(4,\), wanted \(3,\)"),
        ({"q": GOOD._replace(scale=np.inf)}, r"\['q'\].scale: got inf, wanted a finite number"),
        ({"q": GOOD, "k": GOOD._replace(magnitude=np.ones(3))}, "q.lora_magnitude_vector: got no "),
    ],
)
def test_factors_that_do_not_fit_are_named(factors, said, unchecked):
    with pytest.raises(ValueError, match=said):
        described(factors)


def test_a_configuration_that_does_not_fit_is_named(tmp_path, unchecked):
    adapter = read(MADE / "lora")
    near = adapter.factors["first"]._replace(scale=1.5 * (1 + 1e-12))
    calls: list[tuple[Any, str]] = [
        (
            adapter._replace(config=adapter.config | {"lora_alpha": 4}),
            "scale: got 1.5, wanted 2.0, a",
        ),
        (adapter._replace(config=adapter.config | {"r": 4}), "scale: got 1.5, wanted 0.75"),
        (
            adapter._replace(factors=adapter.factors | {"first": near}),
            "got 1.5000.*, wanted 1.5, as",
        ),
        (
            adapter._replace(config=adapter.config | {"lora_bias": True}),
            "adapter.config: lora_bias",
        ),
        (adapter._replace(saved={"head.weight": ONES}), "head.weight: got an extra tensor"),
        (adapter.config, "adapter: got type dict, wanted a Stored"),
    ]
    for wrong, said in calls:
        with pytest.raises(ValueError, match=said):
            write(tmp_path / "a", wrong)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="a_later_key: got 5, wanted it off"):
        described(adapter.factors, a_later_key=5)
    with pytest.raises(ValueError, match="bias: got some, wanted none, all or lora_only"):
        described(adapter.factors, bias="some")


def test_weights_that_do_not_fit_are_named():
    adapter = read(MADE / "lora")
    with pytest.raises(
        ValueError, match=r"weights\['first.weight'\]: got no such weight, wanted sh"
    ):
        merged(adapter, {})
    with pytest.raises(
        ValueError, match=r"weights\['first.weight'\]: got \(6, 8\), wanted shape \(8"
    ):
        merged(adapter, BASE | {"first.weight": BASE["first.weight"].T})


def test_what_cannot_be_converted_is_named():
    adapter, initial = read(MADE / "pissa"), read(MADE / "pissa_initial")
    first = adapter.factors["first"]
    for one, other, said in (
        (read(MADE / "dora"), initial, "adapter: got DoRA, wanted LoRA or rsLoRA"),
        (
            adapter._replace(config=read(MADE / "patterns").config | {"use_rslora": True}),
            initial,
            "adapter: got rsLoRA with rank_pattern or alpha_pattern, wanted rsLoRA without",
        ),
        (adapter, read(MADE / "biases"), "initial: got first in one of the two alone, wanted the"),
        (
            adapter,
            initial._replace(factors=adapter.factors | {"first": first._replace(scale=9.0)}),
            r"initial.factors\['first'\]: got shapes .*, scale 9.0, wanted",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            converted(one, other)


def test_a_conversion_of_a_transposed_weight_or_of_patterns():
    """The sum of the products is the difference of the two adapters."""
    for kind in ("conv1d", "embedding", "patterns"):
        after = read(MADE / kind)
        before = after._replace(
            factors={name: one._replace(B=one.B[::-1]) for name, one in after.factors.items()}
        )
        found = converted(after, before)
        peft_config.check_config(peft_config.PeftConfig(Path(), found.config))
        peft._name_tensors(found)
        for name, one in found.factors.items():
            wanted = after.factors[name].B - before.factors[name].B
            np.testing.assert_allclose(one.B @ one.A, wanted @ after.factors[name].A, atol=1e-6)
            turned = kind == "conv1d" or name in after.embeddings
            # As PEFT does, the sign is that of the part that the file calls B.
            kept = (
                (one.B, before.factors[name].B, 1) if turned else (one.A, before.factors[name].A, 0)
            )
            np.testing.assert_array_equal(np.split(kept[0], 2, axis=kept[2])[1], kept[1])


def write_all(folder):
    """What PEFT made, written again, and with a configuration of our own."""
    shutil.rmtree(folder, ignore_errors=True)
    for kind in KINDS:
        write(folder / kind, read(MADE / kind))
        write(folder / f"{kind}-anew", anew(kind))
        if "pissa" in kind:
            ours = converted(read(MADE / kind), read(MADE / f"{kind}_initial"))
            write(folder / f"{kind}_converted", ours)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
