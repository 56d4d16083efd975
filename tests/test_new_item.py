"""A theorem more costs its room, a line in the registry, its command, its referee and its page."""

import difflib
import os
import shutil
import subprocess
import sys

import pytest

from tests.runs import ROOT, Printed

pytestmark = pytest.mark.tools

ROOM = '''"""Descent on a quadratic: every coordinate decays at its own rate."""

from lrdyn.quadratic.decay import decayed as decayed
'''
FORMULA = '''"""Gradient descent on a quadratic in closed form."""

from jaxtyping import Array, Float, Int


def decayed(
    start: Float[Array, "n"], rates: Float[Array, "n"], times: Int[Array, "step"]
) -> Float[Array, "step n"]:
    """Where descent on ``1/2 sum_i h_i x_i^2`` is: ``x_i(t) = (1 - eta h_i)^t x_i(0)``.

    Args:
        start: x(0).
        rates: eta h_i.
        times: steps t.

    Example:
        >>> import jax.numpy as jnp
        >>> decayed(jnp.ones(1), jnp.full(1, 0.5), jnp.arange(3)).tolist()
        [[1.0], [0.5], [0.25]]
    """
    return (1 - rates)[None, :] ** times[:, None] * start[None, :]
'''
STATEMENT = '''"""Descent on a quadratic: every coordinate decays at its own rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.quadratic.decay import decayed
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from lrdyn.verification.stating.statement import Claim, Control, Scenario, Theorem


class Quadratic(NamedTuple):
    """A quadratic with a start."""

    start: Array
    rates: Array
    cubic: Array
    """Coefficient of a term that is none of a quadratic."""
    steps: np.ndarray


class Theory(NamedTuple):
    """What is predicted."""

    decay: Float[Array, "step index"] = ABSENT


class Measured(NamedTuple):
    """What is seen in the run."""

    decay: Float[Array, "step index"] = ABSENT
    step: Int[Array, "step"] = ABSENT


def make_case(key: Key[Array, ""], *, size: int, steps: int) -> Quadratic:
    """Draw a start and rates between 0 and 1/2."""
    start, rates = jax.random.uniform(key, (2, size), minval=0.1, maxval=0.5)
    return Quadratic(start, rates, jnp.zeros(()), np.arange(steps + 1))


def predict(case: Quadratic) -> Theory:
    """The closed form."""
    return Theory(decay=decayed(case.start, case.rates, jnp.asarray(case.steps)))


def measure(case: Quadratic) -> Measured:
    """The run."""

    def step(x: Array, _: None) -> tuple[Array, Array]:
        return x - case.rates * (x + case.cubic * x**3), x

    _, path = jax.lax.scan(step, case.start, length=len(case.steps))
    return Measured(decay=path, step=jnp.asarray(case.steps))


def bend(key: Key[Array, ""], case: Quadratic, amount: Array) -> Quadratic:
    """Add a quartic term."""
    del key
    return case._replace(cubic=amount)


def predict_flow(case: Quadratic) -> Theory:
    """What gradient flow would do: ``exp(-t eta h)``."""
    flow = jnp.exp(-case.rates[None, :] * case.steps[:, None])
    return Theory(decay=flow * case.start[None, :])


DECAY = Scenario(
    "decay",
    make_case,
    predict,
    measure,
    theory=Theory,
    measured=Measured,
    steps="steps",
    hypotheses={"quadratic": lambda case: case.cubic == 0},
    claims=(Claim("decay", "x_i(t) = (1 - eta h_i)^t x_i(0)"),),
    controls=(
        Control("bent", "a quartic term", "decay", case=bend, breaks="quadratic", amounts=(1.0,)),
        Control("flow", "the path of gradient flow", "decay", predict=predict_flow),
    ),
)

QUADRATIC = Theorem(
    "quadratic",
    "descent on a quadratic decays geometrically",
    (
        Flag("size", (2, 5), at_least(1), int, "n", "coordinates", shapes=True),
        Flag("steps", (30,), at_least(1), int, "t", "steps of descent", swept=False),
    ),
    (DECAY,),
    title="Quadratics",
    small={"size": (2,), "steps": 10},
)
'''
COMMAND = '''"""Verify descent on quadratics: ``lrdyn verify quadratic --help``."""

import sys

from lrdyn import cli
from lrdyn.quadratic.statement import QUADRATIC

if __name__ == "__main__":
    sys.exit(cli.main(QUADRATIC))
'''
REFEREE = '''"""Descent on a quadratic, step by step."""

import numpy as np

from referee.redone import Redone, saved_sides
from referee.results import Point


def decay(point: Point) -> Redone:
    """``(1 - eta h)^t`` against as many steps."""
    start, rates = point.case["start"], point.case["rates"]
    x, path = start, []
    for _ in point.times:
        path.append(x)
        x = x - rates * x
    theory = (1 - rates) ** np.asarray(point.times)[:, None] * start
    return Redone(theory, np.stack(path), None, 1.0, "equal", *saved_sides(point, "decay"))


CLAIMS = {"decay": {"decay": decay}}
"""Scenario -> claim -> both of its sides."""
'''
PAGE = """\
# Quadratics: every coordinate decays at its own rate

`lrdyn verify quadratic` · notation: [what is verified](../theory.md#notation)

## What it says

> **Proven.** Descent on $\\frac12 \\sum_i h_i x_i^2$ with step $\\eta$ is
> $x_i(t) = (1 - \\eta h_i)^t x_i(0)$.

## What was measured

> **Measured.** The recursion, step by step.

<!-- measured: quadratic decay -->
"""
LINE = '    "quadratic": "lrdyn.quadratic.statement:QUADRATIC",\n'
FILES = {
    "lrdyn/quadratic/__init__.py": ROOM,
    "lrdyn/quadratic/decay.py": FORMULA,
    "lrdyn/quadratic/statement.py": STATEMENT,
    "experiments/quadratic.py": COMMAND,
    "referee/quadratic.py": REFEREE,
    "docs/theorems/quadratic.md": PAGE,
}

