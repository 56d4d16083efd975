"""Two sets of weights side by side, against NumPy; the adapter of their difference; the command."""

import csv
import io
import json
import re
import time
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from matplotlib.cbook import is_math_text

import lrdyn
from lrdyn import diagnosis
from lrdyn.adapters import peft
from lrdyn.commands import diagnose as diagnose_command
from lrdyn.data import Refused, tensors
from lrdyn.diagnosis import (
    combining,
    comparison,
    cores,
    decomposition,
    reading,
    spectrum,
    updates,
)
from lrdyn.figures import plotting
from lrdyn.verification.machine import process
from tests.runs import ROOT

RNG = np.random.default_rng(1)
K = 4


def scale(dtype):
    """Of an update that is the difference of two matrices of its size, rounded."""
    return 16 * lrdyn.tolerance("identity", dtype, size=60)


def of_rank(m: int, n: int, values):
    left, right = (np.linalg.qr(RNG.standard_normal((d, len(values))))[0] for d in (m, n))
    return left * np.asarray(values) @ right.T


def singular(W):
    return np.linalg.svd(W.astype(float), compute_uv=False)


START = {
    "a.weight": RNG.standard_normal((24, 40)),
    "b.weight": RNG.standard_normal((60, 20)),
    "noise.weight": RNG.standard_normal((20, 30)),
    "same.weight": RNG.standard_normal((8, 9)),
    "a.bias": RNG.standard_normal(24),
    "norm.weight": np.ones(20),
    "norm.bias": np.ones(20),
}
VALUES = {"a.weight": [3.0, 2.0, 1.0, 0.5, 0.25, 0.125], "b.weight": [3.0, 1.0]}
END = {name: W.copy() for name, W in START.items()}
for _name, _values in VALUES.items():
    END[_name] += of_rank(len(START[_name]), START[_name].shape[1], _values)
END["noise.weight"] += 0.1 * RNG.standard_normal((20, 30))
END["a.bias"] += 0.5
END["norm.weight"] *= 1.1


def cast(weights, dtype):
    return {name: W.astype(dtype) for name, W in weights.items()}


def by_name(found):
    return {one.name: one for one in found.matrices}


@pytest.fixture(scope="module", params=["float64", "float32"])
def found(request):
    sides = (cast(weights, request.param) for weights in (START, END))
    return request.param, lrdyn.diagnose(*sides, k=K, bulk=True)


def test_every_number_against_numpy(found):
    dtype, report = found
    within = scale(dtype)
    assert [one.name for one in report.matrices] == [n for n in START if START[n].ndim == 2]
    for name, one in by_name(report).items():
        values = singular(END[name] - START[name])
        before, after = singular(START[name])[K:], singular(END[name])[K:]
        assert (one.rows, one.columns) == START[name].shape
        np.testing.assert_allclose(one.mean_before, before.mean(), rtol=within)
        np.testing.assert_allclose(one.spread_before, before.std() / before.mean(), rtol=within)
        np.testing.assert_allclose(one.spread_after, after.std() / after.mean(), rtol=within)
        np.testing.assert_allclose(one.mean_after, after.mean(), rtol=within)
        if name == "same.weight":
            assert (one.rank, one.rank_90, one.rank_99, one.norm, one.relative) == (0, 0, 0, 0, 0)
            assert np.isnan([one.effective_rank, one.stable_rank, one.energy]).all()
            continue
        squares = values**2 / np.sum(values**2)
        shares = values / values.sum()
        entropy = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
        assert one.rank == len(VALUES.get(name, values))
        assert one.rank_90 == int(np.sum(np.cumsum(squares) < 0.9)) + 1
        assert one.rank_99 == int(np.sum(np.cumsum(squares) < 0.99)) + 1
        np.testing.assert_allclose(one.energy, squares[:K].sum(), rtol=within)
        np.testing.assert_allclose(one.outside, squares[K:].sum(), atol=within)
        np.testing.assert_allclose(one.stable_rank, 1 / squares[0], rtol=within)
        np.testing.assert_allclose(one.effective_rank, np.exp(entropy), rtol=60 * within)
        np.testing.assert_allclose(one.norm, np.linalg.norm(values), rtol=within)
        relative = np.linalg.norm(values) / np.linalg.norm(START[name])
        np.testing.assert_allclose(one.relative, relative, rtol=within)
        np.testing.assert_allclose(one.values, values, atol=within * values[0])


