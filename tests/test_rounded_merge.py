"""What a merge into 16 bits leaves of an update, against roundings entry by entry."""

import json

import ml_dtypes
import numpy as np
import pytest

from lrdyn.adapters import peft
from lrdyn.data import tensors
from lrdyn.diagnosis.rounded_merge import round_merge, round_update

RNG = np.random.default_rng(3)
M, N = 160, 240


def factors(size, rank=3):
    """Factors of an update with singular values from size down, in random directions."""
    left, right = (np.linalg.qr(RNG.standard_normal((d, rank)))[0] for d in (M, N))
    return left * (size * 0.5 ** np.arange(rank)), right.T


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float16", "f2")])
@pytest.mark.parametrize("start", ["float32", "narrow"])
def test_values_below_rounding_are_those_below_its_spectral_norm(dtype, kind, start):
    W = RNG.standard_normal((M, N)).astype(np.float32)
    W = W.astype(kind) if start == "narrow" else W
    wide = W.astype(np.float64)
    # Values from 8 times what rounding makes down to an eighth of it.
    eps = float(ml_dtypes.finfo(dtype).eps)
    usual = eps * (np.sqrt(M) + np.sqrt(N)) / np.sqrt(12)
    B, A = factors(8 * usual, rank=7)
    found = round_update(W, B, A, dtype)
    rounded = [(wide + x).astype(kind).astype(np.float64) for x in (0, B @ A)]
    E = rounded[1] - rounded[0] - B @ A
    assert found.error == pytest.approx(np.linalg.norm(E) / np.linalg.norm(B @ A), rel=1e-12)
    assert found.moved == np.mean(rounded[1] != rounded[0])
    values = np.linalg.svd(B @ A, compute_uv=False)[:7]
    # The errors of rounding have that norm to a half: a value within it may be on either side.
    largest = np.linalg.norm(E, 2)
    assert np.sum(values < largest / 2) <= found.below <= np.sum(values < 2 * largest)
    assert 0 < found.below < 7
    assert found.survives == pytest.approx(
        np.sum(values[: 7 - found.below] ** 2) / np.sum(values**2), rel=1e-9
    )


def test_a_float32_merge_keeps_what_bfloat16_loses():
    W = RNG.standard_normal((M, N)).astype(np.float32)
    B, A = factors(1e-2)
    narrow, wide = (round_update(W, B, A, dtype) for dtype in ("bfloat16", "float32"))
    assert (narrow.below, narrow.survives) == (3, 0.0)
    assert (wide.below, wide.survives) == (0, 1.0)
    # Most entries do not move, and yet the update is there on the average: rounding adds noise.
    assert narrow.moved < 0.1
    assert narrow.error > 1


def test_the_command_says_what_is_left(tmp_path, monkeypatch, unchecked, capsys):
    from lrdyn import __main__ as command

    monkeypatch.chdir(tmp_path)
    B, A = factors(1e-2)
    peft.write("lora", peft.described({"q": peft.StoredFactors(B, A, 1.0)}))
    (tmp_path / "base").mkdir()
    W = {"q.weight": RNG.standard_normal((M, N)).astype(np.float32)}
    tensors.write("base/model.safetensors", W)
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["r"] == 3
    made = round_merge(peft.read("lora"), "base")
    words = ["merge", "lora", "--out", "same", "--base", "base"]
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "merged in bfloat16, 0.000% of the squared norm of the update survives rounding" in out
    assert "3 of its 3 singular values lie below rounding" in out
    assert f"rounding adds noise of {made.error:.2g} of the update's norm" in out
    assert command.main([*words, "--dtype", "float32"]) == 0
    assert "all of its 3 singular values lie above rounding" in capsys.readouterr().out
    for words, said in (
        (["lora", "--out", "c", "--dtype", "float16"], "--dtype: got it without --base, wanted"),
        (["lora", "--out", "c", "--base", "none"], "got 'none'"),
        (["lora", "--out", "c", "--base", "lora"], "--base: got an adapter, wanted the weights"),
    ):
        assert command.main(["merge", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
