"""Compile what a GPU and a TPU would run, on a machine with neither: docs/records/accelerators.md.

``make aot`` runs it, with the compilers' wheels in a folder of their own. Each device has a child
process, each program a limit of CPU seconds: what goes beyond it or aborts is left out, with what
was seen, and another child goes on behind it. What was found is in ``docs/accelerators.json``.
"""

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks import ahead

FOLDER = Path(__file__).parent
FOUND = FOLDER / "accelerators.json"
PAGE = FOLDER / "records" / "accelerators.md"
BEGIN, END = "<!-- compiled: written by make aot -->", "<!-- end -->"
RELEASES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
"""Packages whose releases decide what is found."""
NO_END = {-signal.SIGXCPU: "CPU s", -signal.SIGALRM: "s"}
"""Exit status of a child that passed a limit -> of what."""

Row = dict[str, Any]


# In a child ----------------------------------------------------------------------------------


def child(device: str, names: Sequence[str], limit: int) -> None:
    """Compile these programs one after the other; a line of JSON before and after each."""
    import jax

    from benchmarks import steps
    from lrdyn.verification.machine.process import setup

    setup("float32", host_devices=1)
    making = steps.compiled_ahead()
    for name in names:
        print(json.dumps({"begin": name}), flush=True)
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = int(used.ru_utime + used.ru_stime) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (spent + limit, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, 20 * limit)  # where it waits for nothing
        row: Row = {"name": name, "device": device}
        try:
            step = steps.in_precision(making[name], name.endswith("float64"))
            with jax.enable_x64(step.x64), jax.default_matmul_precision("highest"):
                program = ahead.compile_for(device, step.function, step.arguments, step.donate)
                row |= program._asdict() | {"peak": program.peak} | work_of(step)
        except Exception as error:  # of XLA
            row["fault"] = (str(error).splitlines() or [type(error).__name__])[0][:120]
        print(json.dumps(row), flush=True)
        # Else compiled programs pile up in this process.
        jax.clear_caches()


def work_of(step: Any) -> Row:
    """Operations, and bytes read and written, of one run; a loop counts once."""
    import jax

    cost = jax.jit(step.function).trace(*step.arguments).lower().cost_analysis() or {}
    return {"work": cost.get("flops", 0.0), "moved": cost.get("bytes accessed", 0.0)}


# The parent ----------------------------------------------------------------------------------


def compiled(device: str, names: Sequence[str], wheels: Path, limit: int, keep: Any) -> None:
    """Compile programs for a device in child processes, and hand each row to ``keep``."""
    names = list(names)
    while names:
        words = [sys.executable, "-m", "docs.accelerators", "--child", device]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [*words, "--limit", str(limit), *names],
                env=os.environ | {"LRDYN_CACHE": ""} | ahead.environment(device, wheels),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            begun = None
            assert process.stdout is not None
            for line in process.stdout:
                said = json.loads(line)
                begun = said.get("begin")
                if begun is None:
                    names.remove(said["name"])
                    keep(said)
            status = process.wait()
            errors.seek(0)
            if begun is None and status:
                raise RuntimeError(f"{device}: {errors.read()[-2000:]}")
            if begun is not None:
                # The program that ended its child has a row of its own, and the next child goes on
                # behind it.
                names.remove(begun)
                keep({"name": begun, "device": device, "fault": ended(status, limit, errors)})


def ended(status: int, limit: int, errors: Any) -> str:
    """Why a child ended in the middle of a program."""
    if status in NO_END:
        times = 1 if status == -signal.SIGXCPU else 20
        return f"no end in {times * limit} {NO_END[status]}"
    failed = re.findall(r"[\w./]+:\d+\] (Check failed: .*)|(F\d{4}.*)", errors.read())
    said = next((part for groups in failed for part in groups if part), "")
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"aborts ({name}{f', {said[:80]}' if said else ''})"


def releases(wheels: Path) -> dict[str, str]:
    """Package -> release, of those that decide what is found."""
    known = {}
    for distribution in (*distributions(), *distributions(path=[os.fspath(wheels)])):
        if (name := distribution.metadata["Name"]) in RELEASES:
            known[name] = distribution.version
    return {name: known[name] for name in RELEASES if name in known}


# The page ------------------------------------------------------------------------------------

MEASURED = FOLDER / "accelerators_measured.json"
"""What ``python -m benchmarks.accelerator`` has left."""
PEAK = {"H100": 45e12, "v5e": 33e12}
"""Operations in a second of float32 products: an assumption for an H100's cuBLAS without TF32, and
a sixth of the 197e12 of bfloat16 on a v5e, for six passes."""
LAUNCH = {"H100": 3e-6, "v5e": 1e-6}
"""Seconds of the smallest kernel: an assumption."""


