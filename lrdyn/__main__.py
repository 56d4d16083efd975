"""The command ``lrdyn``: verify a theorem, list what there is, and look at what was run."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lrdyn
from lrdyn.commands import data as sets
from lrdyn.commands import diagnose as diagnose_command
from lrdyn.commands import merge as merge_command
from lrdyn.commands import pool
from lrdyn.commands import verify as of_theorem
from lrdyn.commands.ending import Compared, Ending, Fault, run
from lrdyn.commands.own import own_experiment
from lrdyn.core.show import shortened
from lrdyn.data import download
from lrdyn.engine import history
from lrdyn.engine.arguments import Parser, folder
from lrdyn.engine.configuration import BadInput
from lrdyn.engine.statement import Experiment
from lrdyn.registry import REGISTRY, theorem, theorems
from lrdyn.studies import REGISTRY as STUDIES
from lrdyn.studies import studies, study
from lrdyn.system.printer import say

HELP = """usage: lrdyn COMMAND [...]

  verify NAME [flags]            verify a theorem of the list; --help shows its flags
  verify FILE.py[:NAME] [flags]  verify a theorem of your own
  verify all [flags]             verify every theorem of the list, one table
  list                           the theorems
  runs [DIR]                     what was run: when, with which settings, its verdict
  diff RUN RUN                   how two folders of results differ; status 1 if they do
  data [--data-dir DIR]          the data sets: where each was found, or what would do
  data download NAME [...]       download one, into DIR or the first place looked into
  diagnose BEFORE AFTER [flags]  how low-rank an update is, what LoRA would cost; --help
  merge ADAPTER[:WEIGHT] ... --out DIR  one adapter of several, or a smaller one; --help
  figures init                   make a folder `figures` with an example, for your repository
  figures draw|check|baseline    draw those of that folder, compare them with their baselines
  --version                      the version of lrdyn
"""


def verify(words: Sequence[str]) -> Ending:
    """``lrdyn verify``: the command of a theorem, or that of all."""
    if not words:
        raise BadInput("verify: got nothing, wanted a theorem, FILE.py[:NAME] or all")
    name, *rest = words
    if name == "all":
        return pool.run_all(rest)
    return of_theorem.main(_experiment(name), rest)


def _experiment(name: str) -> Experiment:
    if name in REGISTRY:
        return theorem(name)
    if name in STUDIES:
        return study(name)
    if ".py" in name:
        return own_experiment(name)
    wanted = f"{', '.join([*REGISTRY, *STUDIES])}, all or FILE.py[:NAME]"
    raise BadInput(f"verify: got {shortened(name)!r}, wanted one of {wanted}")


def list_all(words: Sequence[str]) -> None:
    """``lrdyn list``: every theorem and every study with its line."""
    _no_more("list", words, 0)
    say("\n".join(pool.listing()))


def runs(words: Sequence[str]) -> None:
    """``lrdyn runs``: one line for each run in a folder of results."""
    _no_more("runs", words, 1)
    folder = Path(words[0] if words else "results")
    if not os.path.isdir(folder):  # which is false for an impossible name, too
        raise BadInput(f"runs: got {shortened(str(folder))!r}, wanted a folder of results")
    say("\n".join(history.table(folder, {one.name: one for one in (*theorems(), *studies())})))


def diff(words: Sequence[str]) -> Compared:
    """``lrdyn diff``: settings, claims and residuals in which two runs differ."""
    if len(words) != 2:
        raise BadInput(f"diff: got {len(words)} words, wanted two folders of results")
    found = history.differences(*map(Path, words))
    say("\n".join(found or ["no difference"]))
    return Compared(same=not found)


def data(words: Sequence[str]) -> None:
    """``lrdyn data``: where the data sets are; ``lrdyn data download NAME`` gets one."""
    parser = Parser("lrdyn data", "Data sets: where each was found, or what would do.")
    parser.add_argument("action", nargs="?", choices=("download",), help="get the one named")
    parser.add_argument("name", nargs="?", help=", ".join(download.REMOTE))
    parser.add_argument("--data-dir", type=folder, metavar="DIR", help="look here first")
    options = parser.parse(words)
    if options.action is None:
        say("\n".join(sets.table(options.data_dir or "")))
        return
    try:
        say(str(download.download(options.name or "", folder=options.data_dir)))
    except (ValueError, ImportError) as error:
        raise BadInput(str(error)) from None
    except download.Failed as error:
        raise Fault(str(error)) from None


def figures(words: Sequence[str]) -> Ending:
    """``lrdyn figures``: draw and compare those of a folder; ``init`` makes one."""
    from lrdyn.commands import own_figures  # which loads xarray

    return own_figures.main(words)


def _no_more(command: str, words: Sequence[str], most: int) -> None:
    if len(words) > most:
        got = shortened(words[most])
        raise BadInput(f"{command}: got {got!r}, wanted at most {most} words")


COMMANDS: dict[str, Callable[[Sequence[str]], Ending]] = {
    "verify": verify,
    "list": list_all,
    "runs": runs,
    "diff": diff,
    "data": data,
    "diagnose": diagnose_command.main,
    "merge": merge_command.main,
    "figures": figures,
}


def dispatch(words: Sequence[str]) -> Ending:
    """Run one command line, without the program's name."""
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        say(HELP, end="")
        return None
    if first == "--version":
        say(f"lrdyn {lrdyn.__version__}")
        return None
    if first not in COMMANDS:
        wanted = ", ".join(COMMANDS)
        raise BadInput(f"command: got {shortened(first)!r}, wanted one of {wanted}")
    return COMMANDS[first](words[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lrdyn`` on these arguments, or on those of the process; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run("lrdyn", lambda: dispatch(words), own_process=argv is None)


if __name__ == "__main__":
    sys.exit(main())
