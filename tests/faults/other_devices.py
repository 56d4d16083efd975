"""Every theorem, tiny, on emulated devices: ``python -m tests.faults.other_devices [NAME ...]``.

A device (:mod:`tests.emulated`) that has the arithmetic of a precision leaves the verdict as it is;
one that lacks it leaves it undecided, status 4, where that precision was asked for, and else judges
the other one; a theorem is false only where ``--precision`` asked for rounded products. Where
float32 is judged alone, Theorem 4 has a claim that it cannot resolve, and is undecided, as it is in
float32 on a CPU. A line for each run; the status is 1 if one ended otherwise.
"""

import os
import sys
import tempfile
from typing import NamedTuple

import jax

from lrdyn.registry import theorems
from lrdyn.verification.judging.rounding import REASON
from tests.emulated import NO_RULES
from tests.runs import python, small_words


class Case(NamedTuple):
    """A device, what is asked of it, the status, and what the last lines must say."""

    device: str
    words: tuple[str, ...]
    status: int
    said: str


CASES = (
    Case("gpu", ("--dtype", "float32"), 0, "holds: "),
    Case("gpu", ("--dtype", "float32", "--precision", "tf32"), 1, "IS FALSE"),
    Case("tpu", (), 0, "holds (scaling not claimed)"),
    Case("tpu", ("--dtype", "float64"), 4, REASON),
    Case("tpu", ("--precision", "bfloat16"), 1, "IS FALSE"),
    Case("tpu", ("--precision", "tf32"), 2, "wanted"),
    Case("deaf", (), 0, "holds (scaling not claimed)"),
    Case("deaf", ("--dtype", "float32"), 4, REASON),
)


UNRESOLVED = ("theorem4",)
"""Theorems with a path that amplifies rounding too much for float32: of a perceptron."""


def expected(theorem: str, case: Case) -> Case:
    """What a run must end with."""
    in_float32 = case.status == 0 and case.device != "deaf"
    if in_float32 and theorem in UNRESOLVED:
        return case._replace(status=4, said="ill-conditioned")
    return case


def main(names: list[str]) -> int:
    """Run every case of the theorems named, or of all; 1 if one ended otherwise."""
    bad = 0
    for theorem in [one.name for one in theorems() if not names or one.name in names]:
        for case in (expected(theorem, each) for each in CASES):
            with tempfile.TemporaryDirectory() as out:
                words = ("verify", theorem, *small_words(theorem), *case.words, "--out", out)
                done = python("-m", "tests.emulated", case.device, *words)
            if done.returncode == NO_RULES:
                print(f"not run on JAX {jax.__version__}: {done.stdout.strip()}")
                return 0
            printed = f"{done.stdout}{done.stderr}"
            right = done.returncode == case.status and case.said in printed
            bad += not right
            what = f"{theorem} on {case.device} {' '.join(case.words)}"
            print(f"{'as expected' if right else 'WRONG'}: {what}: {done.returncode}", flush=True)
            if not right:
                print(os.linesep.join(printed.splitlines()[-20:]), flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
