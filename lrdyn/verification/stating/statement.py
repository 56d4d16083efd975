"""How a theorem is stated: flags, hypotheses, prediction, measurement, claims and controls.

An :class:`Experiment` is data: it produces named arrays. A :class:`Theorem` is an experiment whose
claims and controls are judged on those arrays. :func:`lrdyn.cli.main` gives either the command
line, the sweeps, the files and the figure, and a theorem its verdict; ``docs/tutorial.md`` writes
one in a file of its own.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from lrdyn.core.show import aligned, near, table
from lrdyn.training.keeping import Keeper
from lrdyn.verification.stating import expectations
from lrdyn.verification.stating.claims import Kind
from lrdyn.verification.stating.expectations import Expectation
from lrdyn.verification.stating.fields import axes_of, names_of, sides_of
from lrdyn.verification.stating.flags import Flag, option_string
from lrdyn.verification.stating.forms import Form
from lrdyn.verification.stating.rest import OverSteps

C = TypeVar("C")
"""Type of the cases of a scenario: any PyTree."""
T = TypeVar("T")
"""Type of what theory predicts: a NamedTuple of arrays
(:mod:`lrdyn.verification.stating.fields`)."""
M = TypeVar("M")
"""Type of what is measured in a run: another one."""


class Misstated(ValueError):
    """A theorem, or a part of one, is stated wrongly; the message says what is wanted."""


def _refuse_others(owner: str, name: str, values: Any, kind: type) -> None:
    """Refuse what is no tuple of statements of a kind: one alone, or another object among them.

    Raises:
        Misstated: owner, name, what is there, what was wanted.
    """
    wanted = f"a tuple of lrdyn.{kind.__name__}"
    if not isinstance(values, tuple | list):
        beside = f": ({name[:-1]},)" if isinstance(values, kind) else ""
        got = type(values).__name__
        raise Misstated(f"{owner}: got {name}={got}, wanted {wanted}{beside}")
    for value in values:
        if not isinstance(value, kind):
            raise Misstated(f"{owner}: got {type(value).__name__} in {name}, wanted {wanted}")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[T, M]):
    """What a claim is judged on: arrays of one point, or of all seeds of one setting."""

    point: Mapping[str, Any]
    """Value of every flag, and ``seed``; for a claim over seeds an array of them."""
    predicted: T
    """Arrays that the claim reads, from theory: NumPy arrays of float64 or integers. For a claim
    over seeds they have the seeds as first axis."""
    measured: M
    """Arrays that the claim reads, from the run."""
    hypotheses: Mapping[str, np.ndarray]
    """Hypothesis -> whether it is met."""
    dtype: np.dtype
    """Precision of the run."""
    size: int
    """Longest axis of the case: the length of its longest dot product."""
    steps: int
    """Steps of the run."""


@dataclasses.dataclass(frozen=True)
class Claim(Generic[T, M]):
    """A statement that can be false, judged in NumPy on what a run left.

    ``Claim("rho", "rho_l(t+1) = ...")`` compares the field ``rho`` of theory with the field ``rho``
    of the run. ``compares`` names other fields, ``form`` compares in another way.

    Args:
        id: short name, and the name of the field that is compared if nothing else is said.
        statement: the claim in words and formula.
        kind: ``identity``, ``bound``, ``exact``, ``limit``, ``rate`` or ``statistical``.
        form: ``form(outcome)``, what is compared, in the place of ``compares``: one of
            :mod:`lrdyn.verification.stating.forms` or a tuple of them.
        reads: ``lambda theory, run: (theory.rho, run.step)``: all fields that ``form``,
            ``applies``, ``undecided`` and ``certified`` look at. It may leave out what is compared
            without a form. If it is not given, a form looks at the field of the claim's id, on
            whichever sides have one.
        tolerance: own tolerance of a ``limit`` or ``rate``, its reason in ``statement``; the other
            kinds take theirs from :func:`lrdyn.tolerance`.
        applies: ``applies(outcome)``, a hypothesis of this claim only.
        undecided: ``undecided(outcome)``, why a case that meets all hypotheses cannot be judged at
            these settings (``"too few steps"``); empty if it can. Theory decides, not the run.
        condition: ``lambda theory: theory.condition``, the factor by which theory's own run
            amplifies a small error of what is compared (:func:`lrdyn.with_condition`). It
            multiplies the tolerance of an identity or a bound; a case that is left without two
            digits is left out.
        steps: number of steps whose rounding is in what is compared; those of the run if None.
        carries: false for a count, and for what is true by construction: such a claim can be false,
            but no verdict rests on it.
        precision: ``float64`` where float32 decides it at no settings, for the reason that
            ``undecided`` or ``condition`` gives; empty for both. In float32 it is left open there,
            which leaves no verdict open.
        seeds: 0 for a claim about each single case; a number for one about all seeds of a setting
            together, of which it needs so many.
        sides: what predicts and what measures, in words; that of the scenario if empty.
        compares: ``lambda theory, run: (theory.bulk, run.rho)``: theory's array and the run's,
            which are :class:`~lrdyn.verification.stating.forms.Equal`, or integers if the claim is
            ``exact``; the fields of the claim's id if neither it nor ``form`` is given. Of arrays
            over steps the null is theory's first record, else 0.
        certified: ``certified(outcome)``: whether the run itself has shown that it arrived (by a
            proved bound on what is left, for example) where theory gives no number of steps. Such
            cases are counted apart.
        rest: of a training, ``rest(outcome)``: what is compared, over the steps
            (:class:`~lrdyn.verification.stating.rest.OverSteps`); what still moves at the end is
            left out, with the steps that it needs. Or the equal budget at which trainings are
            compared, in words: ``"equal steps"``.
    """

    id: str
    statement: str
    kind: Kind = "identity"
    form: Callable[[Outcome[T, M]], Form | tuple[Form, ...]] | None = None
    reads: Callable[[T, M], tuple[Any, ...]] | None = None
    tolerance: float | None = None
    applies: Callable[[Outcome[T, M]], Any] | None = None
    undecided: Callable[[Outcome[T, M]], str] | None = None
    condition: Callable[[T], Any] | None = None
    steps: int | None = None
    carries: bool = True
    precision: str = ""
    seeds: int = 0
    sides: str = ""
    compares: Callable[[T, M], tuple[Any, Any]] | None = None
    certified: Callable[[Outcome[T, M]], Any] | None = None
    rest: Callable[[Outcome[T, M]], OverSteps] | str = ""

    def __post_init__(self) -> None:
        kinds = [kind for kind in get_args(Kind) if kind != "control"]
        if self.kind not in kinds:
            got = f"kind={self.kind!r}{near(str(self.kind), kinds)}"
            raise Misstated(f"claim {self.id!r}: got {got}, wanted one of {', '.join(kinds)}")
        if not isinstance(self.tolerance, int | float | np.number | None):
            got = f"tolerance={self.tolerance!r}"
            raise Misstated(f"claim {self.id!r}: got {got}, wanted a number")
        if self.tolerance is None and self.kind in ("limit", "rate"):
            raise Misstated(
                f"claim {self.id!r}: got kind={self.kind!r} without a tolerance, wanted one, with "
                "its reason in the statement"
            )
        if self.tolerance is not None and self.kind in ("identity", "bound", "exact"):
            raise Misstated(
                f"claim {self.id!r}: got tolerance={self.tolerance}, wanted none: that of kind "
                f"{self.kind!r} is lrdyn.tolerance"
            )
        if self.compares is not None and self.form is not None:
            raise Misstated(f"claim {self.id!r}: got compares and form, wanted one of them")
        if self.compares is not None:
            # Two arrays of the same side would agree whatever the theorem says.
            sides = [side for side, _ in sides_of(self.compares)]
            if sides != ["theory", "run"]:
                raise Misstated(
                    f"claim {self.id!r}: got compares of {' and '.join(sides)}, wanted an array of "
                    "theory and one of the run"
                )

    def __repr__(self) -> str:
        """One line: the kind, the id and what is claimed."""
        return f"Claim({self.id!r}, {self.statement!r}, {self.kind!r})"

    @property
    def compared(self) -> tuple[str, str] | None:
        """Names of theory's field and of the run's that are compared; None if a form compares.

        Example:
            >>> Claim("rho", "").compared
            ('rho', 'rho')
        """
        if self.form is not None:
            return None
        if self.compares is None:
            return self.id, self.id
        (_, predicted), (_, measured) = sides_of(self.compares)
        return predicted, measured

    @property
    def condition_name(self) -> str:
        """Name of the field of the condition, empty if there is none."""
        return names_of(self.condition)[0] if self.condition else ""


@dataclasses.dataclass(frozen=True)
class Finding(Generic[T, M]):
    """A measured number with its spread over seeds; it decides nothing.

    Args:
        id: short name.
        statement: what is measured, in words.
        value: ``value(outcome)``: a number for each seed, the first axis of the outcome's arrays.
        reads: the fields that ``value`` looks at, as those of a :class:`Claim`.
        above: what the mean over seeds was expected to exceed, before seeds above 0 were run.
        below: or to stay under.
        within: or to lie between, where the source says that there is no effect: a margin that was
            stated before. Without any of these nothing is expected.
        source: the number that the source has for it, on the side that is expected.
        against: a number with which the mean is compared where nothing is expected: 0 of a
            difference that is looked at.
        rest: as that of a :class:`Claim`; of what still moves the outcome is ``still moving``.
    """

    id: str
    statement: str
    value: Callable[[Outcome[T, M]], Any]
    reads: Callable[[T, M], tuple[Any, ...]]
    above: float | None = None
    below: float | None = None
    within: tuple[float, float] | None = None
    source: float | None = None
    against: float | None = None
    rest: Callable[[Outcome[T, M]], OverSteps] | str = ""

    def __post_init__(self) -> None:
        expected = self.expected
        if expected.sides and self.against is not None:
            raise Misstated(
                f"finding {self.id!r}: got against={self.against:g}, wanted none beside what is "
                "expected"
            )
        if expected.sides > 1:
            raise Misstated(
                f"finding {self.id!r}: got {expected.sides} of above, below and within, wanted at "
                "most one of them"
            )
        if self.within is not None and not self.within[0] < self.within[1]:
            raise Misstated(f"finding {self.id!r}: got within={self.within}, wanted low < high")
        if self.source is None:
            return
        # An expectation that its own source does not meet could never be called replicated.
        if not expected.is_met_by(self.source) or self.within is not None:
            raise Misstated(
                f"finding {self.id!r}: got source={self.source:g}, wanted it on the side of above "
                "or below"
            )

    def __repr__(self) -> str:
        """One line: the id and what is measured."""
        return f"Finding({self.id!r}, {self.statement!r})"

    @property
    def expected(self) -> Expectation:
        """What is expected of the mean over seeds."""
        return Expectation(self.above, self.below, self.within, self.source, self.against)


@dataclasses.dataclass(frozen=True)
class Control(Generic[C, T, M]):
    """A broken hypothesis, formula or algorithm under which a claim must be seen to fail.

    Exactly one of ``case``, ``predict``, ``measure`` and ``swap`` says what is broken. A control
    runs at settings of its own (``at`` over that of its scenario, over the quick preset's first
    values) and with seeds 0 and 1, whatever the flags are: it tests the instrument, not the user's
    numbers.

    Args:
        id: short name.
        statement: what is broken.
        claim: id of the claim that must fail.
        case: ``case(key, case, amount)`` moves a case away from a hypothesis; amount 0 is no move.
        breaks: that hypothesis, of the scenario, or ``"applies"`` for the claim's own.
        predict: a wrong formula; returns the fields that are wrong, the absent ones stay.
        drops: the hypothesis that such a formula goes without, in words, if it is right where that
            is met.
        measure: another algorithm, or a wrong measurement; as ``predict``.
        swap: ``lambda theory, run: (run.share, run.none)``: in the place of the first field, which
            the claim reads, stands the second, of the same runs: what a training left is compared
            with something that is not so. It runs nothing.
        at: settings under which the failure must show, beside those of the scenario.
        amount: the amount of the control.
        precision: ``float64`` where the failure shows in that alone, for the reason that the claim
            gives; empty for both.
        amounts: amounts that ``--perturb`` sweeps; empty if the control has no degrees.
        amount_label: axis label of the amounts.
    """

    id: str
    statement: str
    claim: str
    case: Callable[[Array, C, Array], C] | None = None
    breaks: str = ""
    predict: Callable[[C], T] | None = None
    drops: str = ""
    measure: Callable[[C], M] | None = None
    swap: Callable[[T, M], tuple[Any, Any]] | None = None
    at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    amount: float = 1.0
    precision: str = ""
    amounts: tuple[float, ...] = ()
    amount_label: str = ""

    def __post_init__(self) -> None:
        broken = [self.case, self.predict, self.measure, self.swap or None]
        if sum(part is not None for part in broken) != 1:
            raise Misstated(
                f"control {self.id!r}: wanted exactly one of case, predict, measure and swap"
            )
        if (self.case is None) != (not self.breaks):
            raise Misstated(
                f"control {self.id!r}: got breaks={self.breaks!r}, wanted the hypothesis that case "
                "breaks, and none without it"
            )
        # Only a case can be moved by degrees; a wrong formula is wrong, or it is not.
        if self.amounts and self.case is None:
            raise Misstated(f"control {self.id!r}: got amounts, wanted case beside them")
        if self.drops and self.predict is None:
            raise Misstated(f"control {self.id!r}: got drops, wanted predict beside it")

    def __repr__(self) -> str:
        """One line: the id, what is broken and the claim that must fail."""
        return f"Control({self.id!r}, {self.statement!r}, {self.claim!r})"

    @property
    def swapped(self) -> Mapping[str, str]:
        """Name of a field -> name of the field that stands in its place."""
        if self.swap is None:
            return {}
        names = names_of(self.swap, 2)
        return {names[0]: names[-1]}  # ``names`` has one entry if a field stands in its own place

    def shows_in(self, precision: str) -> bool:
        """Whether its failure can be seen in a precision."""
        return self.precision in ("", precision)


class CaseArguments(NamedTuple):
    """What a case takes of the flags, as its definition says."""

    names: tuple[str, ...]
    """Its arguments behind the key, those of ``**flags`` left out."""
    needed: tuple[str, ...]
    """Those without a default."""
    takes_all: bool
    """Whether it has ``**flags``."""


class Nothing(NamedTuple):
    """A side without arrays, for a scenario that does not state it."""


def nothing(*_: Any) -> Any:
    """Predict, measure or compare nothing."""
    return Nothing()


@dataclasses.dataclass(frozen=True)
class Scenario(Generic[C, T, M]):
    """One situation: how it is produced, and everything that is claimed about it.

    All functions are pure. They are jitted and vmapped over the axes that are not shapes, unless
    ``traced`` is false.

    Args:
        id: short name.
        case: ``case(key, **flags)`` builds everything a run needs, as a PyTree. It is never saved.
            It takes the flags that it needs; of any other swept flag one value is enough.
        predict: ``predict(case)``: the arrays of theory, from theory alone.
        measure: ``measure(case)``: those of the run, from the algorithm itself. A field of one axis
            that has its name becomes its coordinate.
        claims: what is claimed of the two.
        controls: what must be seen to fail.
        hypotheses: text -> ``check(case)``, a boolean array.
        narrow: ``narrow(settings)`` returns the settings that this scenario sweeps, if not all. An
            empty tuple for a flag leaves the scenario out (unless it is the first).
        compare: ``compare(case, predicted, measured)``: fields of the run that are made of both.
        steps: flag that counts the steps of a run, which add up errors; empty if there is none.
        diverges: ``lambda theory: theory.diverges``, the step at which theory's own run diverges
            (see :func:`lrdyn.simulate`), -1 if it does not. Such cases are left out.
        diverged: ``lambda run: run.diverged_at``, the step at which the run diverged. It is
            reported; it excuses nothing.
        sides: what predicts and what measures, in words, for the documents.
        traced: false for a run in plain Python, called once a point: what comes from tracing or
            compiling, for example.
        at: settings under which the controls run, over the quick preset's first values.
        long: whether a point runs for seconds, so that XLA's optimisation repays its time.
        apart: whether theory and run are compiled apart, where the run is most of the work: an edit
            of a formula then leaves its program, and its records are read.
        train: ``train(case, keeper)``, in the place of ``measure`` in a :class:`Study`: it calls
            :func:`lrdyn.training.train` with that keeper, who keeps its checkpoints. Such points
            are run one by one in plain Python and in one precision; a run that is lost
            (``diverged``) is left out of what is claimed over seeds, as seed 0 is, which sets
            expectations and thresholds. Controls of it swap arrays.
        findings: what is measured beside the claims.
        summed: ``summed(case)``: the arrays of a case whose longest axis is the length of a sum, if
            it has other ones too (all masks, one a row, for example); the whole case by default.
        whole: swept flags whose values are all given to one case, as a tuple: what is compared with
            the same seed must lie in one outcome.
        blocks: whether its runs rest on the singular vectors of block-diagonal matrices staying in
            the blocks, to the bit. A device whose SVD mixes them leaves the claims undecided.
        seeds: in a study, how many seeds it runs with unless the number is given.
        theory: NamedTuple of what is predicted (:mod:`lrdyn.verification.stating.fields`): fields,
        their axes and
            units; an axis has one length in a case.
        measured: that of what is measured.
    """

    id: str
    case: Callable[..., C]
    predict: Callable[[C], T] = nothing
    measure: Callable[[C], M] = nothing
    claims: tuple[Claim[T, M], ...] = ()
    controls: tuple[Control[C, T, M], ...] = ()
    hypotheses: Mapping[str, Callable[[C], Array]] = dataclasses.field(default_factory=dict)
    narrow: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: settings
    compare: Callable[[C, T, M], M] = nothing
    steps: str = ""
    diverges: Callable[[T], Any] | None = None
    diverged: Callable[[M], Any] | None = None
    sides: str = ""
    traced: bool = True
    at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    long: bool = False
    apart: bool = False
    train: Callable[[C, Keeper], M] | None = None
    findings: tuple[Finding[T, M], ...] = ()
    summed: Callable[[C], PyTree] = lambda case: case
    whole: tuple[str, ...] = ()
    blocks: bool = False
    seeds: int = 1
    theory: type[T] | None = None
    measured: type[M] | None = None

    def __repr__(self) -> str:
        """One line: the id and how much is stated."""
        stated = f"{len(self.claims)} claims, {len(self.controls)} controls"
        measured = f", {len(self.findings)} findings" if self.findings else ""
        return f"Scenario({self.id!r}: {stated}{measured})"

    @cached_property
    def arguments(self) -> CaseArguments:
        """What the case takes of the flags, read from its definition once.

        Example:
            >>> Scenario("a", lambda key, *, dim, size=1: None).arguments
            CaseArguments(names=('dim', 'size'), needed=('dim',), takes_all=False)
        """
        _, *arguments = inspect.signature(self.case).parameters.values()
        several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        named = [argument for argument in arguments if argument.kind not in several]
        return CaseArguments(
            names=tuple(argument.name for argument in named),
            needed=tuple(a.name for a in named if a.default is a.empty),
            takes_all=any(argument.kind is argument.VAR_KEYWORD for argument in arguments),
        )

    @property
    def trains(self) -> bool:
        """Whether the runs of the scenario train."""
        return self.train is not None

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Names of the axes of each array."""
        return {**axes_of(self.theory), **axes_of(self.measured)}

    @property
    def diverges_name(self) -> str:
        """Name of the field of the step at which theory diverges, empty if there is none."""
        return names_of(self.diverges)[0] if self.diverges else ""

    @property
    def diverged_name(self) -> str:
        """Name of the field of the step at which the run diverged, empty if there is none."""
        return names_of(self.diverged)[0] if self.diverged else ""

    def fields(self, side: str) -> tuple[str, ...]:
        """Names of the fields of ``"theory"`` or ``"run"``."""
        kind = self.theory if side == "theory" else self.measured
        return tuple(name.rstrip("_") for name in getattr(kind, "_fields", ()))

    def read_by(self, claim: Claim) -> tuple[tuple[str, str], ...]:
        """Side (``"theory"`` or ``"run"``) and name of the fields that a claim reads."""
        if claim.compared is not None:
            compared = tuple(zip(("theory", "run"), claim.compared, strict=True))
        elif claim.reads is None:
            sides = [side for side in ("theory", "run") if claim.id in self.fields(side)]
            compared = tuple((side, claim.id) for side in sides)
        else:
            compared = ()
        others = () if claim.reads is None else sides_of(claim.reads)
        return tuple(dict.fromkeys((*compared, *others)))

    def arrays_of(self, claim: Claim) -> tuple[str, ...]:
        """Names of the fields that a claim reads, each once."""
        return tuple(dict.fromkeys(name for _, name in self.read_by(claim)))

    def __post_init__(self) -> None:
        owner = f"scenario {self.id!r}"
        for name, kind in (("claims", Claim), ("controls", Control), ("findings", Finding)):
            _refuse_others(owner, name, getattr(self, name), kind)
        for text, check in self.hypotheses.items():
            if not callable(check):
                got = f"hypothesis {text!r} as {type(check).__name__}"
                raise Misstated(f"{owner}: got {got}, wanted a function of the case")
        self._refuse_unknown_steps()
        names = {*self.fields("theory"), *self.fields("run")}
        for name in sorted(names):
            # A field of both sides is saved as <name>_predicted and <name>_measured.
            base, _, side = name.rpartition("_")
            if base in names and side in ("predicted", "measured"):
                raise Misstated(
                    f"scenario {self.id!r}: got fields {base!r} and {name!r}, wanted another name "
                    "for the second"
                )
        for name, axes in self.axes.items():
            # The axis of the points of a search, which is not of one length with any other.
            if "point" in axes:
                raise Misstated(
                    f"scenario {self.id!r}: got field {name!r} with the axis 'point', wanted "
                    "another name for it"
                )
        for claim in self.claims:
            self._refuse_unknown(claim)
        known = {claim.id for claim in self.claims}
        for control in self.controls:
            if self.trains and control.swap is None:
                raise Misstated(
                    f"control {control.id!r}: got a run of its own, wanted swap, as the scenario "
                    "trains"
                )
            if control.claim not in known:
                raise Misstated(
                    f"control {control.id!r}: got claim {control.claim!r}, wanted one of "
                    f"{', '.join(map(repr, sorted(known)))}"
                )
            wanted = ["applies", *self.hypotheses]
            if control.breaks and control.breaks not in wanted:
                got = f"breaks={control.breaks!r}{near(control.breaks, wanted)}"
                raise Misstated(
                    f"control {control.id!r}: got {got}, wanted one of "
                    f"{', '.join(map(repr, wanted))}"
                )

    def _refuse_unknown_steps(self) -> None:
        # A field that is not there would be read as that of a run that never diverges.
        for what, side, name in (
            ("diverged", "run", self.diverged_name),
            ("diverges", "theory", self.diverges_name),
            *((f"condition of claim {c.id!r}", "theory", c.condition_name) for c in self.claims),
        ):
            fields = self.fields(side)
            if name and name not in fields:
                got = f"{what} {side}.{name}{near(name, fields)}"
                wanted = f"one of {', '.join(fields)}" if fields else "a field that is there"
                raise Misstated(f"scenario {self.id!r}: got {got}, wanted {wanted}")

    def _refuse_unknown(self, claim: Claim) -> None:
        # At once and by name, not when a run of hours comes to its judge.
        read = self.read_by(claim)
        if not read and claim.reads is None:
            near = difflib.get_close_matches(claim.id, self.fields("theory") + self.fields("run"))
            named = f"the id of a field ({' or '.join(dict.fromkeys(near))})" if near else ""
            got = f"a form, no reads and no field {claim.id!r}"
            wanted = " or ".join(filter(None, [named, "reads"]))
            raise Misstated(f"claim {claim.id!r}: got {got}, wanted {wanted}")
        for side, name in read:
            mine = self.fields(side)
            if name in mine:
                continue
            near = difflib.get_close_matches(name, mine, 3)
            other = "run" if side == "theory" else "theory"
            wanted = f"{side}.{' or '.join(near)}" if near else f"a field of scenario {self.id!r}"
            got = f"{side}.{name}"
            if claim.compares is None and claim.compared == (name, name):
                got = f"{got} by its id"
                wanted = f"{wanted}, or compares or form"
            elif name in self.fields(other) and not near:
                wanted = f"{other}.{name}"
            raise Misstated(f"claim {claim.id!r}: got {got}, wanted {wanted}")


