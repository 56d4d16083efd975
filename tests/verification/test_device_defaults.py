"""What a sweep takes of a device where nobody says it."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from lrdyn.verification.machine.compiler_options import compiler_options
from lrdyn.verification.machine.device_defaults import usual_lanes, usual_memory
from lrdyn.verification.running import programs
from lrdyn.verification.running.programs import SweepPlan
from lrdyn.verification.running.shared import Shared
from lrdyn.verification.stating.points import product


def card(**told):
    """A device that is no CPU."""
    return SimpleNamespace(platform="gpu", device_kind="H100", memory_stats=lambda: told or None)


def test_an_accelerator_takes_half_of_its_memory():
    assert usual_memory(card(bytes_limit=80 * 10**9)) == 40 * 10**9
    assert usual_memory(card()) == 2**30


def test_an_accelerator_takes_many_lanes():
    assert usual_lanes(card()) == 4096


@pytest.mark.parametrize(("memory", "lanes"), [(10**9, 100), (20 * 8 * 1000, 7), (1, 2)])
def test_an_accelerator_has_as_many_lanes_as_fit_into_its_memory(memory, lanes):
    """Points of 8 kB and some more, of which two parts are in memory at a time."""
    plan = SweepPlan(False, 4096, memory, [card()], {}, Shared(None))
    points = product(x=np.arange(100.0))
    group = programs.trace(lambda x: {"y": x * jnp.ones(1000)}, (), np.arange(100), points, plan)
    assert group.lanes == lanes
    assert group.lanes == lanes
    assert group.lanes * group.size * 2 <= max(memory, 4 * group.size)


def test_a_cpu_has_the_lanes_that_it_is_told():
    found = lrdyn.sweep(lambda x: {"y": x + jnp.ones(1000)}, product(x=np.arange(5.0)), memory=1)
    assert found["y"].shape == (5, 1000)


def test_lanes_are_asked_for_by_a_flag(command_line, tmp_path):
    from lrdyn.registry import theorem

    status, _, err = command_line(theorem("theorem2"), "--lanes", "0", "--out", tmp_path)
    assert (status, err) == (2, "theorem2: error: --lanes: got '0', wanted an integer >= 1\n")


def sums_by_the_library(program: str) -> int:
    """How many of the computations that XLA hands to its library of kernels have a sum in them."""
    handed = re.findall(r"calls=(%[\w.-]+).*__ynn_fusion", program)
    bodies = dict(re.findall(r"^(%[\w.-]+) .*?\{$(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    return sum(" reduce(" in bodies[name] for name in handed)


@pytest.mark.parametrize(("asked", "sums"), [("", 0), ("LIBRARY_FUSION_TYPE_REDUCE", 1)])
def test_a_sweep_sums_by_loops_unless_it_is_told_otherwise(asked, sums, monkeypatch):
    """Else the library takes in the products: sixteen times as long at d = 1000."""
    programs_of_xla = []

    def compiled(lowered, compiler_options):
        programs_of_xla.append(as_before(lowered, compiler_options))
        return programs_of_xla[-1]

    as_before = jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    lrdyn.sweep(
        lambda x: {"loss": jnp.sum((x * jnp.ones((100, 100)) @ jnp.ones((100, 100)) - 1) ** 2)},
        product(x=[1.0, 2.0]),
        compiler_options={n: asked for n in compiler_options("cpu") if asked and "ynn" in n},
    )
    assert sums_by_the_library(programs_of_xla[-1].as_text()) == sums
