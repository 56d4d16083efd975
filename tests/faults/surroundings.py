"""Odd surroundings of a small command: ``python -m tests.faults.surroundings [NAME ...]``.

Environment variables with values that are none, limits of the shell, names of folders, and another
user. Whatever surrounds it, a command ends with 0 and a verdict, or with 2 or 3 and one line.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lrdyn.core.show import aligned, make_printable
from tests import forked
from tests.faults.disks import SMALL
from tests.runs import ROOT
from tests.verification.test_theorem import MY_THEOREM

LIMIT = 300
"""Seconds after which a command hangs."""


class Case(NamedTuple):
    """What surrounds a command."""

    environment: Mapping[str, str | None] = {}
    """Variables that are set; None takes one away."""
    limit: str = ""
    """Arguments of the shell's ``ulimit``."""
    folder: str = "a"
    """Where it runs."""
    user: bool = False
    """Whether another user than root runs it."""
    out: str = "results"


ENVIRONMENT: Mapping[str, Sequence[str | None]] = {
    "HOME": (None, "", "/dev/null", "/no/such/folder", "relative", "a\nb", "\U0001f600"),
    "TMPDIR": ("", "/dev/null", "/no/such/folder", "."),
    "LANG": (None, "C", "tr_TR.UTF-8", "no_such", "\udcff"),
    "LC_ALL": ("POSIX", "C", "de_DE@euro"),
    "TZ": ("no/such", "\udcff"),
    "TERM": (None, "", "dumb", "no-such"),
    "COLUMNS": ("0", "-1", "x", "99999999999999999999"),
    "PATH": (None, ""),
    "PYTHONWARNINGS": ("error",),
    "PYTHONHASHSEED": ("0", "random"),
    "PYTHONIOENCODING": ("ascii", "latin-1:strict", "utf-16"),
    "PYTHONUTF8": ("0", "1"),
    "PYTHONOPTIMIZE": ("2",),
    "PYTHONDONTWRITEBYTECODE": ("1",),
    "PYTHONSAFEPATH": ("1",),
    "PYTHONUNBUFFERED": ("1",),
    "OMP_NUM_THREADS": ("0", "-1", "x", "1000"),
    "NPROC": ("0", "-3", "x"),
    "LRDYN_CACHE": ("", "/dev/null", "/no/such/folder", "a\nb", "\udcff", "off"),
    "LRDYN_CACHE_MAX": ("", "0", "-1", "x", "nan", "1e400", "9" * 5000),
    "LRDYN_DATA": ("", "/dev/null", "\udcff", "x" * 5000),
    "LRDYN_DEBUG": ("", "0", "x", "1"),
    "XDG_CACHE_HOME": ("", "relative", "/dev/null", "\udcff"),
    "XLA_FLAGS": ("", "--no_such_flag", "x", "--xla_force_host_platform_device_count=0"),
    "JAX_PLATFORMS": ("", "cpu", "cuda", "no_such", "cpu,tpu"),
    "JAX_ENABLE_X64": ("0", "1", "maybe"),
    "JAX_DISABLE_JIT": ("1", "x"),
    "JAX_NUM_CPU_DEVICES": ("0", "-1", "3", "x"),
    "JAX_DEBUG_NANS": ("1", "x"),
    "JAX_DEFAULT_MATMUL_PRECISION": ("bfloat16", "no_such"),
    "JAX_COMPILATION_CACHE_DIR": ("/dev/null", ""),
    "JAX_LOG_COMPILES": ("1",),
    "JAX_TRACEBACK_FILTERING": ("off", "x"),
    "TF_CPP_MIN_LOG_LEVEL": ("0", "x"),
    "MPLBACKEND": ("no_such", "TkAgg"),
    "MPLCONFIGDIR": ("/dev/null", "/no/such/folder"),
    "HDF5_USE_FILE_LOCKING": ("TRUE", "x"),
    "HDF5_PLUGIN_PATH": ("/dev/null",),
    "CUDA_VISIBLE_DEVICES": ("", "-1", "x"),
    "GIT_DIR": ("/dev/null", "x"),
}
LIMITS = (
    "-v 100000",
    "-v 1000000",
    "-v 3000000",
    "-n 8",
    "-n 20",
    "-n 64",
    "-f 0",
    "-f 8",
    "-f 100",
    "-s 256",
    "-c 0",
    "-d 100000",
)
FOLDERS = (
    "with a space",
    "a\nb",
    "a\tb",
    " ",
    "'",
    '"',
    "-a",
    "--out",
    "$HOME",
    "%s",
    "a;b",
    "#",
    "*",
    "é",
    "e\u0301",
    "\u202ea",
    "\U0001f600",
    "\udcff",
    "\x1b[2J",
    "x" * 255,
    "/".join(15 * ["y" * 200]),
    "a.nc",
    "{x}",
)
OUTS = (
    "",
    ".",
    "..",
    "a b",
    "a\nb",
    "\udcff",
    "x" * 255,
    "x" * 256,
    "/dev/null",
    "/dev/null/a",
    "/proc/a",
    "-",
    "~",
    "a/../b",
    "y/" * 1500,
)