def test_known_ranks_and_a_gaussian_update_as_the_control(found):
    _, report = found
    one = by_name(report)
    # 9 of 14.328, 13 of it, 14.25: 99 % needs the fourth. And 9 of 10: 90 % exactly.
    assert (one["a.weight"].rank_90, one["a.weight"].rank_99) == (2, 4)
    assert (one["b.weight"].rank_90, one["b.weight"].rank_99) == (1, 2)
    noise = one["noise.weight"]
    assert noise.rank == 20
    assert noise.effective_rank > 16
    assert noise.rank_99 > 16
    assert noise.outside > 0.4


def test_costs_are_those_of_the_formulas(found):
    _, report = found
    one = by_name(report)["a.weight"]
    assert (one.full, one.lora(4)) == (960, 4 * 64)
    lines = report.lines()
    trained = sum(x.rank_90 * (x.rows + x.columns) for x in report.matrices)
    whole = sum(x.rows * x.columns for x in report.matrices)
    assert f"90 %: LoRA trains {trained:,} of {whole:,} parameters" in lines[0]
    # Adam holds two numbers for each that is trained, and a counter for each matrix.
    moved = sum(x.rank_90 > 0 for x in report.matrices)
    held = 4 * (whole + 3 * trained + moved)
    assert (
        f"state {held / 2**10:.1f} KiB, in full {4 * (3 * whole + 4) / 2**10:.1f} KiB" in lines[0]
    )


def test_table_csv_and_what_else_changed(found):
    _, report = found
    text = str(report)
    assert "bulk: values of W" in text
    assert "bulk" not in str(lrdyn.diagnose(START, END, k=K))
    assert "changed besides the matrices (by this share of the norm): " in text
    assert "norm.weight (1.0e-01)" in text
    assert set(report.changed) == {"a.bias", "norm.weight"}
    np.testing.assert_allclose(report.changed["norm.weight"], 0.1, rtol=1e-5)
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert [row["matrix"] for row in rows] == list(by_name(report))
    for row, one in zip(rows, report.matrices, strict=True):
        assert int(row["rank_99"]) == one.rank_99
        assert float(row["spread_after"]) == one.spread_after
        assert int(row["lora_parameters_90"]) == one.rank_90 * (one.rows + one.columns)
    assert report._repr_html_().count("<tr>") == 1 + len(rows)


def test_the_figure_shows_these_numbers(found):
    _, report = found
    moved = [one for one in report.matrices if one.rank]
    values, left, ranks, bulk = report.plot().axes
    edges = [line for line in values.lines if line.get_linestyle() == plotting.DASHED]
    assert len(edges) == sum(one.noise is not None for one in moved)
    drawn_values = [line for line in values.lines if line not in edges]
    for one, line in zip(moved, drawn_values, strict=True):
        drawn = np.asarray(line.get_ydata())
        np.testing.assert_allclose(drawn, one.values[: one.rank] / one.values[0])
    for one, line in zip(moved, left.lines, strict=False):
        assert np.asarray(line.get_ydata())[one.rank_90 - 1] <= 0.1 * (1 + 1e-12)
    points = [line.get_xydata()[0] for line in bulk.lines[: len(moved)]]
    expected = [(one.spread_before, one.spread_after) for one in moved]
    np.testing.assert_allclose(points, expected)
    for kind, line in zip(("a", "b", "noise"), ranks.lines[::2], strict=True):
        assert list(line.get_xdata()) == [by_name(report)[f"{kind}.weight"].rank_90] * 2
    costs = lrdyn.diagnose(START, END, k=K).plot().axes[3]
    drawn = [np.asarray(line.get_xdata())[0] for line in costs.lines[:6:2]]
    np.testing.assert_allclose(drawn, [one.lora(one.rank_90) / one.full for one in moved])


def test_many_matrices_are_drawn_in_the_colours_of_their_kinds():
    """Each has the colour that the key gives its kind; kinds beyond the colours share grey."""
    kinds = [f"kind_{letter}" for letter in "abcdefghi"]
    start = {f"{i}.{kind}.weight": np.eye(3) for i in range(2) for kind in kinds}
    report = lrdyn.diagnose(start, {name: W + 1 for name, W in start.items()}, k=1)
    axes = report.plot().axes
    legend = axes[1].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [*(f"{kind} (2)" for kind in kinds[:7]), "other kinds"]
    colors = [line.get_color() for line in legend.get_lines()]
    assert len({*colors}) == 8
    of_kinds = dict(zip(kinds, [*colors[:7], colors[7], colors[7]], strict=True))
    curves = [line for line in axes[0].lines if line.get_linestyle() == "-"]
    wanted = [of_kinds[update.name.split(".")[1]] for update in report.matrices]
    assert [line.get_color() for line in curves] == wanted


