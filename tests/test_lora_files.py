"""LoRA of image generators: what kohya, LyCORIS and diffusers write, read, diagnosed, resized.

Files are made here, in their form, and what each adds to a weight is computed here by another way:
entry by entry, by ``einsum`` or by ``kron`` of whole matrices. ``make faults`` has LyCORIS itself
make them, where it is installed.
"""

import json

import ml_dtypes
import numpy as np
import pytest

import lrdyn
from lrdyn import __main__ as command
from lrdyn.adapters import lora_files, peft
from lrdyn.data import tensors
from lrdyn.diagnosis.combining import combine

RNG = np.random.default_rng(3)
BASE = {
    "mid.attn.to_q.weight": (12, 8),
    "mid.conv.weight": (6, 4, 3, 3),
    "up_blocks.0.conv_1.weight": (6, 4, 1, 1),
}
TYPES = ("float16", "bfloat16", "float32", "float64")
ALPHA = 3.0


def normal(*shape):
    return RNG.standard_normal(shape)


def lora(shape):
    m, n, *kernel = shape
    up, down = normal(m, 2), normal(2, n, *kernel)
    ones = (1,) * len(kernel)
    parts = {"lora_up.weight": up.reshape(m, 2, *ones), "lora_down.weight": down}
    return parts, lambda up, down: np.einsum("ir,rj...->ij...", up.reshape(m, 2), down), 2


def tucker(shape):
    m, n, *kernel = shape
    ones = (1,) * len(kernel)
    parts = {
        "lora_up.weight": normal(m, 3).reshape(m, 3, *ones),
        "lora_down.weight": normal(3, n).reshape(3, n, *ones),
        "lora_mid.weight": normal(3, 3, *kernel),
    }

    def delta(up, down, mid):
        return np.einsum("oa,ab...,bi->oi...", up.reshape(m, 3), mid, down.reshape(3, n))

    return parts, delta, 3


def loha(shape):
    m, n, *kernel = shape
    width = n * int(np.prod(kernel))
    parts = {
        "hada_w1_a": normal(m, 2),
        "hada_w1_b": normal(2, width),
        "hada_w2_a": normal(m, 2),
        "hada_w2_b": normal(2, width),
    }
    return parts, lambda a, b, c, d: ((a @ b) * (c @ d)).reshape(shape), 2


def loha_tucker(shape):
    m, n, *kernel = shape
    parts = {}
    for part in "12":
        parts[f"hada_t{part}"] = normal(2, 2, *kernel)
        parts[f"hada_w{part}_a"] = normal(2, m)
        parts[f"hada_w{part}_b"] = normal(2, n)

    def delta(t, a, b, other_t, other_a, other_b):
        one, other = (
            np.einsum("ij...,jc,io->oc...", *x) for x in ((t, b, a), (other_t, other_b, other_a))
        )
        return one * other

    return parts, delta, 2


