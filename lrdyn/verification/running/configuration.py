"""Configurations: an experiment with everything that decides its results, checked."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lrdyn.system.memory_limit import memory as memory_of_process
from lrdyn.system.memory_limit import size_of
from lrdyn.verification.running.evaluate import DATA_DIR
from lrdyn.verification.running.produce import select_scenarios, validate
from lrdyn.verification.stating.flags import Flag, at_least, one_of, option_string
from lrdyn.verification.stating.mistakes import BadInput as BadInput
from lrdyn.verification.stating.mistakes import as_bad_input, folders_of, name_mistakes
from lrdyn.verification.stating.names_and_presets import check_statement, no_values
from lrdyn.verification.stating.sources import source_digest
from lrdyn.verification.stating.statement import Experiment, Scenario, Study
from lrdyn.verification.storing import results_file


class Run(NamedTuple):
    """An experiment with everything that decides its results."""

    experiment: Experiment
    settings: Mapping[str, Any]
    """A value for each flag: a tuple for swept flags, one value for the others; and the folder
    where data are looked for first."""
    concerned: Experiment
    """The experiment without the scenarios that the settings do not concern."""
    preset: str = "quick"
    seed: int = 0
    seeds: int | None = 2
    """Number of seeds; None takes the number that each scenario of a study states."""
    dtype: str = "float64"
    perturb: bool = False
    precision: str = "highest"
    """Precision of the inputs of float32 matrix products, a word of ``--precision``."""
    given: Mapping[str, Any] = MappingProxyType({})
    """The flags that were given, as :func:`configure` got them; the others are defaults."""

    def in_precision(self, dtype: str) -> "Run":
        """The same command in another precision, whose defaults may be others.

        Raises:
            BadInput: what was given does not go with them.
        """
        if not any(flag.float32 for flag in self.experiment.flags):
            return self._replace(dtype=dtype)
        common = {name: getattr(self, name) for name in COMMON} | {"dtype": dtype}
        return configure(self.experiment, self.given, common, data_dir=self.settings[DATA_DIR])

    def seeds_of(self, scenario: Scenario) -> range:
        """The seeds of a scenario."""
        return range(self.seed, self.seed + (self.seeds or scenario.seeds))

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the results, for the verdict and the name of the folder."""
        values: dict[str, Any] = {}
        # Without the folder of data: where they lie decides nothing, and the digest counts their
        # content.
        for flag in self.experiment.flags:
            value = self.settings[flag.name]
            if isinstance(value, np.ndarray):
                digest = hashlib.sha256(value.tobytes()).hexdigest()
                value = {"shape": list(value.shape), "sha256": digest}
            values[flag.name] = list(value) if isinstance(value, tuple) else value
        values |= {name: getattr(self, name) for name in COMMON}
        if self.precision == "highest" and not isinstance(self.experiment, Study):
            del values["precision"]  # what a theorem has that says nothing of it
        data = [path.name for path in self.experiment.data(self.settings)]
        return values | ({"data_files": data} if data else {})

    def folder(self, out: Path | str) -> Path:
        """Where the results belong: ``<out>/<name>/<hash of configuration, sources and data>``."""
        # Twelve hexadecimal digits: two of a million runs share a name with a probability of 0.2 %.
        made_from = [self.config, source_digest(self.experiment, self.settings)]
        digest = hashlib.sha256(results_file.canonical_json(made_from).encode()).hexdigest()[:12]
        return Path(out) / self.experiment.name / digest


COMMON = ("preset", "seed", "seeds", "dtype", "perturb", "precision")
"""Settings beside the flags of an experiment."""


def defaults(experiment: Experiment) -> dict[str, Any]:
    """Defaults of the common settings; a study starts at seed 1, since seed 0 sets expectations."""
    own = {"seed": 1, "seeds": None, "dtype": "float32"} if isinstance(experiment, Study) else {}
    own |= {"dtype": experiment.dtype} if experiment.dtype else {}
    return {name: own.get(name, Run._field_defaults[name]) for name in COMMON}


_COMMON_FLAGS = (
    Flag("preset", (), one_of("quick", "paper"), str, shapes=True),
    Flag("seed", (), at_least(0), int),
    Flag("seeds", (), at_least(1), int),
    Flag("dtype", (), one_of("float64", "float32"), str, shapes=True),
    Flag("precision", (), one_of("highest", "tf32", "bfloat16"), str, shapes=True),
)


def run_of(
    experiment: Experiment,
    *,
    preset: str = "quick",
    memory: int | None = None,
    data_dir: str | os.PathLike | None = None,
    **given: Any,
) -> Run:
    """Complete a configuration: flags that are not given come from the preset.

    Args:
        experiment: the experiment.
        preset: ``quick`` or ``paper``.
        memory: bytes that a case may take; what cannot fit is refused.
        data_dir: where data are looked for first.
        **given: flags, those that are swept with one value or several; and ``seed``, ``seeds``,
            ``dtype``, ``perturb``, ``precision``.

    Raises:
        BadInput: a setting is unknown or outside its domain, or a combination outside the
            experiment.
    """
    known = defaults(experiment)
    check_statement(experiment, ("experiment", "memory", *known))
    common = {**known, **{name: given.pop(name) for name in known if name in given}}
    common["preset"] = preset
    flags = {flag.name: flag for flag in experiment.flags}
    if unknown := sorted(given.keys() - flags.keys()):
        wanted = ", ".join([*flags, *known])
        raise BadInput(
            f"{option_string(unknown[0])}: got an unknown setting, wanted one of {wanted}"
        )
    for flag in _COMMON_FLAGS:
        if common.get(flag.name) is not None:
            _accept(flag, common[flag.name])
    values = {name: _values(flags[name], value) for name, value in given.items()}
    place = "" if data_dir is None else os.fspath(data_dir)
    return configure(experiment, values, common, memory=memory, data_dir=place)


