"""Wrong calls of the public functions: an error names the argument, and nothing is broadcast.

A sample of what ``python -m tests.faults.wrong_calls`` tries, and the calls that once were silent.
"""

import re
import resource
from collections import Counter
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn import networks
from lrdyn.adapters import methods, projectors
from lrdyn.core import checks
from lrdyn.core.condition import perturb_updates
from lrdyn.core.factorization import _sum_of_squares
from lrdyn.system import memory_limit
from lrdyn.theorem1 import rest_points
from lrdyn.theorem2 import collapse, subspace
from tests.faults import wrong_calls

pytestmark = [pytest.mark.tools, pytest.mark.usefixtures("unchecked")]

# Refused at the door: what is allowed costs seconds of compilation.
KINDS = ("one more axis", "None", "5.5", "negative", "a text", "complex", "scalar", "-1.0", "nan")


def test_a_sample_of_wrong_calls_names_the_argument():
    counts, seen = Counter(), []
    for number, found in enumerate(wrong_calls.public()):
        calls = [wrong for wrong in wrong_calls.wrong_calls(*found) if wrong.kind in KINDS]
        for wrong in calls[number % 5 :: 5][:2]:
            kind, message = wrong_calls.classified(wrong)
            counts[kind] += 1
            if kind in ("foreign", "wrong"):
                seen.append((kind, wrong.name, wrong.argument, wrong.kind, message))
    assert counts["wrong"] == 0, seen
    assert counts["foreign"] <= counts.total() / 20, seen
    assert counts.total() > 150


I4, BAR = jnp.eye(4), jnp.ones((1, 4))
VALUES, SETS = jnp.array([3.0, 2.0, 1.0]), lr.theorem1.index_sets(3, 1)


def square(w):
    return jnp.sum(w**2)


def run(steps):
    return lr.simulate(square, I4, lr.gradient_descent(0.1), steps)


SILENT = {
    "factorization_loss, a row": (
        lambda: lr.factorization_loss((I4, I4), BAR),
        "target: got shape (1, 4), wanted (4, 4)",
    ),
    "factorization_loss, a vector": (
        lambda: lr.factorization_loss((I4, I4), BAR[0]),
        "target: got shape (4,), wanted (4, 4)",
    ),
    "factorization_loss, a number": (
        lambda: lr.factorization_loss((I4, I4), jnp.ones(())),
        "target: got shape (), wanted (4, 4)",
    ),
    "recovery_error": (
        lambda: lr.completion.recovery_error(I4, BAR),
        "target: got shape (1, 4), wanted (4, 4)",
    ),
    "decayed_loss": (
        lambda: lr.theorem1.decayed_loss((I4, I4), BAR, 0.5),
        "target: got shape (1, 4), wanted (4, 4)",
    ),
    "masked_prediction": (
        lambda: lr.core.masked_prediction(jnp.ones(2), jnp.ones(1), jnp.ones((2, 1, 1))),
        "mean: got shape (1,), wanted (2,)",
    ),
    "steps that fall": (lambda: run([5, 2]), "steps: got [5, 2], wanted increasing integers >= 0"),
    "steps below 0": (lambda: run([-1]), "steps: got [-1], wanted increasing integers >= 0"),
    "rho between two steps": (
        lambda: lr.rho(jnp.ones(2), 0.1, 0.0, jnp.array([5.5])),
        "steps: got dtype float64, wanted increasing integers >= 0",
    ),
    "decay": (
        lambda: lr.theorem1.shrink(VALUES, -0.5),
        "decay: got -0.5, wanted >= 0",
    ),
    "weight_decay": (
        lambda: lr.gradient_descent(0.1, jnp.array([0.1, -0.1])),
        "weight_decay: got [0.1, -0.1], wanted >= 0",
    ),
    "keep_prob": (
        lambda: lr.theorem3.dropout_penalty(I4, I4, 1.5),
        "keep_prob: got 1.5, wanted above 0, at most 1",
    ),
    "decreasing_step": (
        lambda: lr.theorem3.decreasing_step(1.0, 0.5, 0.8, -10),
        "halve_after: got -10, wanted > 0",
    ),
    "count": (
        lambda: lr.core.top_share(VALUES, 0),
        "count: got 0, wanted at least 1",
    ),
    "push": (
        lambda: perturb_updates(lr.gradient_descent(0.1), (cast("Any", None),), 3),
        "push[0]: got type NoneType, wanted",
    ),
    "rank of a rule": (
        lambda: lr.adapters.algorithm1(lr.GALORE, lr.gradient_descent(0.1), period=2),
        "rank: got 0, wanted at least 1",
    ),
    "network": (
        lambda: lr.adapters.algorithm1(
            lr.FULL, lr.gradient_descent(0.1), network=cast("Any", "text")
        ),
        "network: got type str, wanted a Callable",
    ),
    "width": (
        lambda: lr.theorem3.dropout_strength(0.5, 0),
        "width: got 0, wanted at least 1",
    ),
}