def lokr(shape):
    m, n, *kernel = shape
    width = (n // 2) * int(np.prod(kernel))
    parts = {
        "lokr_w1": normal(2, 2),
        "lokr_w2_a": normal(m // 2, 2),
        "lokr_w2_b": normal(2, width),
    }
    return parts, lambda W1, a, b: _kron(W1, (a @ b).reshape(m // 2, n // 2, *kernel)), 2


def lokr_whole(shape):
    m, n, *kernel = shape
    parts = {"lokr_w1": normal(2, 2), "lokr_w2": normal(m // 2, n // 2, *kernel)}
    return parts, _kron, None


def _kron(W1, W2):
    """Each entry of W1 times W2, block by block."""
    rows = [np.concatenate([entry * W2 for entry in row], axis=1) for row in W1]
    return np.concatenate(rows)


FORMS = {f.__name__: f for f in (lora, tucker, loha, loha_tucker, lokr, lokr_whole)}


def made(form, dtype, folder):
    """A file of kohya of that form, the base, and the weights with what it adds."""
    base, after, content = {}, {}, {}
    for name, shape in BASE.items():
        if "tucker" in form and len(shape) == 2:
            continue
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        parts, delta, rank = FORMS[form](shape)
        stored = {key: x.astype(dtype) for key, x in parts.items()}
        wide = [x.astype(np.float64) for x in stored.values()]
        content |= {f"{module}.{key}": x for key, x in stored.items()}
        content[f"{module}.alpha"] = np.asarray(ALPHA, dtype)
        base[name] = normal(*shape).astype(np.float32)
        scale = 1.0 if rank is None else ALPHA / rank
        after[name] = base[name] + scale * delta(*wide)
    path = folder / "lora.safetensors"
    tensors.write(path, content, metadata={"ss_network_dim": "2", "sshs_model_hash": "x"})
    return path, base, after


@pytest.mark.parametrize("dtype", [np.dtype(getattr(ml_dtypes, t, t)) for t in TYPES], ids=TYPES)
@pytest.mark.parametrize("form", FORMS)
def test_the_diagnosis_of_a_file_is_that_of_the_merged_weights(form, dtype, tmp_path):
    path, base, after = made(form, dtype, tmp_path)
    found = {x.name: x for x in lrdyn.diagnose(base, path).matrices}
    wanted = {x.name: x for x in lrdyn.diagnose(base, after).matrices}
    assert found.keys() == wanted.keys() == base.keys()
    for name, matrix in found.items():
        other = wanted[name]
        count = min(len(matrix.values), len(other.values))
        within = 2e-5 * other.values[0]
        np.testing.assert_allclose(matrix.values[:count], other.values[:count], atol=within)
        np.testing.assert_allclose(matrix.relative, other.relative, rtol=2e-5)
        assert (matrix.rank_90, matrix.rank_99) == (other.rank_90, other.rank_99)
        # A wrong scale or a transposed factor of these random ones would be seen.
        assert matrix.norm > 0.1
    stored = lora_files.named_as_base(
        lora_files.read(path).stored, [name.removesuffix(".weight") for name in base]
    )[0]
    for name, W in peft.merged(stored, base).items():
        np.testing.assert_allclose(W, after[name], atol=2e-5 * np.abs(after[name]).max())


@pytest.mark.parametrize("form", FORMS)
def test_a_resized_file_is_the_nearest_one(form, tmp_path, monkeypatch, unchecked, capsys):
    path, base, after = made(form, np.dtype("float32"), tmp_path)
    small = tmp_path / "small.safetensors"
    assert command.main(["merge", str(path), "--resize", "1", "--out", str(small)]) == 0
    assert "relative error" in capsys.readouterr().out
    again = lora_files.read(small)
    missed = total = 0.0
    for name in base:
        module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        whole = (after[name] - base[name]).reshape(len(base[name]), -1)
        B, A, scale, _ = again.stored.factors[module]
        values = np.linalg.svd(whole, compute_uv=False)
        left = np.linalg.norm(whole - scale * B @ A)
        np.testing.assert_allclose(left, np.linalg.norm(values[1:]), atol=1e-5 * values[0])
        missed, total = missed + left**2, total + np.sum(values**2)
        shape = tensors.opened(small).infos[f"{module}.lora_down.weight"].shape
        if module in lora_files.read(path).kernels:
            assert shape == (1, *base[name].shape[1:])
    assert missed > 1e-4 * total
    header = tensors.opened(small).metadata
    assert header["ss_network_dim"] == "1"
    assert "sshs_model_hash" not in header


def test_what_is_not_cut_comes_back(tmp_path):
    path, *_ = made("lora", np.dtype("float32"), tmp_path)
    file = lora_files.read(path)
    lora_files.write(tmp_path / "again.safetensors", file)
    one, other = tensors.opened(path), tensors.opened(tmp_path / "again.safetensors")
    assert set(one.keys()) == set(other.keys())
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def diffusers_file(path, metadata=None, *, old=False, prefix="unet."):
    ends = (".lora.down.weight", ".lora.up.weight") if old else (".lora_A.weight", ".lora_B.weight")
    A, B = (normal(*shape).astype(np.float32) for shape in ((2, 8), (12, 2)))
    module = f"{prefix}mid.attn.to_q"
    words = {} if metadata is None else {lora_files.METADATA: json.dumps(metadata)}
    tensors.write(path, {module + ends[0]: A, module + ends[1]: B}, metadata=words)
    return B @ A


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        (None, 1.0),
        ({"unet.r": 2, "unet.lora_alpha": 6}, 3.0),
        ({"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"mid.attn.to_q": 1}}, 0.5),
        ({"unet.r": 2, "unet.lora_alpha": 4, "unet.use_rslora": True}, 4 / 2**0.5),
        ({"text_encoder.r": 2, "text_encoder.lora_alpha": 6}, 1.0),
    ],
)
def test_diffusers_has_its_alpha_in_the_header(old, metadata, scale, tmp_path):
    path = tmp_path / "lora.safetensors"
    delta = scale * diffusers_file(path, metadata, old=old)
    base = {"mid.attn.to_q.weight": np.float32(normal(12, 8))}
    found = lrdyn.diagnose(base, path).matrices[0]
    values = np.linalg.svd(delta, compute_uv=False)
    np.testing.assert_allclose(found.values[:2], values[:2], rtol=1e-5)
    # Written, alpha is r, and s has gone into B: the words that said otherwise are not there.
    lora_files.write(tmp_path / "again.safetensors", lora_files.read(path))
    again = tensors.opened(tmp_path / "again.safetensors")
    assert lora_files.METADATA not in again.metadata
    module = "unet.mid.attn.to_q"
    product = again[f"{module}.lora_B.weight"] @ again[f"{module}.lora_A.weight"]
    np.testing.assert_allclose(product, delta, atol=1e-5)


def test_a_part_that_the_base_lacks_is_named_and_a_module_that_it_lacks_refused(tmp_path):
    path, base, _ = made("lora", np.dtype("float32"), tmp_path)
    content = dict(tensors.opened(path))
    te = {f"lora_te_q.lora_{x}.weight": np.ones((2, 2), np.float32) for x in ("up", "down")}
    tensors.write(path, content | te)
    report = lrdyn.diagnose(base, path)
    assert {x.name for x in report.matrices} == set(base)
    assert "a part that the base does not have" in report.notes["lora_te_*"]
    del base["mid.attn.to_q.weight"]
    with pytest.raises(ValueError, match=r"lora_unet_mid_attn_to_q\.weight: got no such weight"):
        lrdyn.diagnose(base, path)
    with pytest.raises(ValueError, match=r"no module of the base"):
        lrdyn.diagnose({"x.weight": np.eye(2)}, path)


def test_two_modules_of_one_flat_name_are_refused(tmp_path):
    path, base, _ = made("lora", np.dtype("float32"), tmp_path)
    base["mid_attn.to_q.weight"] = base["mid.attn.to_q.weight"]
    with pytest.raises(ValueError, match=r"for mid\.attn\.to_q and mid_attn\.to_q"):
        lrdyn.diagnose(base, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q.dora_scale": np.ones(4)}, "dora_scale: got a tensor of another kind"),
        ({"q.lora_up.weight": np.ones((4, 3))}, r"got shape \(4, 3\), wanted"),
        ({"q.lora_up.weight": None}, r"q \(B\)"),
        ({"q.alpha": np.array(np.inf)}, "q.alpha: got .*wanted one finite number"),
        ({"q.lora_mid.weight": np.ones((3, 2, 3, 3))}, "q.lora_mid.weight: got shape"),
        ({"q.lora_B.weight": np.ones((4, 2))}, "wanted one of the two"),
        ({"q.lora_down.weight": np.ones((2, 5), np.int32)}, "got type int32"),
    ],
)
def test_what_does_not_fit_is_refused(change, said, tmp_path):
    content = {"q.lora_down.weight": np.ones((2, 5)), "q.lora_up.weight": np.ones((4, 2))}
    content = {name: x for name, x in (content | change).items() if x is not None}
    tensors.write(tmp_path / "a.safetensors", content)
    with pytest.raises(ValueError, match=said):
        lora_files.read(tmp_path / "a.safetensors")


def test_the_command_refuses_what_it_cannot_add(tmp_path, monkeypatch, unchecked, capsys):
    monkeypatch.chdir(tmp_path)
    made("lora", np.dtype("float32"), tmp_path)
    diffusers_file("d.safetensors")
    one = peft.StoredFactors(np.ones((3, 1)), np.ones((1, 2)), 1.0)
    peft.write("folder", peft.described({"q": one}))
    for words, said in (
        (["lora.safetensors", "--out", "folder2"], "--out: got 'folder2', wanted a .safetensors"),
        (["lora.safetensors", "folder", "--out", "a.safetensors"], "beside a folder of PEFT"),
        (["lora.safetensors", "d.safetensors", "--out", "a.safetensors"], "wanted of one"),
    ):
        assert command.main(["merge", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_a_sum_of_two_files_is_that_of_their_products(tmp_path):
    files = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        files.append(made("lora", np.dtype("float64"), tmp_path / str(i))[0])
    found = combine(files, [0.5, -1.0]).adapter.factors
    for module, own in found.items():
        first, second = (lora_files.read(path).stored.factors[module] for path in files)
        wanted = 0.5 * first.scale * first.B @ first.A - second.scale * second.B @ second.A
        np.testing.assert_allclose(own.scale * own.B @ own.A, wanted, atol=1e-10)
