"""Compiled programs of the library's theorems on disk: found again, they are not even traced.

Tracing and lowering take most of the time of a small sweep that was compiled before. A program is
named by all that decides it: every source file of the library, the releases of the packages below
it, JAX's settings, and what the sweep is. Theorems that somebody else wrote, whose sources nobody
knows to the end, are traced always, and so is everything outside of the command line: a function
that was exchanged in this process is in no file.
"""

import contextlib
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from lrdyn import whole_files
from lrdyn.engine.sources import library_digest
from lrdyn.theorem import Experiment, Scenario

BELOW = ("jax", "jaxlib", "numpy", "scipy", "equinox", "optax")
"""Packages whose code is in the programs."""


class Facts(NamedTuple):
    """What a sweep asks of a program before it runs."""

    outputs: dict[str, jax.ShapeDtypeStruct]
    size: int
    """Bytes of one point."""
    digest: str


class Kept(NamedTuple):
    """The place of a program."""

    path: Path

    @property
    def digest(self) -> str:
        """Of all that decides it."""
        return self.path.stem

    def facts(self) -> Facts | None:
        """What is known of it; None if it is not there, or damaged."""
        with contextlib.suppress(OSError, zipfile.BadZipFile, KeyError, ValueError):
            with zipfile.ZipFile(self.path) as archive:
                said = json.loads(archive.read("facts.json"))
            outputs = {n: jax.ShapeDtypeStruct(*like) for n, like in said["outputs"]}
            return Facts(outputs, said["size"], said["digest"])
        return None

    def load(self, arguments: Any, outputs: Any, devices: Any) -> Any | None:
        """The program, for these devices; None if it is not there, or damaged."""
        trees = jax.tree.structure((arguments, {})), jax.tree.structure(outputs)
        try:
            with zipfile.ZipFile(self.path) as archive:
                payload = archive.read("program")
            _find_lapack()
            found = serialize_executable.deserialize_and_load(
                payload, *trees, execution_devices=devices
            )
            os.utime(self.path)  # the oldest are removed first
        except Exception:  # whatever is wrong with it, it can be compiled
            return None
        return found

    def save(self, compiled: Any, facts: Facts) -> None:
        """Keep a program, if it can be written down and there is room."""
        try:
            payload, _, _ = serialize_executable.serialize(compiled)
        except (ValueError, jax.errors.JaxRuntimeError):  # a backend that cannot
            return
        outputs = [(n, (like.shape, str(like.dtype))) for n, like in facts.outputs.items()]
        said = {"outputs": outputs, "size": facts.size, "digest": facts.digest}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (
                whole_files.replacing(self.path) as path,
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            ):
                archive.writestr("facts.json", json.dumps(said))
                archive.writestr("program", payload)


@cache
def _find_lapack() -> None:
    """Let JAX look up LAPACK's routines, as it does when it lowers the first of them."""
    jax.jit(jnp.linalg.svd).lower(jnp.ones((1, 1)))


class _Keeping(NamedTuple):
    """Whose programs are kept now, and where."""

    scenarios: tuple[Scenario, ...] = ()
    folder: str | None = None


_now = _Keeping()


@contextlib.contextmanager
def keeping(experiment: Experiment) -> Iterator[None]:
    """Keep the programs of a theorem of the library: this process runs the code of its files.

    They lie where JAX keeps what it compiles. It keeps nothing itself meanwhile: a program that it
    found on disk cannot be written down once more, what comes out lacks functions.
    """
    global _now
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    before, _now = _now, _Keeping(experiment.scenarios, folder)
    _let_jax_keep(None)
    try:
        yield
    finally:
        _now = before
        _let_jax_keep(folder)


def _let_jax_keep(folder: str | None) -> None:
    if folder != jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # it asks once in a process whether there is a folder


def identity(name: str, scenario: Scenario, *words: Any, **settings: Any) -> str:
    """What a sweep of a theorem is, in words; empty where its programs are not kept.

    Another scenario, were it called the same, is none of those that are kept.
    """
    if _now.folder is None or not any(scenario is one for one in _now.scenarios):
        return ""
    arrays = {n: (v.shape, v.tobytes()) for n, v in settings.items() if isinstance(v, np.ndarray)}
    return repr((name, words, sorted((settings | arrays).items())))


def kept(identity: str, *context: Any) -> Kept | None:
    """Where a program is kept, if it is; the context is all else that decides it."""
    if not identity or _now.folder is None:
        return None
    digest = hashlib.sha256(_surroundings().encode())
    digest.update(repr((identity, context, _config())).encode())
    return Kept(Path(_now.folder, f"lrdyn-{digest.hexdigest()[:32]}.zip"))


@cache
def _surroundings() -> str:
    """What stays the same as long as a process runs."""
    releases = [version(name) for name in BELOW]
    return repr((library_digest(), sys.version, releases, os.environ.get("XLA_FLAGS")))


def _config() -> list[tuple[str, Any]]:
    """JAX's settings at this moment, but where and what it keeps itself."""
    names = sorted(name for name in jax.config.values if "cache" not in name)
    return [(name, getattr(jax.config, name, None)) for name in names]
