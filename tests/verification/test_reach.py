"""What a function can reach, and records of runs: never those of another formula."""

import linecache
import os
import subprocess
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from lrdyn.system.private_files import PrivateFolder
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running.work import Context
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.reach import Unknown, reach_digest
from lrdyn.verification.stating.statement import Claim, Control, Scenario, Theorem
from tests.jobs import claims_job, controls_job
from tests.runs import ROOT, Told

SOURCE = '''
"""A theorem in a file of its own."""
import functools
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxtyping import Array

SCALE = 2.0
TABLE = {"power": (2, [1.0, 0.5])}
ENTRIES = np.array([1.0, 2.0, 3.0])
OFFSET = 0.25


class Case(eqx.Module):
    x: Array
    gain: float = eqx.field(static=True, default=1.5)

    @property
    def doubled(self):
        return self.x + self.x

    def halved(self):
        return 0.5 * self.x


class Sides(NamedTuple):
    y: Array = 0.0


def helper(x):
    # a comment
    return jnp.sin(x)


def deeper(x):
    """Add what a closure adds."""
    return CLOSURE(x)


def make_closure(amount):
    def add(x):
        return x + amount

    return add


CLOSURE = make_closure(0.125)
PARTIAL = partial(lambda x, by: by * x, by=3.0)
STEPS = [lambda x: x + 1.0, lambda x: x * x]


def with_default(x, power=3, *, shift=0.5):
    return x**power + shift


def scaled(by):
    def decorate(function):
        @functools.wraps(function)
        def decorated(x):
            return by * function(x)

        return decorated

    return decorate


@scaled(1.125)
def decorated_one(x):
    return 1.0 - x


@jax.jit
def jitted(x):
    return jnp.cosh(x)


@jax.custom_jvp
def own_slope(x):
    return x**3


@own_slope.defjvp
def slope(primals, tangents):
    return own_slope(*primals), 3.0 * primals[0] ** 2 * tangents[0]


def make_case(key, *, size):
    return Case(jax.random.uniform(key) + jnp.arange(size) / size)


def theory_only(x):
    return jnp.tanh(x)


def predict(case):
    return Sides(theory_only(case.x))


def measure(case):
    x = case.x
    parts = [SCALE * helper(x), deeper(x), PARTIAL(x), with_default(x), decorated_one(x), jitted(x)]
    parts += [STEPS[1](STEPS[0](x))]
    parts += [case.doubled, case.halved(), case.gain * x, jax.grad(own_slope)(x[0]) + x]
    parts += [x ** TABLE["power"][0], TABLE["power"][1][1] * x, ENTRIES[-1] + x]
    return Sides(sum(jnp.sum(part) for part in parts))


def move(key, case, amount):
    return Case(case.x + amount + OFFSET)


def wrong(case):
    return Sides(-theory_only(case.x))
'''
MODULE = "lrdyn.theorem2.made_up"
"""Name of a module that states a theorem."""

EDITS: dict[str, tuple[str, str]] = {
    "global constant": ("SCALE = 2.0", "SCALE = 2.5"),
    "helper": ("return jnp.sin(x)", "return jnp.cos(x)"),
    "constant of a helper": ("0.5 * self.x", "0.75 * self.x"),
    "closure": ("make_closure(0.125)", "make_closure(0.375)"),
    "code around a closure": ("return x + amount", "return x - amount"),
    "default": ("power=3", "power=4"),
    "keyword default": ("shift=0.5", "shift=0.75"),
    "argument of a partial": ("by=3.0", "by=4.0"),
    "function of a partial": ("by * x", "by + x"),
    "function in a list": ("x * x]", "x + x]"),
    "order of a list": (
        "[lambda x: x + 1.0, lambda x: x * x]",
        "[lambda x: x * x, lambda x: x + 1.0]",
    ),
    "property": ("self.x + self.x", "self.x + 2 * self.x"),
    "argument of a decorator": ("@scaled(1.125)", "@scaled(1.25)"),
    "decorator": ("by * function(x)", "by + function(x)"),
    "decorated": ("return 1.0 - x", "return 2.0 - x"),
    "compiled": ("jnp.cosh(x)", "jnp.sinh(x)"),
    "rule of a derivative": ("3.0 * primals", "6.0 * primals"),
    "entry of a table": ("(2, [1.0, 0.5])", "(3, [1.0, 0.5])"),
    "entry of a list in it": ("(2, [1.0, 0.5])", "(2, [1.0, 0.25])"),
    "array": ("[1.0, 2.0, 3.0]", "[1.0, 2.0, 4.0]"),
    "field of the case": ("default=1.5", "default=1.75"),
    "case": ("jax.random.uniform(key) +", "jax.random.normal(key) +"),
}
"""Of what the run can reach: what is exchanged in the file."""
KEPT = {
    "comment": ("    # a comment\n", "    # another comment\n\n"),
    "docstring": ("Add what a closure adds.", "Add."),
    "theory": ("return jnp.tanh(x)", "return 2 * jnp.tanh(x)"),
    "control": ("Sides(-theory_only", "Sides(3 * theory_only"),
}
"""What the run cannot reach."""


