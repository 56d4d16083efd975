"""Recorded runs, judged: loops of NumPy that know nothing of the library, and what they miss."""

import dataclasses
import json
import runpy
from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from lrdyn import __main__ as command
from lrdyn.recorded_runs import records_of
from lrdyn.recorded_runs.files import read_records
from lrdyn.recorded_runs.pictures import PANELS
from lrdyn.theorem2 import setting
from lrdyn.theorem2.statement import FACTORIZATION, THEOREM2
from lrdyn.verification.stating.claims import Decision
from lrdyn.verification.stating.mistakes import BadInput
from tests.pages import EXAMPLES

ETA, STEPS, EVERY = 0.1, 200, 20
PRECISIONS = ("float64", "float32")


# Independent loops of NumPy ---------------------------------------------------------------------


def orthogonal(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def low_rank(rng, dim=12, rank=2):
    values = np.linspace(1, 0.5, rank)
    return orthogonal(rng, dim)[:, :rank] * values @ orthogonal(rng, dim)[:rank]


def chain(layers, size):
    product = np.eye(size, dtype=layers[0].dtype if layers else float)
    for W in layers:
        product = W @ product
    return product


def gradients(layers, inputs, outputs):
    """Of 1/2 ||W_L ... W_1 X - Y||_F^2, by the product rule."""
    residual = chain(layers, len(inputs)) @ inputs - outputs
    return [
        chain(layers[i + 1 :], len(W)).T @ residual @ (chain(layers[:i], len(inputs)) @ inputs).T
        for i, W in enumerate(layers)
    ]


def descend(
    layers,
    inputs,
    outputs,
    *,
    decay=0.0,
    momentum=0.0,
    noise=0.0,
    batch=None,
    steps=STEPS,
    multiple=1.0,
):
    """Records of gradient descent, and of what is none."""
    rng, dtype = np.random.default_rng(7), layers[0].dtype
    moments, run = [0 * W for W in layers], []
    for t in range(steps + 1):
        if t % EVERY == 0:
            run.append((t, [W.copy() for W in layers]))
        seen = rng.permutation(inputs.shape[1])[:batch]
        found = gradients(layers, inputs[:, seen], outputs[:, seen])
        noisy = [multiple * g + noise * rng.normal(size=g.shape).astype(dtype) for g in found]
        moments = [momentum * m + g for m, g in zip(moments, noisy, strict=True)]
        updated = zip(layers, moments, strict=True)
        layers = [((1 - ETA * decay) * W - ETA * m).astype(dtype) for W, m in updated]
    return run


def factorization(dtype="float64", *, depth=3, gaussian=False, rank=2, **how):
    rng = np.random.default_rng(0)
    target = low_rank(rng, rank=rank).astype(dtype)
    layers = [(0.5 * orthogonal(rng, 12)).astype(dtype) for _ in range(depth)]
    if gaussian:
        layers = [(0.5 * rng.normal(size=(12, 12)) / 12**0.5).astype(dtype) for _ in layers]
    inputs = np.eye(12, dtype=dtype)
    return {"weights": descend(layers, inputs, target, **how), "target": target}


class Stepper:
    """What an optimiser subtracts eta times, from the gradients of all layers at a step."""

    def __init__(self, name, mu=0.9):
        self.name, self.mu, self.t, self.total = name, mu, 0, 0.0

    def __call__(self, G):
        self.t += 1
        norm = np.sqrt(np.sum(G**2))
        match self.name:
            case "clipped":
                return G * min(1.0, 0.1 / norm)
            case "normalized":
                return G / (norm + 1e-6)
            case "muon":
                self.total = 0.95 * self.total + 0.05 * G
                mean = 0.95 * self.total / (1 - 0.95 ** (self.t + 1))
                ahead = mean + 0.05 * G / (1 - 0.95**self.t)
                X = ahead / (np.sqrt(np.sum(ahead**2, axis=(1, 2), keepdims=True)) + 1e-8)
                for _ in range(5):
                    S = X @ X.transpose(0, 2, 1)
                    X = 3.4445 * X - 4.7750 * S @ X + 2.0315 * S @ (S @ X)
                return X
        self.total = self.mu * self.total + G
        return G + self.mu * self.total if self.name == "nesterov" else self.total


def trained_by(name, dtype="float64", *, rate=5e-3, decay=0.1, steps=60, mu=0.9):
    """A factorisation under another optimiser than gradient descent, its decay beside the step."""
    start, rule = factorization(dtype, steps=0), Stepper(name, mu)
    layers, target = np.stack(start["weights"][0][1]), start["target"]
    inputs, run = np.eye(12, dtype=dtype), []
    for t in range(steps + 1):
        if t % 10 == 0:
            run.append((t, list(layers)))
        G = np.stack(gradients(list(layers), inputs, target))
        layers = ((1 - rate * decay) * layers - rate * rule(G)).astype(dtype)
    return {"weights": run, "target": target, "step_size": rate, "weight_decay": decay}


def classifier(dtype="float64", *, classes=3, **how):
    rng = np.random.default_rng(1)
    inputs = np.linalg.qr(rng.normal(size=(30, 12)))[0].T
    outputs = np.eye(classes)[np.arange(30) % classes].T / 10**0.5
    layers = [0.5 * orthogonal(rng, 12) for _ in range(3)]
    layers[-1] = layers[-1][:classes]
    layers, (X, Y) = [W.astype(dtype) for W in layers], (a.astype(dtype) for a in (inputs, outputs))
    return {"weights": descend(layers, X, Y, **how), "inputs": X, "outputs": Y}


def low_rank_run(dtype, *, adapter, period=10, rank=2, momentum=0.0, steps=60, side="left"):
    """GaLore, or ReLoRA with a frozen factor, merged: side "right" is that of the transpose."""
    rng = np.random.default_rng(2)
    W = (rng.normal(size=(6, 8)) / 8**0.5).astype(dtype)
    inputs, outputs = (rng.normal(size=(n, 16)).astype(dtype) / 4 for n in (8, 6))
    flip = (lambda A: A.T) if side == "right" else (lambda A: A)
    P: Any = None
    A: Any = None
    moment: Any = None
    run = []
    for t in range(steps + 1):
        merged = W if A is None else W + flip(P @ A)
        if t % 5 == 0:
            run.append((t, [merged.astype(dtype)]))
        G = flip((merged @ inputs - outputs) @ inputs.T)
        if t % period == 0:
            W, P = merged, np.linalg.svd(G)[0][:, :rank]
            A = 0 * P.T @ G if adapter else None
            moment = 0 * P.T @ G if moment is None else moment
        moment = momentum * moment + P.T @ G
        if adapter:
            A = A - np.asarray(0.05, dtype) * moment
        else:
            W = W - np.asarray(0.05, dtype) * flip(P @ moment)
    return run, {"inputs": inputs, "outputs": outputs, "rank": rank, "period": 10}


def both_runs(dtype="float64", *, first=None, second=None, **how):
    galore, data = low_rank_run(dtype, adapter=False, **how, **(first or {}))
    relora, _ = low_rank_run(dtype, adapter=True, **how, **(second or {}))
    return data | {"weights": galore, "other": relora, "step_size": 0.05}


def compressed(dtype="float64"):
    """A full network, and a compressed one: both trained by the loop above."""
    found = factorization(dtype)
    start, target = found["weights"][0][1], found["target"]
    scaled = [W / 0.5 for W in start]
    left, _, right = np.linalg.svd(target)
    moving = np.linalg.qr(np.c_[right[:2].T, chain(scaled, 12).T @ left[:, :2]])[0]
    ends = moving.astype(dtype), (chain(scaled, 12) @ moving).astype(dtype)
    inner = [0.5 * np.eye(4, dtype=dtype) for _ in start]
    run = descend(inner, np.eye(4, dtype=dtype), ends[1].T @ target @ ends[0])
    return found | {"compressed": [(t, [ends[0].T, *W, ends[1]]) for t, W in run]}


def judged(theorem, **given):
    settings: dict[str, Any] = {"step_size": ETA} | given
    return lrdyn.judge_run(theorem, **settings)


# What holds -------------------------------------------------------------------------------------

RUNS = {
    "factorization": ("theorem2", factorization),
    "decay": ("theorem2", lambda dtype: factorization(dtype, decay=0.03) | {"weight_decay": 0.03}),
    "classifier": ("theorem2", classifier),
    "compression": ("corollary1", lambda dtype: factorization(dtype) | {"excess_rank": 1}),
    "compressed": ("corollary1", compressed),
    "galore": ("theorem4", both_runs),
    "galore_right": ("theorem4", lambda dtype: both_runs(dtype, side="right") | {"side": "right"}),
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("run", RUNS)
def test_a_loop_of_numpy_holds(run, dtype):
    theorem, make = RUNS[run]
    found = judged(theorem, **make(dtype))
    assert found.holds, found
    entries = found.verdict["claims"]
    assert all(
        entry["holds"] is not False and entry["judged"].keys() == {dtype} for entry in entries
    )
    assert sum(bool(entry["holds"]) for entry in entries) >= 2
    assert found.hypotheses
    assert all(entry.met for entry in found.hypotheses)
    # Far below what the tolerance allows, which is derived for the worst of many cases.
    least = np.finfo(dtype).eps
    assert max(r for r in found.residuals.values() if r is not None) < 100 * least


def test_the_four_runs_of_the_issue():
    """Round-off in either precision, and what noise of 1e-6 and momentum leave."""
    sizes = {
        "float64": factorization(),
        "float32": factorization("float32"),
        "noise": factorization(noise=1e-6),
        "momentum": factorization(momentum=0.9),
    }
    off = {name: judged("theorem2", **run).residuals["reduced"] or 0 for name, run in sizes.items()}
    assert off["float64"] < 5e-15
    assert off["float32"] < 2e-6
    assert 1e-7 < off["noise"] < 1e-4
    assert off["momentum"] > 0.01


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["momentum", "nesterov", "clipped", "normalized", "muon"])
def test_a_run_of_another_optimiser_holds_under_its_name(name, dtype):
    run = trained_by(name, dtype)
    found = judged("theorem2", **run, optimizer=name)
    assert found.holds, found
    assert any(f"optimizer {name} as given" in line for line in found.assumptions)
    assert judged("theorem2", **run).outcome is Decision.FALSE


def test_runs_of_other_optimisers_differ_from_one_another():
    for run, name in (
        (trained_by("nesterov"), "momentum"),
        (trained_by("momentum", mu=0.89), "momentum"),
        (trained_by("normalized"), "muon"),
    ):
        assert judged("theorem2", **run, optimizer=name).outcome is Decision.FALSE


def test_a_run_of_muon_is_compared_until_it_is_chaotic():
    """By long steps it has arrived soon, and what follows no theory tells."""
    found = judged("theorem2", **trained_by("muon", rate=0.05, steps=100), optimizer="muon")
    assert found.outcome is not Decision.FALSE, found
    assert 0 <= int(found.results["/"]["last_compared"].item()) < 100


def test_runs_of_the_library_leave_the_residuals_of_verify():
    """Both read the same function of layers; what differs is the order of roundings."""
    flags = {
        **{"dim": 12, "depth": 3, "rank": 2, "init_scale": 0.5, "init_spread": 3.0},
        **{"weight_decay": 0.03, "decay_spread": 1.0, "learning_rate": 0.1, "target_scale": 1.0},
        **{"steps": 100, "target_condition": 2.0},
    }
    alone = dataclasses.replace(FACTORIZATION, controls=())
    of_verify = lrdyn.verify(dataclasses.replace(THEOREM2, scenarios=(alone,)), seeds=1, **flags)
    case = setting.make_case(jax.random.key(0), **flags)
    run = case.descend(case.loss, case.weights, lambda weights: weights)
    weights = [(int(t), [W[i] for W in run.records]) for i, t in enumerate(case.steps)]
    found = judged("theorem2", weights=weights, target=case.target, weight_decay=0.03, rank=2)
    assert found.holds
    for entry in of_verify.verdict["claims"]:
        mine = found.residuals[entry["id"]]
        assert mine == pytest.approx(entry["residual"], abs=1e-15), entry["id"]
        allowed = found.legs[entry["id"]]["float64"].tolerance.item()
        assert allowed == pytest.approx(entry["tolerance"], rel=1e-12)
    theirs, ours = of_verify.results["/"], found.results["/"]
    for name in ("rho_measured", "loss_predicted", "singular_values_measured"):
        np.testing.assert_allclose(
            np.squeeze(ours[name].values), np.squeeze(theirs[name].values), rtol=0, atol=1e-14
        )


# What is seen -----------------------------------------------------------------------------------


def swapped(run):
    """Records 3 and 5 with each other's layers."""
    weights = list(run["weights"])
    weights[3], weights[5] = (weights[3][0], weights[5][1]), (weights[5][0], weights[3][1])
    return run | {"weights": weights}


def transposed(run, first=0):
    """The second layer transposed, from some record on."""
    weights = [
        (t, [W.T if (place, i >= first) == (1, True) else W for place, W in enumerate(layers)])
        for i, (t, layers) in enumerate(run["weights"])
    ]
    return run | {"weights": weights}


def another_first(run):
    rng = np.random.default_rng(9)
    layers = [0.5 * orthogonal(rng, 12) for _ in run["weights"][0][1]]
    return run | {"weights": [(0, layers), *run["weights"][1:]]}


FALSE = {
    "momentum": ("theorem2", lambda: factorization(momentum=0.9), 1e-2),
    "noise": ("theorem2", lambda: factorization(noise=1e-6), 1e-7),
    "step_size": ("theorem2", lambda: factorization() | {"step_size": 0.101}, 1e-3),
    "decay": ("theorem2", lambda: factorization(decay=0.01), 1e-3),
    "out_of_order": ("theorem2", lambda: swapped(factorization()), 1e-2),
    "transposed": ("theorem2", lambda: transposed(factorization()), 1e-2),
    "transposed_later": ("theorem2", lambda: transposed(factorization(), 4), 1e-2),
    "another_start": ("theorem2", lambda: another_first(factorization()), 1e-2),
    "mean_loss": ("theorem2", lambda: factorization() | {"loss": "mean"}, 1e-2),
    "mini_batches": ("theorem2", lambda: classifier(batch=15), 1e-2),
    "classifier_momentum": ("theorem2", lambda: classifier(momentum=0.5), 1e-2),
    "corollary_momentum": ("corollary1", lambda: factorization(momentum=0.9), 1e-2),
    "corollary_order": ("corollary1", lambda: swapped(compressed()), 1e-3),
    "other_period": ("theorem4", lambda: both_runs(second={"period": 12}), 1e-2),
    "other_side": ("theorem4", lambda: both_runs(second={"side": "right"}), 1e-2),
    "galore_order": (
        "theorem4",
        lambda: both_runs() | {"other": swapped(both_runs())["weights"]},
        1e-3,
    ),
}


@pytest.mark.parametrize("control", FALSE)
def test_another_run_is_false(control):
    theorem, make, least = FALSE[control]
    found = judged(theorem, **make())
    assert found.outcome is Decision.FALSE, found
    assert max(r for r in found.residuals.values() if r is not None) > least
    assert "if it is the run that is assumed" in repr(found)


UNMET = {
    "gaussian": ("theorem2", lambda: factorization(gaussian=True), "orthogonal_start", 0.1),
    "later": (
        "theorem2",
        lambda: (run := factorization()) | {"weights": run["weights"][2:]},
        "orthogonal_start",
        1e-2,
    ),
    "tail": ("theorem2", lambda: factorization(rank=3) | {"rank": 2}, "rank_at_most_r", 0.1),
    "coloured": (
        "theorem2",
        lambda: (run := classifier()) | {"inputs": 1.001 * run["inputs"]},
        "whitened_inputs",
        1e-3,
    ),
    "compression": ("corollary1", lambda: factorization(gaussian=True), "orthogonal_start", 0.1),
    "momentum": ("theorem4", lambda: both_runs(momentum=0.9), "galore_as_stated", 1e-2),
    "out_of_order": ("theorem4", lambda: swapped(both_runs()), "galore_as_stated", 1e-3),
}


@pytest.mark.parametrize("control", UNMET)
def test_a_hypothesis_is_missed_by_name_and_amount(control):
    theorem, make, name, least = UNMET[control]
    found = judged(theorem, **make())
    assert found.outcome is Decision.UNDECIDED, found
    missed = [entry for entry in found.hypotheses if not entry.met]
    assert [entry.name for entry in missed] == [name]
    assert missed[0].amount > max(least, 1e6 * missed[0].limit)
    assert f"{name}: " in repr(found)
    assert "NOT MET" in repr(found)
    assert found.verdict["nothing_applies"] == {name: 1}


def test_amounts_are_those_of_numpy():
    run = factorization(gaussian=True)
    found = judged("theorem2", **run)
    amounts = {entry.name: entry.amount for entry in found.hypotheses}
    off = []
    for W in run["weights"][0][1]:
        scale = np.linalg.norm(W) / 12**0.5
        off.append(np.max(np.abs(W @ W.T / scale**2 - np.eye(12))))
    assert amounts["orthogonal_start"] == pytest.approx(max(off), rel=1e-12)
    tail = factorization(rank=3) | {"rank": 2}
    values = np.linalg.svd(tail["target"], compute_uv=False)
    amounts = {entry.name: entry.amount for entry in judged("theorem2", **tail).hypotheses}
    assert amounts["rank_at_most_r"] == pytest.approx(values[2], rel=1e-12)


def test_a_run_that_diverged_is_said_to_have():
    run = factorization()
    t, layers = run["weights"][6]
    run["weights"][6] = t, [np.full_like(layers[0], np.nan), *layers[1:]]
    found = judged("theorem2", **run)
    assert found.outcome is Decision.FALSE
    assert "weights: not finite at step 120: that run diverged" in repr(found)
    json.dumps(found.verdict, allow_nan=False)


def test_what_records_do_not_show_is_repeated():
    said = repr(judged("theorem2", **factorization()))
    for words in (
        "assumed: step size 0.1 as given",
        "assumed: weight decay 0 as given",
        "assumed: gradients without noise, of the whole batch: not known from records",
        "assumed: no other optimiser than gradient descent",
        "not judged: mean_loss, class_off_block",
        "theorem2 holds on this run",
    ):
        assert words in said
    with pytest.raises(TypeError, match=r"RecordedRun: .*write \.holds"):
        bool(judged("theorem2", **factorization()))


def test_a_mean_is_a_sum_with_other_rates():
    run = factorization(decay=0.03, multiple=2 / 144)
    assert judged("theorem2", **run, loss="mean", weight_decay=0.03).holds
    doubled = factorization(multiple=2.0)
    assert judged("theorem2", **doubled, loss="sum").holds


def test_a_classifier_by_its_target_alone_assumes_white_inputs():
    run = classifier()
    target = run.pop("outputs") @ run.pop("inputs").T
    found = judged("theorem2", **run, target=target)
    assert found.holds
    assert any("X X^T = I" in line for line in found.assumptions)


def test_theory_starts_at_the_first_record():
    run = factorization()
    later = run | {"weights": [(t + 1000, W) for t, W in run["weights"]]}
    found = judged("theorem2", **later)
    assert found.residuals == judged("theorem2", **run).residuals
    assert "step 1000, the first record, is the start of theory" in found.assumptions


def test_refreshes_without_a_record_leave_their_claims_out():
    run = both_runs()
    ends = {name: [run[name][0], *run[name][3::2]] for name in ("weights", "other")}
    found = judged("theorem4", **run | ends)
    assert found.holds
    assert set(found.residuals) == {"weights", "training_loss"}
    assert "top_directions" in found.not_judged


def test_a_network_of_ones_own_takes_one_path():
    """Two layers, with a loss that JAX differentiates; both runs by Algorithm 1."""
    rng = np.random.default_rng(3)
    layers = tuple(jnp.asarray(rng.normal(size=shape)) / 3 for shape in ((6, 8), (5, 6)))
    data = jnp.asarray(rng.normal(size=(8, 20))), jnp.asarray(rng.normal(size=(5, 20)))
    steps = tuple(range(0, 31, 5))

    def loss(layers, data):
        inputs, outputs = data
        return jnp.mean((layers[1] @ jnp.tanh(layers[0] @ inputs) - outputs) ** 2)

    def path(method):
        run = lrdyn.low_rank_descent(
            method,
            lambda layers: loss(layers, data),
            layers,
            lrdyn.gradient_descent(0.1),
            rank=2,
            period=10,
            steps=steps,
        )
        return [(t, [W[i] for W in run.records]) for i, t in enumerate(steps)]

    found = lrdyn.judge_run(
        "theorem4",
        weights=path(lrdyn.GALORE),
        other=path(lrdyn.RELORA_FROZEN),
        inputs=data[0],
        outputs=data[1],
        loss=loss,
        step_size=0.1,
        rank=2,
        period=10,
    )
    assert found.holds, found


# What is read -----------------------------------------------------------------------------------


class Tensor:
    """What torch hands out, as far as it is read."""

    def __init__(self, array, dtype=None):
        self._array, self.dtype = array, dtype or array.dtype

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._array


class Variable:
    """A variable of NNX."""

    def __init__(self, array):
        self._array = jnp.asarray(array)

    def __jax_array__(self):
        return self._array


class Stack(eqx.Module):
    """A model of equinox, with an activation among its leaves."""

    layers: tuple
    activation: object = jnp.tanh


FORMS = {
    "sequence": lambda layers: layers,
    "tuple_of_jax": lambda layers: tuple(map(jnp.asarray, layers)),
    "state_dict": lambda layers: OrderedDict((f"{2 * i}.weight", Tensor(W)) for i, W in layers),
    "past_nine": lambda layers: {f"W{i + 9}": W for i, W in reversed(layers)},
    "flax": lambda layers: {
        "params": {f"Dense_{i}": {"kernel": jnp.asarray(W.T)} for i, W in layers}
    },
    "nnx": lambda layers: {"layers": {i: {"kernel": Variable(W.T)} for i, W in layers}},
    "equinox": lambda layers: Stack(tuple(jnp.asarray(W) for _, W in layers)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_layers_in_the_order_in_which_they_act(form):
    rng = np.random.default_rng(0)
    every = [[rng.normal(size=shape) for shape in ((4, 3), (5, 4), (2, 5))] for _ in range(2)]
    numbered = form not in ("sequence", "tuple_of_jax")
    made = [FORMS[form](list(enumerate(layers)) if numbered else layers) for layers in every]
    records = records_of([(0, made[0]), (7, made[1])])
    assert records.steps == (0, 7)
    for place, W in enumerate(records.layers):
        np.testing.assert_array_equal(W, np.stack([layers[place] for layers in every]))
    assert bool(records.remarks) == (form in ("flax", "nnx"))


def test_layers_are_chosen_and_turned_round():
    W = [np.ones((4, 3)), np.ones((2, 4))]
    backward = records_of([(t, [t + W[1], t + W[0]]) for t in (0, 1)], order="backward")
    assert [A.shape for A in backward.layers] == [(2, 4, 3), (2, 2, 4)]
    with_biases = [(t, {"enc": t + W[0], "bias": np.ones(3), "dec": t + W[1]}) for t in (0, 1)]
    chosen = records_of(with_biases, layers_of=lambda record: [record["enc"], record["dec"]])
    assert [A.shape for A in chosen.layers] == [(2, 4, 3), (2, 2, 4)]


I = np.eye(2)
REFUSED = {
    "none": ([], r"weights: got no record, wanted two or more"),
    "one": ([(0, [I])], r"weights: got one record, wanted two or more"),
    "pair": ([[I], [I]], r"weights\[0\]: got list, wanted a pair"),
    "twice": ([(0, [I]), (5, [I]), (5, [I])], r"weights\[2\]: got step 5 twice"),
    "order": ([(0, [I]), (9, [I]), (5, [I])], r"weights\[2\]: got step 5 behind 9"),
    "negative": ([(-1, [I]), (5, [I])], r"weights\[0\]: got step -1, wanted an integer, 0"),
    "fraction": ([(0.5, [I]), (5, [I])], r"got step 0.5"),
    "empty": ([(0, []), (1, [])], r"weights\[0\]: got no array"),
    "chain": (
        [(t, [np.ones((2, 3)), np.ones((2, 3))]) for t in (0, 1)],
        r"got shape \(2, 3\) of layer 2, wanted 2 columns, the rows of layer 1; layers of shape",
    ),
    "bias": ([(0, [I, np.ones(2)]), (1, [I, np.ones(2)])], r"shape \(2,\) of layer 2, wanted a m"),
    "changed": ([(0, [I]), (1, [np.eye(3)])], r"weights\[1\]: got shape \(3, 3\) of layer 1"),
    "fewer": ([(0, [I, I]), (1, [I])], r"weights\[1\]: got 1 layers, wanted 2"),
    "types": ([(0, [I]), (1, [I.astype("float32")])], r"got float32 of layer 1, wanted float64 e"),
    "half": ([(0, [I.astype("float16")]), (1, [I])], r"got float16 of layer '0', wanted float32"),
    "bfloat16": ([(0, [Tensor(I, "torch.bfloat16")]), (1, [I])], r"got torch.bfloat16 of layer"),
    "integers": ([(0, [np.eye(2, dtype=int)]), (1, [I])], r"got int64 of layer '0'"),
    "names": ([(0, {"enc": I, "dec": I}), (1, {})], r"got names 'dec', 'enc', which are not one"),
    "nan": ([(0, [np.nan * I]), (1, [I])], r"got a layer 1 that is not finite, wanted numbers"),
    "same": ([(0, [I]), (1, [I])], r"weights\[1\]: got the memory of the first record, wanted a c"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("records", REFUSED)
def test_records_that_are_none_are_refused_in_a_line(records):
    given, match = REFUSED[records]
    with pytest.raises(BadInput, match=match) as caught:
        records_of(given)
    assert "\n" not in str(caught.value)


RUN = [(t, [0.5 * np.eye(6), (0.5 + t) * np.eye(6)]) for t in (0, 1)]
PHI = np.diag([1.0, 0, 0, 0, 0, 0])
WRONG = {
    "theorem": ({"theorem": "theorm2"}, r"theorem: got 'theorm2' \(did you mean 'theorem2'"),
    "step": ({"step_size": 0.0}, r"step_size: got 0.0, wanted a number above 0"),
    "decay": ({"weight_decay": [0.1] * 3}, r"weight_decay: got \[0.1, 0.1, 0.1\], wanted a n.* 2"),
    "loss": ({"loss": "mse"}, r"loss: got 'mse', wanted one of sum/2, sum, mean/2, mean"),
    "no_target": ({"target": None}, r"target: got nothing, wanted a matrix"),
    "small": ({"target": np.eye(5)}, r"weights: got layer 1 of shape \(6, 6\) and a target of"),
    "full": ({"target": np.eye(6)}, r"rank: got 6 with d = 6, wanted d > 2 rank"),
    "rank": ({"rank": 0}, r"rank: got 0, wanted an integer, 1 or more"),
    "period": ({"period": 3}, r"period: got it, wanted of theorem2 weight_decay, loss"),
    "excess": ({"theorem": "corollary1", "excess_rank": 2}, r"excess_rank: got r\^ = 3 with d = 6"),
    "no_other": ({"theorem": "theorem4", "target": None}, r"other: got nothing, wanted the rec"),
    "optimizer": ({"optimizer": "adam"}, r"optimizer: got 'adam', wanted one of gradient_descent"),
    "optimizer_loss": (
        {"optimizer": "muon", "loss": "mean"},
        r"loss: got 'mean', wanted sum/2 with muon",
    ),
    "optimizer_later": (
        {"optimizer": "momentum", "weights": [(t + 1, layers) for t, layers in RUN]},
        r"weights: got step 1 first, wanted 0 with momentum",
    ),
    "optimizer_of_a_classifier": (
        {"optimizer": "muon", "weights": [(t, [W1, W2[:2]]) for t, (W1, W2) in RUN]},
        r"optimizer: got 'muon' and a classifier, wanted gradient_descent",
    ),
    "order": ({"order": "up"}, r"order: got 'up', wanted 'forward' or 'backward'"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("argument", WRONG)
def test_wrong_arguments_are_refused_in_a_line(argument):
    changed, match = WRONG[argument]
    given = {"theorem": "theorem2", "weights": RUN, "target": PHI, "step_size": 0.1} | changed
    with pytest.raises(BadInput, match=match):
        lrdyn.judge_run(**given)


# Files and the command --------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with what the example of a loop of NumPy writes."""
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "judge_npz.py"), run_name="__main__")
    return tmp_path


WORDS = ("--target", "phi.npy", "--step-size", "0.1")


def test_the_command_judges_files_and_writes_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    assert command.main(["judge-run", "theorem2", "recorded", *WORDS]) == 0
    assert "theorem2 holds on this run" in capsys.readouterr().out
    assert command.main(["judge-run", "theorem2", "recorded", *WORDS[:3], "0.11"]) == 1
    np.save("full.npy", np.eye(12) + np.load("phi.npy"))
    words = ("--target", "full.npy", "--step-size", "0.1", "--rank", "2")
    assert command.main(["judge-run", "theorem2", "recorded", *words]) == 4
    assert "rank_at_most_r" in capsys.readouterr().out
    assert sorted(here.rglob("*")) == sorted([*before, here / "full.npy"])


def test_the_command_writes_what_it_is_asked_to(here, capsys):
    out = ("--out", "verdict.json", "--figure", "run.png")
    assert command.main(["judge-run", "corollary1", "recorded", *WORDS, *out]) == 0
    verdict = json.loads((here / "verdict.json").read_text())
    assert verdict["holds"] is True
    assert {"hypotheses", "assumptions", "not_judged"} <= verdict.keys()
    assert (here / "run.png").stat().st_size > 5000
    assert (here / "run.pdf").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("theorem2", "nothing", *WORDS), "nothing: got no record, wanted files like step_000100"),
        (("theorem2", "phi.npy", *WORDS), "phi.npy: got a .npy file, wanted .npz or a folder"),
        (("theorem2", "recorded", *WORDS[:2]), "--step-size: got nothing, wanted a value"),
        (("theorem2", "recorded", *WORDS[2:]), "target: got nothing, wanted a matrix"),
        (
            ("theorem2", "recorded", "--target", "no.npy", *WORDS[2:]),
            "--target: got 'no.npy' (No such file",
        ),
        (("theorem2", "recorded", *WORDS, "--figure", "a.gif"), "--figure: got 'a.gif'"),
        (("theorem2", "recorded", *WORDS, "--figure", "no/a.png"), "--figure: got 'no/a.png'"),
        (
            ("theorem2", "recorded", *WORDS[:3], "x"),
            "--step-size: got 'x', wanted a number such as 0.1",
        ),
        (("theorem9", "recorded", *WORDS), "got 'theorem9', wanted one of"),
    ],
)
def test_the_command_refuses_in_a_line(words, said, here, capsys):
    assert command.main(["judge-run", *words]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_files_are_read_in_the_order_of_their_steps(tmp_path):
    from lrdyn.data import tensors

    for t in (0, 5, 10):
        tensors.write(tmp_path / f"step_{t}.safetensors", {"W10": t * I, "W9": I})
    records = read_records(tmp_path)
    assert [t for t, _ in records] == [0, 5, 10]
    assert list(records[1][1]) == ["W9", "W10"]
    stacked = {name: np.stack([layers[name] for _, layers in records]) for name in ("W9", "W10")}
    np.savez(tmp_path / "all.npz", allow_pickle=False, step=np.array([0, 5, 10]), **stacked)
    again = records_of(read_records(tmp_path / "all.npz"))
    for W, other in zip(again.layers, records_of(records).layers, strict=True):
        np.testing.assert_array_equal(W, other)
    np.savez(tmp_path / "none.npz", allow_pickle=False, W1=np.ones((3, 2, 2)))
    with pytest.raises(BadInput, match=r"got no array 'step' of integers"):
        read_records(tmp_path / "none.npz")
    np.savez(tmp_path / "less.npz", allow_pickle=False, step=np.arange(3), W1=np.ones((2, 2, 2)))
    with pytest.raises(BadInput, match=r"'W1' of shape \(2, 2, 2\), wanted a first axis of 3"):
        read_records(tmp_path / "less.npz")
    (tmp_path / "more").mkdir()
    np.savez(tmp_path / "more" / "start.npz", allow_pickle=False, W1=I)
    with pytest.raises(BadInput, match=r"got a name without a number"):
        read_records(tmp_path / "more")


@pytest.mark.parametrize("package", ["torch", "flax"])
def test_the_examples_of_other_libraries_hold(package):
    pytest.importorskip(package)
    runpy.run_path(str(EXAMPLES / f"judge_{package}.py"), run_name="__main__")


@pytest.mark.parametrize("run", ["factorization", "classifier", "compression", "galore"])
def test_theory_is_drawn_over_records(run):
    theorem, make = RUNS[run]
    found = judged(theorem, **make("float64"))
    figure = found.plot()
    arrays = found.results["/"]
    panels = next(p for p in PANELS.values() if f"{p[0].field}_predicted" in arrays)
    titles = [f"({letter}) {panel.title}" for letter, panel in zip("ab", panels, strict=False)]
    assert [ax.get_title(loc="left") for ax in figure.axes] == titles
    for ax in figure.axes:
        lines, markers = ax.lines[::2], ax.lines[1::2]
        assert len(lines) == len(markers) > 0
        for line, marker in zip(lines, markers, strict=True):
            assert np.asarray(line.get_xdata()).tolist() == list(arrays["step"].values)
            np.testing.assert_allclose(
                *map(np.asarray, (line.get_ydata(), marker.get_ydata())), rtol=0, atol=1e-12
            )
