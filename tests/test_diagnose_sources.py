"""What people have: the hub's cache, adapters, pickles of torch, eight bits, other names."""

import json
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import lrdyn
from lrdyn import diagnosis
from lrdyn.adapters import peft
from lrdyn.data import Refused, checkpoints, tensors
from lrdyn.diagnosis import comparison, reading

RNG = np.random.default_rng(5)
BEFORE = {
    "layers.0.q.weight": RNG.standard_normal((12, 10)).astype(np.float32),
    "layers.1.q.weight": RNG.standard_normal((9, 14)).astype(np.float32),
    "norm.weight": np.ones(5, np.float32),
}
AFTER = {name: W + RNG.standard_normal(W.shape).astype(np.float32) for name, W in BEFORE.items()}


def same(found, reference):
    assert [one.name for one in found.matrices] == [one.name for one in reference.matrices]
    for one, other in zip(found.matrices, reference.matrices, strict=True):
        known = min(len(one.values), len(other.values))  # of a product there are r
        np.testing.assert_allclose(one.values[:known], other.values[:known], rtol=1e-5, atol=1e-5)
        assert (one.rank_90, one.rank_99) == (other.rank_90, other.rank_99)


# The hub's cache ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A model as the hub's library keeps it: files are links into blobs."""
    model = tmp_path / "hub" / "models--org--name"
    snapshot = model / "snapshots" / "abc"
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True)
    tensors.write(model / "w.safetensors", BEFORE)
    (model / "w.safetensors").rename(model / "blobs" / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    (model / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return model


def test_a_folder_of_the_hubs_cache_and_a_name_in_it(cache, monkeypatch):
    reference = lrdyn.diagnose(BEFORE, AFTER)
    for path in (cache, cache / "snapshots" / "abc", "org/name"):
        same(lrdyn.diagnose(path, AFTER), reference)
    (cache / "snapshots" / "other").mkdir()
    same(lrdyn.diagnose(cache, AFTER), reference)  # refs/main says which
    (cache / "refs" / "main").unlink()
    with pytest.raises(Refused, match="2 snapshots and no refs/main"):
        lrdyn.diagnose(cache, AFTER)
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(cache.parent.parent))
    assert checkpoints.hub_cache() == cache.parent


def test_nothing_is_downloaded(cache):
    with pytest.raises(FileNotFoundError) as caught:
        lrdyn.diagnose("org/other", AFTER)
    assert "org/other, nor a model of this name" in str(caught.value.filename)
    assert "nothing is downloaded" in str(caught.value.filename)


def test_a_link_that_leads_out_of_the_cache_is_refused(cache, tmp_path):
    (tmp_path / "secret").write_bytes((cache / "blobs" / "123").read_bytes())
    link = cache / "snapshots" / "abc" / "model.safetensors"
    link.unlink()
    link.symlink_to("../../../../secret")
    with pytest.raises(Refused, match="a link that leads out of its folder"):
        lrdyn.diagnose(cache, AFTER)


# Adapters -----------------------------------------------------------------------------------------


def adapter(r, scale=2.0, **how):
    factors = {
        f"layers.{i}.q": peft.StoredFactors(
            RNG.standard_normal((m, r)).astype(np.float32),
            RNG.standard_normal((r, n)).astype(np.float32),
            scale,
        )
        for i, (m, n) in enumerate(((12, 10), (9, 14)))
    }
    return peft.described(factors, **how)


def test_an_adapter_is_after_alone_or_on_both_sides(tmp_path):
    one, other = adapter(2), adapter(3, 0.5)
    for name, stored in (("one", one), ("other", other)):
        peft.write(tmp_path / name, stored)
    tensors.write(tmp_path / "base.safetensors", BEFORE)
    merged = peft.merged(one, BEFORE)
    reference = lrdyn.diagnose(BEFORE, merged, select="layers.*")
    found = lrdyn.diagnose(tmp_path / "base.safetensors", tmp_path / "one")
    same(found, reference)
    for a, b in zip(found.matrices, reference.matrices, strict=True):
        np.testing.assert_allclose(a.relative, b.relative, rtol=1e-5)
        assert (a.rank, len(a.values)) == (2, 2)
    alone = lrdyn.diagnose(tmp_path / "one")
    same(alone, found)
    assert all(np.isnan(one.relative) for one in alone.matrices)
    between = lrdyn.diagnose(tmp_path / "one", tmp_path / "other")
    both = lrdyn.diagnose(merged, peft.merged(other, BEFORE), select="layers.*")
    for a, b in zip(between.matrices, both.matrices, strict=True):
        np.testing.assert_allclose(a.values, b.values[:5], rtol=1e-4)


def test_a_product_is_not_built(tmp_path, monkeypatch):
    peft.write(tmp_path / "one", adapter(2))
    monkeypatch.setattr(comparison.ArrayPair, "update", None)
    assert lrdyn.diagnose(tmp_path / "one").matrices[0].rank == 2


def test_dora_is_measured_beside_its_base(tmp_path):
    stored = adapter(2)
    factors = {
        module: one._replace(magnitude=np.full(len(one.B), 3.0, np.float32))
        for module, one in stored.factors.items()
    }
    dora = peft.described(factors)
    same(
        lrdyn.diagnose(BEFORE, dora),
        lrdyn.diagnose(BEFORE, peft.merged(dora, BEFORE), select="layers.*"),
    )
    with pytest.raises(ValueError, match=r"an adapter without its base for layers\.0\.q\.weight"):
        lrdyn.diagnose(dora)


def test_an_adapter_before_weights_is_refused(unchecked):
    with pytest.raises(ValueError, match="before: got an adapter beside weights"):
        lrdyn.diagnose(adapter(2), AFTER)
    with pytest.raises(ValueError, match="after: got nothing beside weights"):
        lrdyn.diagnose(BEFORE)


def test_an_adapter_is_extracted_from_an_adapter(tmp_path):
    one = adapter(4)
    found = diagnosis.extract(one, rank=2).write(tmp_path / "small")
    for module, factors in one.factors.items():
        whole = 2.0 * factors.B.astype(float) @ factors.A
        values = np.linalg.svd(whole, compute_uv=False)
        least = np.linalg.norm(values[2:]) / np.linalg.norm(values)
        np.testing.assert_allclose(found.errors[module], least, rtol=1e-4)


# Torch --------------------------------------------------------------------------------------------


def test_a_file_of_torch_without_torch_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\3\4")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Refused, match=r"pip install torch, or convert: model\.save_pretrained"):
        lrdyn.diagnose(tmp_path, AFTER)


def test_a_file_of_torch_is_read_by_its_reader_of_weights_only(tmp_path, monkeypatch):
    """A stand-in for torch: what is asked of it, and what is taken of what it gives."""
    asked = {}

    def load(path, **how):
        asked[path.name] = how
        return {"state_dict": dict(BEFORE), "optimizer": {"state": np.ones(3)}, "epoch": 3}

    stand_in = types.SimpleNamespace(load=load, is_tensor=lambda x: isinstance(x, np.ndarray))
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    (tmp_path / "a.pt").write_bytes(b"PK\3\4")
    same(lrdyn.diagnose(tmp_path / "a.pt", AFTER), lrdyn.diagnose(BEFORE, AFTER))
    assert asked == {"a.pt": {"map_location": "cpu", "weights_only": True, "mmap": True}}
    index = {"weight_map": {"layers.0.q.weight": "../a.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match=r"a \.bin file of the same folder"):
        lrdyn.diagnose(tmp_path, AFTER)


# Other files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tensors.EIGHT_BITS.items())
def test_eight_bits_are_read(kind, tmp_path):
    word, name = kind
    array = RNG.standard_normal((6, 7)).astype(getattr(ml_dtypes, name))
    entry = {"dtype": word, "shape": [6, 7], "data_offsets": [0, 42]}
    header = json.dumps({"q.weight": entry}).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + array.tobytes())
    found = lrdyn.diagnose({"q.weight": np.zeros((6, 7))}, file)
    values = np.linalg.svd(array.astype(float), compute_uv=False)
    np.testing.assert_allclose(found.matrices[0].values, values, rtol=1e-6)


def test_bfloat16_is_widened_exactly():
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(reading.widen(every), every.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.gguf", b"GGUF", "got GGUF, wanted weights that are not quantised"),
        ("a.safetensors", {"q.qweight": np.ones((2, 2), np.int32)}, "q.qweight: got quantised"),
        ("a.safetensors", {"q.weight_scale_inv": np.ones(2)}, "weight_scale_inv: got quantised"),
    ],
)
def test_quantised_weights_are_refused_by_name(name, content, said, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        tensors.write(tmp_path / name, content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(Refused, match=said):
            lrdyn.diagnose(path, AFTER)


def test_a_norm_may_have_scales(tmp_path):
    before = {"q.weight": np.eye(3), "norm.scales": np.ones(3)}
    tensors.write(tmp_path / "a.safetensors", before)
    after = before | {"q.weight": np.eye(3) + np.diag([1.0, 0, 0])}
    (matrix,) = lrdyn.diagnose(tmp_path / "a.safetensors", after).matrices
    assert matrix.name == "q.weight"


def test_a_configuration_of_quantised_weights_is_refused(tmp_path):
    tensors.write(tmp_path / "model.safetensors", BEFORE)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    with pytest.raises(Refused, match=r"config\.json: got quantised weights \(awq\)"):
        lrdyn.diagnose(tmp_path, AFTER)


def test_names_are_changed_by_expressions(unchecked):
    wrapped = {f"module._orig_mod.{name}": W for name, W in AFTER.items()}
    rename = {r"^module\.": "", r"^_orig_mod\.": ""}
    same(lrdyn.diagnose(BEFORE, wrapped, rename=rename), lrdyn.diagnose(BEFORE, AFTER))
    with pytest.raises(ValueError, match=r"rename: got x+ for "):
        lrdyn.diagnose(BEFORE, wrapped, rename={".*": "x"})
    with pytest.raises(ValueError, match=r"matrices that both sides have, among layers.0.q"):
        lrdyn.diagnose(BEFORE, wrapped)


def test_a_list_after_a_wrong_pattern_holds_matrices_only(unchecked):
    with pytest.raises(ValueError, match=r"among layers.0.q.weight, layers.1.q.weight$"):
        lrdyn.diagnose(BEFORE, AFTER, select="none")


def test_folders_without_an_answer_are_named(tmp_path):
    with pytest.raises(Refused, match=r"got a folder without weights, wanted model.safetensors"):
        lrdyn.diagnose(tmp_path, AFTER)
    for name in "ab":
        tensors.write(tmp_path / f"{name}.safetensors", BEFORE)
    with pytest.raises(Refused, match=r"2 files of weights \(a.safetensors, b.safetensors\)"):
        lrdyn.diagnose(tmp_path, AFTER)


def made_tree(folder):
    """Files as orbax leaves them, empty."""
    folder.mkdir(parents=True)
    (folder / "_METADATA").touch()
    (folder / "manifest.ocdbt").touch()


def made_step(folder, *names):
    for name in names:
        made_tree(folder / name)
    (folder / "_CHECKPOINT_METADATA").touch()


def test_folders_of_orbax_lead_to_the_tree_with_the_parameters(tmp_path):
    made_tree(tmp_path / "alone")
    made_step(tmp_path / "run" / "5", "default")
    made_step(tmp_path / "parts" / "7", "opt", "params")
    for folder, tree in (
        ("alone", "alone"),
        ("run/5", "run/5/default"),
        ("run", "run/5/default"),
        ("parts/7", "parts/7/params"),
        ("parts", "parts/7/params"),
    ):
        assert checkpoints.located(tmp_path / folder) == tmp_path / tree


def test_several_steps_and_several_trees_are_refused(tmp_path):
    made_step(tmp_path / "run" / "10", "default")
    made_step(tmp_path / "run" / "5", "default")
    made_step(tmp_path / "other" / "5", "actor", "critic")
    for folder, said in (
        ("run", r"2 steps of orbax \(10, 5\), wanted the folder of one of them"),
        (
            "other",
            r"a step with actor, critic, wanted the folder of the tree that has the parameters",
        ),
    ):
        with pytest.raises(Refused, match=said):
            checkpoints.located(tmp_path / folder)