def module_of(source: str) -> Any:
    """The module of a source, as another process imports it after an edit."""
    module = types.ModuleType(MODULE)
    linecache.cache[MODULE] = (len(source), None, source.splitlines(keepends=True), MODULE)
    sys.modules[MODULE] = module
    try:
        exec(compile(source, MODULE, "exec"), vars(module))
    finally:
        del sys.modules[MODULE]
    return module


def edited(old: str, new: str) -> str:
    assert SOURCE.count(old) == 1, old
    return SOURCE.replace(old, new)


def theorem_of(module: Any) -> Theorem:
    scenario = Scenario[Any, Any, Any](
        "s",
        module.make_case,
        module.predict,
        module.measure,
        theory=module.Sides,
        measured=module.Sides,
        apart=True,
        claims=(Claim[Any, Any]("y", ""),),
        controls=(
            Control("p", "", "y", predict=module.wrong),
            Control("c", "", "y", case=module.move, breaks="h"),
        ),
        hypotheses={"h": lambda case: case.x[0] < 1e3},
    )
    return Theorem("t", "", (Flag("size", (3,), at_least(1), int, shapes=True),), (scenario,))


def runs_of(source: str, folder: Any, taken: list[int] | None) -> dict[str, Any]:
    """Scenario and controls, with what is kept in a folder; None keeps nothing."""
    theorem = theorem_of(module_of(source))
    programs = folder and KeptPrograms(PrivateFolder(folder), "code", "engine", taken)
    context = Context(progress=Told(), programs=programs)
    scenario = theorem.scenarios[0]
    jobs = (
        claims_job(theorem, scenario, {"size": (3,)}, [0, 1], "/", "float64", False),
        controls_job(theorem, scenario, scenario.controls, [0, 1], "float64"),
    )
    jax.clear_caches()  # as in another process
    return {group: found for job in jobs for group, found in job.run(context).items()}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with the records of both runs."""
    folder, taken = tmp_path_factory.mktemp("before") / "kept", []
    first = runs_of(SOURCE, folder, taken)
    assert not taken
    assert len(list(folder.glob("*.record"))) == 2
    return folder, first


@pytest.fixture
def folder(before, tmp_path):
    """A copy of that folder."""
    kept = PrivateFolder(tmp_path / "kept")
    for path in before[0].iterdir():
        kept.write(path.name, path.read_bytes())
    return kept.path


def identical(ones, others) -> bool:
    return all(ones[group].identical(others[group]) for group in ones)


@pytest.mark.parametrize("edit", EDITS)
def test_after_an_edit_that_the_run_can_reach_it_is_measured_anew(folder, before, edit):
    taken: list[int] = []
    source = edited(*EDITS[edit])
    found = runs_of(source, folder, taken)
    assert not taken
    assert not np.array_equal(found["/"]["y_measured"], before[1]["/"]["y_measured"])
    assert identical(found, runs_of(source, None, None))


@pytest.mark.parametrize("edit", KEPT)
def test_after_another_edit_its_records_are_read(folder, edit):
    taken: list[int] = []
    source = edited(*KEPT[edit])
    found = runs_of(source, folder, taken)
    assert taken == [2, 2]
    assert identical(found, runs_of(source, None, None))


def test_after_an_edit_of_a_move_the_controls_alone_are_measured_anew(folder):
    taken: list[int] = []
    source = edited("OFFSET = 0.25", "OFFSET = 0.5")
    found = runs_of(source, folder, taken)
    assert taken == [2]
    assert identical(found, runs_of(source, None, None))


def test_other_cases_of_the_same_program_are_measured(folder, before):
    """Their bytes are in the name of a record: here another seed, at equal shapes."""
    taken: list[int] = []
    theorem = theorem_of(module_of(SOURCE))
    programs = KeptPrograms(PrivateFolder(folder), "code", "engine", taken)
    scenario = theorem.scenarios[0]
    job = claims_job(theorem, scenario, {"size": (3,)}, [0, 2], "/", "float64", False)
    found = job.run(Context(progress=Told(), programs=programs))["/"]
    assert not taken
    first = before[1]["/"]["y_measured"]
    assert np.array_equal(found["y_measured"][0], first[0])
    assert not np.array_equal(found["y_measured"][1], first[1])


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: b"", lambda _: b"{}"])
def test_a_damaged_record_is_made_again(folder, before, damage):
    for path in folder.glob("*.record"):
        path.write_bytes(damage(path.read_bytes()))
    taken: list[int] = []
    assert identical(runs_of(SOURCE, folder, taken), before[1])
    assert not taken
    assert identical(runs_of(SOURCE, folder, taken), before[1])
    assert taken == [2, 2]


def test_a_record_under_the_name_of_another_is_not_read(folder, before):
    one, other = folder.glob("*.record")
    one.write_bytes(other.read_bytes())
    taken: list[int] = []
    assert identical(runs_of(SOURCE, folder, taken), before[1])
    assert taken == [2]


def test_without_a_list_no_record_is_kept_or_read(tmp_path, before):
    assert identical(runs_of(SOURCE, tmp_path / "kept", None), before[1])
    assert not list((tmp_path / "kept").glob("*.record"))


STAGES = """
from lrdyn import cli
from lrdyn.registry import REGISTRY
from lrdyn.verification.running.evaluate import Staged
from lrdyn.verification.running.produce import jobs_of, select_scenarios
from lrdyn.verification.stating.reach import Unknown, reach_digest
from pkgutil import resolve_name

