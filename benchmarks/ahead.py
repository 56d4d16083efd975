"""Compile a program for an accelerator that this machine need not have, and count what it launches.

The compilers are those of the wheels of ``make aot``: nothing runs. XLA writes how often a loop
repeats where it can tell; what stands within is counted so often.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

PLATFORMS = {"H100": "cuda", "v5e": "tpu"}
"""Device -> the platform whose compiler compiles for it."""
MEMORY = {"H100": 80e9, "v5e": 16e9}
"""Bytes of memory of one device."""
SXM = {"float64": 67e12, "float32": 67e12, "tf32": 494e12, "bfloat16": 989e12}
PCIE = {"float64": 51e12, "float32": 51e12, "tf32": 378e12, "bfloat16": 756e12}
CEILINGS = {
    "H200": {**SXM, "bytes": 4.8e12},
    "H100 PCIe": {**PCIE, "bytes": 2e12},
    "H100": {**SXM, "bytes": 3.35e12},
    "v5e": {"bfloat16": 197e12, "bytes": 0.819e12},
}
"""Part of the name of a device -> operations in a second of dense products, by their arithmetic,
and bytes in a second of its memory: data sheets of NVIDIA and Google. The first part that fits
counts."""
H100 = Path(__file__).with_name("h100.txtpb")
"""What XLA wants to know of it."""
DECOMPOSITIONS = re.compile(
    r"cusolver_\w+|cu(?:solver|blas)_geqrf\w*|Eigh|Qr|ProductOfElementaryHouseholderReflectors|svd",
    re.IGNORECASE,
)
"""Custom calls that decompose a matrix, or a batch of them."""
NO_LAUNCH = {
    "bitcast",
    "constant",
    "get-tuple-element",
    "parameter",
    "tuple",
    "after-all",
    "partition-id",
    "replica-id",
}
"""Instructions of a compiled program that start nothing on the device."""


def row_of_device(kind: str) -> str:
    """Device of the table that a ``device_kind`` of JAX is, or the kind itself: it has no row yet.

    Example:
        >>> row_of_device("NVIDIA H100 80GB HBM3"), row_of_device("TPU v5 lite")
        ('H100', 'v5e')
        >>> row_of_device("NVIDIA H200")
        'NVIDIA H200'
    """
    kind = {"TPU v5 lite": "v5e"}.get(kind, kind)
    return next((name for name in PLATFORMS if name in kind), kind)


def ceilings_of(kind: str) -> dict[str, float]:
    """What the maker of a device promises, :data:`CEILINGS`; empty of one that has no row there.

    Args:
        kind: ``device_kind`` of JAX.

    Example:
        >>> ceilings_of("NVIDIA H200")["bytes"], ceilings_of("cpu")
        (4800000000000.0, {})
    """
    kind = "v5e" if row_of_device(kind) == "v5e" else kind
    return next((rates for name, rates in CEILINGS.items() if name in kind), {})


def environment(device: str, wheels: Path) -> dict[str, str]:
    """Variables of a process that compiles for a device with the wheels in a folder."""
    packages = os.pathsep.join(filter(None, (os.fspath(wheels), os.environ.get("PYTHONPATH"))))
    mine = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": packages}
    if PLATFORMS[device] == "tpu":
        library = wheels / "libtpu" / "libtpu.so"
        return mine | {"TPU_SKIP_MDS_QUERY": "1", "TPU_LIBRARY_PATH": os.fspath(library)}
    # Without a device nothing can be tuned, and Triton's products of matrices cannot do without.
    flags = {
        "xla_gpu_cuda_data_dir": wheels / "nvidia" / "cuda_nvcc",
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": "false",
    }
    return mine | {"XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in flags.items())}


def described(device: str) -> Any:
    """The device, as its compiler knows it: one, without a machine around it."""
    from jax.experimental import topologies  # deprecated names are imported with it

    platform = PLATFORMS[device]
    if platform == "tpu":
        topology = topologies.get_topology_desc(
            platform=platform, topology_name="v5e:1x1", chips_per_host_bounds=(1, 1, 1)
        )
    else:
        topology = topologies.get_topology_desc(
            platform=platform, topology="1x1x1", target_config=H100.read_text()
        )
    return topology.devices[0]


class Compiled(NamedTuple):
    """What the compiler of a device says of a program."""

    seconds: float
    """CPU seconds of lowering and compiling."""
    arguments: int
    """Bytes."""
    outputs: int
    """Bytes, those that overwrite arguments aside."""
    temporaries: int
    """Bytes."""
    launches: int
    """Kernels, copies and calls of libraries that one run starts."""
    decompositions: Mapping[str, int]
    """Custom call -> how often one run starts it."""
    untold: int
    """Loops of which the compiler cannot tell how often they repeat: counted once."""
    flops: float | None
    """Of one run, where the compiler says."""

    @property
    def peak(self) -> int:
        """Bytes of arguments, outputs and temporaries."""
        return self.arguments + self.outputs + self.temporaries


def compile_for(
    device: str, function: Callable[..., Any], arguments: Any, donate: Sequence[int] = ()
) -> Compiled:
    """Compile a function of these arguments, or of their shapes, for a device."""
    begin = time.process_time()
    place = jax.sharding.SingleDeviceSharding(described(device))
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), arguments
    )
    jitted = jax.jit(function, donate_argnums=tuple(donate), keep_unused=True)
    compiled = jitted.trace(*like).lower(lowering_platforms=(PLATFORMS[device],)).compile()
    held, cost = compiled.memory_analysis(), None
    if PLATFORMS[device] == "tpu":  # that for a GPU is not implemented
        cost = (compiled.cost_analysis() or {}).get("flops")
    launches, calls, untold = counted(compiled.as_text())
    return Compiled(
        time.process_time() - begin,
        held.argument_size_in_bytes,
        held.output_size_in_bytes - held.alias_size_in_bytes,
        held.temp_size_in_bytes,
        launches,
        {name: n for name, n in calls.items() if DECOMPOSITIONS.search(name)},
        untold,
        cost,
    )


def counted(text: str) -> tuple[int, Counter[str], int]:
    """Launches, custom calls by their target, and loops without a known number, of HLO's text.

    Of a choice the branch is counted that launches most.

    Example:
        >>> text = '''
        ... %body (p: f32[]) -> f32[] {
        ...   ROOT %n = f32[] negate(%p)
        ... }
        ... ENTRY %main (x: f32[]) -> f32[] {
        ...   ROOT %w = f32[] while(%x), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
        ... }'''
        >>> counted(text)
        (5, Counter(), 0)
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if begin := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            lines = computations[begin[2]] = []
            entry = begin[2] if begin[1] else entry
        elif " = " in line:
            lines.append(line)
    known: dict[str, tuple[int, Counter[str], int]] = {}

    def of(name: str) -> tuple[int, Counter[str], int]:
        if name not in known:
            launches, calls, untold = 0, Counter[str](), 0
            for line in computations.get(name, ()):
                instruction, times = _instruction(line), 1
                if instruction is None:
                    continue
                kind, rest = instruction
                within: list[str] = []
                choice = kind == "conditional"
                if kind == "while":
                    known_count = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
                    times, untold = (
                        int(known_count[1]) if known_count else 1,
                        untold + (not known_count),
                    )
                    # A loop of a known number looks at no condition.
                    parts = "body" if known_count else "body|condition"
                    within = re.findall(rf"(?:{parts})=%?([\w.-]+)", rest)
                elif kind in ("call", "async-start"):
                    within = re.findall(r"(?:to_apply|calls)=%?([\w.-]+)", rest)
                elif choice:
                    chosen = r"(?:true|false)_computation=%?([\w.-]+)"
                    listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
                    within = re.findall(r"[\w.-]+", listed[1]) if listed else []
                    within += re.findall(chosen, rest)
                elif kind not in NO_LAUNCH and not kind.endswith("-done"):
                    launches += 1
                    if kind == "custom-call":
                        target = re.search(r'custom_call_target="([^"]+)"', rest)
                        calls[target[1] if target else "?"] += 1
                inners = [of(computation) for computation in within]
                for inner in (
                    [max(inners, key=lambda counts: counts[0])] if choice and inners else inners
                ):
                    launches, untold = launches + times * inner[0], untold + inner[2]
                    calls.update({call: times * n for call, n in inner[1].items()})
            known[name] = launches, calls, untold
        return known[name]

    return of(entry)


def _instruction(line: str) -> tuple[str, str] | None:
    """Kind of an instruction, and what follows."""
    match = re.search(r"(?:\}|\]|\)|\[\]) ([a-z][a-z0-9-]*)\((.*)$", line.split(" = ", 1)[1])
    return (match[1], match[2]) if match else None