VALUES_OF_THREE = jnp.array([0.9, 0.5, 1.2])
SILENT |= {
    "steps of a bulk": (
        lambda: lr.corollary1.bulk_contracts(VALUES_OF_THREE, 0.2, 0.1, 0),
        "steps: got 0, wanted at least 1",
    ),
    "rank of a compression": (
        lambda: lr.corollary1.compression_error(VALUES_OF_THREE, 9, -1),
        "rank: got -1, wanted at least 0",
    ),
    "dim of a compression": (
        lambda: lr.corollary1.compression_error(VALUES_OF_THREE, 9, 5),
        "dim: got 9, wanted at least 10",
    ),
    "dim of a count": (
        lambda: lr.corollary1.parameter_counts(0, 3, 1),
        "dim: got 0, wanted at least 1",
    ),
    "depth of a count": (
        lambda: lr.corollary1.parameter_counts(9, 0, 1),
        "depth: got 0, wanted at least 1",
    ),
    "dim of a spectrum": (
        lambda: subspace.reduced_spectra(jnp.eye(2)[None], jnp.ones(1), 1),
        "dim: got 1, wanted at least 2",
    ),
    "rank of a projector": (
        lambda: projectors.top_singular_projector(I4, 0),
        "rank: got 0, wanted at least 1",
    ),
    "rank of compressed factors": (
        lambda: methods.compressed_factors((I4, I4), I4, 3),
        "rank: got 3, wanted an even number",
    ),
    "keep_prob of blocks": (
        lambda: lr.core.block_masks(4, 2, 1.5),
        "keep_prob: got 1.5, wanted above 0, at most 1",
    ),
    "keep_prob of layers": (
        lambda: lr.theorem3.layers_penalty((I4, I4), I4, 1.5),
        "keep_prob: got 1.5, wanted above 0, at most 1",
    ),
    "rank of points of rest": (
        lambda: rest_points.rest_losses(VALUES, 4, 0.1, 3),
        "rank: got 4, wanted 1 to 3",
    ),
    "dim of a collapse": (
        lambda: collapse.collapse_lower_bound(0.2, 9, 5, 3),
        "dim: got 9, wanted at least 10",
    ),
    "depth of a collapse": (
        lambda: collapse.collapse_lower_bound(0.2, 40, 5, 1),
        "depth: got 1, wanted at least 2",
    ),
    "depth of a ratio": (
        lambda: collapse.collapse_ratio(0.2, 7, 0),
        "depth: got 0, wanted at least 1",
    ),
    "block": (lambda: lr.core.block_masks(4, 0, 0.5), "block: got 0, wanted at least 1"),
    "max_steps": (
        lambda: lr.core.simulate_until(
            square, I4, lr.gradient_descent(0.1), 1e-3, check_every=5, max_steps=4
        ),
        "max_steps: got 4, wanted at least 5",
    ),
}

