"""What the tests keep of one run for the next: never the program of another text."""

import inspect
import os
from pathlib import Path

import jax
import pytest

from lrdyn.core import factorization, initialization, masking, spectra
from lrdyn.system.private_files import PrivateFolder
from lrdyn.verification.machine import kept_programs, process
from tests import (
    oracles,
    programs,
    test_factorization,
    test_initialization,
    test_masking,
    test_spectra,
)
from tests.runs import python

pytestmark = pytest.mark.tools


def names(base: Path) -> set[str]:
    return {path.name for path in base.rglob("*-cache")}


def edit(monkeypatch, function, old, new):
    """Give a function the code of its source with one change, as an edit of its file does."""
    function = inspect.unwrap(function)
    source = inspect.getsource(function)
    assert source.count(old) == 1
    namespace = dict(function.__globals__)
    exec(source.replace(old, new), namespace)
    edited = inspect.unwrap(namespace[function.__name__])
    monkeypatch.setattr(function, "__code__", edited.__code__)


def loss_of_a_sum():
    test_factorization.test_loss_and_gradient(
        test_factorization.factorized, oracles.sum_slope, 1, "float64"
    )


def loss_of_a_mean():
    test_factorization.test_loss_and_gradient(
        test_factorization.mean_factorized, oracles.mean_slope, 1 / 12, "float64"
    )


MUTANTS = {
    spectra.singular_values: (
        ("svdvals, matrix", "svdvals, 2 * matrix"),
        lambda: test_spectra.test_singular_values_of_a_batch((5, 5), "float64"),
    ),
    spectra.effective_rank: (
        ("jnp.exp(-", "jnp.exp2(-"),
        test_spectra.test_effective_rank_of_each_row,
    ),
    spectra.sines: (
        ("vectors - basis", "vectors + basis"),
        lambda: test_spectra.test_sines_do_not_floor("float64"),
    ),
    factorization.factorization_loss: (("return 0.5 *", "return 0.25 *"), loss_of_a_sum),
    factorization.mean_factorization_loss: (("jnp.mean", "jnp.sum"), loss_of_a_mean),
    factorization.regression_loss: (
        ("prediction - outputs", "prediction + outputs"),
        lambda: test_factorization.test_regression_loss_and_gradient("float64"),
    ),
    masking.masked_loss: (
        ("(mask * ", "((1 - mask) * "),
        lambda: test_masking.test_loss_and_gradient(0.5, "float64"),
    ),
    masking.observe: (
        ("< fraction", "> fraction"),
        lambda: test_masking.test_observe_draws_the_fraction("float64"),
    ),
    masking.deterministic_equivalent: (
        ("covariance / (", "covariance * ("),
        lambda: test_masking.test_the_deterministic_equivalent_is_the_expected_loss("float64"),
    ),
    initialization.orthogonal: (
        ("return linalg", "return 1.01 * linalg"),
        lambda: test_initialization.test_orthogonal(6, 4, "float64"),
    ),
}
"""Ten edits of the library, and a test of each edited function."""


@pytest.mark.parametrize("function", MUTANTS, ids=lambda function: function.__name__)
def test_a_mutant_is_compiled_anew_and_killed(tmp_path, monkeypatch, function):
    change, its_test = MUTANTS[function]
    programs.keep(tmp_path)
    jax.clear_caches()  # as in another run of the tests
    its_test()
    warm = names(tmp_path)
    assert warm
    jax.clear_caches()
    its_test()
    assert names(tmp_path) == warm
    edit(monkeypatch, function, *change)
    jax.clear_caches()
    with pytest.raises(AssertionError):
        its_test()
    assert names(tmp_path) > warm
    jax.clear_caches()  # what follows must not find the mutant


def cube_and_one(x):
    return x**3 + 1


def compiled() -> float:
    jax.clear_caches()
    return float(jax.jit(cube_and_one)(2.0))


def test_every_program_is_kept_for_this_user_alone(tmp_path):
    programs.keep(tmp_path)
    assert compiled() == 9.0
    (entry,) = tmp_path.rglob("jit_cube_and_one-*-cache")
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    assert PrivateFolder(entry.parent).read(entry.name)


def test_a_damaged_program_is_compiled_anew(tmp_path):
    programs.keep(tmp_path)
    compiled()
    (entry,) = tmp_path.rglob("jit_cube_and_one-*-cache")
    damaged = entry.read_bytes()[:-1]
    entry.write_bytes(damaged)
    assert compiled() == 9.0
    assert entry.read_bytes() != damaged


def test_what_is_kept_has_a_bound(tmp_path):
    programs.keep(tmp_path)
    compiled()
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*-cache")}
    last = max(sizes, key=lambda path: path.stat().st_mtime_ns)
    programs.keep(tmp_path, most=sizes[last])
    assert list(tmp_path.rglob("*-cache")) == [last]


AS_USERS_DO = """
import sys
import jax
from lrdyn.verification.machine import program_cache
program_cache.keep(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_enable_x64", True)
def cube_and_one(x):
    return x**3 + 1
lowered = jax.jit(cube_and_one).lower(2.0)
lowered.compile()
print(lowered.as_text())
"""


@pytest.mark.skipif("XLA_FLAGS" in os.environ, reason="the tests compile as users do")
def test_options_of_xla_are_in_the_names(tmp_path):
    """Also those of the tests, which are in the environment no more when a program is compiled."""
    programs.keep(tmp_path / "ours")
    compiled()
    theirs = python("-c", AS_USERS_DO, tmp_path / "theirs")
    assert theirs.stdout.strip() == jax.jit(cube_and_one).lower(2.0).as_text().strip()
    entries = [path.name for path in tmp_path.rglob("jit_cube_and_one-*-cache")]
    assert len(set(entries)) == len(entries) == 2


def elsewhere(tmp_path):
    programs.keep(tmp_path)
    assert programs.kept_at() != programs.folder()


def nowhere(tmp_path):
    kept_programs.let_jax_keep(None)


def as_commands_do(tmp_path):
    process.setup()


@pytest.mark.parametrize("change", [elsewhere, nowhere, as_commands_do, lambda tmp_path: None])
def test_a_test_may_keep_programs_elsewhere_and_the_next_finds_those_of_all(tmp_path, change):
    assert programs.kept_at() == programs.folder()
    change(tmp_path)