def test_names_are_shown_as_one_line():
    """A file comes from somebody else: its names may hold what a terminal or a figure obeys."""
    names = ("a\x1b[2J\nb.weight", "_$c.weight", "x^2$y.weight")
    start = {name: np.eye(3) for name in names} | {"\n.bias": np.zeros(2)}
    end = {name: W + 1 for name, W in start.items()} | {"\r": np.ones(2)}
    report = lrdyn.diagnose(start, end, k=1)
    assert not set("\x1b\r") & set(str(report))
    assert "x1b[2J" in str(report)
    report.plot().canvas.draw()
    with pytest.raises(ValueError, match=r"among .*, a\\x1b\[2J\\nb\.weight, "):
        lrdyn.diagnose(start, end, select="none")
    lines = diagnosis.extract(start, end).lines()
    assert all(line.isprintable() for line in lines)


def test_a_name_stays_itself_in_table_csv_and_figure():
    """Mathematics are a figure's matter, and a spreadsheet computes nothing."""
    mathematics = r"x^$\frac$.weight"
    names = (mathematics, "=1+1.weight", "-2.weight", "@a.weight", "\tb.weight", "'q'.weight")
    start = {name: np.eye(3) for name in names}
    report = lrdyn.diagnose(start, {name: 2 * W for name, W in start.items()}, k=1)
    assert f"\n{mathematics.removesuffix('.weight')} " in str(report)
    rows = list(csv.reader(io.StringIO(report.csv())))
    quoted = [mathematics, *(f"'{name}" for name in names[1:4]), r"\tb.weight", "'q'.weight"]
    assert {row[0] for row in rows[1:]} == set(quoted)
    assert {row[3] for row in rows[1:]} == {repr(report.matrices[0].norm)}
    legend = report._replace(matrices=report.matrices[-2:]).plot().axes[1].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert mathematics.replace("$", r"\$") in labels
    assert not any(map(is_math_text, labels))


# Where weights come from ------------------------------------------------------------------------


def sharded(folder, weights):
    """As transformers writes a checkpoint of two files."""
    folder.mkdir()
    names = list(weights)
    places = {}
    for number, part in enumerate((names[:2], names[2:]), 1):
        file = f"model-{number}-of-2.safetensors"
        tensors.write(folder / file, {name: weights[name] for name in part})
        places |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


def saved(folder, kind, weights):
    if kind == "sharded":
        return sharded(folder / "shards", weights)
    file = folder / f"w.{kind}"
    if kind == "npz":
        np.savez(file, **weights)
    else:
        tensors.write(file, weights)
    return file


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "npz", "open", "tree"])
def test_every_source_gives_the_same(kind, tmp_path):
    start, end = cast(START, "float32"), cast(END, "float32")
    reference = lrdyn.diagnose(start, end, k=K)
    if kind == "tree":
        before = {"a": {"weight": start["a.weight"], "bias": start["a.bias"]}}
        before |= {n.partition(".")[0]: {"weight": W} for n, W in start.items() if n[0] in "bs"}
        before |= {"noise": {"weight": start["noise.weight"]}, "f": np.tanh, "n": 3}
        before["norm"] = {n: start[f"norm.{n}"] for n in ("weight", "bias")}
    else:
        before = saved(tmp_path, "safetensors" if kind == "open" else kind, start)
        before = tensors.opened(before) if kind == "open" else before
    found = by_name(lrdyn.diagnose(before, end, k=K))
    assert set(found) == set(by_name(reference))
    for name, one in by_name(reference).items():
        assert found[name][1:-2] == pytest.approx(one[1:-2], nan_ok=True)


