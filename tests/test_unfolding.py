"""Kernels of a convolution and stacked experts, diagnosed as the matrices that they are."""

import numpy as np
import pytest

import lrdyn
from lrdyn.diagnosis.unfolding import Unfolded

RNG = np.random.default_rng(5)
H, INNER, EXPERTS = 8, 6, 3


def low_rank(rank, *shape):
    m, n = shape
    return RNG.standard_normal((m, rank)) @ RNG.standard_normal((rank, n))


def stacks(turned, front="layers.0.mlp.experts"):
    shapes = {"gate_up_proj": (2 * INNER, H), "down_proj": (H, INNER)}
    return {
        f"{front}.{leaf}": RNG.standard_normal((EXPERTS, *(s[::-1] if turned else s)))
        for leaf, s in shapes.items()
    }


def test_a_square_stack_is_stored_as_the_one_beside_it():
    after = {"experts.gate_up_proj": np.ones((2, 5, 10)), "experts.down_proj": np.ones((2, 5, 5))}
    before = {name: np.zeros_like(W) for name, W in after.items()}
    notes = lrdyn.diagnose(before, after).notes
    assert all("in x out" in notes[name] for name in after)


@pytest.mark.parametrize("turned", [False, True])
def test_each_expert_has_a_rank_of_its_own(turned):
    before = stacks(turned)
    after, planted = {}, {}
    for name, W in before.items():
        ranks = RNG.permutation([0, 1, 4])
        after[name] = W + np.stack([low_rank(r, *W.shape[1:]) for r in ranks])
        planted |= {f"{name}[{e}]": r for e, r in enumerate(ranks)}
    report = lrdyn.diagnose(before, after)
    assert {matrix.name: matrix.rank for matrix in report.matrices} == planted
    for matrix in report.matrices:
        name, e = matrix.name.split("[")
        update = after[name][int(e[:-1])] - before[name][int(e[:-1])]
        wanted = np.linalg.svd(update, compute_uv=False)
        np.testing.assert_allclose(matrix.values, wanted, atol=1e-10)
    # Which way round they are stored is known from the two shapes, and said.
    notes = {report.notes[f"layers.*.mlp.experts.{leaf}"] for leaf in ("gate_up_proj", "down_proj")}
    assert len(notes) == 1
    assert ("in x out" in notes.pop()) == turned


def test_a_square_stack_alone_does_not_tell_which_way_round():
    W = RNG.standard_normal((2, 5, 5))
    report = lrdyn.diagnose({"experts.up_proj": W}, {"experts.up_proj": W + 1})
    assert "not known" in report.notes["experts.up_proj"]
    assert [matrix.rank for matrix in report.matrices] == [1, 1]


def test_the_hidden_size_of_config_json_tells_it_of_separate_arrays(tmp_path):
    from lrdyn.data import tensors

    W = np.float32(RNG.standard_normal((2, H, INNER)))
    for folder, change in (("before", 0), ("after", 1)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "model.safetensors"
        tensors.write(file, {"experts.up_proj": W + np.float32(change)})
    said = []
    for size in (H, INNER):
        (tmp_path / "before" / "config.json").write_text(f'{{"hidden_size": {size}}}')
        report = lrdyn.diagnose(tmp_path / "before", tmp_path / "after")
        said.append(report.notes["experts.up_proj"])
    assert "in x out" in said[0]
    assert "out x in" in said[1]


def test_a_kernel_is_the_matrix_that_acts_on_patches():
    W = RNG.standard_normal((6, 4, 3, 3))
    step = low_rank(2, 6, 36).reshape(W.shape)
    report = lrdyn.diagnose({"conv.weight": W}, {"conv.weight": W + step})
    assert [(x.rows, x.columns, x.rank) for x in report.matrices] == [(6, 36, 2)]


def test_a_stack_is_read_once_for_all_of_its_experts():
    reads = []

    class Counting:
        def __init__(self, arrays):
            from lrdyn.diagnosis.reading import Leaves

            self._leaves = Leaves("W", arrays)
            self.infos = self._leaves.infos

        def __getitem__(self, name):
            reads.append(name)
            return self._leaves[name]

    view = Unfolded(Counting({"experts.up": np.arange(24.0).reshape(2, 3, 4)}))
    np.testing.assert_array_equal(view["experts.up[1]"], np.arange(12.0, 24).reshape(3, 4))
    np.testing.assert_array_equal(view["experts.up[0]"], np.arange(12.0).reshape(3, 4))
    assert reads == ["experts.up"]
