"""Files of a run that somebody changed: refused, or judged and said to be changed."""

import json
import shutil
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int
from runs import verdict_of

from lrdyn.figures import verdicts
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.runs import run_folder
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.statement import Claim, Control, Scenario, Theorem
from lrdyn.verification.storing import files, results_file


class Start(eqx.Module):
    """Where a decay starts."""

    vector: Float[Array, "index"]
    scale: Float[Array, ""]
    steps: int = eqx.field(static=True)


class Theory(NamedTuple):
    """The closed form."""

    rho: Float[Array, "step index"] = ABSENT
    """Decayed vectors."""
    condition: Float[Array, ""] = ABSENT
    """How much rounding grows."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which theory diverges."""
    contraction: Float[Array, ""] = ABSENT
    """Factor of a step."""
    level: Float[Array, ""] = ABSENT
    """A size that is recorded."""


class Run(NamedTuple):
    """The recursion."""

    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""
    rho: Float[Array, "step index"] = ABSENT
    """Decayed vectors."""


def start(key, *, size, init_scale, steps):
    return Start(jax.random.normal(key, (size,)), jnp.asarray(init_scale, float), steps)


def closed_form(case):
    powers = 0.75 ** jnp.arange(case.steps + 1)
    one = jnp.ones((), case.vector.dtype)
    return Theory(
        rho=powers[:, None] * (case.scale * case.vector)[None],
        condition=2 * one,
        diverges=jnp.asarray(-1),
        contraction=0.75 * one,
        level=jnp.linalg.norm(case.vector),
    )


def recursion(case):
    def step(rho, _):
        return 0.75 * rho, 0.75 * rho

    first = case.scale * case.vector
    _, rest = jax.lax.scan(step, first, None, case.steps)
    return Run(jnp.arange(case.steps + 1), jnp.concatenate([first[None], rest]))


DECAY = Scenario[Start, Theory, Run](
    "decay",
    start,
    closed_form,
    recursion,
    theory=Theory,
    measured=Run,
    claims=(
        Claim(
            "rho",
            "rho(t) = (3/4)^t rho(0)",
            compares=lambda theory, run: (theory.rho, run.rho),
            condition=lambda theory: theory.condition,
        ),
    ),
    controls=(
        Control(
            "squared",
            "rho^2 for rho",
            "rho",
            predict=lambda case: Theory(rho=closed_form(case).rho ** 2),
        ),
    ),
    hypotheses={"positive": lambda case: case.scale > 0},
    steps="steps",
    diverges=lambda theory: theory.diverges,
)
THEOREM = Theorem(
    "decay",
    "a vector decays",
    (
        Flag("size", (2, 3), at_least(1), int, shapes=True),
        Flag("init_scale", (1.0, 3.0)),
        Flag("steps", (6,), at_least(1), int, swept=False, shapes=True),
    ),
    (DECAY,),
)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return run_folder.carry_out(run_of(THEOREM), tmp_path_factory.mktemp("saved"))[1]


@pytest.fixture
def folder(once, tmp_path):
    return shutil.copytree(once, tmp_path / "saved")


@pytest.fixture
def again(folder, command_line, monkeypatch):
    monkeypatch.setattr(verdicts, "draw", lambda *what: None)  # most of the time of judging
    return lambda *more: command_line(THEOREM, "--judge", folder.name, *more)


# What somebody changes -----------------------------------------------------------------------
# Each takes the groups of the file and changes them in place.


def both(change):
    """The same to the runs of both precisions."""

    def changed(groups):
        for name in ("/", "/float32"):
            groups[name] = change(groups[name])

    return changed


def copied(data):
    return data.assign(rho_measured=data["rho_predicted"])


def nonsense(data):
    return data.assign({n: data[n] * 0 + 0.123 for n in ("rho_predicted", "rho_measured")})


def zeroed(data):
    return data.assign({n: data[n] * 0 for n in ("rho_predicted", "rho_measured")})


def loosened(data):
    return data.assign(condition=data.condition * 1e9, rho_measured=data.rho_measured + 1e-6)


def scaled(data):
    large = {n: data[n] * 1e9 for n in ("rho_predicted", "rho_measured")}
    return data.assign(large | {"rho_measured": large["rho_measured"] + 1e-6})


def at_the_start(data):
    return data.isel(step=slice(1))


def relabelled(data):
    return data.assign_coords(init_scale=data.init_scale * 10)


def exchanged(data):
    runs_of = ("rho_predicted", "rho_measured")
    return data.assign({n: data[n].dims and (data[n].dims, data[n].values[::-1]) for n in runs_of})


