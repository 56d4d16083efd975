"""Compiled programs of the library's theorems on disk: found again, they are not even traced.

Tracing and lowering take most of the time of a small sweep that was compiled before. So a program
has two names. The first is made of all that decides it before it is traced: the code that its
functions can reach (:mod:`lrdyn.verification.stating.reach`), or where that is unknown all that its
theorem imports; the releases of the packages below it, JAX's settings, and what the sweep is.
Behind it stands the second, the lowered text: after an edit a program is traced and lowered anew,
and compiled only if its text is another one. Theorems that somebody else wrote, whose sources
nobody knows to the end, are traced always, and so is everything outside of the command line: a
function that was exchanged in this process is in no file.

Beside the programs lie the records of small runs, each under the first name of its program and the
bytes of the cases that it began with: after an edit of theory they are not measured again.

JAX keeps what else is compiled, in the same folder
(:mod:`lrdyn.verification.machine.program_cache`). Our programs do not pass through its cache: one
that JAX has read there cannot be written down once more, what comes out lacks functions.

To load a program is to execute it. So it lies in a folder of this user alone
(:mod:`lrdyn.system.private_files`); without such a folder all is compiled again.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from lrdyn.system.private_files import NotPrivate, PrivateFolder
from lrdyn.verification.stating import sources
from lrdyn.verification.stating.reach import Unknown, reach_digest
from lrdyn.verification.stating.sources import (
    ENGINE,
    code_of_modules,
    deciding_code_digest,
    library_digest,
)

try:  # JAX has no public way to set this for one thread alone
    from jax._src import config as jax_config

    LEAST_SECONDS: Any = jax_config.persistent_cache_min_compile_time_secs
except (ImportError, AttributeError):  # a release of JAX that moved it
    LEAST_SECONDS = None

BELOW = ("jax", "jaxlib", "numpy", "scipy", "equinox", "optax")
"""Packages whose code is in the programs."""


class Facts(NamedTuple):
    """Facts of a program that a sweep needs before it runs."""

    outputs: dict[str, jax.ShapeDtypeStruct]
    size: int
    """Bytes of one point."""
    digest: str
    on_trial: tuple[tuple[str, int, int], ...] = ()
    """Type, rows and columns of the matrices that an algorithm on trial decomposes."""


OURS = "lrdyn_kept"
"""Name of the functions whose programs are kept here, by which JAX's cache leaves them alone."""


CALLS_THE_HOST = re.compile(r"@xla_ffi_python_\w*callback|is_host_transfer = true")
"""What stands in a lowered program that calls Python, on a GPU or CPU and on a TPU."""