def test_files_are_read_one_matrix_at_a_time(tmp_path):
    start = {f"{i}.weight": RNG.standard_normal((64, 512)).astype(np.float32) for i in range(96)}
    before = saved(tmp_path, "safetensors", start)
    one, every = 64 * 512 * 4, 96 * 64 * 512 * 4
    lrdyn.diagnose({"w.weight": np.eye(64)}, {"w.weight": np.zeros((64, 64))})  # imports
    tracemalloc.start()
    try:
        found = lrdyn.diagnose(before, before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        held = dict(tensors.opened(before))
        control = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.matrices) == len(held) == 96
    # On each core: before, after, their difference, and one of them in float64 with its square.
    assert peak < 8 * one * process.cores()
    assert control > every


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_read_in_float32(half, tmp_path):
    """And its rounding, of full rank, is no update."""
    kind = ml_dtypes.bfloat16 if half == "bfloat16" else np.float16
    start = {"w.weight": 0.1 * RNG.standard_normal((60, 40))}
    end = {"w.weight": start["w.weight"] + of_rank(60, 40, [2.0, 1.8, 1.6])}
    files = []
    for name, weights in (("before", start), ("after", end)):
        files.append(tmp_path / f"{name}.safetensors")
        tensors.write(files[-1], cast(weights, kind))
    (one,) = lrdyn.diagnose(*files).matrices
    assert one.rank == one.rank_99 == 3
    # Stored so, and said to be exact.
    wide = [{"w.weight": W["w.weight"].astype(kind).astype(np.float32)} for W in (start, end)]
    (exact,) = lrdyn.diagnose(*wide).matrices
    assert exact.rank == 40
    np.testing.assert_allclose(one.values, exact.values, rtol=1e-6)
    assert exact.values[3] < one.rounding < exact.values[2]


def test_what_cannot_be_compared_is_named_and_the_rest_is_done(tmp_path):
    odd = {
        "nan.weight": np.full((3, 4), np.nan),
        "inf.weight": np.eye(3),
        "old.weight": np.eye(2),
        "turned.weight": np.ones((3, 4)),
        "ids": np.arange(3),
        "gone": np.ones(2),
        "table.weight": np.ones((5, 4)),
        "head.weight": np.ones((7, 4)),
        "kernel": np.ones((2, 2, 2)),
    }
    new = {
        "nan.weight": np.ones((3, 4)),
        "inf.weight": np.full((3, 3), np.inf),
        "turned.weight": np.ones((4, 3)),
        "ids": np.arange(3),
        "new.weight": np.eye(2),
        "table.weight": np.ones((8, 4)),
        "head.weight": np.ones((6, 4)),
        "kernel": np.zeros((2, 2, 2)),
    }
    report = lrdyn.diagnose(START | odd, END | new, k=K)
    assert report.notes == {
        "turned.weight": "shape (3, 4) before and (4, 3) after",
        "ids": "type int64 before and int64 after",
        "gone": "only before",
        "old.weight": "only before",
        "new.weight": "only after, of shape (2, 2)",
        "table.weight": "shape (5, 4) before and (8, 4) after: compared on the first 5 rows",
        "head.weight": "shape (7, 4) before and (6, 4) after: compared on the first 6 rows",
        "nan.weight": "12 entries before are not finite",
        "inf.weight": "9 entries after are not finite",
    }
    assert set(by_name(report)) == {n for n in START if START[n].ndim == 2} | {
        "kernel",
        "table.weight",
        "head.weight",
    }
    assert by_name(report)["table.weight"].rows == 5
    assert by_name(report)["kernel"].relative == pytest.approx(1)
    assert all(f"{name}: {note}" in str(report) for name, note in report.notes.items())


@pytest.mark.parametrize("lost", [np.nan, np.inf])
@pytest.mark.parametrize("when", [0, 1])
def test_what_could_not_be_compared_is_not_called_identical(lost, when):
    """A training that diverged has moved its weights, whatever is left of them."""
    W = np.eye(3)
    same, broken = {"kept.weight": W}, {"lost.weight": np.where(W, lost, 0.0)}
    whole = {"lost.weight": W}
    for others in (same, {}):
        sides = [others | broken, others | whole]
        report = lrdyn.diagnose(*(sides if when == 0 else sides[::-1]), k=1)
        assert [one.name for one in report.matrices] == list(others)
        assert "sets of weights are identical" not in " ".join(report.answer())
        assert "lost.weight" in report.notes
    for sides in ((same, same | whole), (same | whole, same)):  # a matrix of one side alone
        report = lrdyn.diagnose(*sides, k=1)
        assert "sets of weights are identical" not in " ".join(report.answer())
    assert "sets of weights are identical" in " ".join(lrdyn.diagnose(same, same, k=1).answer())


def test_a_nan_in_a_file_is_named(tmp_path):
    file = tmp_path / "a.safetensors"
    tensors.write(file, {"a.weight": np.eye(2), "bad.weight": np.eye(3)})
    content = file.read_bytes()
    file.write_bytes(content[:-8] + np.array(np.nan).tobytes())
    weights = {"a.weight": np.eye(2), "bad.weight": np.eye(3)}
    for sides in ((file, weights), (weights, file)):
        report = lrdyn.diagnose(*sides, k=1)
        assert [one.name for one in report.matrices] == ["a.weight"]
        assert report.notes["bad.weight"].endswith(": got 1 NaN, wanted numbers")


