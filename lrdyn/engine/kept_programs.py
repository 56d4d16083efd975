"""Compiled programs of the library's theorems on disk: found again, they are not even traced.

Tracing and lowering take most of the time of a small sweep that was compiled before. A program is
named by all that decides it: every source file of the library, the releases of the packages below
it, JAX's settings, and what the sweep is. Theorems that somebody else wrote, whose sources nobody
knows to the end, are traced always, and so is everything outside of the command line: a function
that was exchanged in this process is in no file.

To load a program is to execute it. So it lies in a folder of this user alone and carries an HMAC of
its name and content (:mod:`lrdyn.system.private_files`); what does not pass is compiled again.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from lrdyn.engine.sources import library_digest
from lrdyn.system.private_files import NotPrivate, SignedFolder

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

    folder: SignedFolder
    digest: str
    """Of all that decides it."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.digest}.zip"

    def facts(self) -> Facts | None:
        """What is known of it; None if it is not there, damaged, or not of this user alone."""
        with contextlib.suppress(OSError, zipfile.BadZipFile, KeyError, ValueError):
            if (content := self._content()) is None:
                return None
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                said = json.loads(archive.read("facts.json"))
            outputs = {n: jax.ShapeDtypeStruct(*like) for n, like in said["outputs"]}
            return Facts(outputs, said["size"], said["digest"])
        return None

    def load(self, arguments: Any, outputs: Any, devices: Any) -> Any | None:
        """The program, for these devices; None if it is not there, damaged, or not of this user."""
        trees = jax.tree.structure((arguments, {})), jax.tree.structure(outputs)
        try:
            # What is loaded are the bytes that were checked, not what the file holds by now.
            if (content := self._content()) is None:
                return None
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                payload = archive.read("program")
            _find_lapack()
            found = serialize_executable.deserialize_and_load(
                payload, *trees, execution_devices=devices
            )
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
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("facts.json", json.dumps(said))
            archive.writestr("program", payload)
        with contextlib.suppress(OSError):
            try:
                self.folder.write(self.name, content.getvalue())
            except NotPrivate as error:
                warn_once(self.folder, f"{error}; programs are not kept")

    def _content(self) -> bytes | None:
        """Of the file, if only this user can have written it; else one line says why not."""
        try:
            return self.folder.read(self.name)
        except NotPrivate as error:
            warn_once(self.folder, f"{error}; such programs are compiled again")
            return None


_WARNED: set[SignedFolder] = set()


def warn_once(folder: SignedFolder, line: str) -> None:
    """Write a line on stderr, one in a process for each folder.

    A logger writes it, which fails at nothing: a command goes on when its errors cannot be written.
    Its level is that which commands let through.
    """
    if folder not in _WARNED:
        _WARNED.add(folder)
        logging.getLogger("lrdyn").error("program cache: %s", line)


@cache
def _find_lapack() -> None:
    """Let JAX look up LAPACK's routines, as it does when it lowers the first of them."""
    jax.jit(jnp.linalg.svd).lower(jnp.ones((1, 1)))


class KeptPrograms(NamedTuple):
    """Compiled programs on disk, for theorems of the library alone: this process runs their files.

    A theorem of somebody else may run code that no file of the library shows.
    """

    folder: SignedFolder

    def place(self, identity: str, *context: Any) -> Kept:
        """Where a program is kept: what it is, and all else that decides it."""
        digest = hashlib.sha256(_surroundings().encode())
        digest.update(repr((identity, context, _config())).encode())
        return Kept(self.folder, f"lrdyn-{digest.hexdigest()[:32]}")


@contextlib.contextmanager
def jax_keeps_nothing() -> Iterator[None]:
    """Switch off JAX's own cache inside, where our programs are kept.

    A program that JAX found on disk cannot be written down once more, what comes out lacks
    functions.
    """
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    let_jax_keep(None)
    try:
        yield
    finally:
        let_jax_keep(folder)


def let_jax_keep(folder: str | None) -> None:
    """Say where JAX keeps what it compiles from now on; None for nowhere."""
    if folder != jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # it asks once in a process whether there is a folder


def identity(name: str, *words: Any, **settings: Any) -> str:
    """What a sweep of a theorem is, in words."""
    arrays = {n: (v.shape, v.tobytes()) for n, v in settings.items() if isinstance(v, np.ndarray)}
    return repr((name, words, sorted((settings | arrays).items())))


@cache
def _surroundings() -> str:
    """What stays the same as long as a process runs."""
    releases = [version(name) for name in BELOW]
    return repr((library_digest(), sys.version, releases, os.environ.get("XLA_FLAGS")))


def _config() -> list[tuple[str, Any]]:
    """JAX's settings at this moment, but where and what it keeps itself."""
    names = sorted(name for name in jax.config.values if "cache" not in name)
    return [(name, getattr(jax.config, name, None)) for name in names]
