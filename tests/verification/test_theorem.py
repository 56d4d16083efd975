"""A theorem of one's own, in a file outside the repository, from its claims to exit status."""

import dataclasses
import html
import json
import os
import re
import runpy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from matplotlib.figure import Figure

import lrdyn as lr
from lrdyn import cli
from lrdyn.core.condition import conditions, relative_response, twins
from lrdyn.core.show import shortened
from lrdyn.figures import verdict_plots
from lrdyn.verification.judging.judging import ratio_of, residuals
from lrdyn.verification.running.evaluate import each_time, evaluate_controls
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.fields import ABSENT, both_sides
from lrdyn.verification.stating.flags import POSITIVE, Domain, Flag, between, one_of
from lrdyn.verification.stating.forms import Zero
from lrdyn.verification.stating.statement import Claim, Control, Scenario, Theorem
from lrdyn.verification.storing import files, results_file
from tests.jobs import claims_job, controls_job
from tests.oracles import refuses
from tests.runs import python, results_of, started, verdict_of
from tests.tiny import Number

MY_THEOREM = '''
"""Gradient descent on a parabola decays geometrically."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrdyn import (Claim, Control, Flag, Scenario, Theorem, at_least, cli)
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Domain


class Theory(NamedTuple):
    decay: Float[Array, "step index"] = ABSENT
    exponential: Float[Array, "step index"] = ABSENT


class Measured(NamedTuple):
    decay: Float[Array, "step index"] = ABSENT
    exponential: Float[Array, "step index"] = ABSENT
    step: Int[Array, "step"] = ABSENT


def case(key, *, dim, rate, steps):
    start = jax.random.uniform(key, (dim,), minval=0.5)
    return {"start": start, "rate": jnp.asarray(rate), "cubic": jnp.zeros(()), "steps": steps}


def predict(case):
    times = jnp.arange(case["steps"] + 1)
    start, factor = case["start"][None, :], (1 - case["rate"]) ** times
    exponential = jnp.exp(-case["rate"] * times)
    return Theory(decay=factor[:, None] * start, exponential=exponential[:, None] * start)


def measure(case):
    def step(x, _):
        return x - case["rate"] * (x + case["cubic"] * x**3), x

    run = jax.lax.scan(step, case["start"], length=case["steps"] + 1)[1]
    return Measured(decay=run, exponential=run, step=jnp.arange(case["steps"] + 1))


def bend(key, case, amount):
    return case | {"cubic": amount}


DECAY = Scenario(
    "decay_statement",
    case,
    predict,
    measure,
    theory=Theory,
    measured=Measured,
    claims=(
        Claim(
            "decay",
            "x_t = (1 - eta)^t x_0",
            compares=lambda theory, run: (theory.decay, run.decay),
        ),
    ),
    controls=(
        Control(
            "bent",
            "a quartic term",
            "decay",
            case=bend,
            breaks="parabola",
            amounts=(1e-6, 1.0),
        ),
        Control(
            "exponential_decay",
            "x_t = exp(-eta t) x_0",
            "decay",
            predict=lambda case: Theory(decay=predict(case).exponential),
        ),
    ),
    hypotheses={"parabola": lambda case: case["cubic"] == 0},
    steps="steps",
)

THEOREM = Theorem(
    "my_theorem",
    "100 % geometric decay",
    (
        Flag("dim", (2, 3), at_least(1), int, "d", "dimension", (5,), shapes=True),
        Flag(
            "rate",
            (0.1, 0.5),
            Domain(0, 1, low_open=True, high_open=True),
            symbol="eta",
            help="step size, in % of the curvature / 100",
        ),
        Flag("steps", (20,), at_least(1), int, "t", "steps", swept=False),
    ),
    (DECAY,),
)

if __name__ == "__main__":
    sys.exit(cli.main(THEOREM))
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "my_theorem.py"
    path.write_text(MY_THEOREM)
    return path


@pytest.fixture(scope="module")
def theorem(script):
    return runpy.run_path(os.fspath(script))["THEOREM"]


@pytest.fixture
def command(command_line):
    """Run a small sweep from the command line, in this process and in an empty folder."""
    return lambda theorem, *words: command_line(theorem, "--dim", "2", "--seeds", "1", *words)


def changed(theorem, **parts):
    """The theorem with other parts of its scenario."""
    (scenario,) = theorem.scenarios
    return dataclasses.replace(theorem, scenarios=(dataclasses.replace(scenario, **parts),))


def entry(folder, name):
    (found,) = [claim for claim in verdict_of(folder)["claims"] if claim["id"] == name]
    return found


# As a script


@pytest.fixture(scope="module")
def finished(script):
    """The script with arguments of its own, and the folder of its results."""
    words = ["--rate", "0.2", "0.3", "--seeds", "3", "--perturb", "--out", "mine"]
    done = python(script, *words, cwd=script.parent)
    (folder,) = (script.parent / "mine" / "my_theorem").iterdir()
    return done, folder


def test_the_script_says_what_it_found(finished):
    done, folder = finished
    assert done.returncode == 0, done.stderr
    first, *said, last = done.stdout.splitlines()
    assert first == "my_theorem: 100 % geometric decay"
    # The controls that failed, as they must, are a number.
    assert [line.split()[0] for line in said[-3:-1]] == ["claim", "decay"]
    assert last == f"my_theorem holds: {folder.relative_to(folder.parents[2])}"


def test_the_verdict_of_the_script(finished):
    found = verdict_of(finished[1])
    assert found["holds"] is True
    assert found["config"]["rate"] == [0.2, 0.3]
    assert found["config"]["dim"] == [2, 3]
    claim, *controls = found["claims"]
    assert (claim["kind"], claim["cases"], claim["hypotheses_met"]) == ("identity", 12, True)
    assert claim["residual"] <= claim["tolerance"] < claim["residual_float32"]
    assert claim["residual_float32"] <= claim["tolerance_float32"]
    assert claim["scales_with_epsilon"] is True
    assert [(c["kind"], c["holds"], c["hypotheses_met"]) for c in controls] == [
        ("control", True, False),
        ("control", True, True),
    ]


def test_the_results_of_the_script(finished):
    results = results_of(finished[1])
    decay = results["decay_measured"]
    assert decay.dims == ("seed", "dim", "rate", "step", "index")
    assert decay.shape == (3, 2, 2, 21, 3)
    assert np.isnan(decay.sel(dim=2)[..., 2]).all()  # ragged
    start = decay.sel(step=0)
    expected = start * (1 - results["rate"]) ** results["step"]
    assert np.allclose(decay, expected.transpose(*decay.dims), rtol=1e-14, atol=0, equal_nan=True)
    assert len(np.unique(start.sel(rate=0.2, dim=3))) == 9  # seeds differ


def test_perturbing_starts_where_the_claim_holds(finished, theorem):
    (scenario,) = theorem.scenarios
    for precision in ("float64", "float32"):
        away = results_of(finished[1], f"/perturb/bent/{precision}")
        leg = residuals(scenario.claims[0], scenario, away, precision)
        ratio = ratio_of(leg, precision, everything=True)
        assert away["amount"].values.tolist() == [0.0, 1e-6, 1.0]
        assert (ratio.sel(amount=0.0) <= 1).all()
        assert (ratio.sel(amount=1.0) >= 10).all()
        assert away["met_parabola"].squeeze().sel(amount=0.0).all()
        assert not away["met_parabola"].squeeze().sel(amount=1e-6).any()


def test_the_picture_of_perturbing_shows_the_residuals_of_every_seed(finished, theorem):
    groups = results_file.load(finished[1] / "results.nc")
    precisions = ("float64", "float32")
    found = verdict_plots.departures(theorem, groups, precisions)
    assert list(found) == ["bent"]
    one = found["bent"]
    assert one.amounts.tolist() == [0.0, 1e-6, 1.0]
    for precision in precisions:
        away = groups[f"/perturb/bent/{precision}"]
        leg = residuals(theorem.scenarios[0].claims[0], theorem.scenarios[0], away, precision)
        for row, amount in zip(one.residuals[precision], one.amounts, strict=True):
            expected = leg["residual"].sel(amount=amount).values.ravel()
            assert sorted(row) == sorted(expected)
    figure = verdict_plots.perturb_figure("mine", found)
    (ax,) = figure.axes
    drawn = [np.atleast_1d(line.get_ydata()) for line in ax.get_lines()]
    assert [y[0] for y in drawn if len(y) > 1 and y[0] != y[1]] == [
        np.median(one.residuals[precision][1]) for precision in precisions
    ]
    assert min(ax.get_xticks()) >= 1e-6  # 0 has a place of its own


def test_help_shows_every_flag_with_symbol_unit_and_default(theorem, command):
    status, out, err = command(theorem, "--help")
    assert (status, err) == (0, "")
    text = " ".join(out.split())
    assert "100 % geometric decay" in text
    assert "d: dimension, an integer >= 1 (default: 2 3; paper: 5)" in text
    assert "eta: step size, in % of the curvature / 100, a number strictly between 0 and 1" in text
    for flag in ("--out", "--preset", "--seed", "--seeds", "--dtype", "--perturb", "--steps"):
        assert flag in text


# In this process


def test_float32_alone_keeps_a_meaningful_tolerance(theorem, command, tmp_path):
    status, _, _ = command(theorem, "--dtype", "float32")
    found = entry(tmp_path, "decay")
    assert status == 0
    assert 0 < found["residual"] <= found["tolerance"] < 1e-4
    assert found["scales_with_epsilon"] is None
    assert "residual_float32" not in found
    assert verdict_of(tmp_path)["environment"]["dtype"] == "float32"
    assert results_of(tmp_path)["decay_measured"].dtype == np.float32


@pytest.mark.parametrize("steps", [None, 20_000])
def test_a_coincidence_that_holds_to_float32_is_caught(steps, theorem, command, tmp_path):
    """The rounding of many steps would let it pass, but it does not scale with epsilon."""
    (scenario,) = theorem.scenarios
    claim = dataclasses.replace(scenario.claims[0], steps=steps)

    def almost(case):
        theory = scenario.predict(case)
        return theory._replace(decay=theory.decay * (1 + 1e-11))

    status, out, _ = command(changed(theorem, claims=(claim,), predict=almost, controls=()))
    found = entry(tmp_path, "decay")
    assert found["residual_float32"] <= found["tolerance_float32"]
    assert (found["residual"] <= found["tolerance"]) == (steps is not None)
    assert found["scales_with_epsilon"] is False
    assert (status, found["holds"]) == (1, False)
    assert "FALSE (does not scale with epsilon)" in out


class Lost(NamedTuple):
    decay: Float[Array, "step index"] = ABSENT


def lost(case):
    return Lost(decay=jnp.full((case["steps"] + 1, case["start"].size), jnp.nan))


FALSE = lr.Claim[Any, Any](
    "exponential",
    "x_t = exp(-eta t) x_0",
    compares=lambda theory, run: (theory.exponential, run.exponential),
)
BLIND = {"parabola": lambda case: jnp.asarray(True)}
LOST = lr.Control("lost", "NaN", "decay", measure=lost)


def tame(scenario):
    return lr.Control("tame", "nothing broken", "decay", predict=scenario.predict)


@pytest.mark.parametrize(
    ("parts", "wrong", "said"),
    [
        (lambda s: {"claims": (*s.claims, FALSE)}, "exponential", "exponential .* FALSE"),
        (lambda s: {"controls": (s.controls[1], tame(s))}, "tame", "tame .* NOT SEEN TO FAIL"),
        (lambda s: {"hypotheses": BLIND}, "bent", "bent .* NOT SEEN TO FAIL"),
        (lambda s: {"measure": lost, "controls": ()}, "decay", "decay .* FALSE"),
        (lambda s: {"controls": (LOST,)}, "lost", "lost .* NOT SEEN TO FAIL"),
    ],
    ids=["conjecture", "control", "departure no hypothesis sees", "NaN", "NaN in a control"],
)
def test_what_is_false_or_no_proof_is_caught_alone(parts, wrong, said, theorem, command, tmp_path):
    status, out, _ = command(changed(theorem, **parts(theorem.scenarios[0])))
    held = {claim["id"]: claim["holds"] for claim in verdict_of(tmp_path)["claims"]}
    assert (status, verdict_of(tmp_path)["holds"]) == (1, False)
    assert {name: holds for name, holds in held.items() if holds is not True} == {wrong: False}
    assert re.search(said, out)
    assert "my_theorem IS FALSE" in out
    found = entry(tmp_path, wrong)
    if wrong in ("decay", "lost"):
        assert found["residual"] is None
    if wrong == "bent":  # it is far away, but no hypothesis says so
        assert found["hypotheses_met"] is True
        assert found["residual"] > 10 * found["tolerance"]


@pytest.mark.parametrize("where", ["hypothesis", "applies"])
def test_hypotheses_met_nowhere_are_bad_input(where, theorem, command, tmp_path):
    if where == "hypothesis":
        parts = {"hypotheses": {"never": lambda case: jnp.asarray(False)}}
    else:
        claim = dataclasses.replace(theorem.scenarios[0].claims[0], applies=lambda one: False)
        parts = {"claims": (claim,)}
    vacuous = changed(theorem, controls=(), **parts)
    status, out, err = command(vacuous, "--out", "new/deeper")
    (line,) = [line for line in err.splitlines() if not line.startswith("[")]
    assert (status, out) == (2, "")
    assert line.startswith("my_theorem: error: my_theorem: nothing judged: no case meets")
    assert where == "applies" or "never" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"), [((), "too few steps (1)"), (("--judge",), "too few steps (1)")]
)
def test_what_cannot_be_judged_is_undecided(words, said, theorem, command, command_line, tmp_path):
    """The hypotheses are met: results are written, the line says which claim and why."""
    (scenario,) = theorem.scenarios
    claim = dataclasses.replace(
        scenario.claims[0], undecided=lambda one: "too few steps" if one.steps < 50 else ""
    )
    at = {"steps": 60}
    short = changed(theorem, claims=(claim,), at=at)
    status, out, err = command(short, "--rate", "0.1")
    if words:
        folder = next(tmp_path.rglob("verdict.json")).parent
        status, out, err = command_line(short, *words, folder)
    assert (status, err.count("error")) == (4, 0)
    assert f"decay: undecided, {said}" in out
    assert "my_theorem is undecided: " in out
    found = verdict_of(tmp_path)
    assert (found["holds"], found["undecided"]) == (None, ["decay"])
    assert (entry(tmp_path, "decay")["holds"], entry(tmp_path, "decay")["cases"]) == (None, 0)
    assert results_of(tmp_path)["decay_measured"].size


ASKED = {
    "known": (lambda: MoreSteps(49.5, flag="steps"), "too few steps (1): --steps 50 would do"),
    "unknown": (
        lambda: MoreSteps(flag="steps"),
        "too few steps (1): how many --steps would do is not known",
    ),
    "words": (
        lambda: "too few steps",
        "too few steps (1): how many --steps would do is not known",
    ),
    "fixed": (lambda: MoreSteps(50), "too few steps (1): 50 would do, no flag sets it"),
    "nothing": (
        MoreSteps,
        "too few steps (1): how many would do is not known, and no flag sets them",
    ),
    "other": (lambda: "no curvature", "no curvature (1)"),
}
"""What a claim may say -> the line of the command."""


@pytest.mark.parametrize("which", ASKED)
def test_an_undecided_claim_says_how_many_steps_it_asks_for(
    which, theorem, command, command_line, tmp_path
):
    """In the table, in the line, in verdict.json, in the report, and when it is judged again."""
    reason, line = ASKED[which]
    (scenario,) = theorem.scenarios
    claim = dataclasses.replace(
        scenario.claims[0], undecided=lambda one: reason() if one.steps < 50 else ""
    )
    short = changed(theorem, claims=(claim,), at={"steps": 60})
    assert command(short, "--rate", "0.1", "--steps", "9")[0] == 4
    folder = next(tmp_path.rglob("verdict.json")).parent
    (leg,) = {json.dumps(leg) for leg in entry(tmp_path, "decay")["judged"].values()}
    asked = json.loads(leg).get("more_steps")
    numbers = {"known": 50, "fixed": 50}
    if which == "other":
        assert asked is None
    else:
        flag = None if which in ("fixed", "nothing") else "steps"
        assert asked == {"needed": numbers.get(which), "flag": flag}
    status, out, _ = command_line(short, "--judge", folder, "--report")
    assert status == 4
    lines = out.splitlines()
    assert f"decay: undecided, {line}" in lines
    assert any(row.startswith("decay ") and row.endswith(f"undecided: {line}") for row in lines)
    page = " ".join(html.unescape((folder / "report.html").read_text()).split())
    assert page.count(line.replace(" (1)", "\u00a0(1)")) + page.count(line) >= 2
    if which == "known":
        assert command(short, "--rate", "0.1", "--steps", "50")[0] == 0


@pytest.mark.parametrize("where", ["hypothesis", "applies"])
def test_an_open_side_statement_does_not_hide_that_nothing_of_the_main_one_applies(
    where, theorem, command, command_line, tmp_path
):
    """The line names the side claim alone: more of what that asks for would decide nothing."""
    (scenario,) = theorem.scenarios
    claim = scenario.claims[0]
    open_claim = dataclasses.replace(claim, id="side", undecided=lambda one: "too coarse")
    side = dataclasses.replace(scenario, id="aside", claims=(open_claim,), controls=())
    if where == "hypothesis":
        parts, unmet = {"hypotheses": {"never": lambda case: jnp.asarray(False)}}, "never (2)"
    else:
        outside = dataclasses.replace(claim, applies=lambda one: False)
        parts, unmet = {"claims": (outside,)}, "claim does not apply (2)"
    vacuous = changed(theorem, controls=(), **parts)
    both = dataclasses.replace(theorem, scenarios=(*vacuous.scenarios, side))
    said = f"no claim of the main scenario applies, hypotheses not met: {unmet}"
    runs_of_it = [command(both, "--rate", "0.1", "0.2")]
    folder = next(tmp_path.rglob("verdict.json")).parent
    runs_of_it.append(command_line(both, "--judge", folder, "--report"))
    for status, out, _ in runs_of_it:
        lines = out.splitlines()
        assert status == 4
        assert lines.index(said) < lines.index("side: undecided, too coarse (2)")
    assert said in html.unescape((folder / "report.html").read_text())
    # Where the main statement applies and the side one is open the line says nothing of it.
    applies = dataclasses.replace(theorem, scenarios=(scenario, side))
    status, out, _ = command(applies, "--rate", "0.1", "0.2")
    assert (status, "main scenario" in out) == (4, False)


def test_a_side_statement_does_not_carry_a_verdict(theorem, command, tmp_path):
    """A scenario at settings of its own holds even if the main one is about nothing."""
    (scenario,) = theorem.scenarios
    claim = dataclasses.replace(scenario.claims[0], id="side")
    side = dataclasses.replace(scenario, id="aside", claims=(claim,), controls=())
    vacuous = changed(theorem, hypotheses={"never": lambda case: jnp.asarray(False)}, controls=())
    both = dataclasses.replace(theorem, scenarios=(*vacuous.scenarios, side))
    status, _, err = command(both)
    assert status == 2
    assert "nothing of the main scenario judged: no case meets never" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # In the claim: a name that is no field of that side.
        (
            "(theory.decay, run.decay)",
            "(theory.decay, run.decai)",
            "got run.decai, wanted run.decay",
        ),
        (
            "(theory.decay, run.decay)",
            "(theory.decays, run.decay)",
            "got theory.decays, wanted theory.decay",
        ),
        # In what measure returns, and a field that it leaves out.
        ("Measured(decay=run,", "Measured(decai=run,", "decai"),
        ("Measured(decay=run, exponential=run,", "Measured(exponential=run,", "decay"),
    ],
)
def test_a_name_on_one_side_only_is_bad_input(old, new, said, tmp_path):
    """Else a prediction would stand for what was never measured, and the claim would hold."""
    assert MY_THEOREM.count(old) == 1
    path = tmp_path / "mine.py"
    path.write_text(MY_THEOREM.replace(old, new))
    words = ["--dim", "2", "--rate", "0.1", "--seeds", "1", "--out", str(tmp_path / "out")]
    process = started("-m", "lrdyn", "verify", path, *words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2, (out, err)
    assert said in err
    assert "/mine." in err  # a long path is cut
    assert not list(tmp_path.rglob("verdict.json"))


def test_cases_outside_the_hypotheses_are_not_judged(theorem, command, tmp_path):
    def right_below(case):
        theory = theorem.scenarios[0].predict(case)
        return theory._replace(decay=jnp.where(case["rate"] < 0.3, 1, 2) * theory.decay)

    slow = changed(theorem, hypotheses={"slow": lambda case: case["rate"] < 0.3}, controls=())
    status, _, _ = command(changed(slow, predict=right_below))
    found = entry(tmp_path, "decay")
    assert (status, found["cases"], found["cases_total"]) == (0, 1, 2)
    assert found["worst_case"]["rate"] == 0.1


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError])
def test_an_exception_in_a_theorem_is_bad_input(error, theorem, command, monkeypatch):
    def measure(case):
        raise error("first line\nsecond line")

    broken = changed(theorem, measure=measure)
    status, out, err = command(broken)
    assert (status, out, err.count("\n")) == (2, "", 1)
    said = rf"test_theorem.py:\d+ \(measure\): got {error.__name__} \(first line\), wanted code"
    assert re.search(said, err), err
    monkeypatch.setenv("LRDYN_DEBUG", "1")
    status, _, err = command(broken)
    assert status == 2
    assert "Traceback" in err
    assert "second line" in err


def test_the_same_command_has_the_same_folder(theorem):
    def folder(*words):
        return cli.parse(theorem, words).run.config

    assert folder("--rate", "0.2", "0.2") == folder("--rate", "0.2")
    assert folder("--seed", "1") != folder()
    assert folder("--preset", "paper")["dim"] == [5]
    assert folder("--preset", "paper", "--dim", "4")["dim"] == [4]


# Statements


def control(claim="claim", **parts):
    return lr.Control("c", "", claim, **parts)


def claim(kind: Any = "identity", **parts):
    return Claim[Number, Number](
        "claim", "", kind, compares=lambda theory, run: (theory.value, run.value), **parts
    )


def scenario(*controls):
    return Scenario("s", dict, theory=Number, measured=Number, claims=(claim(),), controls=controls)


class Sides(NamedTuple):
    """Fields of which one has the name of a keyword, as a field may with an underscore."""

    rho: Float[Array, ""] = ABSENT
    global_: Float[Array, ""] = ABSENT
    bulk: Float[Array, ""] = ABSENT


def of_sides(*claims: Claim[Any, Any], theory: Any = Sides, measured: Any = Sides):
    return Scenario[Any, Any, Any]("sides", dict, theory=theory, measured=measured, claims=claims)


def of_form(outcome: Any) -> Zero:
    return Zero(outcome.measured.rho, scale=1.0, alternative=1.0)


def test_a_claim_compares_the_fields_of_its_id_where_nothing_else_is_said():
    said = Claim[Sides, Sides]("rho", "", compares=lambda theory, run: (theory.rho, run.rho))
    plain, keyword = Claim[Any, Any]("rho", ""), Claim[Any, Any]("global", "")
    scenario = of_sides(plain, keyword)
    assert plain.compared == said.compared == ("rho", "rho")
    assert scenario.read_by(plain) == scenario.read_by(said) == (("theory", "rho"), ("run", "rho"))
    assert scenario.read_by(keyword) == (("theory", "global"), ("run", "global"))
    # What else is looked at comes to what is compared; another id takes another field.
    more = dataclasses.replace(plain, reads=lambda theory, run: (run.bulk,))
    assert scenario.read_by(more) == (*scenario.read_by(plain), ("run", "bulk"))
    assert dataclasses.replace(plain, id="bulk").compared == ("bulk", "bulk")


def test_a_form_reads_the_fields_of_its_id_where_nothing_else_is_said():
    claim = Claim[Any, Any]("rho", "", form=of_form)
    assert claim.compared is None
    assert of_sides(claim).read_by(claim) == (("theory", "rho"), ("run", "rho"))
    alone = of_sides(claim, theory=None)
    assert (alone.read_by(claim), alone.arrays_of(claim)) == ((("run", "rho"),), ("rho",))
    other = dataclasses.replace(claim, reads=lambda theory, run: (run.bulk,))
    assert of_sides(other).read_by(other) == (("run", "bulk"),)
    nothing = dataclasses.replace(claim, id="of the settings", reads=lambda theory, run: ())
    assert of_sides(nothing).read_by(nothing) == ()


class Ambiguous(NamedTuple):
    """A field with the name under which that of both sides is saved."""

    value_measured: Any = None


class OverPoints(NamedTuple):
    """A field over an axis that has the name of that of the points of a search."""

    value: Float[Array, "point"] = ABSENT


test_statements_refuse = refuses(
    (
        lambda: Scenario("s", dict, theory=OverPoints, claims=()),
        "scenario 's': got field 'value' with the axis 'point', wanted another name for it",
    ),
    (
        lambda: Scenario("s", dict, theory=Number, measured=Ambiguous, claims=()),
        "scenario 's': got fields 'value' and 'value_measured', wanted another name for the second",
    ),
    (
        lambda: Claim("rho", "", form=of_form, compares=both_sides("rho")),
        "claim 'rho': got compares and form, wanted one of them",
    ),
    (
        lambda: of_sides(Claim("rhoo", "")),
        "claim 'rhoo': got theory.rhoo by its id, wanted theory.rho, or compares or form",
    ),
    (
        lambda: of_sides(Claim("rho", ""), measured=Number),
        "claim 'rho': got run.rho by its id, wanted a field of scenario 'sides', or compares or",
    ),
    (
        lambda: of_sides(Claim("of many words", "")),
        "claim 'of many words': got theory.of many words by its id, wanted a field of scenario",
    ),
    (
        lambda: of_sides(Claim("rhoo", "", form=of_form)),
        r"claim 'rhoo': got a form, no reads and no field 'rhoo', wanted the id of a field \(rho\) "
        "or reads",
    ),
    (
        lambda: of_sides(Claim("spectra", "", form=of_form)),
        "claim 'spectra': got a form, no reads and no field 'spectra', wanted reads",
    ),
    (control, "control 'c': wanted exactly one of case, predict, measure"),
    (lambda: control(predict=abs, measure=abs), "control 'c': wanted exactly one of case, predict"),
    (lambda: control(predict=abs, amounts=(1.0,)), "control 'c': got amounts, wanted case beside"),
    (lambda: scenario(control("other", predict=abs)), "control 'c': got claim 'other', wanted one"),
    *(
        (
            lambda kind=kind: claim(kind, tolerance=1e-4),
            f"claim 'claim': got tolerance=0.0001, wanted none: that of kind '{kind}' is",
        )
        for kind in ("identity", "bound", "exact")
    ),
    (lambda: Flag("side", ("left",), one_of("left"), str), "'side': got words, wanted shapes=True"),
    (lambda: Flag("side", ("left",), POSITIVE, str, shapes=True), "and a domain of words"),
    (one_of, "names: got none, wanted the accepted words"),
    # As a domain was before it was data.
    (
        lambda: Domain("a share", abs),  # pyright: ignore[reportArgumentType]
        "low: got 'a share', wanted a number",
    ),
    (lambda: Domain(0, float("nan")), "high: got nan, wanted a number"),
    (lambda: Domain(2, 1), "low: got 2, wanted at most high, 1"),
    (
        lambda: lr.relative_difference(np.ones(1), np.ones(2)),
        r"predicted: got shape \(1,\), wanted .*\(2,\)",
    ),
)


def test_the_other_kinds_may_have_a_tolerance_of_their_own():
    for kind in ("limit", "rate", "statistical"):
        assert claim(kind, tolerance=1e-4).tolerance == 1e-4


def test_what_a_control_has_wrong_stays_with_it():
    scenario = Scenario[jax.Array, Number, Number](
        "s",
        lambda key: jnp.ones(()),
        lambda x: Number(3 * x),
        lambda x: Number(2 * x),
        theory=Number,
        measured=Number,
        claims=(claim(),),
        controls=(
            Control("p", "5 x", "claim", predict=lambda x: Number(5 * x)),
            Control("m", "x", "claim", measure=lambda x: Number(x)),
        ),
    )
    found = evaluate_controls(scenario, {}, scenario.controls)(0)
    assert (found["p.value_predicted"], found["p.value_measured"]) == (5, 2)
    assert (found["m.value_predicted"], found["m.value_measured"]) == (3, 1)


def test_what_a_control_leaves_absent_stays():
    class Pair(NamedTuple):
        value: Float[Array, ""] = ABSENT
        other: Float[Array, ""] = ABSENT

    both = Claim[Pair, Pair](
        "claim",
        "",
        compares=lambda theory, run: (theory.value, run.value),
        reads=lambda theory, run: (theory.value, run.value, theory.other),
    )
    scenario = Scenario[jax.Array, Pair, Pair](
        "s",
        lambda key: jnp.ones(()),
        lambda x: Pair(value=3 * x, other=7 * x),
        lambda x: Pair(value=2 * x),
        theory=Pair,
        measured=Pair,
        claims=(both,),
        controls=(Control("p", "5 x", "claim", predict=lambda x: Pair(value=5 * x)),),
    )
    found = evaluate_controls(scenario, {}, scenario.controls)(0)
    assert found["p.value_predicted"] == 5
    assert found["p.other"] == 7


def test_what_controls_share_is_called_once_for_each_case():
    calls = []

    def predict(x):
        calls.append(x)
        return Number(3 * x)

    scenario = Scenario[jax.Array, Number, Number](
        "s",
        lambda key: jnp.ones(()),
        predict,
        lambda x: Number(x),
        theory=Number,
        measured=Number,
        claims=(claim(),),
        controls=(
            Control(
                "p",
                "",
                "claim",
                predict=lambda x, once=each_time: Number(once(predict, x).value + 1),
            ),
            Control(
                "q",
                "",
                "claim",
                predict=lambda x, once=each_time: Number(once(predict, x).value + 2),
            ),
            Control("c", "", "claim", case=lambda key, x, amount: 10 * x, breaks="h"),
        ),
        hypotheses={"h": lambda x: x == 1},
    )
    found = evaluate_controls(scenario, {}, scenario.controls)(0)
    assert [float(found[f"{name}.value_predicted"]) for name in "pqc"] == [4, 5, 30]
    assert len(calls) == 1  # for both cases, which differ in an entry alone
    evaluate_controls(scenario, {}, scenario.controls)(0)  # nothing is kept
    assert len(calls) == 2


class Drawn(NamedTuple):
    """A case with what a loop over cases meets: a key, a function, an array that can be missing."""

    x: jax.Array
    key: jax.Array
    power: Callable[[jax.Array], jax.Array] = jnp.square
    more: jax.Array | None = None


def test_cases_that_differ_in_their_entries_share_what_is_compiled():
    forms, looked_at = [], []

    def value(case: Drawn) -> Number:
        more = 0.0 if case.more is None else case.more
        return Number(case.power(case.x) + jax.random.uniform(case.key) + more)

    def measure(case: Drawn) -> Number:
        forms.append((case.power, case.more is not None))
        return value(case)

    def met(case: Drawn) -> jax.Array:
        looked_at.append(case)
        return case.x == 1.0

    broken = {
        "scaled": lambda key, case, amount: case._replace(x=amount * case.x),
        "drawn": lambda key, case, amount: case._replace(key=key),
        "cubed": lambda key, case, amount: case._replace(power=lambda x: x**3),
        "longer": lambda key, case, amount: case._replace(more=amount),
    }
    controls = [Control(n, "", "claim", case=c, breaks="h", amount=3.0) for n, c in broken.items()]
    scenario = Scenario[Drawn, Number, Number](
        "s",
        lambda key: Drawn(jnp.ones(()), key),
        lambda case: Number(2 * case.x),
        measure,
        theory=Number,
        measured=Number,
        claims=(claim(),),
        controls=(*controls, Control("p", "", "claim", predict=lambda case: Number(5 * case.x))),
        hypotheses={"h": met},
    )
    found = jax.jit(evaluate_controls(scenario, {}, scenario.controls))(0)
    assert forms == [(jnp.square, False), (forms[1][0], False), (jnp.square, True)]
    assert len(looked_at) == 3  # a hypothesis, once for all controls of a case
    key = jax.random.key(0)
    whole, moved = Drawn(jnp.ones(()), key), jax.random.fold_in(key, 1)
    cases = {name: case(moved, whole, jnp.asarray(3.0)) for name, case in broken.items()}
    for name, case in (cases | {"p": whole}).items():
        assert found[f"{name}.value_measured"] == value(case).value
        assert found[f"{name}.value_predicted"] == (5 if name == "p" else 2) * case.x
        assert found[f"{name}.met_h"] == (name != "scaled")


class Hidden:
    """A case that is no PyTree: JAX does not see its array."""

    def __init__(self, x):
        self.x = x


CASES: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "array": (lambda x: x, lambda case: case),
    "attribute": (Hidden, lambda case: case.x),
    "closure": (lambda x: {"get": lambda: x}, lambda case: case["get"]()),
    "default": (lambda x: {"get": lambda x=x: x}, lambda case: case["get"]()),
    "constant": (lambda x: {"size": 3.0}, lambda case: jnp.full((), case["size"])),
    "both": (lambda x: {"x": x, "get": lambda: x}, lambda case: case["x"] + case["get"]()),
    "key": (lambda x: jax.random.key(jnp.int32(100 * x)), jax.random.uniform),
}
"""What a case is made of an array, and how that is read."""


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2, 3, 4)])
def test_a_case_may_hold_its_arrays_anywhere(kind, seeds, unchecked):
    """Programs hand on what JAX sees; where something is hidden one program does all."""
    make, read = CASES[kind]
    scenario = Scenario[Any, Number, Number](
        "s",
        lambda key: make(jax.random.uniform(key)),
        lambda case: Number(3 * read(case)),
        lambda case: Number(2 * read(case)),
        theory=Number,
        measured=Number,
        apart=True,
        claims=(claim(),),
        controls=(Control("p", "5 x", "claim", predict=lambda case: Number(5 * read(case))),),
    )
    stated = Theorem("t", "", (), (scenario,))
    found = claims_job(stated, scenario, {}, seeds, "/", "float64").run()["/"]
    wanted = [float(read(make(jax.random.uniform(jax.random.key(seed))))) for seed in seeds]
    np.testing.assert_allclose(found["value_predicted"], 3 * np.array(wanted), rtol=1e-15)
    np.testing.assert_allclose(found["value_measured"], 2 * np.array(wanted), rtol=1e-15)
    broken = controls_job(stated, scenario, scenario.controls, seeds, "float64").run()
    (control,) = broken.values()
    np.testing.assert_allclose(control["value_predicted"], 5 * np.array(wanted), rtol=1e-15)


def test_ids_are_unique(theorem, unchecked):
    (scenario,) = theorem.scenarios
    twin = dataclasses.replace(scenario, controls=())
    twice = lr.Control("decay", "", "decay", predict=lambda x: Lost())
    with pytest.raises(ValueError, match=r"theorem 'my_theorem': got ids \{'decay'\} twice"):
        changed(theorem, controls=(twice,))
    with pytest.raises(ValueError, match=r"'my_theorem': got ids .*'decay'.* twice"):
        dataclasses.replace(theorem, scenarios=(scenario, dataclasses.replace(twin, id="other")))
    for name in ("decay_statement", "controls"):
        claims = (dataclasses.replace(twin.claims[0], id="other"),)
        other = dataclasses.replace(twin, id=name, claims=claims)
        with pytest.raises(ValueError, match=rf"'my_theorem': got ids \{{'{name}'\}} twice"):
            dataclasses.replace(theorem, scenarios=(scenario, other))


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (lr.POSITIVE, [1e-300, 1], [0, -1]),
        (lr.NON_NEGATIVE, [0, 1], [-1e-300]),
        (lr.FRACTION, [1e-300, 0.999], [0, 1]),
        (lr.at_least(2), [2, 3], [1, 2.5]),
        (Domain(0, 1, low_open=True), [1e-300, 1], [0, 1.1]),
        (Domain(0, 1, high_open=True), [0, 0.999], [-1e-300, 1]),
        (between(1.0, 10.0, zero=True), [0, 1, 10], [0.5, 11]),
        (Domain(-2, 2, integer=True), [-2, 0, 2], [-3, 0.5]),
        (Domain(high=3), [-1e300, 3], [3.1]),
        (Domain(), [-1e300, 0, 1e300], []),
    ],
)
def test_domains(domain, inside, outside):
    assert all(domain.contains(x) for x in inside)
    assert not any(domain.contains(x) for x in [*outside, float("nan")])


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (lr.POSITIVE, "a number > 0"),
        (lr.NON_NEGATIVE, "a number >= 0"),
        (lr.FRACTION, "a number strictly between 0 and 1"),
        (lr.at_least(2), "an integer >= 2"),
        (between(1e-3, 1e3), "a number from 0.001 to 1000"),
        (between(1.0, 1e6, zero=True), "0 or a number from 1 to 1e+06"),
        (Domain(0, 1, low_open=True), "a number > 0 and <= 1"),
        (Domain(0, 1, high_open=True), "a number >= 0 and < 1"),
        (Domain(0, 1, integer=True), "0 or 1"),
        (Domain(0, 2, integer=True), "an integer from 0 to 2"),
        (Domain(high=3), "a number <= 3"),
        (Domain(), "a number"),
        (one_of("sgd", "adam"), "one of sgd, adam"),
        (Domain(text="a path"), "a path"),
    ],
)
def test_a_domain_in_words(domain, words):
    assert domain.wanted == words


def test_a_domain_of_words_accepts_those():
    assert [one_of("sgd", "adam").contains(word) for word in ("sgd", "adam", "")] == [1, 1, 0]
    assert [Domain(text="a path").contains(word) for word in ("a", "")] == [True, False]


# Residuals


@pytest.mark.parametrize(
    ("predicted", "measured", "scale", "expected"),
    [
        ([1.0, 4.0], [1.0, 3.0], None, 0.25),
        ([1.0, 3.0], [1.0, 4.0], None, 0.25),
        ([1.0, 4.0], [1.0, 3.0], 10.0, 0.1),
        ([0.0, 0.0], [0.0, 0.0], None, 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([np.nan, 1.0], [1.0, 1.0], None, np.nan),
        ([1.0] * 9, [np.nan] * 9, None, np.nan),
        ([np.inf, 1.0], [np.inf, 1.0], None, np.nan),
        ([1.0, 1.0], [-np.inf, 1.0], 1.0, np.nan),
    ],
)
def test_relative_difference(predicted, measured, scale, expected):
    found = lr.relative_difference(np.array(predicted), np.array(measured), scale)
    assert np.array_equal(found, expected, equal_nan=True)
    if scale is None:  # the traced twin, of which conditions are made
        for function in (relative_response, jax.jit(relative_response)):
            found = function(jnp.array(predicted), jnp.array(measured))
            assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_the_condition_of_a_run_is_its_amplification(factor, dtype):
    x = jnp.array([1.0, 0.5, 0.25])
    result, condition = lr.with_condition(lambda x: 1 + factor * (x - x[0]), x)
    assert np.array_equal(result, 1 + factor * (x - x[0]))
    assert 1 <= condition <= 2 * factor
    assert factor == 1 or condition > factor / 30


def test_a_chaotic_run_has_no_condition(dtype):
    def run(x):
        return jax.lax.fori_loop(0, 200, lambda _, x: 4 * x * (1 - x), x)

    x = jnp.linspace(0.1, 0.4, 8)
    assert np.isinf(lr.with_condition(run, x)[1])
    assert np.isinf(lr.with_condition(lambda x: x / 0.0, x)[1])
    # As small as what it wanders in may be: errors of every size end at a hundredth here.
    assert np.isinf(lr.with_condition(lambda x: 1 + 0.01 * run(x), x)[1])


def test_a_third_twin_shows_the_digits_that_a_run_itself_loses():
    """Of 1 - tanh^2, the derivative of a saturated unit, half of the digits are rounding."""

    def slope(x):
        return 1 - jnp.tanh(8 + (x - 1e3)) ** 2

    # As many, since one rounding of x reaches the last digit of few.
    x = 1e3 + jnp.linspace(0, 1e-3, 20000)
    of_twins, one, many = (
        float(lr.with_condition(slope, x, roundings=allowed)[1]) for allowed in (None, 1.0, 20.0)
    )
    # Of x itself: 2 x slope / slope.
    assert 1e3 < of_twins < 1e4
    assert one > 1e6
    assert many == pytest.approx(one / 20)
    assert np.isinf(lr.with_condition(lambda x: x / 0.0, x, roundings=1e9)[1])


def test_a_run_that_loses_no_digit_has_the_condition_of_its_twins(dtype):
    x = jnp.array([1.0, 0.5, 0.25])
    plain, allowed = (
        float(lr.with_condition(lambda x: 1 + 30 * (x - x[0]), x, roundings=roundings)[1])
        for roundings in (None, 20.0)
    )
    assert plain == allowed
    with pytest.raises(ValueError, match=r"^runs: got no rounded twin, wanted those of"):
        conditions(twins(lambda x: x, x), roundings=1.0)


# Flags of words, and plots of a theorem's own ---------------------------------------------------


class Worded(NamedTuple):
    value: Float[Array, "value_0"] = ABSENT
    side: Float[Array, "side_0"] = ABSENT


def worded(**more):
    """A theorem with a flag of words and a plot."""

    def case(key, *, side):
        return jax.random.normal(key, (3,)) * {"left": 1.0, "right": -1.0}[side]

    def value(x):
        return Worded(value=x, side=jnp.sign(x))

    itself = Claim[Worded, Worded](
        "value", "equals itself", compares=lambda theory, run: (theory.value, run.value)
    )
    scenario = Scenario(
        "worded", case, value, value, theory=Worded, measured=Worded, claims=(itself,)
    )
    flag = Flag("side", ("left",), one_of("left", "right"), str, "s", "a side", shapes=True)
    return Theorem("worded", "a word decides", (flag,), (scenario,), **more)


def test_a_flag_of_words(tmp_path, command_line):
    assert command_line(worded(), "--side", "left", "right")[0] == 0
    assert results_of(tmp_path)["side"].values.tolist() == ["left", "right"]
    status, _, err = command_line(worded(), "--side", "up")
    assert status == 2
    assert "--side: got 'up', wanted one of left, right" in err


def test_a_theorem_draws_its_own_plots(tmp_path, unchecked, monkeypatch):
    monkeypatch.setenv("LRDYN_CACHE", "")
    seen = []
    plots = {"mine": lambda groups: seen.append(set(groups)) or Figure()}
    assert cli.main(worded(plots=plots), ["--out", str(tmp_path)]) == 0
    assert seen == [{"/", "/case", "/float32"}]
    assert {path.suffix for path in tmp_path.rglob("mine.*")} == {".png", ".pdf"}


def sided(**more):
    """A theorem with a second scenario, about the right side only."""
    whole = worded()
    (first,) = whole.scenarios
    other = dataclasses.replace(
        first,
        id="right_only",
        measure=lambda x: Worded(side=jnp.where(abs(x) < 10, jnp.sign(x), 0.0)),
        claims=(
            Claim[Worded, Worded](
                "side",
                "a sign of each number below 10",
                compares=lambda theory, run: (theory.side, run.side),
            ),
        ),
        hypotheses={"small": lambda x: jnp.all(abs(x) < 10)},
        controls=(
            lr.Control[jax.Array, Worded, Worded](
                "other_side",
                "the other side",
                "side",
                at={"side": "right"},
                predict=lambda x: Worded(side=jnp.sign(-x)),
            ),
            lr.Control[jax.Array, Worded, Worded](
                "moved",
                "moved",
                "side",
                at={"side": "right"},
                amounts=(1.0,),
                case=lambda key, x, amount: x + 100 * amount,
                breaks="small",
            ),
        ),
        narrow=lambda s: s | {"side": tuple(side for side in s["side"] if side == "right")},
    )
    return dataclasses.replace(whole, scenarios=(first, other), **more)


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ((), ["value"]),
        (("--side", "left"), ["value"]),
        (("--side", "right", "left"), ["value", "side", "other_side", "moved"]),
    ],
)
def test_a_statement_that_the_settings_do_not_concern_is_left_out(
    words, ids, tmp_path, unchecked, monkeypatch
):
    monkeypatch.setenv("LRDYN_CACHE", "")
    seen = []
    plots = {"other": lambda groups: seen.append("/right_only" in groups) or None}
    status = cli.main(sided(plots=plots), [*words, "--perturb", "--out", str(tmp_path)])
    concerned = "side" in ids
    assert status == 0
    found = verdict_of(tmp_path)
    assert [entry["id"] for entry in found["claims"]] == ids
    assert seen == [concerned]
    assert not list(tmp_path.rglob("other.*"))  # a plot that has nothing to show
    drawn = {path.suffix for path in tmp_path.rglob("perturb.*")}
    assert drawn == ({".png", ".pdf"} if concerned else set())


def test_the_first_statement_is_never_left_out(unchecked):
    first, other = sided().scenarios
    turned = dataclasses.replace(sided(), scenarios=(other, first))
    with pytest.raises(cli.BadInput, match=r"got \['side'\] empty"):
        cli.parse(turned, ["--side", "left"])


# Continuing, and what stops a run ---------------------------------------------------------------


MANY = ["--dim", "2", "--rate", *map(str, np.linspace(0.1, 0.5, 40)), "--memory", "1kB"]


def test_a_killed_command_goes_on(script, tmp_path):
    assert python(script, *MANY, "--out", tmp_path / "whole").returncode == 0
    out = tmp_path / "killed"
    first = started(script, *MANY, "--out", out)
    while len(list(out.rglob("[0-9]*.npz"))) < 3:
        assert first.poll() is None
    first.kill()
    first.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("[0-9]*.npz")}
    damaged = min(kept)
    damaged.write_bytes(b"")
    second = python(script, *MANY, "--out", out)
    assert second.returncode == 0
    assert f"{damaged}: damaged" in second.stderr
    for group in ("/", "/float32", "/controls/bent/float64"):
        assert results_of(out, group).identical(results_of(tmp_path / "whole", group))
    left, whole = (
        {path.name for path in folder.rglob("*")} for folder in (out, tmp_path / "whole")
    )
    assert left == whole


def test_a_second_run_into_the_same_folder_is_refused(theorem, command):
    folder = cli.parse(theorem, ["--dim", "2", "--seeds", "1"]).run.folder("results")
    folder.mkdir(parents=True)
    with files.lock(folder):
        status, out, err = command(theorem)
    assert (status, out) == (2, "")
    assert err == (
        f"my_theorem: error: --out: got 'results' ({folder} is in use by another run), "
        "wanted a folder of its own\n"
    )


@pytest.mark.parametrize("size", ["", "0", "-1", "1XB", "MB", "nan", "1e400GB", "0.1", "9" * 400])
def test_a_bad_memory_budget(theorem, command, tmp_path, size):
    status, out, err = command(theorem, f"--memory={size}")
    assert (status, out) == (2, "")
    wanted = f"got '{shortened(size)}', wanted a size such as 500MB or 2GiB"
    assert err == f"my_theorem: error: --memory: {wanted}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1kB", 1000), ("1.5 KiB", 1536), ("2g", 2 * 10**9), ("1TiB", 2**40), ("7b", 7)],
)
def test_a_memory_budget(theorem, text, size):
    command = cli.parse(theorem, ["--memory", text])
    assert command.options.memory == size
    assert command.run == cli.parse(theorem, []).run
