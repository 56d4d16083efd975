"""The case of a scenario from the first record of a run, and what is measured from all of them.

Claims, prediction and checks of hypotheses are those of the theorem. What is replaced is its
``measure``: it reads records, by the same function of layers that measures the theorem's own run.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lrdyn.core.spectra import numerical_rank
from lrdyn.corollary1 import statement as of_corollary1
from lrdyn.recorded_runs.records import Records
from lrdyn.theorem2 import classifier_claims, optimizers, setting, subspace
from lrdyn.theorem2 import statement as of_theorem2
from lrdyn.theorem4 import problems, trajectory_claims
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.statement import Scenario, longest_axis

Settings = Mapping[str, Any]
"""Arguments of :func:`lrdyn.judge_run` that were given."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A scenario whose measure reads records: one object each, so that it is compiled once."""

    scenario: Scenario
    """That of the theorem, with the claims that can be judged from records, and no control."""
    read: Callable[[Any, Any], Any]
    """``read(case, arrays)``: what the scenario measures, from the records."""
    amend: Callable[[Scenario, Any], Scenario] = lambda scenario, arrays: scenario
    """What the scenario is, given the records."""


class RecordedCase(NamedTuple):
    """What a recorded run is judged as."""

    kind: Kind
    case: Any
    """From the first record and the settings."""
    arrays: PyTree
    """The records, as the kind reads them."""
    point: dict[str, Any]
    """Values of the flags that claims look at."""
    assumed: dict[str, str]
    """Hypothesis -> why records do not show it."""
    left_out: dict[str, str]
    """Claim of the theorem -> why it is not judged."""
    assumptions: tuple[str, ...] = ()
    """What was stated, not seen, in words."""


NOISE = "gradients without noise, of the whole batch: not known from records"
PLAIN = "no other optimiser than gradient descent: not known, but another leaves the path"
LOSSES: dict[str, tuple[float, bool]] = {
    "sum/2": (1.0, False),
    "sum": (2.0, False),
    "mean/2": (1.0, True),
    "mean": (2.0, True),
}
"""Word for the loss -> its multiple of 1/2 ||.||_F^2, and whether it is a mean over entries."""