RESERVED = ["case", "controls", "perturb", "float32", "float64"]
"""Names of groups of ``results.nc`` that no scenario may take."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Scenarios that share a command line, and produce named arrays.

    Args:
        name: name of the command and of the folder of its results.
        summary: one line.
        flags: the flags; those that a scenario needs are arguments of its ``case``.
        scenarios: one or more; the arrays of the first are the root of ``results.nc``.
        plots: file stem -> ``plot(groups)``, which draws a matplotlib figure of its own from the
            content of ``results.nc`` (group -> dataset); it imports matplotlib when called. None
            draws nothing, if the scenario it looks at was left out.
        prepare: ``prepare(settings, given)`` completes settings that depend on each other, for
            example on a file; ``given`` names those given explicitly. It returns new settings.
        check: ``check(point)`` raises ``ValueError`` for combinations outside the experiment.
        axes: flags that a sweep is drawn over before all others: abscissa, curves, panels.
        data: ``data(settings)`` names the files that the cases are made of, if there are any.
        about: ``about(settings)``: a line about what is run, said before it: the data of a study.
        numbers: ``numbers(point)``: how many numbers a case has at least, from the values of the
            flags; what does not fit into memory is then refused before anything is made.
        intervals: how many intervals of findings hold at once, also where some scenarios alone are
            run; one for each finding that an interval decides, unless it is given.
        title: what its readers call it, ``"Theorem 1"``; its name if empty.
        small: values of flags with which a run takes seconds and still judges every claim and
            control: what is tried of every experiment is tried of these.
        page: where it is explained: a path in its repository, or an address.
        source: what the statement is derived from, for those who cite or contest it.
        dtype: the precision unless another is asked for; by default float64, of a study float32.
    """

    name: str
    summary: str
    flags: tuple[Flag, ...]
    scenarios: tuple[Scenario, ...]
    plots: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(
        default_factory=dict
    )
    prepare: Callable[[dict[str, Any], set[str]], dict[str, Any]] = lambda settings, given: settings
    check: Callable[[Mapping[str, Any]], None] = lambda point: None
    axes: tuple[str, ...] = ()
    data: Callable[[Mapping[str, Any]], Sequence[Path]] = lambda settings: ()
    numbers: Callable[[Mapping[str, Any]], int] = lambda point: 0
    about: Callable[[Mapping[str, Any]], str] = lambda settings: ""
    intervals: int = 0
    title: str = ""
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    page: str = ""
    source: str = ""
    dtype: str = ""

    def __post_init__(self) -> None:
        owner = f"{type(self).__name__.lower()} {self.name!r}"
        _refuse_others(owner, "scenarios", self.scenarios, Scenario)
        if not isinstance(self.flags, tuple | list):
            _refuse_others(owner, "flags", self.flags, Flag)
        if not self.title:
            object.__setattr__(self, "title", self.name)
        if not self.intervals:
            decided = sum(finding.expected.decided for finding in self.findings.values())
            object.__setattr__(self, "intervals", max(1, decided))
        entries = [
            entry.id for s in self.scenarios for entry in (*s.claims, *s.controls, *s.findings)
        ]
        # Groups of results.nc lie side by side: a scenario that is called as one of them would
        # overwrite it.
        groups = [*RESERVED, *(scenario.id for scenario in self.scenarios)]
        for ids in (entries, groups):
            doubles = {name for name in ids if ids.count(name) > 1}
            if doubles:
                raise Misstated(f"theorem {self.name!r}: got ids {doubles} twice, wanted each once")

    def __repr__(self) -> str:
        """Name, summary and flags, and a line for each claim and finding."""
        lines = [f"{type(self).__name__} {self.name!r}: {self.summary}"]
        if self.flags:
            lines.append(f"flags: {' '.join(option_string(flag.name) for flag in self.flags)}")
        rows = self._rows()
        lines += aligned(rows) if len(rows) > 1 else map(repr, self.scenarios)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = f"<b>{escape(self.name)}</b>: {escape(self.summary)}"
        flags = " ".join(f"<code>{option_string(flag.name)}</code>" for flag in self.flags)
        return f"<p>{head}</p><p>{flags}</p>{table(self._rows())}"

    def _rows(self) -> list[tuple[str, ...]]:
        """A heading, and for each claim and finding its scenario, kind, controls and statement."""
        rows = [("scenario", "claim", "kind", "controls", "statement")]
        for scenario in self.scenarios:
            for claim in scenario.claims:
                controls = sum(control.claim == claim.id for control in scenario.controls)
                cells = claim.id, claim.kind, str(controls), claim.statement
                rows.append((scenario.id, *cells))
            for finding in scenario.findings:
                rows.append((scenario.id, finding.id, "finding", "", finding.statement))
        return rows

    @property
    def has_claims(self) -> bool:
        """Whether anything is claimed."""
        return any(scenario.claims for scenario in self.scenarios)

    @property
    def findings(self) -> dict[str, Finding]:
        """Findings of all scenarios, by their ids."""
        return {finding.id: finding for s in self.scenarios for finding in s.findings}

    def outcome_entry(self, id: str, draws: np.ndarray) -> dict[str, Any]:
        """Outcome of the expectation of a finding.

        See :func:`lrdyn.verification.stating.expectations.outcome_entry`.

        All findings that an interval decides share the probability that one misses.

        Args:
            id: of the finding.
            draws: its number for each seed.
        """
        return expectations.outcome_entry(self.findings[id].expected, draws, self.intervals)


class Theorem(Experiment):
    """An experiment with claims and controls, judged on the arrays that it produces.

    Identities are judged in two precisions: beside a float64 run stands one in float32.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.has_claims:
            raise Misstated(f"theorem {self.name!r}: got no claim, wanted one or an Experiment")


class Study(Theorem):
    """An experiment some of whose scenarios train: float32, runs that continue after a kill.

    The first scenario is an identity, judged in both precisions, that carries the verdict with one
    seed. Claims over seeds and findings leave seed 0 out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scenarios[0].trains:
            raise Misstated(f"study {self.name!r}: got a training first, wanted an identity")


def longest_axis(case: PyTree) -> int:
    """Longest axis of the arrays of any PyTree, at least 1: the length of its longest dot product.

    Example:
        >>> longest_axis({"weights": (jnp.ones((3, 7)), jnp.ones(2)), "activation": jnp.tanh})
        7
    """
    # Array-like, not array: a Python number is an array of one entry, and a function is none.
    arrays = jax.tree.leaves(eqx.filter(case, eqx.is_array_like))
    return max((side for array in arrays for side in jnp.shape(array)), default=1)