def predicted(row: Mapping[str, Any]) -> float:
    """Seconds of one run: what takes longest of operations, bytes and launches."""
    device = row["device"]
    return max(
        row["work"] / PEAK[device],
        row["moved"] / ahead.CEILINGS[device]["bytes"],
        row["launches"] * LAUNCH[device],
    )


def measured() -> dict[tuple[str, str], str]:
    """Program and device -> what was measured of it, of all days that are there."""
    return {
        (name, ahead.row_of_device(day["of"]["device"])): seconds(numbers["seconds"])
        for day in measured_days()
        for name, numbers in day["stages"].get("programs", {}).items()
        if "seconds" in numbers
    }


def measured_days() -> list[dict[str, Any]]:
    """The numbers of each device that was tried; none where no day was."""
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else []


def days() -> str:
    """What each device that was tried came to, as the day's own report says it."""
    from benchmarks.accelerator_report import report

    return "\n".join(report(day, level=3) for day in measured_days())


def seconds(value: float) -> str:
    """A time in words.

    Example:
        >>> seconds(0.00123), seconds(2.0)
        ('1.23 ms', '2 s')
    """
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def tables(compilations: Mapping[str, Any]) -> str:
    """The tables of the page."""
    rows: list[Row] = compilations["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    by_place = {(row["name"], row["device"]): row for row in rows}
    ran = measured()
    said = ", ".join(f"{name} {version}" for name, version in compilations["releases"].items())
    lines = [f"Releases: {said}. A program has {compilations['limit']} CPU seconds.", ""]
    for device, platform in ahead.PLATFORMS.items():
        mine = [by_place[name, device] for name in names if (name, device) in by_place]
        if not mine:
            continue
        most = ahead.MEMORY[device]
        lines += [
            f"### {device} ({platform}, {most / 1e9:.0f} GB)",
            "",
            "| program | CPU s | MB | launches | decompositions | predicted | measured |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in mine:
            name = row["name"]
            if "fault" in row:
                ran_all_the_same = ran.get((name, device), "not run")
                lines.append(f"| {name} | **{row['fault']}** | | | | | {ran_all_the_same} |")
                continue
            calls = ", ".join(
                f"{n} {call.removeprefix('cusolver_').removesuffix('_ffi')}"
                for call, n in sorted(row["decompositions"].items())
            )
            over = " **too large**" if row["peak"] > most else ""
            lines.append(
                f"| {name} | {row['seconds']:.1f} | {row['peak'] / 1e6:,.1f}{over} "
                f"| {row['launches']:,} | {calls} | {seconds(predicted(row))} "
                f"| {ran.get((name, device), 'not run')} |"
            )
        lines.append("")
    return "\n".join([*lines, days()]).rstrip()


def page(text: str, compilations: Mapping[str, Any]) -> str:
    """The page with these tables between its two marks."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{tables(compilations)}\n\n{END}{rest.partition(END)[2]}"


def write(compilations: Mapping[str, Any]) -> None:
    """Write what came of the compilations, and the page."""
    FOUND.write_text(json.dumps(compilations, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), compilations))


def main(words: Sequence[str]) -> int:
    """Compile everything for every device."""
    parser = argparse.ArgumentParser("accelerators", description=__doc__)
    parser.add_argument("names", nargs="*", help="programs (default: all)")
    parser.add_argument("--child", choices=tuple(ahead.PLATFORMS))
    parser.add_argument("--device", choices=tuple(ahead.PLATFORMS), help="one alone")
    parser.add_argument("--wheels", type=Path, default=Path(".aot"), metavar="DIR")
    parser.add_argument("--limit", type=int, default=120, help="CPU seconds of a program")
    parser.add_argument("--resume", action="store_true", help="keep what is there already")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args(words)
    if given.child:
        child(given.child, given.names, given.limit)
        return 0
    if given.page:
        write(json.loads(FOUND.read_text()))
        return 0
    from benchmarks import steps

    names = given.names or list(steps.compiled_ahead())
    rows: list[Row] = json.loads(FOUND.read_text())["rows"] if given.resume else []
    compilations = {
        "releases": releases(given.wheels.resolve()),
        "limit": given.limit,
        "rows": rows,
    }
    begin = time.monotonic()
    for device in ahead.PLATFORMS if given.device is None else (given.device,):
        there = {row["name"] for row in rows if row["device"] == device}
        missing = [name for name in names if name not in there]

        def keep(row: Row) -> None:
            rows.append(row)
            write(compilations)
            outcome = row.get("fault") or f"{row['seconds']:.1f} CPU s, {row['launches']} launches"
            print(f"{row['device']}: {row['name']}: {outcome}", flush=True)

        compiled(device, missing, given.wheels.resolve(), given.limit, keep)
    print(f"\n{len(rows)} programs, {time.monotonic() - begin:.0f} s: {PAGE.name}, {FOUND.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
