"""Where ``results.nc`` keeps the arrays of a scenario and of a control."""

from lrdyn.engine.statement import Control, Experiment, Scenario, Study, Theorem

PRECISIONS = {"float64": ("float64", "float32"), "float32": ("float32",)}
"""The runs behind one verdict: the dtype asked for first."""


def precisions(experiment: Experiment, scenario: Scenario, dtype: str) -> tuple[str, ...]:
    """The runs of a scenario: a theorem in float64 is run in float32 as well.

    A study trains in one precision; its identities are judged in both.
    """
    if scenario.trains or not isinstance(experiment, Theorem):
        return (dtype,)
    if isinstance(experiment, Study):
        return (dtype, "float32" if dtype == "float64" else "float64")
    return PRECISIONS[dtype]


def precision_of_controls(experiment: Experiment, scenario: Scenario, dtype: str) -> str:
    """Precision in which controls must be seen to fail: that asked for, but for a study.

    Its identities are judged in both precisions, and in float64 more breaks can be told from
    rounding.
    """
    return "float64" if isinstance(experiment, Study) and not scenario.trains else dtype


def groups_of(experiment: Experiment, scenario: Scenario, dtype: str) -> dict[str, str]:
    """Precision -> group of a scenario; ``dtype`` is the precision that was asked for."""
    root = "" if scenario is experiment.scenarios[0] else f"/{scenario.id}"
    return {
        p: (root or "/") if p == dtype else f"{root}/{p}"
        for p in precisions(experiment, scenario, dtype)
    }


def controls_of(scenario: Scenario, precision: str) -> list[Control]:
    """The controls of a scenario whose failure shows in a precision."""
    return [c for c in scenario.controls if c.shows_in(precision)]


def control_group(control: Control, precision: str, *, perturb: bool = False) -> str:
    """Group of a control; with ``perturb``, of all its amounts."""
    return f"/{'perturb' if perturb else 'controls'}/{control.id}/{precision}"
