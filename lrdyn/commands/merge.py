"""``lrdyn merge ADAPTER ...``: one adapter of several, or a smaller one of one."""

import math
from collections.abc import Sequence
from pathlib import Path

from lrdyn.adapters import lora_files, peft
from lrdyn.adapters.lora_files import is_lora_file
from lrdyn.commands.arguments import (
    Example,
    Parser,
    fraction_reader,
    integer_reader,
    parse_folder,
    rank_reader,
)
from lrdyn.commands.diagnose import ADAPTER, may_be_a_folder, show_progress, user_files
from lrdyn.core.show import shortened
from lrdyn.data.tensors import opened
from lrdyn.diagnosis.combining import combine
from lrdyn.diagnosis.reading import is_adapter
from lrdyn.diagnosis.rounded_merge import TYPES, round_merge
from lrdyn.system import whole_files
from lrdyn.system.printer import say
from lrdyn.verification.running.configuration import BadInput

DESCRIPTION = "The weighted sum of adapters of PEFT as one adapter, or a smaller one of one."
EPILOG = """ADAPTER: a folder that PEFT wrote, LoRA or rsLoRA; or a .safetensors of kohya, LyCORIS
(LoHa and LoKr become LoRA) or diffusers. Behind a colon its weight (else 1)."""
EXAMPLES = (
    Example("lrdyn merge lora --out smaller --resize 4", "a smaller one of one"),
    Example("lrdyn merge lora --out same --base BASE", "what bfloat16 leaves of it when merged"),
    Example("lrdyn merge math:0.7 code:0.3 --out both --budget 2000000", "one of two"),
)


def parser() -> Parser:
    """The parser of ``lrdyn merge``.

    Example:
        >>> parser().parse(["a", "b:0.5", "--out", "c"]).adapters
        ['a', 'b:0.5']
    """
    flags = Parser("lrdyn merge", DESCRIPTION, EPILOG, examples=EXAMPLES)
    flags.add_argument(
        "adapters",
        nargs="+",
        type=parse_folder,
        metavar="ADAPTER[:WEIGHT]",
        help="adapters to add up",
    )
    flags.add_argument(
        "--out",
        type=parse_folder,
        metavar="DIR",
        required=True,
        help="folder to write, or a file, as ADAPTER is",
    )
    flags.add_argument(
        "--resize",
        type=rank_reader("resize"),
        metavar="R",
        help="largest r of a matrix; noise: as many as lie above its noise floor",
    )
    flags.add_argument(
        "--energy",
        type=fraction_reader("energy"),
        metavar="E",
        help="or the share of its squared norm to keep",
    )
    flags.add_argument(
        "--budget",
        type=integer_reader("budget", 1),
        metavar="N",
        help="or the parameters of all factors together",
    )
    flags.add_argument(
        "--error",
        type=fraction_reader("error"),
        metavar="E",
        help="or the relative error of the whole",
    )
    flags.add_argument(
        "--base",
        type=parse_folder,
        metavar="BASE",
        help="weights of its base: say what rounding leaves of it where it is merged into them",
    )
    flags.add_argument(
        "--dtype",
        choices=TYPES,
        help="type in which merged weights are stored (default: bfloat16)",
    )
    return flags


def main(words: Sequence[str]) -> None:
    """Run one command line.

    Raises:
        BadInput: an argument is wrong, or a folder is none of an adapter that can be added.
    """
    options = parser().parse(words)
    names, weights = zip(*map(_weighted, options.adapters), strict=True)
    out = Path(options.out)
    given = [flag for flag in WAYS if getattr(options, flag) is not None]
    if len(given) > 1:
        raise BadInput(f"--{given[1]}: got it beside --{given[0]}, wanted one of the two")
    if options.dtype and not options.base:
        raise BadInput("--dtype: got it without --base, wanted --base BASE beside it")
    ways = {way: getattr(options, flag) for flag, way in WAYS.items()}
    files = [name for name in names if Path(name).is_file() and not is_adapter(Path(name))]
    with user_files("ADAPTER", WANTED):
        for name in files:
            # A file of weights has no configuration beside it, and would be called missing.
            if Path(name).suffix != ".safetensors" or not is_lora_file(opened(name).infos):
                raise BadInput(f"ADAPTER: got {shortened(name)!r}, wanted {WANTED}")
    if files and len(files) < len(names):
        got = f"{shortened(files[0])!r} beside a folder of PEFT"
        raise BadInput(f"ADAPTER: got {got}, wanted files of kohya or diffusers, or folders alone")
    if files and out.suffix != ".safetensors":
        raise BadInput(f"--out: got {shortened(options.out)!r}, wanted a .safetensors, as ADAPTER")
    if files:
        whole_files.refuse_links(out.parent, [out.name])
    elif not may_be_a_folder(out):
        raise BadInput(f"--out: got {shortened(options.out)!r}, wanted a folder: that is a file")
    else:
        whole_files.refuse_links(out, ADAPTER)
    rounded = None
    files_read = user_files("ADAPTER", WANTED, rank_flag="--resize: ")
    with files_read, show_progress("merge") as progress:
        read = [lora_files.read(name) for name in files]
        if len(styles := {file.style for file in read}) > 1:
            raise BadInput(f"ADAPTER: got names of {' and '.join(sorted(styles))}, wanted of one")
        merged = combine(read or names, weights, **ways, progress=progress)
        if options.base:
            rounded = round_merge(merged.adapter, options.base, options.dtype or TYPES[0])
        if read:
            kernels = {m: size for file in read for m, size in file.kernels.items()}
            lora_files.write(out, read[0]._replace(stored=merged.adapter, kernels=kernels))
        else:
            peft.write(out, merged.adapter)
    said = [] if rounded is None else ["", *rounded.lines(), ""]
    say("\n".join([*merged.lines(), *said, f"adapter: {out}"]))


WANTED = "a folder that PEFT wrote, or a LoRA of kohya, LyCORIS or diffusers (.safetensors)"
WAYS = {"resize": "rank", "energy": "energy", "budget": "budget", "error": "error"}
"""Flag for the size of the adapter -> argument of :func:`lrdyn.diagnosis.combine`."""


def _weighted(word: str) -> tuple[str, float]:
    """Parse a folder and its weight; a colon that belongs to the name stays in it."""
    name, sign, text = word.rpartition(":")
    if not sign or Path(word).exists():
        return word, 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight):
        raise BadInput(f"ADAPTER: got {shortened(word)!r}, wanted FOLDER or FOLDER:WEIGHT")
    return name, weight
