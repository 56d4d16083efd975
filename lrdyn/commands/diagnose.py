"""``lrdyn diagnose BEFORE AFTER``: the report, its files, and the adapter."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrdyn.core.show import shortened
from lrdyn.diagnosis.extraction import extract
from lrdyn.diagnosis.report import diagnose
from lrdyn.engine.arguments import Parser, folder, share, whole
from lrdyn.engine.configuration import BadInput
from lrdyn.system import whole_files
from lrdyn.system.printer import say

DESCRIPTION = "How low-rank the update between two sets of weights is, and what LoRA would cost."
WRITTEN = ("diagnosis.csv", "diagnosis.png", "diagnosis.pdf")
"""Files of ``--out``."""
EPILOG = """BEFORE, AFTER: .safetensors, .safetensors.index.json, a folder with either, or .npz.
GLOB is a pattern on names, such as '*.attention.*.weight'; quote it.
"""


def parser() -> Parser:
    """The flags.

    Example:
        >>> parser().parse(["a.npz", "b.npz", "--rank", "8"]).rank
        8
    """
    made = Parser("lrdyn diagnose", DESCRIPTION, EPILOG)
    made.add_argument("before", type=folder, metavar="BEFORE", help="weights before the training")
    made.add_argument("after", type=folder, metavar="AFTER", help="weights after it")
    made.add_argument(
        "--select", nargs="+", default=["*"], metavar="GLOB", help="which matrices (default: all)"
    )
    made.add_argument(
        "--top",
        type=whole("top", 1),
        default=8,
        metavar="K",
        help="how many singular values are the first ones (default: 8)",
    )
    made.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        help="write diagnosis.csv, diagnosis.png and diagnosis.pdf",
    )
    made.add_argument(
        "--extract", type=folder, metavar="DIR", help="write the update as an adapter of PEFT"
    )
    made.add_argument("--rank", type=whole("rank", 1), metavar="R", help="its rank")
    made.add_argument(
        "--energy",
        type=share("energy"),
        metavar="E",
        help="or the share of the energy it must have (default: .9)",
    )
    made.add_argument(
        "--save-module",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="modules that it saves whole: norms, heads",
    )
    made.add_argument(
        "--embedding",
        nargs="+",
        metavar="GLOB",
        help="modules that are embeddings (default: usual names)",
    )
    made.add_argument(
        "--fan-in-fan-out", action="store_true", help="weights are stored transposed, as in GPT-2"
    )
    return made


def main(words: Sequence[str]) -> None:
    """Run one command line.

    Raises:
        BadInput: an argument is wrong, or a file is none of weights.
    """
    options = parser().parse(words)
    made = _extraction_flags(options)
    for flag, path, names in (
        ("--out", options.out, WRITTEN),
        ("--extract", options.extract, ("adapter_config.json", "adapter_model.safetensors")),
    ):
        if path and not _may_be_a_folder(Path(path)):
            raise BadInput(f"{flag}: got {shortened(path)!r}, wanted a folder: that is a file")
        if path:
            whole_files.refuse_links(Path(path), names)
    with _named():
        found = diagnose(options.before, options.after, select=options.select, k=options.top)
        adapter = extract(options.before, options.after, **made) if options.extract else None
    say(str(found))
    if options.out:
        _write(found, Path(options.out))
    if adapter is not None:
        from lrdyn.adapters import peft

        peft.write(options.extract, adapter.adapter)
        say("\n".join(["", *adapter.lines(), f"adapter: {options.extract}"]))


def _extraction_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`lrdyn.diagnosis.extract`."""
    given = {
        "--rank": options.rank,
        "--energy": options.energy,
        "--save-module": options.save_module,
        "--embedding": options.embedding,
        "--fan-in-fan-out": options.fan_in_fan_out,
    }
    if options.extract is None and (alone := next((n for n, x in given.items() if x), None)):
        raise BadInput(f"{alone}: got it without --extract, wanted --extract DIR")
    if options.rank and options.energy:
        raise BadInput("--energy: got it beside --rank, wanted one of the two")
    made = {
        "rank": options.rank,
        "energy": options.energy,
        "save": options.save_module,
        "select": options.select,
        "fan_in_fan_out": options.fan_in_fan_out,
    }
    return made | ({"embeddings": options.embedding} if options.embedding else {})


@contextmanager
def _named() -> Iterator[None]:
    """What is wrong with the user's files is bad input, and no fault of the machine."""
    try:
        yield
    except (ValueError, ImportError) as error:
        said = str(error)
        for name, flag in (("save: ", "--save-module: "), ("select: ", "--select: ")):
            said = flag + said.removeprefix(name) if said.startswith(name) else said
        raise BadInput(said) from None
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        got = f"{shortened(str(error.filename))!r} ({error.strerror})"
        raise BadInput(f"BEFORE, AFTER: got {got}, wanted weights") from None


def _may_be_a_folder(path: Path) -> bool:
    """Whether it is one, or can be made."""
    there = next((one for one in (path, *path.parents) if os.path.exists(one)), Path())
    return os.path.isdir(there)


def _write(found: Any, out: Path) -> None:
    """The table as CSV, and the figure."""
    from lrdyn.figures.plotting import save

    out.mkdir(parents=True, exist_ok=True)
    with whole_files.replacing(out / "diagnosis.csv") as temporary:
        temporary.write_text(found.csv())
    save(found.plot(), out / "diagnosis")
    say(f"figure and table: {out}")
