"""All fault tests, outside CI: ``python -m tests.faults`` (``make faults``), one table at the end.

Names choose some: ``python -m tests.faults signals controls``. Each is a command of its own, too,
with its numbers as arguments: ``python -m tests.faults.signals 20``.
"""

import subprocess
import sys
import time
from typing import NamedTuple

from lrdyn.core.show import aligned
from tests.runs import ROOT


class Fault(NamedTuple):
    """One kind of fault, and the tool that makes it."""

    words: tuple[str, ...]
    what: str
    expected: str


FAULTS = {
    "signals": Fault(
        ("signals", "100"),
        "signals at 100 random moments",
        "130, 143 or killed, one line, within 5 s, no worker, no lock",
    ),
    "wrong_calls": Fault(
        ("wrong_calls",),
        "wrong arguments of public functions",
        "a ValueError that names the argument",
    ),
    "controls": Fault(
        ("controls",), "controls with 24 seeds in both precisions", "every one is seen to fail"
    ),
    "trainings": Fault(
        ("trainings", "20"), "a study killed 20 times", "the bits of an undisturbed run"
    ),
    "p_values": Fault(
        ("p_values",), "100,000 p-values of each test, and of 200 seeds", "uniform, or larger"
    ),
    "foreign_files": Fault(
        ("foreign_files",),
        "2,000 damaged files for each reader",
        "a value, or one line that names the file, in 5 s and 2 GB",
    ),
    "disks": Fault(
        ("disks",), "a disk that is full when something is written", "3, one line, no half file"
    ),
    "surroundings": Fault(
        ("surroundings",),
        "variables, limits, folders and users that are odd",
        "0 and a verdict, or 2 or 3 and one line",
    ),
    "system_calls": Fault(
        ("system_calls", "300"),
        "300 system calls fail, in turn",
        "0, 2 or 3, one line, nothing changed outside",
    ),
    "clusters": Fault(
        ("clusters",),
        "clusters that lose workers, schedulers, users",
        "the run ends with the same arrays, or with 3 or 130 in time",
    ),
    "command_lines": Fault(
        ("command_lines", "1000"),
        "1,000 random lines for each command",
        "0, or 2 with one line and nothing written",
    ),
    "presets": Fault(
        ("presets",),
        "one point, and one step of each network, of every paper preset",
        "every one begins on a CPU",
    ),
    "other_devices": Fault(
        ("other_devices",),
        "every theorem on devices with other arithmetic",
        "0 where they have it, 4 where not, 1 where --precision asked",
    ),
    "report_pages": Fault(
        ("report_pages",),
        "reports in Chromium: 1280 and 390 pixels, light and dark",
        "axe-core finds nothing, nothing is wider than the page",
    ),
    "lowered": Fault(
        ("lowered",),
        "every program lowered for a GPU and a TPU",
        "known calls alone, every product in full precision",
    ),
    "peft_files": Fault(
        ("peft_files",),
        "adapters and plans written here, in PEFT where it is installed",
        "PEFT's outputs, errors, ranks and modules are those said here",
    ),
    "lora_files": Fault(
        ("lora_files",),
        "LoRA, LoHa and LoKr that LyCORIS makes, where it is installed",
        "read as what it adds to a weight, and written so that it loads the same",
    ),
    "edges": Fault(
        ("edges", "2000"),
        "theorems without their hypotheses, at 2,000 points each",
        "the search finds the edges of its list by itself",
    ),
    "saved_folders": Fault(
        ("saved_folders",),
        "folders of orbax and accelerate, where these are installed",
        "the parameters come back, and nothing else",
    ),
    "how_tos": Fault(
        ("how_tos",),
        "pages with blocks of torch and flax, where these are installed",
        "they run, and print what the pages show",
    ),
    "lowest": Fault(
        ("lowest",),
        "the lowest releases that pyproject.toml allows (network)",
        "they install, a theorem holds, a test passes",
    ),
}


def main(names: list[str]) -> int:
    """Run the tools and print the table; 1 if one of them found something."""
    if unknown := [name for name in names if name not in FAULTS]:
        print(f"faults: got {unknown[0]!r}, wanted some of {', '.join(FAULTS)}", file=sys.stderr)
        return 2
    rows, bad = [("fault", "command", "expected", "seen", "minutes")], 0
    for name in names or FAULTS:
        fault, begin = FAULTS[name], time.monotonic()
        words = ("-m", f"tests.faults.{fault.words[0]}", *fault.words[1:])
        status = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
        bad += status != 0
        minutes = f"{(time.monotonic() - begin) / 60:.1f}"
        seen = "as expected" if status == 0 else f"status {status}, see above"
        rows.append((fault.what, f"python {' '.join(words)}", fault.expected, seen, minutes))
    print("\n".join(aligned(rows)))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
