"""The study of updates between two checkpoints, on small pairs that are made here."""

import numpy as np
import pytest

from lrdyn.studies.real_updates import REAL_UPDATES, energies, figures
from tests.runs import results_of, verdict_of

RANKS = {"query": 2, "value": 4, "up": 10}


def made(folder, dtype=np.float32):
    """A model before and after a training whose updates have known ranks."""
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    before, after = {}, {}
    for layer in range(2):
        for kind, rank in RANKS.items():
            name = f"layers.{layer}.{kind}.weight"
            W = rng.normal(size=(20 if kind == "up" else 12, 10))
            update = rng.normal(size=(len(W), rank)) @ rng.normal(size=(rank, 10))
            before[name], after[name] = W.astype(dtype), (W + 0.05 * update).astype(dtype)
    before["norm"] = after["norm"] = np.ones(10, dtype)
    before["frozen.weight"] = after["frozen.weight"] = np.eye(3, dtype=dtype)
    after["head.weight"] = np.ones((2, 10), dtype)
    for name, weights in (("before", before), ("after", after)):
        save_file(weights, folder / f"{name}.safetensors")
    return before, after


def run(command_line, folder, *words):
    paths = ("--before", folder / "before.safetensors", "--after", folder / "after.safetensors")
    return command_line(REAL_UPDATES, *paths, "--out", folder / "out", *words)


def test_energies_are_those_of_the_files_in_both_precisions(command_line, tmp_path):
    before, after = made(tmp_path)
    status, text, errors = run(command_line, tmp_path, "--outputs", "2")
    assert status == 0, errors + text
    assert "7 matrices that both checkpoints have, 1 arrays not" in text
    claims = {claim["id"]: claim for claim in verdict_of(tmp_path / "out")["claims"]}
    for name in ("energy", "tail"):
        assert claims[name]["holds"] is True
        assert set(claims[name]["judged"]) == {"float32", "float64"}
    assert [c["holds"] for c in claims.values() if c["kind"] == "control"] == [True] * 3
    found = results_of(tmp_path / "out").isel(seed=0)
    names = [figures.name_of(row) for row in found["name"].values]
    assert set(names) == set(before) - {"norm"}
    for place, name in enumerate(names):
        update = after[name].astype(float) - before[name]
        values = np.linalg.svd(update)[1]
        np.testing.assert_allclose(found["energy_measured"][place], np.sum(update**2), rtol=1e-6)
        row = found["values"].values[place]
        np.testing.assert_allclose(row[np.isfinite(row)], values, atol=1e-6)
        shares = np.cumsum(values**2) / max(np.sum(values**2), 1e-300)
        wanted = [int(np.sum(shares < share)) + 1 if values[0] else 0 for share in (0.9, 0.99)]
        assert found["rank_with"].values[place].tolist() == wanted
        assert found["shape"].values[place].tolist() == list(update.shape)
    figure = figures.plot_energies({"/": results_of(tmp_path / "out")})
    curve = {line.get_label(): line for line in figure.axes[0].lines}["query"]
    assert curve.get_ydata()[20] == pytest.approx(1.0, abs=1e-6)  # 2 of 10
    cells = [text.get_text() for text in figure.axes[1].texts]
    mine = found["rank_with"].values[["value" in name for name in names]]
    medians = [f"{rank:g}" for rank in np.median(mine, axis=0)]
    assert cells[cells.index("value") + 1 :][:3] == ["10", *medians]


def test_some_matrices_are_chosen_by_name(command_line, tmp_path):
    made(tmp_path)
    status, _, errors = run(command_line, tmp_path, "--select", "*.query.*")
    assert status == 0, errors
    found = results_of(tmp_path / "out").isel(seed=0)
    names = [figures.name_of(row) for row in found["name"].values]
    assert names == ["layers.0.query.weight", "layers.1.query.weight"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--before: got none, wanted weights before the training"),
        (("--before", "no such.npz"), "--before: got 'no such.npz' (No such file or directory)"),
        (("--select", "nothing"), "wanted some matrices that both sides have"),
    ],
)
def test_what_is_missing_is_said_in_one_line(command_line, tmp_path, words, message):
    made(tmp_path)
    paths = ["--after", tmp_path / "after.safetensors", "--out", tmp_path / "out"]
    if "--select" in words:
        paths += ["--before", tmp_path / "before.safetensors"]
    status, _, errors = command_line(REAL_UPDATES, *paths, *words)
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_kinds_of_layers_are_names_without_numbers():
    names = {
        "bert.encoder.layer.11.attention.self.query.weight": "attention.self.query",
        "h.3.mlp.c_fc.weight": "mlp.c_fc",
        "wte.weight": "wte",
        "blocks.0": "blocks.0",
    }
    assert {name: figures.kind_of(name) for name in names} == names


def test_energies_rise_from_0_to_1():
    shares = figures.energies_at(np.array([2.0, 1.0, 1.0, np.nan]), figures.GRID)
    assert (shares[0], shares[-1]) == (0, 1)
    assert (np.diff(shares) >= 0).all()
    np.testing.assert_allclose(np.interp(1 / 3, figures.GRID, shares), 4 / 6, atol=0.01)


def test_sums_over_entries_are_sums_over_singular_values(tmp_path):
    made(tmp_path)
    case = energies.CheckpointPair(
        str(tmp_path / "before.safetensors"),
        str(tmp_path / "after.safetensors"),
        "*",
        0,
        np.dtype("float64"),
    )
    theory, run = energies.predict_energies(case), energies.measure_energies(case)
    assert (np.sort(theory.energy)[:2] > 0).tolist() == [False, True]  # one did not move
    np.testing.assert_allclose(theory.energy, run.energy, rtol=1e-12)
    np.testing.assert_allclose(theory.tail, run.tail, rtol=1e-9, atol=1e-12)
