"""Programs that the tests compile are kept: for all workers of a run, and for the next runs.

JAX names a program by its lowered text and by the options of XLA: what an edit changes is compiled
anew. It keeps them as commands do, in a folder of this user alone.
"""

import functools
import os
from pathlib import Path

import jax

from lrdyn.verification.machine import program_cache

FOLDER = Path(os.environ.get("LRDYN_TEST_PROGRAMS") or Path(__file__).parents[1] / ".programs")
"""Where they are kept: in the checkout, where ``make clean`` removes it, or where CI says."""

MOST = 10**9
"""Bytes that a run of the tests may find there; what was used longest ago goes first."""


def keep(base: Path = FOLDER, most: int = MOST) -> None:
    """Let JAX keep all that it compiles from now on, however small it is."""
    program_cache.keep(base)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if base.is_dir():  # it cannot be made where nothing can be written
        program_cache.prune(base, most)


def of_command(name: str) -> Path:
    """Where a command that tests start keeps its programs: apart, so that one sees what it kept."""
    base = FOLDER / name
    if base.is_dir():
        program_cache.prune(base, MOST // 10)
    return base


@functools.cache
def folder() -> str:
    """The one in :data:`FOLDER` that is for this kind of machine."""
    return os.fspath(FOLDER / program_cache.kind())


def kept_at() -> str | None:
    """The folder where JAX keeps what it compiles."""
    return jax.config.values["jax_compilation_cache_dir"]