KEY = jax.random.key(0)
TOO_LARGE = {
    "vgg": lambda: networks.vgg(KEY, (4, "pool", 6, "pool"), size=2**31, hidden=(5,), classes=2),
    "resnet": lambda: networks.resnet(KEY, (2**62, 1), widths=(4, 6)),
    "vit": lambda: networks.vit(KEY, size=2**32, patch=2**31, width=6, depth=1, heads=2),
    "mlp": lambda: networks.mlp(KEY, (3, 2**62, 2)),
    "transformer": lambda: networks.transformer(KEY, features=3, width=2**32, hidden=8, outputs=2),
    "low_rank_target": lambda: lr.low_rank_target(KEY, (2**32, 2**32), jnp.ones(2)),
    "truncated": lambda: lr.truncated_gaussian_target(KEY, (2**32, 2**32), 2),
    "spaced_singular_values": lambda: lr.spaced_singular_values(2**62),
    "beyond 64 bits": lambda: lr.spaced_singular_values(2**63),
    "block_covariance": lambda: lr.core.block_covariance(2**40, 2, 0.5),
    "draw_mask": lambda: lr.core.draw_mask(KEY, 2**62, 0.5, block=2),
    "index_sets": lambda: lr.theorem1.index_sets(64, 32),
    "sampled": lambda: lr.sampled(KEY, 2**62, scale=jax.random.uniform),
    "recorded_steps": lambda: lr.recorded_steps(2**40),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_size_beyond_memory_is_refused_before_it_ends_the_process(name):
    with pytest.raises(ValueError, match=r"^\w+: got .*, wanted (at most|an integer|1 to)"):
        TOO_LARGE[name]()


def test_a_size_is_measured_by_what_this_process_may_have(monkeypatch):
    monkeypatch.setattr(checks, "memory", lambda: 10**6)
    checks.allocation({"rank": 350, "shape": (3, 4)}, (350, 350))
    words = "shape: got (3, 400), for which arrays take 1.12 MB, wanted at most 1 MB"
    with pytest.raises(ValueError, match=re.escape(words)):
        checks.allocation({"rank": 350, "shape": (3, 400)}, (350, 400))
    with jax.enable_x64(False):  # floats are half as long
        checks.allocation({"rank": 400}, (350, 400))


def test_the_address_space_bounds_the_memory(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (2**30, resource.RLIM_INFINITY))
    for function in (memory_limit.address_space, memory_limit.memory):
        monkeypatch.setattr(memory_limit, function.__name__, function.__wrapped__)
    assert memory_limit.memory() == 2**30
    with pytest.raises(OSError, match=r"got 1\.07 GB of address space, wanted 2 GB"):
        memory_limit.require(2 * 10**9)


@pytest.mark.parametrize("name", SILENT)
def test_what_was_silent_is_refused(name):
    call, message = SILENT[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "of",
    [
        lambda values: lr.theorem1.smallest_curvature(values, SETS, 0.5),
        lambda values: lr.theorem1.hessian_spectrum(values, SETS, (3, 3), 0.5),
    ],
)
def test_integers_mean_what_they_mean_as_floats(of):
    found = of(VALUES.astype(int))
    np.testing.assert_array_equal(found, of(VALUES))
    assert found.dtype == VALUES.dtype


def test_checks_add_no_equation():
    """Nothing of a traced argument is read, and nothing that fits is converted."""
    W, decay = jnp.eye(3, dtype="float32"), jnp.asarray(0.5, "float32")

    def plain(W, V, target, decay):
        squares = sum(jnp.sum(layer**2) for layer in (W, V))
        return 0.5 * _sum_of_squares(V @ W - target) + 0.5 * decay * squares

    def checked(W, V, target, decay):
        return lr.theorem1.decayed_loss((W, V), target, decay)

    assert str(jax.make_jaxpr(checked)(W, W, W, decay)) == str(
        jax.make_jaxpr(plain)(W, W, W, decay)
    )
    assert checked(W, W, W, 1).dtype == checked(W, W, W, 0.5).dtype == W.dtype