def test_selected_matrices():
    report = lrdyn.diagnose(START, END, select=["a.*", "b.*"])
    assert [one.name for one in report.matrices] == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lrdyn.diagnose(START, END, select="z"), "select: got 'z', wanted some matrices"),
        (lambda: lrdyn.diagnose(START, {}), "select: got .*both sides have, among a.weight"),
        (lambda: lrdyn.diagnose(START, END, k=0), "k: got 0, wanted"),
        (lambda: lrdyn.diagnose({"W": object()}, END), "among none, since there are no matrices"),
        (lambda: diagnosis.extract(START, END, rank=0), "rank: got 0, wanted"),
        (lambda: diagnosis.extract(START, END, rank=1, energy=0.5), "energy: got 0.5 beside"),
        (lambda: diagnosis.extract(START, END, energy=1.5), "energy: got 1.5, wanted above 0"),
        (lambda: diagnosis.extract(START, END, save="z"), "save: got 'z', wanted a pattern"),
        (lambda: diagnosis.extract(START, END, select="z"), "select: got 'z', wanted some"),
        (lambda: diagnosis.extract(START, START), "after: got no <module>.weight that moved"),
        (lambda: diagnosis.extract(START, END, save="*"), "after: got no <module>.weight that"),
    ],
)
def test_wrong_calls_are_named(call, said, unchecked):
    with pytest.raises(ValueError, match=said):
        call()


def test_pickles_are_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02")
    with pytest.raises(Refused, match="to read another pickle runs the code in it"):
        lrdyn.diagnose(tmp_path / "a.pkl", START)
    np.savez(tmp_path / "a.npz", W=np.array([None]))
    with pytest.raises(Refused, match=r"W\.npy of type object"):
        lrdyn.diagnose(tmp_path / "a.npz", START)
    with pytest.raises(FileNotFoundError):
        lrdyn.diagnose(tmp_path / "none.npz", START)


# The adapter ------------------------------------------------------------------------------------


def missed(found, before, after):
    """||after - (before with the adapter)|| / ||after - before||, over all that both have."""
    merged = peft.merged(found.adapter, before)
    names = [name for name in before if name in after and before[name].shape == after[name].shape]
    total = sum(np.sum((after[n].astype(float) - before[n]) ** 2) for n in names)
    return np.sqrt(sum(np.sum((after[n].astype(float) - merged[n]) ** 2) for n in names) / total)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_base_and_adapter_are_the_fine_tuned_weights_to_the_error_that_is_said(dtype, tmp_path):
    before, after = cast(START, dtype), cast(END, dtype)
    ways: list[dict[str, Any]] = [{"rank": 1}, {"rank": 3}, {"energy": 0.9}, {"save": "*norm*"}]
    for how in ways:
        found = diagnosis.extract(before, after, **how)
        peft.write(tmp_path / "adapter", found.adapter)
        again = found._replace(adapter=peft.read(tmp_path / "adapter", base=before))
        np.testing.assert_allclose(missed(again, before, after), found.error, rtol=scale(dtype))
        for module, error in found.errors.items():
            # Eckart and Young: what the first r values leave, and nothing leaves less.
            values = singular(END[f"{module}.weight"] - START[f"{module}.weight"])
            r = found.adapter.factors[module].A.shape[0]
            least = np.linalg.norm(values[r:]) / np.linalg.norm(values)
            np.testing.assert_allclose(error, least, rtol=scale(dtype), atol=scale(dtype))
        assert set(found.errors) == {"a", "b", "noise"}


def test_the_rank_of_each_matrix_is_in_the_pattern():
    found = diagnosis.extract(START, END, energy=0.99)
    config = found.adapter.config
    assert config["rank_pattern"] == config["alpha_pattern"]
    ranks = {name: one.A.shape[0] for name, one in found.adapter.factors.items()}
    expected = {one.name[:-7]: one.rank_99 for one in lrdyn.diagnose(START, END).matrices}
    assert ranks == {name: rank for name, rank in expected.items() if rank}
    assert all(one.scale == 1 for one in found.adapter.factors.values())
    same = diagnosis.extract(START, END, rank=2).adapter.config
    assert (same["r"], same["lora_alpha"], same["rank_pattern"]) == (2, 2, {})


