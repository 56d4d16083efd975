"""``lrdyn judge-run THEOREM FOLDER``: a run that was trained and recorded elsewhere, judged."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrdyn.commands import printing
from lrdyn.commands.arguments import Example, Parser, integer_reader, parse_folder
from lrdyn.commands.diagnose import user_files
from lrdyn.commands.ending import Ending, Judged, Printed
from lrdyn.core.show import shortened
from lrdyn.data.arrays import read_npy
from lrdyn.recorded_runs import JUDGED, judge_run
from lrdyn.recorded_runs.files import SUFFIXES, read_records
from lrdyn.system import whole_files
from lrdyn.system.printer import say
from lrdyn.verification.running.configuration import BadInput

DESCRIPTION = (
    "Judge a run that was trained and recorded elsewhere by the claims of a theorem: theory from "
    "the first record against all others. Nothing is trained, and nothing written without --out."
)
EPILOG = (
    "RECORDS: a folder with one file a record, .npz or .safetensors, named by its step\n"
    "(step_000100.npz), or one .npz with an array `step` and layers with a first axis of records.\n"
    "Layers are matrices (out, in), ordered by the numbers in their names: W1 acts first."
)
EXAMPLES = (
    Example("lrdyn judge-run theorem2 RUN --target phi.npy --step-size 0.1", "a factorisation"),
    Example(
        "lrdyn judge-run theorem2 RUN --inputs x.npy --outputs y.npy --step-size 0.1",
        "a classifier",
    ),
    Example(
        "lrdyn judge-run corollary1 RUN --target phi.npy --step-size 0.1 --figure run.png",
        "and theory drawn over the records",
    ),
)
ARRAYS = {
    "target": "Phi, (out, in), .npy",
    "inputs": "X, (features, examples), .npy",
    "outputs": "Y, (classes, examples), .npy",
}
RUNS = {
    "compressed": "of Corollary 1: records of the compressed network",
    "other": "of Theorem 4: records of ReLoRA beside those of GaLore",
}
NUMBERS = {
    "rank": ("r; that of the target if not given", 1),
    "excess-rank": ("of Corollary 1: r^ - r", 0),
    "period": ("of Theorem 4: T, steps between two refreshes", 1),
}
OPTIMIZERS = ("gradient_descent", "momentum", "nesterov", "clipped", "normalized", "muon")
"""Those of Theorem 2, whose module loads JAX."""
WORDS = {
    "optimizer": (
        (*OPTIMIZERS, "sgd", "adam"),
        "of Theorem 2 one of the first six (default: gradient_descent); of Theorem 4 sgd, momentum "
        "or adam (default: sgd)",
    ),
    "state": (("keep", "reset", "transport"), "of Theorem 4, at a refresh (default: keep)"),
    "side": (("left", "right"), "of Theorem 4, which is projected (default: left)"),
    "loss": (("sum/2", "sum", "mean/2", "mean"), "of the squared residual (default: sum/2)"),
}


def parser() -> Parser:
    """The parser of ``lrdyn judge-run``.

    Example:
        >>> words = "theorem2 RUN --target phi.npy --step-size 0.1".split()
        >>> parser().parse(words).step_size
        0.1
    """
    flags = Parser("lrdyn judge-run", DESCRIPTION, EPILOG, examples=EXAMPLES)
    flags.add_argument("theorem", choices=tuple(JUDGED), metavar="THEOREM", help=", ".join(JUDGED))
    flags.add_argument("records", type=parse_folder, metavar="RECORDS", help="the recorded run")
    flags.add_argument(
        "--step-size", type=_number, metavar="ETA", required=True, help="of the optimiser"
    )
    flags.add_argument(
        "--weight-decay",
        type=_number,
        nargs="+",
        metavar="LAMBDA",
        help="one, or one for each layer (default: 0)",
    )
    for name, text in ARRAYS.items():
        flags.add_argument(f"--{name}", type=parse_folder, metavar="FILE", help=text)
    for name, text in RUNS.items():
        flags.add_argument(f"--{name}", type=parse_folder, metavar="RECORDS", help=text)
    for name, (text, low) in NUMBERS.items():
        flags.add_argument(f"--{name}", type=integer_reader(name, low), metavar="N", help=text)
    for name, (choices, text) in WORDS.items():
        flags.add_argument(f"--{name}", choices=choices, help=text)
    flags.add_argument(
        "--order",
        choices=("forward", "backward"),
        default="forward",
        help="backward: the first name is that of the last layer (default: forward)",
    )
    flags.add_argument(
        "--out", type=parse_folder, metavar="FILE", help="write the verdict here, as JSON"
    )
    flags.add_argument(
        "--figure", type=parse_folder, metavar="FILE", help="draw it here, as PNG and PDF"
    )
    printing.add_flags(flags)
    return flags


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        got = f"got {shortened(text)!r}, wanted a number such as 0.1"
        raise argparse.ArgumentTypeError(got) from None


def main(words: Sequence[str]) -> Ending:
    """Run one command line; the status is 0, 1 or 4, as that of ``lrdyn verify``.

    Raises:
        BadInput: a flag is wrong, a file is no record, or a record is not as the page says.
    """
    options = parser().parse(words)
    figure = None if options.figure is None else _as_picture(Path(options.figure))
    names = ("rank", "excess_rank", "period", *WORDS)
    settings: dict[str, Any] = {name: getattr(options, name) for name in names}
    for name in ARRAYS:
        if (file := getattr(options, name)) is not None:
            with user_files(f"--{name}", "an .npy file of numbers"):
                settings[name] = read_npy(Path(file))
    with user_files("RECORDS", f"a folder of {' or '.join(SUFFIXES)} files, or one .npz"):
        weights = read_records(Path(options.records))
    for name in RUNS:
        if (path := getattr(options, name)) is not None:
            with user_files(f"--{name}", "records as RECORDS"):
                settings[name] = read_records(Path(path))
    decay = options.weight_decay
    found = judge_run(
        options.theorem,
        weights=weights,
        step_size=options.step_size,
        weight_decay=decay[0] if decay and len(decay) == 1 else decay,
        order=options.order,
        **settings,
    )
    lines = printing.lines(
        found.verdict,
        options,
        found.in_a_line(),
        summary=found.summary,
        notes=found.notes,
        file=options.out or "",
    )
    say("\n".join(lines))
    if figure is not None:
        from lrdyn.figures import save

        png, _ = save(found.plot(), figure, formats=("png", "pdf"), for_a_look=True)
        printing.remark(f"figure: {png}", options)
    if options.out is None:
        return Printed(found.verdict["holds"])
    file = Path(options.out)
    with whole_files.replace_file(file) as temporary:
        temporary.write_text(json.dumps(found.verdict, indent=1, allow_nan=False) + "\n")
    printing.remark(f"verdict: {file}", options)
    return Judged(file, found.verdict["holds"])


def _as_picture(path: Path) -> Path:
    if path.suffix not in ("", ".png", ".pdf"):
        raise BadInput(f"--figure: got {path.name!r}, wanted a name that ends in .png or .pdf")
    if not path.parent.is_dir():
        raise BadInput(f"--figure: got {str(path)!r}, wanted a file in a folder that exists")
    return path