def cases() -> dict[str, Case]:
    """All cases, by what is odd."""
    found = {
        f"{name}={value!r}": Case({name: value})
        for name, values in ENVIRONMENT.items()
        for value in values
    }
    found |= {f"ulimit {limit}": Case(limit=limit) for limit in LIMITS}
    found |= {f"in {folder!r}": Case(folder=folder) for folder in FOLDERS}
    found |= {f"--out {out!r}": Case(out=out) for out in OUTS}
    if os.getuid() == 0:
        found |= {
            "another user": Case(user=True),
            "another user, HOME of root": Case({"HOME": "/root"}, user=True),
            "another user, in a folder of root": Case(user=True, folder="root"),
            "another user, ulimit -u 1": Case(user=True, limit="-u 1"),
        }
    return found


def told(case: Case, cache: str) -> str:
    """How a command ends, if that is wrong, else an empty text.

    Args:
        case: what surrounds it.
        cache: folder of compiled programs, where the case names none.
    """
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        here = top / case.folder
        here.mkdir(parents=True)
        (here / "mine.py").write_text(MY_THEOREM)
        if case.user:
            top.chmod(0o777)
            here.chmod(0o755 if case.folder == "root" else 0o777)
        environment = {**os.environ, "LRDYN_CACHE": cache, "PYTHONPATH": str(ROOT)}
        for name, value in case.environment.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        bare = not (case.environment or case.limit or case.user)
        words = [
            *(forked.interpreter() if bare else [sys.executable]),
            "-m",
            "lrdyn",
            "verify",
            "mine.py",
            *SMALL,
            f"--out={case.out}",
        ]
        if case.limit:
            words = ["/bin/sh", "-c", f'ulimit {case.limit} && exec "$@"', "sh", *words]
        user = {"user": 65534, "group": 65534, "extra_groups": []} if case.user else {}
        try:
            ended = subprocess.run(
                words, cwd=here, env=environment, capture_output=True, timeout=LIMIT, **user
            )
        except subprocess.TimeoutExpired:
            return "hangs"
        except PermissionError:
            return "not tried: the interpreter is of root alone" if case.user else "not started"
        verdicts = list(top.rglob("verdict.json"))
    return _judged(ended, bool(verdicts))


def _judged(ended: subprocess.CompletedProcess, has_verdict: bool) -> str:
    err = ended.stderr.decode("utf-8", "replace")
    lines = [line for line in err.splitlines() if not re.match(r"my_theorem: \d+ of \d+", line)]
    last = make_printable(lines[-1])[:150] if lines else ""
    how = f"{ended.returncode}, {len(lines)} lines: {last}"
    if ended.returncode == 0 and not lines:
        return "" if has_verdict else f"no verdict: {how}"
    if ended.returncode in (2, 3) and len(lines) == 1 and "internal error" not in last:
        return ""
    return how


def main(words: list[str]) -> int:
    """Run all cases, or those whose names have one of the words in them."""
    chosen = {
        name: case
        for name, case in cases().items()
        if not words or any(word in name for word in words)
    }
    fell = []
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(2) as pool:
        ended = pool.map(told, chosen.values(), len(chosen) * [cache])
        for name, why in zip(chosen, ended, strict=True):
            print(json.dumps(name), why or "held", flush=True)
            fell += [(json.dumps(name), why)] if why else []
    print("\n".join(aligned(fell)) if fell else "", f"{len(fell)} of {len(chosen)} fell", sep="\n")
    return bool(fell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