def half(data):
    return data.isel(init_scale=slice(1))


def all_but_one(array, value):
    changed = array.copy(deep=True)
    changed.values.ravel()[1:] = value
    return changed


def diverging(data):
    return data.assign(diverges=all_but_one(data.diverges, 3))


def unmet(data):
    return data.assign(met_positive=all_but_one(data.met_positive, False))


def in_float64(groups):
    groups["/float32"] = groups["/"].copy().assign_attrs(groups["/float32"].attrs)


def one_entry(groups):
    groups["/"]["rho_measured"].values[0, 0, 0, 2, 1] += 1e-9


def one_side(groups):
    data = groups["/"]
    data["rho_measured"].values[:] = data["rho_measured"].values[::-1].copy()


def no_number(groups):
    groups["/"]["rho_measured"].values[0, 0, 0, 2, 1] = np.nan


def more_steps(data):
    fixed = json.loads(data.attrs["fixed"]) | {"steps": 6 * 10**9}
    return data.assign_attrs(fixed=json.dumps(fixed))


def control_zeroed(groups):
    for name in [name for name in groups if name.startswith("/controls")]:
        groups[name]["rho_predicted"].values[:] = 0


def without(*names):
    def changed(groups):
        for name in names:
            del groups[name]

    return changed


def other_seed(groups):
    groups["/case"] = groups["/case"].assign_coords(seed=[7])


class Tampering(NamedTuple):
    """How a file is changed."""

    change: Any
    said: str = ""
    """What is said of it even where the checksum in verdict.json was made to fit; empty where
    nothing can be seen: there is no signature."""
    judged: bool = True
    """Whether it can be judged, with ``--changed``."""


TAMPERINGS = {
    "predictions copied over runs": Tampering(both(copied)),
    "nonsense on both sides": Tampering(both(nonsense)),
    "both sides 0": Tampering(both(zeroed), judged=False),  # which shows nothing
    "conditions x 1e9": Tampering(both(loosened)),
    "arrays x 1e9": Tampering(both(scaled)),
    "cut to t = 0": Tampering(both(at_the_start), "got steps 0 to 0, wanted 0 to steps"),
    "labels x 10": Tampering(both(relabelled), "got 2 of init_scale, [10.0, 30.0], wanted 2"),
    "runs exchanged among labels": Tampering(both(exchanged)),
    "half the settings": Tampering(both(half), "got 4 cases, wanted 8"),
    "excused by divergence": Tampering(both(diverging)),
    "excused by a hypothesis": Tampering(both(unmet)),
    "contraction := 2": Tampering(both(lambda data: data.assign(contraction=data.contraction + 2))),
    "level x 1e3": Tampering(both(lambda data: data.assign(level=data.level * 1e3))),
    "float64 in the place of float32": Tampering(in_float64, "got float64"),
    "one entry + 1e-9": Tampering(one_entry),
    "one side exchanged": Tampering(one_side),
    "a NaN": Tampering(no_number),
    "longest_axis x 1e9": Tampering(
        both(lambda data: data.assign(longest_axis=data.longest_axis * 10**8))
    ),
    "steps x 1e9": Tampering(both(more_steps), "got fixed settings"),
    "controls zeroed": Tampering(control_zeroed),
    "no control": Tampering(without("/controls/squared/float64"), "got none, wanted it", False),
    "no float32": Tampering(without("/float32"), "got no array 'longest_axis'", False),
    "no cases": Tampering(without("/case"), "group /case: got none, wanted it"),
    "cases of another seed": Tampering(other_seed, "got [7] of seed, wanted [0]"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_changed_results_are_refused_or_said(name, folder, again):
    groups = results_file.load(folder / results_file.NAME)
    before = verdict_of(folder)
    TAMPERINGS[name].change(groups)
    files.write_netcdf(folder / results_file.NAME, groups)
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "its checksum differs" in err
    assert verdict_of(folder) == before
    status, out, err = again("--changed")
    assert (status != 2) == TAMPERINGS[name].judged
    if status == 2:
        assert err.count("\n") == 1
        return
    assert "changed: results.nc is not the file that the run wrote" in out
    assert out.splitlines()[-1].startswith("changed: decay ")
    verdict = verdict_of(folder)
    assert (verdict["changed"], verdict["results_sha256"]) == (True, None)
    # Judged or not, it is never again the run's.
    assert again()[0] == 2


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_checksum_made_to_fit_hides_numbers_but_no_axis(name, folder, again):
    _, said, judged = TAMPERINGS[name]
    groups = results_file.load(folder / results_file.NAME)
    TAMPERINGS[name].change(groups)
    files.write_netcdf(folder / results_file.NAME, groups)
    fit(folder)
    ended, out, err = again()
    if not said:
        assert (ended in (0, 1, 4), "changed" in out) == (judged, False)
        return
    assert (ended, out, err.count("\n")) == (2, "", 1)
    assert said in err
    ended, out, _ = again("--changed")
    assert (ended != 2) == (said in out) == judged


def fit(folder, **changes):
    """Make verdict.json fit the file beside it."""
    verdict = verdict_of(folder) | {
        "results_sha256": results_file.checksum(folder / results_file.NAME)
    }
    (folder / "verdict.json").write_text(json.dumps(verdict | changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda verdict: verdict.pop("results_sha256"), "results_sha256: got nothing, wanted it"),
        (lambda verdict: verdict.update(results_sha256=None), "has no checksum of the run"),
        (lambda verdict: verdict.update(changed=True), "is of a changed file"),
        (lambda verdict: verdict["environment"].update(dtype="float32"), "is of float32"),
        (lambda verdict: verdict["config"].update(seeds=3), "verdict.json has other settings"),
        (lambda verdict: verdict["config"].update(steps=7), "verdict.json has other settings"),
    ],
)
def test_a_changed_verdict_is_refused(change, said, folder, again):
    verdict = verdict_of(folder)
    change(verdict)
    (folder / "verdict.json").write_text(json.dumps(verdict))
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seeds": 3}, "got 8 cases, wanted 12"),
        ({"seed": 1}, "of seed"),
        ({"steps": 7}, "got fixed settings"),
        ({"size": [2]}, "got 8 cases, wanted 4"),
        ({"init_scale": [1.0, 2.0]}, "of init_scale"),
        ({"perturb": 3}, "perturb: got 3"),
        ({"seeds": 10**9}, "wanted 4000000000"),
    ],
)
def test_other_settings_in_both_files_are_seen(settings, said, folder, again):
    groups = results_file.load(folder / results_file.NAME)
    config = json.loads(groups["/"].attrs["config"]) | settings
    groups["/"].attrs["config"] = results_file.canonical_json(config)
    files.write_netcdf(folder / results_file.NAME, groups)
    fit(folder, config=config if "perturb" not in settings else verdict_of(folder)["config"])
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_verdict_that_was_edited_is_written_anew(folder, again):
    verdict = verdict_of(folder)
    fit(folder, holds=False, claims=[])
    status, out, _ = again()
    assert (status, out.splitlines()[-1]) == (0, "decay holds: saved")
    assert verdict_of(folder) == verdict