class StoredProgram(NamedTuple):
    """The place of a compiled program on disk, whether it is there or not."""

    folder: PrivateFolder
    digest: str
    """Digest of all that decides the program, its code included."""
    records: list[int] | None = None
    """As that of :class:`KeptPrograms`; None for a program whose reach is not known, too."""

    def record_of(self, arguments: Mapping[str, np.ndarray]) -> "StoredRecord":
        """The place of what the program returns for these arguments.

        It is named by the program and by every byte of them.
        """
        digest = hashlib.sha256(self.digest.encode())
        for name, array in sorted(arguments.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return StoredRecord(self.folder, f"lrdyn-{digest.hexdigest()[:32]}.record")

    def facts(self) -> Facts | None:
        """Facts of the program; None if missing, damaged or not this user's."""
        with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
            if known := self._known():
                outputs = {n: jax.ShapeDtypeStruct(*like) for n, like in known["outputs"]}
                on_trial = tuple((str(t), int(m), int(n)) for t, m, n in known["on_trial"])
                return Facts(outputs, known["size"], known["digest"], on_trial)
        return None

    def load(self, arguments: Any, outputs: Any, devices: Any) -> Any | None:
        """Load the program onto these devices; None if missing, damaged or not this user's."""
        with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
            if known := self._known():
                return self._loaded(known["program"], arguments, outputs, devices)
        return None

    def compiled(
        self, lowered: Any, options: Any, facts: Facts, arguments: Any, devices: Any
    ) -> Any:
        """Compile a lowered program, or load it if one of the same text was compiled before.

        Args:
            lowered: the program.
            options: for XLA.
            facts: what is kept of it.
            arguments: stand-ins of what it takes.
            devices: that it runs on.
        """
        # The text says nothing of the settings and releases with which XLA compiles it.
        decided_by = (_below(), _config(), sorted(options.items()), len(devices))
        digest = hashlib.sha256(repr(decided_by).encode())
        text = lowered.as_text()
        if CALLS_THE_HOST.search(text):  # a function of this process, which no file can hold
            return lowered.compile(compiler_options=options)
        digest.update(text.encode())
        name = f"lrdyn-{digest.hexdigest()[:32]}.program"
        program = self._loaded(name, arguments, facts.outputs, devices)
        if program is None:
            with _left_alone_by_jax():
                program = lowered.compile(compiler_options=options)
            try:
                payload, _, _ = serialize_executable.serialize(program)
            except (
                ValueError,
                jax.errors.JaxRuntimeError,
            ):  # this backend cannot
                return program
            # The fastest level: each compiled program passes through here, and machine code packs
            # well anyway.
            write(self.folder, name, zlib.compress(payload, 1))
        like = [(n, (like.shape, str(like.dtype))) for n, like in facts.outputs.items()]
        known = {**facts._asdict(), "outputs": like, "program": name}
        write(self.folder, f"{self.digest}.json", json.dumps(known).encode())
        return program

    def _known(self) -> dict[str, Any] | None:
        content = read(self.folder, f"{self.digest}.json")
        return None if content is None else json.loads(content)

    def _loaded(self, name: str, arguments: Any, outputs: Any, devices: Any) -> Any | None:
        # Positional arguments and no keywords, as the program was lowered.
        trees = jax.tree.structure((arguments, {})), jax.tree.structure(outputs)
        try:
            if (content := read(self.folder, name)) is None:
                return None
            # JAX loads the pointers to these routines when it lowers one; a loaded program is not
            # lowered, and would call through a pointer that nobody has set.
            _find_lapack()
            return serialize_executable.deserialize_and_load(
                zlib.decompress(content), *trees, execution_devices=devices
            )
        except Exception:  # whatever is wrong with the file, the program can be compiled anew
            return None


LARGEST_RECORD = 2**24
"""Bytes of a record at most: what is kept spares seconds, and must not push programs out."""


class StoredRecord(NamedTuple):
    """The place of what a program has returned for certain arguments."""

    folder: PrivateFolder
    name: str

    def load(self) -> dict[str, np.ndarray] | None:
        """The arrays by name; None if missing, damaged or not this user's."""
        with contextlib.suppress(OSError):
            content = read(self.folder, self.name) or b""
            if self._checksum(content[32:]) == content[:32]:
                file = io.BytesIO(content[32:])
                names = json.loads(file.readline())
                return {name: np.lib.format.read_array(file) for name in names}
        return None

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep them, if they are small, there is room, and the folder is open to nobody else."""
        if sum(array.nbytes for array in arrays.values()) <= LARGEST_RECORD:
            file = io.BytesIO()
            file.write(json.dumps(list(arrays)).encode() + b"\n")
            for array in arrays.values():
                np.lib.format.write_array(file, array, allow_pickle=False)
            content = file.getvalue()
            write(self.folder, self.name, self._checksum(content) + content)

    def _checksum(self, content: bytes) -> bytes:
        return hashlib.sha256(self.name.encode() + content).digest()


def read(folder: PrivateFolder, name: str) -> bytes | None:
    """The content of a file of a folder of this user alone; of another one line says why not.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return folder.read(name)
    except NotPrivate as error:
        warn_once(folder, f"{error}; such programs are compiled again")
        return None


def write(folder: PrivateFolder, name: str, content: bytes) -> None:
    """Write a file, if there is room, and the folder is open to nobody else."""
    with contextlib.suppress(OSError):
        try:
            folder.write(name, content)
        except NotPrivate as error:
            warn_once(folder, f"{error}; programs are not kept")


_WARNED: set[PrivateFolder] = set()


def warn_once(folder: PrivateFolder, line: str) -> None:
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

    folder: PrivateFolder
    code: str
    """SHA-256 of the code of the library that decides them."""
    engine: str = ""
    """SHA-256 of what decides the programs of every theorem; ``code`` if empty."""
    records: list[int] | None = None
    """Numbers of points that were measured in an earlier run and not again, to which each that is
    read is added; if None, no record of a run is kept or read."""

    def _ipython_display_(self) -> None:
        """Show nothing where ``setup()`` is the last line of a cell."""

    def of(self, theorem: str) -> "KeptPrograms":
        """The place for the programs of a theorem that a module of this name states.

        To find what decides them takes a while: as long as no file of the library is edited, it is
        read from the folder.
        """
        decided_by = ("code", theorem, library_digest())
        with self._parsed():
            code, engine = self.once(
                decided_by, lambda: (deciding_code_digest(theorem), code_of_modules(ENGINE))
            )
        return self._replace(code=code, engine=engine)

    @contextlib.contextmanager
    def _parsed(self) -> Iterator[None]:
        """What earlier processes have parsed of the library is known; what is new is kept."""
        digest = hashlib.sha256(Path(sources.__file__).read_bytes() + repr(_below()).encode())
        name = f"lrdyn-{digest.hexdigest()[:32]}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads(read(self.folder, name) or b"{}")
            sources.PARSED.update({file: sources.Code(*code) for file, code in known.items()})
        before = len(sources.PARSED)
        yield
        if len(sources.PARSED) > before:
            write(self.folder, name, json.dumps(sources.PARSED).encode())

    def once(self, decided_by: tuple, find: Callable[[], Any]) -> Any:
        """Return a value that is computed once, and read from disk from then on.

        It is named by all that decides it, releases of packages below the library included.
        """
        digest = hashlib.sha256(repr((decided_by, _below())).encode())
        name = f"lrdyn-{digest.hexdigest()[:32]}.json"
        with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
            if (content := read(self.folder, name)) is not None:
                return json.loads(content)["found"]
        value = find()
        write(self.folder, name, json.dumps({"found": value}).encode())
        return value

    def deciding(self, objects: Any) -> "KeptPrograms":
        """The place for programs that these objects decide, and the engine.

        Where it cannot be told what they reach, all the code of the theorem decides.
        """
        try:
            reached = reach_digest(objects)
        except Unknown:
            return self._replace(records=None)
        return self._replace(code=f"{self.engine or self.code} {reached}")

    def place(self, identity: str, *context: Any) -> StoredProgram:
        """Place of a program on disk, from its identity and all else that decides it."""
        decided_by = (self.code, _below(), identity, context, _config())
        digest = hashlib.sha256(repr(decided_by).encode())
        return StoredProgram(self.folder, f"lrdyn-{digest.hexdigest()[:32]}", self.records)


def let_jax_keep(folder: str | None) -> None:
    """Set the folder in which JAX keeps what it compiles from now on; None for no folder."""
    # Resetting the cache drops what JAX has read from it: not for a folder that it has already.
    if folder != jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # JAX looks only once in a process whether a folder is set


def _left_alone_by_jax() -> contextlib.AbstractContextManager:
    """Keep JAX's cache out of what this thread compiles, which spares writing it out."""
    return contextlib.nullcontext() if LEAST_SECONDS is None else LEAST_SECONDS(float("inf"))


@cache
def _below() -> tuple:
    """What decides programs outside the library: Python, the packages below it, XLA's flags."""
    releases = [version(name) for name in BELOW]
    return sys.version, releases, os.environ.get("XLA_FLAGS")


def _config() -> list[tuple[str, Any]]:
    """JAX's current settings, except those of its own cache."""
    # Where the cache lies decides nothing, and differs between users of one folder.
    names = sorted(name for name in jax.config.values if "cache" not in name)
    return [(name, getattr(jax.config, name, None)) for name in names]
