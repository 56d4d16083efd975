"""Whether saved results are those of their configuration: axes, labels, seeds, steps and settings.

What a file must hold follows from its configuration by the code that runs one
(:func:`lrdyn.verification.running.produce.plan_jobs`); no number of it is computed again.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.core.show import shortened
from lrdyn.verification.judging.outcomes import control_group, groups_of
from lrdyn.verification.running.configuration import Run
from lrdyn.verification.running.jobs import Planned, own_settings, split_settings
from lrdyn.verification.running.produce import plan_jobs
from lrdyn.verification.stating.fields import SIZE
from lrdyn.verification.storing.cases import group_of

if TYPE_CHECKING:
    import xarray


def differences(
    run: Run, groups: Mapping[str, "xarray.Dataset"], *, with_cases: bool
) -> Iterator[str]:
    """A line for each way in which ``results.nc`` is not what its run would have written.

    Args:
        run: the configuration that the file records.
        groups: the content of the file.
        with_cases: whether it must hold cases; files of earlier releases have none.
    """
    # Before anything of that size is made: a file may ask for any number of points.
    if other := list(_check_counts(run, groups)):
        yield from other
        return
    plans = plan_jobs(
        run.concerned, run.settings, run.dtype, run.seeds_of, run.perturb, run.preset == "paper"
    )
    wanted: set[str] = {"/"}
    for plan in plans:
        for name, axes, words in _group_plans(plan):
            wanted.add(name)
            if name not in groups:
                yield f"group {name}: got none, wanted it"
                continue
            yield from _check_axes(name, groups[name], axes)
            yield from _check_fixed_flags(name, groups[name], words)
            yield from _check_types(name, groups[name], plan)
            yield from _check_steps(name, groups[name], plan, words)
        if plan.keeps_cases and with_cases:
            wanted.add(name := group_of(plan.group))
            yield from _check_cases(name, groups, plan)
    for name in groups.keys() - wanted:
        yield f"group {shortened(name)}: got it, wanted none"


def _check_counts(run: Run, groups: Mapping[str, "xarray.Dataset"]) -> Iterator[str]:
    """Lines about scenarios whose number of points is not seeds times settings."""
    for scenario in run.concerned.scenarios:
        own = own_settings(run.experiment, scenario, run.settings)
        swept, _ = split_settings(run.experiment, own)
        counts = [len(values) for name, values in swept.items() if name not in scenario.whole]
        wanted = len(run.seeds_of(scenario)) * math.prod(counts)
        for group in groups_of(run.concerned, scenario, run.dtype).values():
            got = groups[group].get(SIZE) if group in groups else None
            if got is None:
                yield f"{group}: got no array {SIZE!r}, wanted it"
            elif got.size != wanted:
                yield f"{group}: got {got.size} cases, wanted {wanted}, seeds times settings"


def _group_plans(
    plan: Planned,
) -> Iterator[tuple[str, Mapping[str, Sequence[Any]], dict[str, Any]]]:
    """Lines about the groups of a plan: their axes, labels and fixed flags."""
    grid = dict(plan.points.grid or {})
    if not plan.controls:
        yield plan.group, grid, plan.words
        return
    # Controls have one value of every flag, without an axis.
    axes = {name: grid.pop(name) for name in ("seed", "amount") if name in grid}
    words = plan.words | {name: values[0] for name, values in grid.items()}
    for control in plan.controls:
        yield control_group(control, plan.precision, perturb=plan.perturbs), axes, words


def _check_axes(
    name: str, results: "xarray.Dataset", axes: Mapping[str, Sequence[Any]]
) -> Iterator[str]:
    if SIZE not in results.variables:
        yield f"{name}: got no array {SIZE!r}, wanted it for every judgement"
        return
    got = [str(dim) for dim in results[SIZE].dims]
    if got != list(axes):
        yield f"{name}: got axes {got}, wanted {list(axes)}"
        return
    for axis, values in axes.items():
        labels = results[axis].values.tolist() if axis in results.variables else []
        if labels != list(values):
            yield (
                f"{name}: got {len(labels)} of {axis}, {shortened(str(labels))}, "
                f"wanted {len(values)}, {shortened(str(list(values)))}"
            )


def _check_fixed_flags(
    name: str, results: "xarray.Dataset", words: Mapping[str, Any]
) -> Iterator[str]:
    try:
        got = json.loads(results.attrs["fixed"])
    except (KeyError, ValueError, TypeError):
        got = None
    if got != words:
        yield f"{name}: got fixed settings {shortened(str(got))}, wanted {shortened(str(words))}"


def _check_types(name: str, results: "xarray.Dataset", plan: Planned) -> Iterator[str]:
    """A line if a float32 run has float64 arrays, which one traced by JAX never leaves."""
    if plan.precision != "float32" or not plan.scenario.traced or plan.scenario.trains:
        return
    wide = [str(n) for n, array in results.data_vars.items() if array.dtype == np.float64]
    if wide:
        yield f"{name}: got float64 in {shortened(wide[0])}, wanted float32"


def _check_steps(
    name: str, results: "xarray.Dataset", plan: Planned, words: Mapping[str, Any]
) -> Iterator[str]:
    """A line unless the recorded steps begin at 0 and end at the number of steps of the run."""
    flag = plan.scenario.steps
    if not flag or "step" not in results.variables:
        return
    step = results["step"]
    wanted = words[flag] if flag in words else results[flag] if flag in results.coords else None
    # A number of steps that is neither a flag nor fixed cannot be checked here.
    if wanted is None or not step.size:
        return
    first, last = step.min("step"), step.max("step")
    if bool((first != 0).any()) or bool((last != wanted).any()):
        got = f"steps {float(first.min()):g} to {float(last.max()):g}"
        yield f"{name}: got {got}, wanted 0 to {flag}"


def _check_cases(name: str, groups: Mapping[str, "xarray.Dataset"], plan: Planned) -> Iterator[str]:
    if name not in groups:
        yield f"group {name}: got none, wanted it"
        return
    for axis, values in (plan.points.grid or {}).items():
        wanted = list(values[:1] if axis == "seed" else values)
        labels = groups[name][axis].values.tolist() if axis in groups[name].variables else []
        if labels != wanted:
            yield f"{name}: got {shortened(str(labels))} of {axis}, wanted {shortened(str(wanted))}"
