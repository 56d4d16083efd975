"""Main programs of theorems and steps of studies, lowered for a GPU and a TPU on any machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import steps
from lrdyn import theorem2
from lrdyn.core import gradient_descent, linalg
from lrdyn.registry import REGISTRY
from lrdyn.theorem3.statement import DRAWS, REPEATS
from lrdyn.verification.running.programs import equations
from tests.faults import lowered

pytestmark = pytest.mark.tools


@pytest.mark.parametrize("name", REGISTRY)
def test_the_main_program_of_a_theorem_is_known_calls_and_full_products(name):
    step = steps.in_precision(lambda: steps.main_program(name, "float32"), False)
    assert list(lowered.faults_of(step)) == []


@pytest.mark.parametrize("name", steps.TINY_STEPS)
def test_a_step_of_a_study_is_known_calls_and_full_products(name):
    step = steps.in_precision(steps.TINY_STEPS[name], False)
    assert list(lowered.faults_of(step)) == []


@pytest.mark.parametrize("platform", lowered.PLATFORMS)
def test_a_batch_of_decompositions_is_one_call_but_on_a_cpu(platform):
    """Also of batches within batches, and of functions that decompose more than once."""

    def twice(matrix):
        return linalg.svd(linalg.svd(matrix)[0] + matrix)[1]

    program = jax.jit(jax.vmap(jax.vmap(twice))).trace(jnp.ones((3, 4, 5, 5)))
    text = {p: program.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", platform)}
    loops = {p: text[p].count("stablehlo.while") for p in text}
    # The loops of a TPU are those of JAX's own SVD, as many as of one matrix.
    alone = jax.jit(twice).trace(jnp.ones((5, 5))).lower(lowering_platforms=(platform,)).as_text()
    assert loops["cpu"] == 4
    assert loops[platform] == alone.count("stablehlo.while")


def test_what_is_not_batched_stays_so_in_a_batch_of_decompositions():
    together = linalg.sequential_on_cpu(lambda a, b: jnp.linalg.qr(a)[1] @ b)
    matrices, other = jnp.arange(24.0).reshape(2, 4, 3), jnp.ones((3, 2))
    found = jax.vmap(together, in_axes=(0, None))(matrices, other)
    assert jnp.array_equal(found, jnp.stack([together(a, other) for a in matrices]))


@pytest.mark.parametrize("platform", lowered.PLATFORMS)
@pytest.mark.parametrize("rank", [1, 8])
def test_a_program_traced_on_a_cpu_takes_all_runs_at_once_elsewhere(platform, rank):
    """Small blocks are cut into parts on a CPU alone, and so are blocks that are multiplied."""

    def loops(runs, platform):
        eta, last = jnp.full(runs, 0.1), np.array([3])
        targets, scales = jnp.ones((runs, 2 * rank, 2 * rank)), jnp.full((runs, 2), 0.1)
        program = jax.jit(lambda t, e, r: theorem2.reduced_lanes(t, e, r, 0 * r, last))
        lower = program.trace(targets, scales, eta).lower
        return lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")

    assert loops(4096, platform) == loops(2, platform)
    assert loops(4096, "cpu") > loops(2, "cpu")


@pytest.mark.parametrize("platform", lowered.PLATFORMS)
def test_estimates_of_theorem_3_are_drawn_one_by_one_on_a_cpu_alone(platform):
    step = steps.main_program("theorem3", "float64")
    repeats = f"stablehlo.constant dense<{REPEATS}> : tensor<i64>"
    assert lowered.text_of(step, "cpu").count(repeats) >= len(DRAWS)
    assert repeats not in lowered.text_of(step, platform)


@pytest.mark.parametrize("platform", ["cpu", *lowered.PLATFORMS])
def test_a_gpu_adds_the_decay_in_the_kernel_of_the_step(platform):
    rule, weights = gradient_descent(0.1, 0.01), jnp.ones((3, 3))

    def step(weights):
        gradient = weights @ weights
        updates, _ = rule.update(gradient, rule.init(weights), weights)
        return weights + updates

    text = jax.jit(step).trace(weights).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == (platform == "cuda")


def test_no_loop_of_a_chunk_of_theorem_2_looks_at_a_counter_it_need_not():
    """All its loops have a known number: of records, of steps between two of them."""
    step = steps.main_program("theorem2", "float64", steps=100)
    jaxpr = jax.make_jaxpr(step.function)(*step.arguments).jaxpr
    names = [one.primitive.name for one, _ in equations(jaxpr)]
    assert "while" not in names
    assert 4 in {
        one.params["length"] for one, _ in equations(jaxpr) if one.primitive.name == "scan"
    }
