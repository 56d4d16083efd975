"""Programs of all theorems and studies, lowered for a GPU and for a TPU: nothing is compiled.

``python -m tests.faults.lowered [NAME ...]`` lowers every program of the theorems named, controls
too, or of all, and a training step of each kind of network.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import jax

from benchmarks import steps
from benchmarks.steps import TINY_STEPS, Step
from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.machine.process import setup

PLATFORMS = ("cuda", "tpu")
KNOWN = {
    "cuda": {
        "cusolver_geqrf_ffi",
        "cublas_geqrf_batched_ffi",
        "cusolver_orgqr_ffi",
        "cusolver_gesvdj_ffi",
        "cusolver_gesvd_ffi",
        "cusolver_gesvdp_ffi",
        "cusolver_syevd_ffi",
        "cu_threefry2x32_ffi",
        "__gpu$xla.gpu.triton",
    },
    "tpu": {"Qr", "ProductOfElementaryHouseholderReflectors", "Eigh"},
}
"""Calls of a program that are no operation of XLA's, by platform: decompositions, random bits."""
NOT_CALLS = {"Sharding", "annotate_device_placement"}
"""Marks for XLA that look like calls."""


def text_of(step: Step, platform: str) -> str:
    """StableHLO of a step, lowered for a platform that need not be here."""
    with jax.enable_x64(step.x64):
        traced = jax.jit(step.function, keep_unused=True).trace(*step.arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def wrong_in(text: str, platform: str) -> list[str]:
    """What is wrong with a lowered program: unknown calls, products below full precision.

    Example:
        >>> dot = "%0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]"
        >>> wrong_in(f"{dot} : (tensor<2xf32>)", "cuda")
        ['a product of default precision']
        >>> wrong_in(f"{dot}, precision = [HIGHEST, HIGHEST]", "cuda")
        []
        >>> wrong_in("%1 = stablehlo.custom_call @xla_ffi_python_gpu_callback(%0)", "cuda")
        ['calls xla_ffi_python_gpu_callback']
    """
    calls = Counter(re.findall(r"custom_call @\"?([\w.$]+)", text))
    unknown = sorted(calls.keys() - KNOWN[platform] - NOT_CALLS)
    found = [f"calls {name}" for name in unknown]
    for line in text.splitlines():
        product = re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line)
        if product and line.count("HIGHEST") != 2:
            found.append("a product of default precision")
    return found


def faults_of(step: Step) -> Iterator[str]:
    """What is wrong with a step on either platform."""
    for platform in PLATFORMS:
        yield from (f"{platform}: {wrong}" for wrong in wrong_in(text_of(step, platform), platform))


def programs(names: Sequence[str]) -> Iterator[tuple[str, Step]]:
    """All programs of these theorems, and the small steps of the studies."""
    for name in names:
        for job in steps.traced_jobs(theorem(name), seeds=2, **steps.smallest(name)):
            for number, step in enumerate(steps.programs_of(job)):
                yield f"{job.group} {job.precision} {number}", step
    for name, make in TINY_STEPS.items():
        yield name, steps.in_precision(make, False)


def main(names: Sequence[str]) -> int:
    """Lower them all; 1 if something is wrong with one."""
    setup("float64", host_devices=1)
    count, bad = 0, 0
    for name, step in programs(names or list(REGISTRY)):
        count += 1
        for fault in faults_of(step):
            bad += 1
            print(f"{name}: {fault}", flush=True)
    print(f"lowered: {count} programs for {' and '.join(PLATFORMS)}, {bad} faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