for name in REGISTRY.values():
    theorem = resolve_name(name)
    run = cli.parse(theorem, []).run
    mine = select_scenarios(theorem, run.settings)
    for job in jobs_of(mine, run.settings, run.dtype, run.seeds_of, False, False):
        if isinstance(job.function, Staged) and job.scenario.traced:
            for stage in ("predict", "measure"):
                ids = [control.id for control in job.controls]
                decided_by = [job.function.decided_by[name] for name in ("case", stage)]
                print(job.group, ids, reach_digest(decided_by))
"""


def test_what_every_theorem_reaches_is_known_and_is_the_same_in_every_process():
    """In processes without the types that tests check, which wrap every function."""
    lines = []
    for seed in ("1", "2"):  # sets of texts have another order
        where = {"PYTHONHASHSEED": seed, "PYTHONPATH": os.fspath(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-c", STAGES],
            env=os.environ | where,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        lines.append(ended.stdout.splitlines())
    assert lines[0] == lines[1]
    assert len(lines[0]) > 100


COMPUTED = {
    "a computed name": ("return jnp.sin(x)", 'return getattr(jnp, "sin")(x)'),
    "a file": ("return jnp.sin(x)", 'return float(open("scale").read()) * x'),
    "a text that is executed": ("return jnp.sin(x)", 'return eval("jnp.sin(x)")'),
    "all globals": ("return jnp.sin(x)", 'return globals()["SCALE"] * x'),
}


@pytest.mark.parametrize("way", COMPUTED)
def test_what_cannot_be_followed_is_refused(way):
    module = module_of(edited(*COMPUTED[way]))
    with pytest.raises(Unknown):
        reach_digest(module.measure)
    assert reach_digest(module.predict) == reach_digest(module_of(SOURCE).predict)


def test_a_run_whose_reach_is_unknown_is_never_kept(tmp_path):
    """Its program has the name that all the code of its theorem gives."""
    source = edited("return jnp.sin(x)", 'return getattr(jnp, "sin")(x)')
    for _ in range(2):
        taken: list[int] = []
        runs_of(source, tmp_path / "kept", taken)
        assert not taken
    assert not list((tmp_path / "kept").glob("*.record"))
    assert list((tmp_path / "kept").glob("*.program"))


def test_a_function_that_is_exchanged_in_this_process_is_another_one(monkeypatch):
    module = module_of(SOURCE)
    before = reach_digest(module.measure)
    monkeypatch.setattr(module, "helper", module.theory_only)
    assert reach_digest(module.measure) != before


def test_two_functions_that_change_places_are_noticed():
    """Each of them is reached before and after."""

    def make(first, second):
        return lambda x: first(x) - second(x)

    one, other = (lambda x: x + 1), (lambda x: x + 2)
    assert reach_digest(make(one, other)) != reach_digest(make(other, one))
    assert reach_digest(make(one, other)) == reach_digest(make(one, other))