def _rates(
    records: Records, settings: Settings, entries: int, of_optimizer: str = PLAIN
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of a descent on 1/2 ||.||_F^2, and what was assumed of its rates."""
    depth, dtype = len(records.layers), np.dtype(records.dtype)
    eta, decay = settings["step_size"], settings.get("weight_decay", 0.0)
    decays = np.asarray(decay, float)
    number = isinstance(eta, int | float | np.number) and not isinstance(eta, bool)
    if not number or not 0 < float(eta) < np.inf:
        raise BadInput(f"step_size: got {eta!r}, wanted a number above 0")
    if decays.shape not in ((), (depth,)) or not np.all((decays >= 0) & (decays < np.inf)):
        raise BadInput(f"weight_decay: got {decay!r}, wanted a number >= 0, or {depth} of them")
    word = settings.get("loss", "sum/2")
    if word not in LOSSES:
        raise BadInput(f"loss: got {word!r}, wanted one of {', '.join(LOSSES)}")
    multiple, is_mean = LOSSES[word]
    # c times the loss is the step c eta with the decay lambda / c: theorem2.md, Why 5.
    multiple /= entries if is_mean else 1
    fields = {
        "weights": tuple(map(jnp.asarray, records.first)),
        "learning_rate": jnp.asarray(float(eta) * multiple, dtype),
        "weight_decay": jnp.asarray(np.broadcast_to(decays / multiple, (depth,)), dtype),
        "scales": subspace.start_scales(tuple(map(jnp.asarray, records.first))),
        "steps": _from_first(records),
    }
    first = f"step {records.steps[0]}, the first record, is the start of theory"
    said = [f"step size {eta:g} as given", f"weight decay {_text(decay)} as given"]
    source = "as given" if "loss" in settings else "the default"
    said += [f"loss {word} of the squared residual, {source}", of_optimizer, first]
    return fields, (*said, *records.remarks)


def _from_first(records: Records) -> np.ndarray:
    # Descent has no clock: theory may start at any record at which its hypotheses hold.
    return np.asarray(records.steps) - records.steps[0]


def _text(value: Any) -> str:
    return " ".join(f"{number:g}" for number in np.ravel(np.asarray(value, float)))


def _matrix(settings: Settings, name: str, dtype: str) -> np.ndarray:
    given = settings.get(name)
    if given is None:
        raise BadInput(f"{name}: got nothing, wanted a matrix")
    given = given.detach().cpu().numpy() if hasattr(given, "detach") else given
    array = np.asarray(given)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not np.all(np.isfinite(array)):
        got = f"an array of {array.dtype} of shape {array.shape}"
        raise BadInput(f"{name}: got {got}, wanted a matrix of finite numbers")
    return array.astype(dtype)


def _factorization(records: Records, settings: Settings) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of a :class:`~lrdyn.theorem2.setting.DeepFactorization`."""
    target = _matrix(settings, "target", records.dtype)
    dim = len(target)
    for number, W in enumerate(records.first, start=1):
        if W.shape != (dim, dim) or target.shape != (dim, dim):
            got = f"layer {number} of shape {W.shape} and a target of shape {target.shape}"
            raise BadInput(f"weights: got {got}, wanted square ones of one size")
    rule = _optimizer(records, settings)
    plain = rule is optimizers.DESCENT
    stated = f"optimizer {rule.name} as given, decay beside its step, no state at the start"
    fields, said = _rates(records, settings, target.size, PLAIN if plain else stated)
    rank = settings.get("rank")
    if rank is None:
        values = np.linalg.svd(target, compute_uv=False)
        rank = max(1, int(numerical_rank(values, dim)))
    elif not isinstance(rank, int | np.integer) or rank < 1:
        raise BadInput(f"rank: got {rank!r}, wanted an integer, 1 or more")
    if dim <= 2 * rank:
        raise BadInput(f"rank: got {rank} with d = {dim}, wanted d > 2 rank")
    return fields | {"target": jnp.asarray(target), "rank": int(rank), "rule": rule}, said


def _optimizer(records: Records, settings: Settings) -> optimizers.Optimizer:
    """The optimiser that is named, gradient descent if none is."""
    name = settings.get("optimizer", optimizers.DESCENT.name)
    if name not in optimizers.OPTIMIZERS:
        known = ", ".join(optimizers.OPTIMIZERS)
        raise BadInput(f"optimizer: got {name!r}, wanted one of {known}")
    if name == optimizers.DESCENT.name:
        return optimizers.DESCENT
    # Its state is zero where a run begins, and not known anywhere else.
    if records.steps[0] != 0:
        raise BadInput(f"weights: got step {records.steps[0]} first, wanted 0 with {name}")
    # c times the loss is another step size for what is linear in the gradients, and for no other.
    if (word := settings.get("loss", "sum/2")) != "sum/2":
        raise BadInput(f"loss: got {word!r}, wanted sum/2 with {name}")
    return optimizers.OPTIMIZERS[name]


UNSEEN = {"all_entries_observed": "all entries of the target in the loss: not known from records"}
OTHER_SCENARIO = "another scenario than that of these records"


def theorem2(records: Records, settings: Settings) -> RecordedCase:
    """Theorem 2: a deep factorisation, or a classifier where the last layer has fewer rows."""
    first, last = records.first[0], records.first[-1]
    if "inputs" in settings or len(last) < first.shape[1]:
        if (name := settings.get("optimizer", optimizers.DESCENT.name)) != optimizers.DESCENT.name:
            raise BadInput(f"optimizer: got {name!r} and a classifier, wanted gradient_descent")
        return _classifier(records, settings)
    fields, said = _factorization(records, settings)
    return RecordedCase(
        FACTORIZATION,
        setting.DeepFactorization(**fields),
        records.layers,
        _point(records),
        UNSEEN | {"exact_gradient": NOISE},
        _others(of_theorem2.THEOREM2, FACTORIZATION),
        said,
    )


def _classifier(records: Records, settings: Settings) -> RecordedCase:
    depth = len(records.layers)
    *square, last = records.first
    dim = records.first[0].shape[1]
    if depth < 2 or len(last) * 2 >= dim or any(W.shape != (dim, dim) for W in square):
        shapes = ", ".join(str(W.shape) for W in records.first)
        wanted = "square ones and a last one of K rows, d > 2 K"
        raise BadInput(f"weights: got layers of shape {shapes}, wanted {wanted}")
    assumed = {"exact_gradient": NOISE}
    if "inputs" in settings:
        inputs, outputs = (_matrix(settings, n, records.dtype) for n in ("inputs", "outputs"))
        if "target" in settings:
            raise BadInput("target: got it beside inputs, wanted one of the two")
    else:
        # With X X^T = I the loss is that of the target Y X^T, up to a constant: any X will do.
        inputs, outputs = (
            np.eye(dim, dtype=records.dtype),
            _matrix(settings, "target", records.dtype),
        )
        assumed["whitened_inputs"] = "inputs X X^T = I, and the target Y X^T: as given"
    if len(inputs) != dim or outputs.shape != (len(last), inputs.shape[1]):
        got = f"inputs of shape {inputs.shape} and outputs or target of shape {outputs.shape}"
        raise BadInput(f"inputs: got {got}, wanted {dim} x n and {len(last)} x n")
    fields, said = _rates(records, settings, outputs.size)
    case = classifier_claims.Classification(
        inputs=jnp.asarray(inputs),
        outputs=jnp.asarray(outputs),
        labels=jnp.argmax(jnp.asarray(outputs), axis=0),
        **fields,
    )
    return RecordedCase(
        CLASSIFICATION,
        case,
        records.layers,
        _point(records),
        assumed,
        _others(of_theorem2.THEOREM2, CLASSIFICATION),
        said,
    )


def corollary1(records: Records, settings: Settings) -> RecordedCase:
    """Corollary 1: a full network, and compressed ones, recorded too or trained here."""
    fields, said = _factorization(records, settings)
    dim, rank = len(fields["target"]), fields["rank"]
    compressed = settings.get("compressed")
    if compressed is None:
        wider = rank + settings.get("excess_rank", 0)
        if dim <= 2 * wider:
            raise BadInput(f"excess_rank: got r^ = {wider} with d = {dim}, wanted d > 2 r^")
        ranks = tuple(dict.fromkeys((rank, wider)))
        said = (*said, "compressed networks: trained here, from the start of the full one")
        arrays: Any = (records.layers, None)
    else:
        if compressed.steps != records.steps or compressed.dtype != records.dtype:
            raise BadInput("compressed: got other steps or another precision, wanted the same")
        shapes = [W.shape for W in compressed.first]
        width = shapes[0][0]
        inner = [(dim, width), (width, dim)] + [(width, width)] * len(records.layers)
        if sorted(shapes) != sorted(inner) or shapes[-1] != (dim, width) or width % 2:
            got = ", ".join(map(str, shapes))
            wanted = "2 r^ x d, L of 2 r^ x 2 r^, d x 2 r^"
            raise BadInput(f"compressed: got layers of shape {got}, wanted {wanted}")
        ranks, arrays = (width // 2,), (records.layers, compressed.layers)
    return RecordedCase(
        COMPRESSION,
        of_corollary1.Compression(**fields, ranks=ranks),
        arrays,
        _point(records),
        UNSEEN | {"exact_gradient": NOISE},
        {},
        said,
    )


def theorem4(records: Records, settings: Settings) -> RecordedCase:
    """Theorem 4: a run of GaLore, and one of ReLoRA with a frozen factor, its adapter merged."""
    other = settings.get("other")
    if other is None:
        raise BadInput("other: got nothing, wanted the records of ReLoRA beside those of GaLore")
    if other.steps != records.steps or other.dtype != records.dtype:
        raise BadInput("other: got other steps or another precision, wanted those of weights")
    if [W.shape for W in other.first] != [W.shape for W in records.first]:
        raise BadInput("other: got other shapes, wanted those of weights, the adapter merged")
    if records.steps[0] != 0:
        got = f"step {records.steps[0]} first"
        raise BadInput(f"weights: got {got}, wanted 0: refreshes are counted from there")
    case = _low_rank_run(records, settings)
    refreshes = set(problems.refresh_steps(case).tolist())
    kind = REFRESHES if refreshes <= set(records.steps) else PATH
    judged = [claim.id for claim in kind.scenario.claims]
    left_out = {
        claim.id: f"no record at every refresh, each {case.period} steps"
        for claim in trajectory_claims.TRAJECTORY.claims
        if claim.id not in judged
    } | {"trained": "what a method differentiates in is not known from its weights"}
    eta, how = settings["step_size"], f"{case.optimizer}, {case.state} at a refresh"
    said = (
        f"step size {eta:g}, period {case.period}, rank {case.rank}, side {case.side} as given",
        f"optimiser {how}, as given; what GaLore did is compared with it",
        "that one run is GaLore's and the other ReLoRA's: not known from records",
        *records.remarks,
    )
    return RecordedCase(
        kind,
        case,
        (records.layers, other.layers),
        _point(records) | {"side": case.side},
        {},
        left_out,
        said,
    )


def _low_rank_run(records: Records, settings: Settings) -> problems.LowRankRun:
    words = {
        "optimizer": (tuple(problems.OPTIMIZERS), "sgd"),
        "state": (("keep", "reset", "transport"), "keep"),
        "side": (("left", "right"), "left"),
    }
    chosen = {name: settings.get(name, usual) for name, (_, usual) in words.items()}
    for name, (known, _) in words.items():
        if chosen[name] not in known:
            raise BadInput(f"{name}: got {chosen[name]!r}, wanted one of {', '.join(known)}")
    numbers = {name: settings.get(name) for name in ("rank", "period")}
    for name, value in numbers.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise BadInput(f"{name}: got {value!r}, wanted an integer, 1 or more")
    inputs, outputs = (_matrix(settings, n, records.dtype) for n in ("inputs", "outputs"))
    data = jnp.asarray(inputs), jnp.asarray(outputs)
    params, given = tuple(map(jnp.asarray, records.first)), settings.get("loss")
    if given is None:
        chain = [outputs.shape, *(W.shape for W in params), inputs.shape]
        wanted = (len(outputs), len(inputs))
        if chain[1:-1] != [wanted] or outputs.shape[1] != inputs.shape[1]:
            shapes = ", ".join(map(str, chain[1:-1]))
            got = f"layers of shape {shapes}, X of {inputs.shape} and Y of {outputs.shape}"
            raise BadInput(f"weights: got {got}, wanted one W of W X - Y, or loss=")
    elif not callable(given):
        raise BadInput(f"loss: got {given!r}, wanted a function of layers and (inputs, outputs)")
    loss: Any = given or _of_one_matrix
    return problems.LowRankRun(
        params=params,
        data=data,
        learning_rate=jnp.asarray(float(settings["step_size"]), records.dtype),
        loss=loss,
        steps=_from_first(records),
        **{name: int(value) for name, value in numbers.items() if value is not None},
        **chosen,
    )


def _of_one_matrix(layers: tuple[jax.Array], data: problems.Data) -> jax.Array:
    """1/2 ||W X - Y||_F^2."""
    return problems.linear_loss(layers[0], data)


def _flat(layers: tuple[jax.Array, ...]) -> jax.Array:
    """All entries at each step in one vector, as :func:`lrdyn.theorem4.problems.ravel` has them."""
    return jax.vmap(problems.ravel)(layers)


def _read_relora(
    case: problems.LowRankRun, layers: tuple[jax.Array, ...]
) -> trajectory_claims.TrajectoryMeasured:
    records = _flat(layers)
    measured = trajectory_claims.TrajectoryMeasured(
        weights=records,
        training_loss=problems.losses(case, records),
        diverged_at=setting.first_lost_record(layers, case.times),
        step=jnp.asarray(case.steps),
    )
    if not {*problems.refresh_steps(case).tolist()} <= {*case.steps}:
        return measured
    return measured._replace(
        moves=problems.refresh_changes(case, records),
        sum_values=problems.sum_values(case, records),
    )


def _with_recorded_galore(scenario: Scenario, both: Any) -> Scenario:
    """In the place of theory's own run stands the recorded one, if it is the run that was stated.

    Its condition, gaps and ranks are those of theory's run, which has the data.
    """

    def predict(case: problems.LowRankRun) -> trajectory_claims.TrajectoryTheory:
        theory, records = scenario.predict(case), _flat(both[0])
        losses = problems.losses(case, records)
        return theory._replace(weights=records, training_loss=losses)

    @at_most("GaLore as recorded less GaLore as stated, over the largest weight")
    def galore_as_stated(case: problems.LowRankRun) -> Extent:
        theory, records = scenario.predict(case), _flat(both[0])
        limit = tolerance("identity", records.dtype, steps=case.steps[-1], size=longest_axis(case))
        apart = jnp.max(problems.distance(theory.weights, records))
        return Extent(apart, limit * theory.condition)

    hypotheses = {**scenario.hypotheses, "galore_as_stated": galore_as_stated}
    return dataclasses.replace(scenario, predict=predict, hypotheses=hypotheses)


def _point(records: Records) -> dict[str, Any]:
    return {"steps": records.steps[-1] - records.steps[0]}


def _others(theorem: Any, kind: Kind) -> dict[str, str]:
    others = [s for s in theorem.scenarios if s.id != kind.scenario.id]
    return {claim.id: OTHER_SCENARIO for s in others for claim in s.claims}


# What is compiled -------------------------------------------------------------------------------


def _without_controls(scenario: Scenario, *claims: str) -> Scenario:
    """A scenario with these claims, or all, and no control: records are of no run of ours."""
    chosen = tuple(claim for claim in scenario.claims if not claims or claim.id in claims)
    return dataclasses.replace(scenario, claims=chosen, controls=())


FACTORIZATION = Kind(_without_controls(of_theorem2.FACTORIZATION), of_theorem2.read_factorization)
CLASSIFICATION = Kind(
    _without_controls(classifier_claims.CLASSIFICATION), classifier_claims.read_classifier
)
COMPRESSION = Kind(
    _without_controls(of_corollary1.COMPRESSION),
    lambda case, both: of_corollary1.read_compression(case, *both),
)
OF_A_PATH = ("weights", "training_loss")
OF_REFRESHES = ("top_directions", "sum_excess", "sum_rank")
"""Claims that look at the weights at each refresh."""
PATH, REFRESHES = (
    Kind(
        _without_controls(trajectory_claims.TRAJECTORY, *claims),
        lambda case, both: _read_relora(case, both[1]),
        _with_recorded_galore,
    )
    for claims in (OF_A_PATH, (*OF_A_PATH, *OF_REFRESHES))
)