def configure(
    experiment: Experiment,
    given: Mapping[str, Any],
    common: Mapping[str, Any],
    *,
    memory: int | None = None,
    data_dir: str = "",
) -> Run:
    """Make a configuration of values accepted one by one, and check their combinations.

    Args:
        experiment: the experiment.
        given: flag -> its value, several for one that is swept; the preset has the others.
        common: the settings beside the flags, see :data:`COMMON`.
        memory: bytes that a case may take; what cannot fit is refused.
        data_dir: where data are looked for first.

    Raises:
        BadInput: a combination is outside the experiment, or too large.
    """
    defaults_at = common["preset"], common["dtype"]
    settings = {flag.name: flag.default(*defaults_at) for flag in experiment.flags}
    several = {flag.name for flag in experiment.flags if flag.swept and flag.type != "array"}
    # A value given twice is one point: axes of results.nc have each label once.
    settings |= {n: tuple(dict.fromkeys(v)) if n in several else v for n, v in given.items()}
    for flag in experiment.flags:
        # Those of a figure have no presets: it gives each of them.
        needed = flag.type != "array" and flag.name not in given
        if needed and settings[flag.name] in ((), None):
            raise no_values(experiment, flag)
    settings[DATA_DIR] = data_dir and os.path.abspath(data_dir)
    run = Run(experiment, settings, experiment, given=given, **common)
    # The float32 run has integers of 32 bits, and the seed is one of them.
    if run.seed + (run.seeds or 0) > 2**31:
        raise BadInput(f"--seed: got {run.seed}, wanted all seeds below 2^31")
    # Before ``prepare``, which may read data or make arrays of the sizes that were asked for.
    if memory is not None:
        _refuse_too_large(run, memory)
    with name_mistakes(folders_of(experiment), of=experiment):
        try:
            settings = experiment.prepare(settings, set(given))
            mine = select_scenarios(experiment, settings)
            validate(mine, settings)
        except ValueError as error:  # how an experiment refuses a combination
            raise as_bad_input(error) from None
    return run._replace(settings=settings, concerned=mine)


def _refuse_too_large(run: Run, memory: int) -> None:
    """Refuse a run whose cases or results cannot fit, before anything is made.

    A case is not cut into parts: it must fit into the ``memory`` of a part. The results of all
    points, some hundred bytes each at least, must fit into that of the process.

    The refusal says how much it would take, and which flag to lower.
    """
    flags = {flag.name: flag for flag in run.experiment.flags}
    swept = {n: run.settings[n] if flag.swept else (run.settings[n],) for n, flag in flags.items()}
    # Only such flags can make a case larger; of the others any value stands for all.
    sizes = {n: max(v) for n, v in swept.items() if flags[n].type is int and flags[n].shapes}
    largest = {n: sizes.get(n, v[0]) for n, v in swept.items()}
    case = int(np.dtype(run.dtype).itemsize * run.experiment.numbers(largest))
    if case > memory:
        name = max(sizes, key=lambda name: sizes[name])
        raise BadInput(
            f"{option_string(name)}: got {sizes[name]}, with which a case takes {size_of(case)} "
            f"or more, wanted at most --memory, {size_of(memory)}"
        )
    counts = {"seeds": run.seeds or 1} | {name: len(values) for name, values in swept.items()}
    points = math.prod(counts.values())
    if points * POINT > (most := memory_of_process()):
        name = max(counts, key=lambda name: counts[name])
        raise BadInput(
            f"{option_string(name)}: got {counts[name]}, with which {points:,} points leave "
            f"{size_of(points * POINT)} or more, wanted at most {size_of(most)}"
        )


POINT = 500
"""Least bytes of the results of a point: settings, hypotheses, a residual in two precisions."""


def _values(flag: Flag, value: Any) -> Any:
    """The accepted value of a flag, as settings hold it; a tuple for a swept flag."""
    if not flag.swept or flag.type == "array":
        return None if value is None else _accept(flag, value)
    several = value if isinstance(value, list | tuple | range | np.ndarray) else (value,)
    if not len(several):
        raise BadInput(f"{option_string(flag.name)}: got nothing, wanted {flag.wanted()}")
    return tuple(_accept(flag, entry) for entry in several)


def _accept(flag: Flag, value: Any) -> Any:
    value = np.asarray(value) if flag.type == "array" else value
    if not flag.accepts(value):
        array = isinstance(value, np.ndarray)
        got = f"an array of {value.dtype}, shape {value.shape}" if array else repr(value)
        raise BadInput(f"{option_string(flag.name)}: got {got}, wanted {flag.wanted(value)}")
    return value.astype(float) if isinstance(flag.type, str) else flag.type(value)