CODE = [name for name in FILES if name.endswith(".py")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the files of this repository, into which a theorem was put."""
    folder = tmp_path_factory.mktemp("copy")
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    add(folder)
    return folder


def add(folder):
    """Put the theorem into a tree."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    registry = folder / "lrdyn" / "registry.py"
    head, _, rest = registry.read_text().partition('    "lora":')
    registry.write_text(f'{head}{LINE}    "lora":{rest}')


def run(folder, *words):
    """Run Python in the tree, and none of this one."""
    environment = os.environ | {"PYTHONPATH": os.fspath(folder), "LRDYN_CACHE": ""}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return Printed(done.returncode, done.stdout, done.stderr)


def test_a_theorem_in_five_places_is_whole(tree):
    """It is verified and refereed, the pages list it, lint and the tests of all theorems pass."""
    for words in (
        ("-m", "experiments.quadratic"),
        ("-m", "referee", "results"),
        ("-m", "docs.refresh", "results"),
        ("-m", "tests.kept", "--missing"),
        ("-m", "ruff", "check", "."),
        ("-m", "ruff", "format", "--check", "."),
        ("-m", "basedpyright", "--pythonpath", sys.executable, "lrdyn/registry.py", *CODE),
    ):
        done = run(tree, *words)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    for page in ("docs/index.md", "docs/theory.md", "docs/results.md", "docs/commands.md"):
        assert "quadratic" in (tree / page).read_text(), page
    found = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "quadratic", "tests")
    assert found.returncode == 0, found.stdout[-5000:]
    of_all = ("tests/test_registry.py", "tests/test_docs.py", "tests/test_presets.py")
    found = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not tools", *of_all)
    assert found.returncode == 0, found.stdout[-5000:]


def test_what_was_put_in_can_be_taken_out(tree):
    for name in FILES:
        (tree / name).unlink()
    shutil.rmtree(tree / "lrdyn" / "quadratic")
    (tree / "tests" / "kept" / "quadratic.json").unlink()
    registry = tree / "lrdyn" / "registry.py"
    registry.write_text(registry.read_text().replace(LINE, ""))
    done = run(tree, "-m", "docs.refresh", tree / "none")
    assert done.returncode == 0, done.stderr
    records = ROOT.glob("docs/records/*.md")
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *records]):
        name = page.relative_to(ROOT)
        left = difflib.unified_diff(
            page.read_text().splitlines(), (tree / name).read_text().splitlines()
        )
        assert [*left] == [], name
