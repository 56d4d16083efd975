"""Ranks before a training: of gradients in one file or several, and what is refused."""

import json

import numpy as np
import pytest

from lrdyn import __main__ as command
from lrdyn import diagnosis
from lrdyn.data import tensors

RNG = np.random.default_rng(5)
SHAPES = {"layers.0.q.weight": (20, 30), "layers.1.q.weight": (20, 30)}
WEIGHTS = {name: RNG.standard_normal(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def diagnose(tmp_path, monkeypatch, unchecked, capsys):
    """Run the command in a folder of its own: status, text, errors."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        status = command.main(["diagnose", *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def low_rank(rank):
    """Gradients whose singular values are all the same."""
    found = {}
    for name, (m, n) in SHAPES.items():
        U = np.linalg.qr(RNG.standard_normal((m, rank)))[0]
        V = np.linalg.qr(RNG.standard_normal((n, rank)))[0]
        found[name] = U @ V.T
    return found


def test_ranks_are_those_of_the_arrays_themselves():
    parts = [low_rank(3), low_rank(3)]
    report = diagnosis.gradients(WEIGHTS, parts)
    for matrix in report.matrices:
        G = np.array([part[matrix.name] for part in parts])
        for found, wanted in (
            (matrix.gradient, G[0]),
            (matrix.mean, G.mean(0)),
            (matrix.adam, G.mean(0) / np.sqrt((G**2).mean(0))),
            (matrix.weights, WEIGHTS[matrix.name]),
        ):
            squares = np.linalg.svd(wanted, compute_uv=False) ** 2
            assert found == 1 + np.sum(np.cumsum(squares) < 0.9 * np.sum(squares))


def test_gradients_that_agree_are_told_from_those_that_do_not():
    G = low_rank(2)
    equal = diagnosis.gradients(WEIGHTS, [G] * 4).matrices[0]
    assert equal.agreement == pytest.approx(4)
    opposite = [G, {name: -array for name, array in G.items()}]
    assert diagnosis.gradients(WEIGHTS, opposite).matrices[0].agreement == pytest.approx(0)


def test_a_first_axis_counts_gradients_as_files_do():
    parts = [low_rank(rank) for rank in (2, 3, 4)]
    stacked = {name: np.stack([part[name] for part in parts]) for name in SHAPES}
    assert diagnosis.gradients(WEIGHTS, stacked) == diagnosis.gradients(WEIGHTS, parts)
    assert diagnosis.gradients(WEIGHTS, [stacked, parts[0]]).k == 4


def test_stacked_experts_have_a_rank_each():
    W = {"mlp.experts.up_proj": RNG.standard_normal((3, 8, 9))}
    G = {"mlp.experts.up_proj": np.zeros((3, 8, 9))}
    G["mlp.experts.up_proj"][1] = np.eye(8, 9)
    found = diagnosis.gradients(W, stacked_times(G, 2))
    assert [matrix.gradient for matrix in found.matrices] == [0, 8, 0]
    assert found.k == 2


def stacked_times(arrays, times):
    return {name: np.stack([array] * times) for name, array in arrays.items()}


def test_gradients_that_vanish_are_called_so():
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    assert "All gradients are 0" in str(diagnosis.gradients(WEIGHTS, zeros))


def test_what_is_not_finite_is_left_out_and_named():
    G = low_rank(2)
    G["layers.0.q.weight"][0, 0] = np.nan
    report = diagnosis.gradients(WEIGHTS, [low_rank(2), G])
    assert [matrix.name for matrix in report.matrices] == ["layers.1.q.weight"]
    assert "not finite" in report.notes["layers.0.q.weight"]


def test_other_names_and_shapes_are_refused():
    with pytest.raises(ValueError, match=r"gradients: got none, wanted"):
        diagnosis.gradients(WEIGHTS, [])
    with pytest.raises(ValueError, match=r"select: got .*, wanted some matrices"):
        diagnosis.gradients(WEIGHTS, {"other": np.eye(2)})
    few = {name: array[:5] for name, array in low_rank(2).items()}
    with pytest.raises(ValueError, match=r"gradients: got another shape of layers.0.q.weight"):
        diagnosis.gradients(WEIGHTS, few)
    uneven = {"layers.0.q.weight": np.ones((2, 20, 30)), "layers.1.q.weight": np.ones((3, 20, 30))}
    with pytest.raises(ValueError, match=r"gradients: got first axes of 2, 3, wanted"):
        diagnosis.gradients(WEIGHTS, uneven)


def test_the_command_prints_what_the_function_finds(tmp_path, diagnose):
    parts = [low_rank(2), low_rank(4)]
    tensors.write(tmp_path / "base.safetensors", WEIGHTS)
    for place, part in enumerate(parts):
        tensors.write(tmp_path / f"{place}.safetensors", part)
    words = ("base.safetensors", "--gradients", "0.safetensors", "1.safetensors")
    status, text, _ = diagnose(*words)
    assert status == 0
    assert text.rstrip("\n") == str(diagnosis.gradients(WEIGHTS, parts))
    status, text, _ = diagnose(*words, "--json")
    assert json.loads(text) == json.loads(diagnosis.gradients(WEIGHTS, parts).json())


@pytest.mark.parametrize("word", [("base.safetensors",), ("--bulk",), ("--out", "found")])
def test_flags_of_a_comparison_are_refused_beside_gradients(tmp_path, diagnose, word):
    tensors.write(tmp_path / "base.safetensors", WEIGHTS)
    words = ("base.safetensors", *word, "--gradients", "base.safetensors")
    status, _, errors = diagnose(*words)
    assert status == 2
    assert "got it beside --gradients, wanted one of the two" in errors