def test_a_folder_of_an_earlier_release_is_judged(folder, again):
    groups = results_file.load(folder / results_file.NAME)
    del groups["/case"], groups["/"].attrs["judges"]
    files.write_netcdf(folder / results_file.NAME, groups)
    verdict = verdict_of(folder)
    del verdict["changed"]
    (folder / "verdict.json").write_text(json.dumps(verdict))
    fit(folder)
    status, out, _ = again()
    assert status == 0
    assert "is of an earlier release: no cases, no digest of its judges" in out
    assert verdict_of(folder)["changed"] is False


def test_an_edited_judge_is_said(folder, again, monkeypatch):
    monkeypatch.setattr(run_folder, "judges_digest", lambda theorem: "other")
    status, out, _ = again()
    assert (status, verdict_of(folder)["changed"]) == (0, False)
    assert "the judges of decay are not those of the run" in out


# The cases ------------------------------------------------------------------------------------


def test_both_sides_follow_from_the_cases_with_numpy(folder):
    groups = results_file.load(folder / results_file.NAME)
    found, cases = groups["/"], groups["/case"]
    for place in np.ndindex(2, 2):
        size = int(found["size"][place[0]])
        here = {"size": place[0], "init_scale": place[1], "seed": 0}
        case, results_here = cases.isel(here), found.isel(here)
        vector = case["case.vector"].values[:size]
        assert case["case.vector"].dtype == np.float64
        assert int(case["length_case.vector_0"]) == size
        assert int(case["case.steps"]) == 6
        powers = 0.75 ** np.arange(7)
        expected = float(case["case.scale"]) * powers[:, None] * vector
        np.testing.assert_allclose(results_here["rho_predicted"].values[:, :size], expected)
        np.testing.assert_allclose(results_here["rho_measured"].values[:, :size], expected)
