"""The arithmetic of a device: measured, written down, and what it lacks is left out."""

import dataclasses
import json
import runpy
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from lrdyn.core.linalg import ON_TRIAL
from lrdyn.core.precision import matmul_precision
from lrdyn.registry import theorem
from lrdyn.system.private_files import PrivateFolder
from lrdyn.training import train
from lrdyn.training.batches import Batches
from lrdyn.verification.judging import rounding
from lrdyn.verification.judging.judging import arithmetic_of
from lrdyn.verification.judging.rounding import (
    ADMITTED,
    BLOCKS,
    LADDER,
    REASON,
    REFERENCE,
    WORSE,
)
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs.verify import choose_precision
from lrdyn.verification.stating.mistakes import BadInput
from tests import emulated
from tests.runs import python, verdict_of
from tests.verification.test_theorem import MY_THEOREM

SMALL = ("--dim", "2", "--rate", "0.1", "--steps", "5", "--seeds", "1")
PAIRS = {"products": "pairs of float32", "add": 16.0, "smallest": 1e-37}
TF32 = {"products": "TF32", "product": 6730.0, "dot": 1740.0}


@pytest.fixture(scope="module")
def parabola(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "my_theorem.py"
    path.write_text(MY_THEOREM)
    return runpy.run_path(str(path))["THEOREM"]


@pytest.fixture
def device(monkeypatch):
    """A device that measures as the reference, but for what is given of a precision."""

    def of(**others):
        def measured(precision, word="highest", programs=None):
            usual = {"matmuls": word, "products": precision, **REFERENCE[precision]}
            return usual | others.get(precision, {})

        monkeypatch.setattr(arithmetic_probe, "measure_arithmetic", measured)

    return of


# Measuring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_this_machine_has_the_arithmetic_of_the_reference(precision):
    found = arithmetic_probe.measure_arithmetic(precision)
    assert found["products"] == precision
    assert found.keys() >= REFERENCE[precision].keys()
    assert rounding.shortfalls(precision, found) == {}
    # What cannot be told from the reference would let worse pass.
    assert all(found[name] >= 0.2 * usual for name, usual in REFERENCE[precision].items())


def rounded(x, bits):
    """A number with so many significant bits, the last one rounded."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def parts(x, bits, count):
    each = []
    for _ in range(count):
        each.append(rounded(x, bits))
        x = x - each[-1]
    return each


def summed(x, y, bits, count):
    """The product of sums of shorter numbers, without the products that are too small to matter."""
    total = np.zeros_like(x)
    for i, a in enumerate(parts(x, bits, count)):
        for j, b in enumerate(parts(y, bits, count)):
            total += a * b if i + j < count else 0
    return rounded(total, 24)


@pytest.mark.parametrize(
    ("name", "bits", "count"),
    [("TF32", 11, 1), ("bfloat16", 8, 1), ("bfloat16 in three passes", 8, 2),
     ("TF32 in three passes", 11, 2), ("float32", 24, 1)],
)  # fmt: skip
def test_a_product_is_told_by_its_error(name, bits, count):
    x, y = rounded(np.random.default_rng(1).uniform(1, 2, (2, 4096)), 24)
    error = np.max(np.abs(summed(x, y, bits, count) / (x * y) - 1)) / 2.0**-23
    assert rounding.name_of("float32", error) == name


def test_the_rungs_of_a_ladder_rise():
    for rungs in LADDER.values():
        assert sorted(rungs.values()) == list(rungs.values())
    assert rounding.name_of("float32", 1e9) == "unknown"


def test_what_is_as_bad_as_the_limit_is_fit_and_beyond_it_is_not():
    fit: dict[str, Any] = {"matmuls": "highest"}
    fit |= {name: WORSE * usual for name, usual in REFERENCE["float32"].items()}
    fit["largest"] = REFERENCE["float32"]["largest"] / WORSE
    assert rounding.shortfalls("float32", fit) == {}
    for name, value in fit.items():
        if name != "matmuls":
            bad = value / 1.01 if name == "largest" else value * 1.01
            assert list(rounding.shortfalls("float32", fit | {name: bad})) == [name]
    assert list(rounding.shortfalls("float32", fit | {"svd": float("nan")})) == ["svd"]


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_this_machine_decomposes_on_trial_as_a_step_admits(precision):
    """Of LAPACK the tolerances were tried; it leaves what is in one block there."""
    found = arithmetic_probe.measure_on_trial(precision, [(8, 8), (3, 1), (1, 5), (6, 16)])
    assert rounding.shortfalls_on_trial(found, blocks=True) == {}
    assert found[ON_TRIAL] > 0


def test_what_is_beyond_a_step_or_a_block_is_not_admitted():
    admitted = rounding.admitted_on_trial(6, 8)
    fit = {ON_TRIAL: admitted, ADMITTED: admitted, BLOCKS: 0.0}
    assert rounding.shortfalls_on_trial(fit, blocks=True) == {}
    for worse in (1.01 * admitted, float("nan")):
        assert list(rounding.shortfalls_on_trial(fit | {ON_TRIAL: worse})) == [ON_TRIAL]
    for beyond in (1e-300, float("nan")):
        assert list(rounding.shortfalls_on_trial(fit | {BLOCKS: beyond}, blocks=True)) == [BLOCKS]
        assert rounding.shortfalls_on_trial(fit | {BLOCKS: beyond}) == {}


def test_the_numbers_are_kept_for_other_processes(tmp_path, monkeypatch):
    kept = KeptPrograms(PrivateFolder(tmp_path / "here"), "")
    monkeypatch.setattr(arithmetic_probe, "_measure_once", lambda precision, word: {"add": 0.5})
    assert arithmetic_probe.measure_arithmetic("float32", programs=kept) == {"add": 0.5}
    monkeypatch.setattr(arithmetic_probe, "_measure_once", lambda *_: pytest.fail("measured again"))
    assert arithmetic_probe.measure_arithmetic("float32", programs=kept) == {"add": 0.5}
    for other in (("float64",), ("float32", "tf32")):
        with pytest.raises(pytest.fail.Exception, match="again"):
            arithmetic_probe.measure_arithmetic(*other, programs=kept)


OF_PAIRS = {"matmuls": "highest", "products": "pairs of float32", "product": 15.8}
OF_FLOAT64 = {"matmuls": "highest", "products": "float64", "product": 0.5}


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        ([OF_FLOAT64], "float64"),
        ([OF_FLOAT64, OF_PAIRS], "float32"),
        ([OF_PAIRS], "float32"),
    ],
)
def test_the_worst_kind_of_worker_decides_the_precision(kinds, dtype):
    """Not the process that asks, which computes nothing."""
    elsewhere: Any = SimpleNamespace(measure_arithmetic=lambda precision, word: kinds)
    run = run_of(theorem("theorem2"), dim=8, depth=2, rank=1)
    found, why = choose_precision(run, Context(elsewhere=elsewhere))
    assert found.dtype == dtype
    assert ("pairs of float32" in why) == (dtype == "float32")


def test_products_are_refused_if_one_kind_of_worker_has_others():
    kinds = [{"products": "TF32", "convolutions": word} for word in ("TF32", "float32")]
    arithmetic_probe.check_products("tf32", lambda precision, word: kinds[:1])
    with pytest.raises(BadInput, match="whose convolutions are float32"):
        arithmetic_probe.check_products("tf32", lambda precision, word: kinds)
    # What has no convolution does not depend on theirs.
    arithmetic_probe.check_products("tf32", lambda precision, word: kinds, convolutions=False)


# Verdicts -----------------------------------------------------------------------------------------


def test_the_verdict_says_with_which_arithmetic(parabola, command_line, tmp_path, device):
    device()
    status, text, _ = command_line(parabola, *SMALL, "--out", tmp_path)
    verdict = verdict_of(tmp_path)
    assert status == 0
    assert "scaling" not in text
    assert list(verdict["arithmetic"]) == ["float32", "float64"]
    assert verdict["arithmetic"]["float64"]["products"] == "float64"
    assert verdict["environment"]["device_kind"] == jax.devices()[0].device_kind
    assert "precision" not in verdict["config"]


def test_a_precision_that_was_asked_for_and_is_none_is_undecided(
    parabola, command_line, tmp_path, device
):
    device(float64=PAIRS)
    status, text, _ = command_line(parabola, *SMALL, "--dtype", "float64", "--out", tmp_path)
    verdict = verdict_of(tmp_path)
    assert status == 4
    assert f"decay: undecided, {REASON} (1)" in text
    assert "float64: arithmetic of this device: products are pairs of float32; add 16 eps" in text
    claim, *controls = verdict["claims"]
    assert claim["judged"]["float64"]["left_out"] == {REASON: 1}
    assert claim["residual_float32"] is not None
    assert [c["holds"] for c in (claim, *controls)] == [None] * 3
    (folder,) = (tmp_path / "my_theorem").iterdir()
    device()  # the judge has the numbers of the run, wherever it judges
    again, said, _ = command_line(parabola, "--judge", folder)
    assert (again, said.splitlines()[-1]) == (4, text.splitlines()[-1])
    assert verdict_of(tmp_path)["claims"] == verdict["claims"]
    assert verdict_of(tmp_path)["arithmetic"] == verdict["arithmetic"]


def test_where_nobody_asked_the_other_precision_is_judged(parabola, command_line, tmp_path, device):
    device(float64=PAIRS)
    status, text, _ = command_line(parabola, *SMALL, "--out", tmp_path)
    assert status == 0
    first, *_, last = text.splitlines()
    assert first.startswith("my_theorem: in float32. float64: arithmetic of this device: products")
    assert last.startswith("my_theorem holds (scaling not claimed): ")
    assert verdict_of(tmp_path)["config"]["dtype"] == "float32"


def test_without_the_companion_no_scaling_is_claimed(parabola, command_line, tmp_path, device):
    device(float32=TF32)
    status, text, _ = command_line(parabola, *SMALL, "--out", tmp_path)
    assert status == 0
    assert text.splitlines()[-1].startswith("my_theorem holds (scaling not claimed): ")
    assert f"holds (not judged in float32: {REASON} (1))" in text
    claim = verdict_of(tmp_path)["claims"][0]
    assert (claim["scales_with_epsilon"], claim["residual_float32"]) == (None, None)


def test_a_false_claim_stays_false_beside_a_precision_that_is_none(parabola, device):
    (scenario,) = parabola.scenarios
    wrong = dataclasses.replace(
        scenario, predict=lambda case: scenario.predict(case)._replace(
            decay=scenario.predict(case).exponential
        ), controls=(),
    )  # fmt: skip
    device(float64=PAIRS)
    found = lrdyn.verify(
        dataclasses.replace(parabola, scenarios=(wrong,)), dim=2, rate=0.1, steps=5, seeds=1
    )
    assert found.verdict["holds"] is False


def test_both_that_are_none_are_undecided(parabola, device):
    device(float64=PAIRS, float32=TF32)
    found = lrdyn.verify(parabola, dim=2, rate=0.1, steps=5, seeds=1)
    assert found.verdict["holds"] is None
    assert found.verdict["undecided"] == ["decay"]
    assert found.verdict["config"]["dtype"] == "float32"


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_device_that_cannot_be_measured_gives_no_verdict(parabola, monkeypatch, precision):
    usual = arithmetic_probe.measure_arithmetic

    def measured(wanted, word="highest", programs=None):
        if wanted == precision:
            raise RuntimeError("no such products")
        return usual(wanted, word, programs)

    monkeypatch.setattr(arithmetic_probe, "measure_arithmetic", measured)
    with pytest.raises(RuntimeError, match="no such products"):
        lrdyn.verify(parabola, dim=2, rate=0.1, steps=5, seeds=1)


@pytest.mark.parametrize(
    "text", ["[]", '{"float16": {}}', '{"float32": {"matmuls": 1, "products": ""}}', "{"]
)
def test_an_arithmetic_that_no_run_writes_is_refused(parabola, text):
    found = lrdyn.verify(parabola, dim=2, rate=0.1, steps=5, seeds=1)
    assert arithmetic_of(found.results) == found.verdict["arithmetic"]
    groups = {"/": found.results["/"].assign_attrs(arithmetic=text)}
    with pytest.raises(ValueError, match=r"arithmetic|Expecting"):
        arithmetic_of(groups)
    del groups["/"].attrs["arithmetic"]
    assert arithmetic_of(groups) == {}


# Full precision without a set-up ------------------------------------------------------------------


def dots(function, *arguments):
    text = str(jax.make_jaxpr(function)(*arguments))
    return text.count("HIGHEST"), text.count("dot_general")


def looked(scenario, case, seen):
    seen.append(matmul_precision())
    return scenario.measure(case)


def test_programs_are_in_full_precision_whatever_jax_is_set_to(parabola):
    A = jnp.eye(2)
    loss = lambda W: jnp.sum((W @ A) ** 2)  # noqa: E731
    seen = []

    def looked_at(x):
        seen.append(matmul_precision())
        return {"y": (A @ A)[0] * x}

    def of_batch(W, state, batch, key):
        seen.append(matmul_precision())
        return loss(W), (state, {})

    rule = lrdyn.gradient_descent(0.1)
    with jax.default_matmul_precision(None):
        high, all_of_them = dots(lambda W: lrdyn.simulate(loss, W, rule, np.arange(2)), A)
        assert high == 2 * all_of_them > 0  # once for each factor
        lrdyn.sweep(looked_at, lrdyn.product(x=[1.0, 2.0]))
        train(jax.random.key(0), of_batch, A, rule, Batches(np.ones((2, 1)), 1), (0, 1))
        (scenario,) = parabola.scenarios
        watched = dataclasses.replace(scenario, measure=lambda case: looked(scenario, case, seen))
        mine = dataclasses.replace(parabola, scenarios=(watched,))
        assert lrdyn.verify(mine, dim=2, rate=0.1, steps=5, seeds=1).verdict["holds"]
    assert set(seen) == {"highest"}
    with jax.default_matmul_precision("tensorfloat32"):  # somebody's wish
        high, _ = dots(lambda W: lrdyn.simulate(loss, W, rule, np.arange(2)), A)
    assert not high


def test_jobs_have_their_precision_whatever_jax_is_set_to():
    with jax.default_matmul_precision("tensorfloat32"), rounding.scope("float32"):
        assert matmul_precision() == "highest"
        assert jnp.ones(1).dtype == "float32"
    with rounding.scope("float32", "tf32"):
        assert matmul_precision() == "TF32_TF32_F32"
    with rounding.scope("float64", "tf32"):  # a word is for float32
        assert matmul_precision() == "highest"


# Emulated devices ---------------------------------------------------------------------------------


def on(device, *words):
    """A command on an emulated device: its status and what it printed."""
    done = python("-m", "tests.emulated", device, *words)
    if done.returncode == emulated.NO_RULES:
        pytest.skip(done.stdout)
    return done.returncode, done.stdout + done.stderr


def test_the_arithmetic_of_an_emulated_tpu_is_named():
    status, text = on("tpu", "measured")
    assert status == 0
    assert json.loads(text) == {
        "float64": "pairs of float32",
        "DEFAULT": "bfloat16",
        "HIGH": "bfloat16 in three passes",
        "HIGHEST": "bfloat16 in six passes",
        "BF16_BF16_F32": "bfloat16",
    }


def test_a_device_whose_batches_are_of_another_arithmetic_is_told_by_them():
    """A sweep is a batch: single products in float32 say nothing of it."""
    status, text = on("deaf_to_batches", "measured")
    assert status == 0
    assert json.loads(text)["HIGHEST"] == "TF32"


LORA = "--adapter-scale 2 --rate-ratio 4 --init-scale 1 --seeds 1".split()
ONE_STEP = """
import dataclasses
from lrdyn.lora.statement import LORA

THEOREM = dataclasses.replace(LORA, scenarios=LORA.scenarios[:1], plots={})
"""
"""The theorem without its trainings, in a file of somebody's own."""


def test_products_in_tf32_make_identities_false_where_they_were_asked_for(tmp_path):
    (tmp_path / "one_step.py").write_text(ONE_STEP)
    words = (*LORA, "--dtype", "float32", "--precision", "tf32", "--out", tmp_path)
    status, text = on("gpu", "verify", f"{tmp_path / 'one_step.py'}:THEOREM", *words)
    assert status == 1
    verdict = verdict_of(tmp_path)
    assert verdict["config"]["precision"] == "tf32"
    assert verdict["arithmetic"]["float32"]["products"] == "TF32"
    false = {c["id"] for c in verdict["claims"] if c["holds"] is False and c["kind"] == "identity"}
    assert false >= {"one_step", "pissa_residual", "dora_step"}
    assert "lora IS FALSE" in text


def test_theorem_2_on_a_device_whose_float64_is_a_pair(tmp_path):
    words = "--dim 7 --depth 2 --rank 2 --steps 50 --seeds 1".split()
    status, text = on("pairs", "verify", "theorem2", *words, "--out", tmp_path)
    assert status == 0
    assert text.startswith("theorem2: in float32. float64: arithmetic of this device: products are")
    assert "theorem2 holds (scaling not claimed)" in text


DECOMPOSED = '''
"""Values and vectors of a matrix, recorded of a run, and an algorithm that decomposes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn import Claim, Control, Flag, Scenario, Theorem, at_least
from lrdyn.core import linalg
from lrdyn.verification.stating.fields import ABSENT


class Numbers(NamedTuple):
    values: Float[Array, "direction"] = ABSENT
    squares: Float[Array, "direction"] = ABSENT
    basis: Float[Array, "row column"] = ABSENT
    tried: Float[Array, "row column"] = ABSENT
    condition: Float[Array, ""] = ABSENT


def case(key, *, dim):
    left, right = map(linalg.orthogonal_factor, jax.random.normal(key, (2, dim, dim)))
    sizes = jnp.arange(dim, 0, -1) / dim
    return {"matrix": (left * sizes) @ right, "sizes": sizes, "left": left}


def predict(case):
    sizes, projector = case["sizes"], on_the_first(case["left"])
    # By the gap of the values, as vectors turn.
    condition = sizes[0] / (sizes[1] - sizes[2])
    return Numbers(sizes, sizes**2, basis=projector, tried=projector, condition=condition)


def on_the_first(columns):
    return columns[:, :2] @ columns[:, :2].T


def record(case):
    (U, values, _), product = linalg.svd(case["matrix"]), case["matrix"] @ case["matrix"].T
    return Numbers(values, linalg.eigh(product)[0][::-1], basis=on_the_first(U))


def attempt(case):
    return Numbers(tried=on_the_first(linalg.svd_on_device(case["matrix"])[0]))


def claim(name):
    return Claim(
        name,
        name,
        compares=lambda theory, run: (getattr(theory, name), getattr(run, name)),
        condition=(lambda theory: theory.condition) if name == "tried" else None,
    )


def half(name):
    def wrong(case):
        return jax.tree.map(lambda array: array / 2, predict(case))

    return Control(f"half_{name}", "half of it", name, predict=wrong)


def scenario(measure, *names, **more):
    return Scenario(
        measure.__name__, case, predict, measure, theory=Numbers, measured=Numbers,
        claims=tuple(map(claim, names)), controls=tuple(map(half, names)), **more,
    )


def theorem(*scenarios):
    return Theorem("decomposed", "a matrix is decomposed", DIM, scenarios)


DIM = (Flag("dim", (8,), at_least(2), int, "d", "rows", shapes=True),)
RECORDED = theorem(scenario(record, "values", "squares", "basis"))
TRIED = theorem(scenario(attempt, "tried"))
IN_BLOCKS = theorem(scenario(attempt, "tried", blocks=True))
'''


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory):
    path = tmp_path_factory.mktemp("decomposed") / "decomposed.py"
    path.write_text(DECOMPOSED)
    return path