def test_what_is_left_out_is_named():
    found = diagnosis.extract(START, END)
    assert set(found.left_out) == {"a.bias", "norm.weight"}
    text = "\n".join(found.lines())
    assert "changed and left out (by this share of the norm): a.bias (" in text
    assert "saved whole" not in text
    other = diagnosis.extract(START, END, save=["norm", "a.bias"])
    assert not other.left_out
    assert set(other.adapter.saved) == {"norm.weight", "norm.bias", "a.bias"}
    assert other.adapter.config["modules_to_save"] == ["norm"]
    assert other.adapter.config["bias"] == "lora_only"
    assert other.error < found.error


def test_biases_of_other_modules_ask_for_all():
    found = diagnosis.extract(START, END, save="*.bias")
    assert found.adapter.config["bias"] == "all"
    assert set(found.adapter.saved) == {"a.bias", "norm.bias"}
    assert set(found.left_out) == {"norm.weight"}


def test_a_module_that_is_saved_whole_has_no_factors():
    found = diagnosis.extract(START, END, save="a")
    assert set(found.errors) == {"b", "noise"}
    assert set(found.adapter.saved) == {"a.weight", "a.bias"}
    np.testing.assert_array_equal(found.adapter.saved["a.weight"], END["a.weight"])


def test_new_rows_are_said_or_saved(tmp_path):
    before = {"head.weight": RNG.standard_normal((5, 8)), "q.weight": RNG.standard_normal((6, 8))}
    after = {name: W + 0.1 for name, W in before.items()}
    after["head.weight"] = np.concatenate([after["head.weight"], np.ones((2, 8))])
    found = diagnosis.extract(before, after, rank=1)
    assert found.adapter.factors["head"].B.shape == (5, 1)
    assert found.notes["head.weight"].endswith(
        "compared on the first 5 rows; other rows are lost unless the module is saved"
    )
    whole = diagnosis.extract(before, after, rank=1, save="head")
    np.testing.assert_array_equal(whole.adapter.saved["head.weight"], after["head.weight"])
    assert whole.notes["head.weight"].endswith("; saved whole")
    # Rows that the training removed stay as they were.
    fewer = diagnosis.extract(after, before, rank=1)
    B = fewer.adapter.factors["head"].B
    assert B.shape == (7, 1)
    assert not B[5:].any()


def test_tied_weights_are_written_once():
    table, q = RNG.standard_normal((9, 6)), RNG.standard_normal((6, 6))
    before = {"embed_tokens.weight": table, "head.weight": table.copy(), "q.weight": q}
    after = {name: W + np.outer(W[:, 0], np.ones(6)) for name, W in before.items()}
    found = diagnosis.extract(before, after, rank=1)
    assert set(found.errors) == {"embed_tokens", "q"}
    assert found.notes["head.weight"].startswith(
        "tied with embed_tokens.weight: factors are written once"
    )
    assert found.adapter.embeddings == {"embed_tokens"}
    assert "taken for embeddings: embed_tokens" in found.lines()
    assert not found.left_out
    # Equal before, and trained apart: not tied.
    after["head.weight"] = before["head.weight"] + 1
    assert set(diagnosis.extract(before, after, rank=1).errors) == {"embed_tokens", "head", "q"}


def test_no_other_module_is_taken_in():
    """PEFT looks for a name at the end of a module's: ``x.q`` ends in ``q``."""
    names = ("q.weight", "x.q.weight", "k.weight", "x.k.weight")
    before = {name: np.eye(4) for name in names}
    before |= {"norm.weight": np.ones(4), "x.norm.weight": np.ones(4)}
    after = dict(before)
    for name in ("q.weight", "k.weight", "x.k.weight"):
        after[name] = before[name] + RNG.standard_normal((4, 4))
    after["norm.weight"] = 2 * before["norm.weight"]
    found = diagnosis.extract(before, after, rank=1, save="norm")
    assert set(found.adapter.saved) == {"norm.weight", "x.norm.weight"}
    config = peft.peft_config.PeftConfig(ROOT, found.adapter.config)
    adapted = {module for module in ("q", "x.q", "k", "x.k") if config.adapts(module)}
    assert adapted == set(found.errors) == {"q", "k", "x.k"}
    assert isinstance(config.content["target_modules"], str)
    plain = diagnosis.extract(before, after | {"x.q.weight": np.zeros((4, 4))}, rank=1)
    assert plain.adapter.config["target_modules"] == ["k", "q", "x.k", "x.q"]


