"""Theorems by what names them, a word, a module, a file or an installed package; verifying one."""

import dataclasses
import os
import shlex
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, NamedTuple

import jax

from lrdyn import registry, studies
from lrdyn.core.show import near, shortened
from lrdyn.system import progress as progresses
from lrdyn.system.progress import Progress
from lrdyn.verification.machine.device_defaults import ON_A_CPU, usual_memory
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.running.sweep import cluster_of
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs.repeating import OWN
from lrdyn.verification.runs.verify import Verification, choose_precision, verify_run
from lrdyn.verification.stating.mistakes import BadInput, describe_error
from lrdyn.verification.stating.own_files import experiment_in, own_experiment
from lrdyn.verification.stating.sources import own_files_stating
from lrdyn.verification.stating.statement import Experiment

GROUP = "lrdyn.theorems"
"""Group of the entry points with which a package hands in theorems of its own."""
OURS = {**registry.REGISTRY, **studies.REGISTRY}
"""Name of the library's own theorem or study -> where it is stated."""


def verify(
    theorem: str | os.PathLike | ModuleType | Experiment,
    *,
    memory: int | None = None,
    lanes: int | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    data_dir: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    client: Any = None,
    **settings: Any,
) -> Verification:
    """Run every scenario of a theorem with its controls and judge every claim.

    Identities run in float64 and in float32, and the verdict uses both; with ``dtype="float32"``
    the float32 run stands alone. That is so by itself where the float64 of a device is none
    (:mod:`lrdyn.verification.judging.rounding`). Every program has the highest precision, whatever
    JAX is set to; with ``precision="tf32"`` or ``"bfloat16"`` products of matrices in float32 have
    that one.

    Args:
        theorem: a theorem, study or experiment, or what names one: the word of its command
            (``"theorem2"``), a module that states it (``lrdyn.theorem2``), a Python file
            (``"mine.py"``, ``"mine.py:NAME"``). See :func:`statement`.
        memory: bytes that the arrays of one part of a sweep may take, see :func:`lrdyn.sweep`.
        lanes: points of a sweep at a time on each device; by default as many as suit it.
        store: a folder that keeps finished parts, so that the same call continues after a kill.
        progress: told of every finished part; by default a notebook shows a bar.
        data_dir: where the data sets of a study are looked for first.
        checkpoint_every: steps between two checkpoints of a training, which a store keeps.
        client: a ``dask.distributed.Client`` whose workers compute, see :func:`lrdyn.sweep`.
        **settings: those of the command, under the same names: ``dim=30, depth=(2, 3)``; flags,
            ``preset``, ``seed``, ``seeds`` (how many), ``dtype``, ``perturb``, ``precision``. What
            is not given is as the preset has it.

    Returns:
        The :class:`Verification`; with a store, its large arrays are read from there when used.

    Raises:
        ValueError: no theorem is meant, or several; a setting is unknown or outside its domain, a
            combination outside the theorem, or a precision that the device does not have.
        TypeError: ``theorem`` is something else.

    Example:
        >>> found = verify("corollary1", dim=9, depth=2, rank=1, steps=9, seeds=1)
        >>> found.outcome, found.claims["error_identity"].cases
        (<Decision.HOLDS: 'holds'>, 16)
        >>> verify("theorm2")
        Traceback (most recent call last):
        lrdyn.system.messages.BadInput: theorem: got 'theorm2' (did you mean
        'theorem2'?), wanted one of theorem1, ...
    """
    stated = statement(theorem)
    run = run_of(stated, memory=memory or ON_A_CPU, data_dir=data_dir, **settings)
    if lanes is not None and lanes < 1:
        raise BadInput(f"lanes: got {lanes}, wanted at least 1")
    if progress is None:
        notebook = progresses.in_notebook()
        progress = progresses.Notebook(stated.name) if notebook else progresses.Silent()
    elsewhere = None if client is None else cluster_of(client)
    memory = memory or usual_memory(jax.local_devices()[0])
    context = Context(
        memory, store, progress, every=checkpoint_every, elsewhere=elsewhere, lanes=lanes
    )
    if "dtype" not in settings:
        run, _ = choose_precision(run, context)
    found = verify_run(run, context)
    return dataclasses.replace(found, command=_command(theorem, stated))


