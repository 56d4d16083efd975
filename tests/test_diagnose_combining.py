"""Smaller adapters and sums of adapters, against SVDs of the whole matrices."""

import numpy as np
import pytest

from lrdyn.adapters import peft
from lrdyn.data import tensors
from lrdyn.diagnosis.combining import combine

RNG = np.random.default_rng(7)
SHAPES = {"a.q": (12, 10), "a.v": (9, 14)}


def adapter(r, scale=2.0, shapes=SHAPES, **how):
    factors = {
        name: peft.StoredFactors(RNG.standard_normal((m, r)), RNG.standard_normal((r, n)), scale)
        for name, (m, n) in shapes.items()
    }
    return peft.described(factors, **how)


def product(stored, module):
    one = stored.factors[module]
    return one.scale * one.B @ one.A


def least(whole, rank):
    values = np.linalg.svd(whole, compute_uv=False)
    return np.linalg.norm(values[rank:]), np.linalg.norm(values)


def test_a_smaller_adapter_is_the_nearest_one():
    stored = adapter(6, rslora=True)
    made = combine([stored], rank=2)
    squares = np.zeros(2)
    for module, error in made.errors.items():
        whole = product(stored, module)
        missed, norm = least(whole, 2)
        np.testing.assert_allclose(error, missed / norm, rtol=1e-10)
        left = np.linalg.norm(whole - product(made.adapter, module))
        np.testing.assert_allclose(left, missed, rtol=1e-10)
        squares += np.array([missed**2, norm**2])
    np.testing.assert_allclose(made.error, np.sqrt(squares[0] / squares[1]), rtol=1e-10)


def test_a_sum_is_exact_where_nothing_is_cut():
    one, other = adapter(2), adapter(3, 0.5, {"a.q": (12, 10), "b.k": (5, 6)})
    made = combine([one, other], [0.7, -0.3])
    assert made.error < 1e-12
    assert set(made.adapter.factors) == {"a.q", "a.v", "b.k"}
    whole = 0.7 * product(one, "a.q") - 0.3 * product(other, "a.q")
    np.testing.assert_allclose(product(made.adapter, "a.q"), whole, atol=1e-12)
    np.testing.assert_allclose(
        product(made.adapter, "b.k"), -0.3 * product(other, "b.k"), atol=1e-12
    )
    # The factors are not added apart: that is another matrix.
    factors = [x.factors["a.q"] for x in (one, adapter(2))]
    apart = np.sum([f.B for f in factors], axis=0) @ np.sum([f.A for f in factors], axis=0)
    together = np.sum([f.B @ f.A for f in factors], axis=0)
    assert np.linalg.norm(apart - together) > 0.5 * np.linalg.norm(together)


def test_ranks_by_budget_error_and_energy():
    stored = adapter(6)
    made = combine([stored], budget=100)
    assert sum(one.B.size + one.A.size for one in made.adapter.factors.values()) <= 100
    assert combine([stored], error=0.3).error <= 0.3
    assert max(combine([stored], energy=0.9).errors.values()) <= np.sqrt(0.1)


def test_what_stands_beside_the_factors_stays(tmp_path):
    stored = adapter(3, saved={"norm.weight": np.ones(4)}, task_type="CAUSAL_LM")
    made = combine([stored], rank=1)
    peft.write(tmp_path, made.adapter)
    again = peft.read(tmp_path)
    assert again.config["modules_to_save"] == ["norm"]
    assert again.config["task_type"] == "CAUSAL_LM"
    assert set(again.saved) == {"norm.weight"}


def dora():
    factors = {m: x._replace(magnitude=np.ones(len(x.B))) for m, x in adapter(2).factors.items()}
    return peft.described(factors)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: combine([]), "adapters: got none"),
        (lambda: combine([adapter(2)], [1, 2]), "weights: got .* wanted 1 finite numbers"),
        (lambda: combine([adapter(2)], rank=1, budget=9), "budget: got it beside rank"),
        (lambda: combine([adapter(2)], budget=9), "budget: got 9, wanted 22 at least"),
        (lambda: combine([dora()]), r"adapters\[0\]: got DoRA, wanted LoRA"),
        (lambda: combine([adapter(2, init_lora_weights="pissa")]), "got PiSSA, wanted LoRA"),
        (lambda: combine([adapter(2)], [0.0]), "adapters: got a sum of 0"),
        (
            lambda: combine([adapter(2), adapter(2, saved={"n.weight": np.ones(2)})]),
            r"adapters\[1\]: got several adapters, and tensors saved whole in this one",
        ),
        (
            lambda: combine([adapter(2), adapter(2, shapes={"a.q": (3, 3)})]),
            r"shape \(3, 3\) for a",
        ),
        (lambda: combine([adapter(2), adapter(2, fan_in_fan_out=True)]), "got fan_in_fan_out True"),
    ],
)
def test_what_cannot_be_combined_is_named(call, said, unchecked):
    with pytest.raises(ValueError, match=said):
        call()


def test_the_command(tmp_path, monkeypatch, unchecked, capsys):
    from lrdyn import __main__ as command

    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        peft.write(name, adapter(4))
    tensors.write("w.safetensors", {"a.q.weight": np.ones((2, 3))})
    assert command.main(["merge", "one:0.5", "other", "--resize", "3", "--out", "both"]) == 0
    out = capsys.readouterr().out
    found = peft.read("both")
    assert {x.A.shape[0] for x in found.factors.values()} == {3}
    made = combine([peft.read("one"), peft.read("other")], [0.5, 1.0], rank=3)
    assert f"relative error of what is added to the weights: {made.error:.2e}" in out
    for words, said in (
        (["one:x", "--out", "c"], "ADAPTER: got 'one:x', wanted FOLDER or FOLDER:WEIGHT"),
        (["none", "--out", "c"], "(did you mean 'one'?), wanted a folder that PEFT wrote"),
        (["w.safetensors", "--out", "c"], "got 'w.safetensors', wanted a folder that PEFT wrote"),
        (
            ["one", "--out", "c", "--resize", "2", "--energy", ".9"],
            "--energy: got it beside --resize, wanted one of the two",
        ),
        (["one", "--out", "c", "--budget", "1"], "--budget: got 1, wanted 22 at least"),
        (["one"], "--out: got nothing"),
    ):
        assert command.main(["merge", *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