def test_matrices_that_are_no_weight_of_a_module_are_left_out():
    before = {"q.weight": np.eye(3), "table": np.eye(3)}
    found = diagnosis.extract(before, {"q.weight": np.ones((3, 3)), "table": np.zeros((3, 3))})
    assert set(found.errors) == {"q"}
    assert found.left_out == {"table": 1.0}


def test_transposed_weights(tmp_path):
    found = diagnosis.extract(START, END, rank=2, fan_in_fan_out=True)
    peft.write(tmp_path, found.adapter)
    stored = tensors.opened(tmp_path / "adapter_model.safetensors")
    assert stored["base_model.model.a.lora_A.weight"].shape == (2, 24)
    again = found._replace(adapter=peft.read(tmp_path, base=START))
    np.testing.assert_allclose(missed(again, START, END), found.error, rtol=scale("float64"))


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, unchecked, capsys):
    from lrdyn import __main__ as command

    monkeypatch.chdir(tmp_path)
    for name, weights in (("before", START), ("after", END)):
        tensors.write(f"{name}.safetensors", cast(weights, np.float32))

    def run(*words):
        status = command.main(["diagnose", *words])
        return status, *capsys.readouterr()

    return run


FILES = ("before.safetensors", "after.safetensors")


def tree(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_the_command_prints_and_writes(command, tmp_path):
    words = "--out new/found --extract adapter --energy 0.9 --save-module norm --top 4".split()
    status, out, err = command(*FILES, *words)
    assert (status, err) == (0, "")
    assert "kind of layer" in out
    assert "relative error of the whole update: " in out
    assert "saved whole: norm.bias, norm.weight" in out
    assert "left out (by this share of the norm): a.bias (" in out
    files = [f"diagnosis.{kind}" for kind in ("csv", "json", "pdf", "png")]
    assert tree(tmp_path / "new") == [*files, "found"]
    found = peft.read("adapter", base=tensors.opened("before.safetensors"))
    assert set(found.factors) == {"a", "b", "noise"}
    printed = float(out.partition("relative error of the whole update: ")[2].split()[0])
    extracted = diagnosis.extract(*FILES, save="norm")
    assert printed == pytest.approx(extracted.error, rel=1e-2)


def test_the_command_alone_writes_nothing(command, tmp_path):
    status, out, _ = command(*FILES, "--select", "a.*")
    assert status == 0
    assert "b.weight" not in out
    assert tree(tmp_path) == sorted(FILES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "BEFORE: got nothing, wanted a value"),
        (("before.safetensors",), "AFTER: got nothing beside weights, wanted weights"),
        (("none.npz", "after.safetensors"), r"BEFORE, AFTER: got 'none.npz' \(No such file"),
        ((".", "after.safetensors"), "got 2 files of weights"),
        ((*FILES, "--select", "z"), r"--select: got \['z'\], wanted some matrices"),
        ((*FILES, "--top", "0"), "--top: got '0', wanted"),
        ((*FILES, "--rank", "2"), "--rank: got it alone"),
        ((*FILES, "--save-module", "norm"), "--save-module: got it without --extract"),
        ((*FILES, "--extract", "x", "--rank", "2", "--energy", ".9"), "--energy: got it beside"),
        ((*FILES, "--extract", "x", "--energy", "1"), "--energy: got '1', wanted a number"),
        ((*FILES, "--extract", "x", "--save-module", "z"), "--save-module: got 'z', wanted"),
        ((*FILES, "--nothing"), "--nothing: got an unknown argument"),
        (("before.safetensors", "before.safetensors", "--extract", "x"), "AFTER: got no <module>"),
        ((*FILES, "--extract", "after.safetensors"), "--extract: got 'after.safetensors', wanted"),
        ((*FILES, "--out", "after.safetensors"), "--out: got 'after.safetensors', wanted a folder"),
    ],
)
def test_bad_input_is_one_line(words, said, command, tmp_path):
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert len(err) <= 201
    assert re.search(said, err)
    assert tree(tmp_path) == sorted(FILES)


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_machine(command, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "adapter")

    monkeypatch.setattr(peft, "write", full)
    status, _, err = command(*FILES, "--extract", "adapter")
    assert status == 3
    assert "No space left" in err