@pytest.mark.parametrize(
    ("device_name", "name", "status", "said"),
    [
        # Did the device decompose by itself, so much would be admitted and a claim be false.
        ("alone:40:svd", "RECORDED", 1, "decomposed IS FALSE"),
        ("off:40", "RECORDED", 0, "decomposed holds"),
        ("off:300", "RECORDED", 0, "decomposed holds"),
        ("off:2", "TRIED", 0, "decomposed holds"),
        ("off:60", "TRIED", 4, "float64: arithmetic of this device: svd_on_device"),
        ("off:300:svd", "TRIED", 4, "float64: arithmetic of this device: svd_on_device"),
        ("off:300:eigh", "TRIED", 0, "decomposed holds"),
        ("off:2", "IN_BLOCKS", 4, "float64: arithmetic of this device: blocks_on_device"),
    ],
)
def test_no_claim_is_false_because_of_a_devices_decompositions(
    decomposed, tmp_path, device_name, name, status, said
):
    words = (f"{decomposed}:{name}", "--seeds", "1", "--out", tmp_path)
    found, text = on(device_name, "verify", *words)
    assert said in text
    assert found == status


# Figures ------------------------------------------------------------------------------------------


def test_figures_are_made_in_the_precision_of_the_device(monkeypatch, device, capsys):
    from lrdyn.commands import figures
    from paper_figs import EXHIBITS

    shown = [one for one in EXHIBITS if one.name in ("fig03", "fig09")]
    monkeypatch.setattr(figures, "setup", lambda dtype: None)
    how = {"prog": "paper_figs", "machine": None}
    device()
    assert figures._select_precision(shown, None, named=False, **how) == shown
    device(float64=PAIRS)
    (drawn,) = figures._select_precision(shown, None, named=False, **how)
    runs = drawn.sources(**drawn.presets["quick"])
    assert {run.dtype for run in runs.values()} == {"float32"}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "paper_figs: in float32. float64: arithmetic of this device: products"
    )
    assert said[1:] == ["fig09: left out, it needs float64"]
    with pytest.raises(ValueError, match="--dtype: got 'float32' for fig09, wanted float64"):
        figures._select_precision(shown, "float32", named=True, **how)
    options = figures.parse(EXHIBITS, ["fig03", "--dtype", "float32"]).options
    assert options.dtype == "float32"