def statement(
    theorem: str | os.PathLike | ModuleType | Experiment,
    argument: str = "theorem",
    others: tuple[str, ...] = (),
) -> Experiment:
    """The theorem, study or experiment that something names.

    Args:
        theorem: itself; its name among those of the library and of installed packages; a module
            that states one, or the room of one of ours; a file, ``FILE.py`` or ``FILE.py:NAME``.
        argument: what a message calls it.
        others: other words that a message offers.

    Raises:
        BadInput: nothing is meant by it, or one of several; a file or package of that name cannot
            be imported.
        TypeError: it is of another type.

    Example:
        >>> import lrdyn
        >>> statement("theorem2") is statement(lrdyn.theorem2)
        True
    """
    if isinstance(theorem, Experiment):
        return theorem
    if isinstance(theorem, ModuleType):
        return _of_module(theorem, argument)
    if not isinstance(theorem, str | os.PathLike):
        got = f"an object of type {type(theorem).__name__}"
        if isinstance(theorem, type) and issubclass(theorem, Experiment):
            got = f"the class {theorem.__name__}"
        wanted = "a theorem, its name, a module or a file that states one"
        raise TypeError(f"{argument}: got {got}, wanted {wanted}")
    name = os.fspath(theorem)
    if not isinstance(name, str):
        raise TypeError(f"{argument}: got a path of bytes, wanted one of text")
    if name in OURS:
        return resolve_name(OURS[name])
    if ".py" in name or isinstance(theorem, os.PathLike):
        return own_experiment(name, argument)
    packaged = installed()
    if name in packaged:
        return packaged[name].load()
    known = [*OURS, *packaged, *others]
    wanted = f"one of {', '.join(known)} or FILE.py[:NAME]"
    raise BadInput(f"{argument}: got {shortened(name)!r}{near(name, known)}, wanted {wanted}")


def _of_module(module: ModuleType, argument: str) -> Experiment:
    """The theorem of a module, or of the room of the library that it is."""
    for place in OURS.values():
        room = place.partition(":")[0].removesuffix(".statement")
        if module.__name__ == room:
            return resolve_name(place)
    for place in OURS.values():
        if module.__name__ == place.partition(":")[0]:
            return resolve_name(place)
    return experiment_in(module, f"{argument}: got the module {module.__name__!r}")


def _command(given: Any, stated: Experiment) -> str:
    """What verifies a statement in a terminal."""
    if stated.name in OURS and resolve_name(OURS[stated.name]) is stated:
        return f"lrdyn verify {stated.name}"
    if isinstance(given, str | os.PathLike):
        return f"lrdyn verify {shlex.quote(os.fspath(given))}"
    files = own_files_stating(stated)
    # Of several files none can be named as the one that states it.
    if len(files) != 1 or not os.path.isfile(file := files[0]):
        return OWN
    return f"lrdyn verify {shlex.quote(min(file, os.path.relpath(file), key=len))}"


# Of installed packages ---------------------------------------------------------------------------


class Installed(NamedTuple):
    """A theorem of another package, which is imported when it is asked for."""

    name: str
    package: str
    """The distribution that hands it in."""
    entry: EntryPoint
    clash: str = ""
    """Who else has its name; empty where it can be used."""

    def load(self) -> Experiment:
        """Import it.

        Raises:
            BadInput: it cannot be imported, is no theorem, or has another name or one that is
                taken.
        """
        got = f"{self.name}: got {self.entry.value!r} of the package {self.package!r}"
        if self.clash:
            raise BadInput(f"{got}, wanted another name: {self.clash} has this one")
        try:
            stated = self.entry.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a package of somebody else may raise anything
            said = describe_error(error)
            raise BadInput(f"{got} ({said}), wanted a theorem that can be imported") from error
        if not isinstance(stated, Experiment):
            raise BadInput(f"{got} ({type(stated).__name__}), wanted a theorem")
        if stated.name != self.name:
            raise BadInput(f"{got} (name {stated.name!r}), wanted the name of its entry point")
        return stated


def installed() -> dict[str, Installed]:
    """Name -> theorem of an installed package, from the entry points of the group ``GROUP``.

    A name of ours, or of two packages, is refused when it is loaded.
    """
    found: dict[str, Installed] = {}
    for entry in sorted(entry_points(group=GROUP)):
        package = entry.dist.name if entry.dist else "?"
        clash = "lrdyn" if entry.name in OURS else ""
        if entry.name in found and found[entry.name].package != package:
            clash = clash or f"the package {found[entry.name].package!r}"
        found[entry.name] = Installed(entry.name, package, entry, clash)
    return found


def installed_lines() -> Iterator[str]:
    """A line for each theorem of an installed package; of one that cannot be used it says why."""
    for one in installed().values():
        try:
            yield f"{one.name:16}{one.load().summary} ({one.package})"
        except BadInput as error:
            yield " ".join(str(error).splitlines())