def test_pairs_of_a_checkpoint_are_read_when_they_are_asked_for():
    seen = []

    class Counting(reading.Leaves):
        def __getitem__(self, name):
            seen.append(name)
            return super().__getitem__(name)

    found = comparison.compare(Counting("", START), Counting("", END), "*")
    assert not seen
    first = next(comparison.pairs(found, found.matrices, {}))
    assert seen == [first.name] * 2


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_the_difference_is_that_of_the_whole_matrices(kind):
    """Taken some rows at a time: 300 rows of 1,000 columns in pieces of 131."""
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    sides = [RNG.standard_normal((300, 1000)).astype(dtype) for _ in range(2)]
    epsilons = (2.0**-8, 2.0**-24)
    found = updates.difference(sides[0], sides[1], epsilons)
    before, after = (reading.widen(side) for side in sides)
    np.testing.assert_array_equal(found.update, after - before)
    assert found.update.dtype == before.dtype
    close = lrdyn.tolerance("identity", "float32", size=1000)
    assert found.start == pytest.approx(np.linalg.norm(before.astype(float)), rel=close)
    first, last = (spectrum.square_sums(matrix.astype(float)) for matrix in (before, after))
    whole = spectrum.rounding(first, last, epsilons)
    assert found.rounding == pytest.approx(whole, rel=close)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_norms_that_float32_cannot_square(scale):
    before = (scale * RNG.standard_normal((20, 30))).astype(np.float32)
    found = updates.difference(before, 2 * before, (2.0**-24, 2.0**-24))
    assert found.start == pytest.approx(np.linalg.norm(before.astype(float)))


def test_entries_that_are_not_finite_are_counted_in_every_piece():
    for kind in ("float32", "bfloat16"):
        W = np.zeros((3, 70_000), np.dtype(getattr(ml_dtypes, kind, kind)))
        W[0, 0], W[2, 1], W[2, -1] = np.nan, np.inf, -np.inf
        assert reading.count_nonfinite(W) == 3
        with pytest.raises(ValueError, match="got 1 NaN"):
            tensors.write("a.safetensors", {"W": W})


@pytest.fixture
def clock(monkeypatch):
    """What says the time, which a test moves on."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_goes_by_multiplications(clock, monkeypatch, capsys):
    """Three quarters of the work lie in the one that takes longest, and is done first."""
    monkeypatch.setattr(cores, "cores", lambda: 1)
    counts, done = [1e9, 3e9], []

    def work(item):
        clock[0] += 3
        done.append(item)

    with diagnose_command.show_progress("diagnose") as seen:
        cores.map_on_cores(work, ["small", "large"], counts, cores.Told(seen, counts))
    assert done == ["large", "small"]
    assert capsys.readouterr().err == "diagnose: 75%, 0:01 left\n"


def test_a_log_hears_of_what_takes_two_seconds(clock, capsys):
    with diagnose_command.show_progress("merge") as seen:
        counted = cores.Told(seen, [1e9, 1e9, 2e9])
        clock[0] += 1.9
        counted.done(1e9)
        assert not capsys.readouterr().err
        clock[0] += 0.2
        counted.done(1e9)
        assert capsys.readouterr().err == "merge: 50%, 0:02 left\n"


def test_a_file_that_is_missing_is_near_one_that_is_there(command):
    status, _, err = command("before.safetensor", "after.safetensors")
    assert status == 2
    assert "(No such file or directory) (did you mean 'before.safetensors'?), wanted w" in err


def test_of_a_sketch_no_noise_floor_is_denied():
    noise = RNG.standard_normal((200, 220)).astype(np.float32)
    sides = {"q.weight": np.zeros_like(noise)}, {"q.weight": noise}
    said = " ".join(lrdyn.diagnose(*sides, sketch=4).answer())
    assert "a noise floor is seen in exact values alone" in said
    assert "end in a noise floor" in " ".join(lrdyn.diagnose(*sides).answer())


def test_each_part_of_a_command_is_told_of(command, monkeypatch):
    monkeypatch.setattr(diagnose_command, "FIRST", -1e9)
    status, _, err = command(*FILES, "--extract", "adapter")
    assert status == 0
    parts = {line.partition(":")[0] for line in err.splitlines()}
    assert parts == {"diagnose", "reading the adapter back"}


def test_factors_are_decomposed_once(monkeypatch, tmp_path):
    """For the choice of ranks and for what is written."""
    made, seen = diagnosis.extract(cast(START, np.float32), cast(END, np.float32)), []
    whole = decomposition.product_svd
    monkeypatch.setattr(
        combining, "product_svd", lambda *product: seen.append(1) or whole(*product)
    )
    diagnosis.combine([made.adapter], budget=1000)
    assert len(seen) == len(made.adapter.factors)
