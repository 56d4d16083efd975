"""The command ``lrdyn``: verify a theorem, list what there is, and look at what was run."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lrdyn
from lrdyn.commands import data as sets
from lrdyn.commands import diagnose as diagnose_command
from lrdyn.commands import explain, help_pages, pool
from lrdyn.commands import judge_run as judge_run_command
from lrdyn.commands import merge as merge_command
from lrdyn.commands import report as report_command
from lrdyn.commands import verify as of_theorem
from lrdyn.commands.ending import Ending, Fault, Sameness, run
from lrdyn.core.show import near, no_such_file, shortened
from lrdyn.data import download
from lrdyn.registry import theorems
from lrdyn.statements import installed_lines, statement
from lrdyn.studies import studies
from lrdyn.system.printer import say
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.runs import past_runs
from lrdyn.verification.storing import results_file


def verify(words: Sequence[str]) -> Ending:
    """``lrdyn verify``: the command of a theorem, or that of all."""
    if not words:
        raise BadInput("verify: got nothing, wanted a theorem, FILE.py[:NAME] or all")
    name, *rest = words
    if name in ASKS:
        help_pages.of_verify().print_help()
    if name == "all":
        return pool.run_all(rest, "lrdyn verify all")
    return of_theorem.main(statement(name, "verify", ("all",)), rest, prog=f"lrdyn verify {name}")


def list_all(words: Sequence[str]) -> None:
    """``lrdyn list``: every theorem and every study with its line."""
    help_pages.of_list().parse(words)
    lines = pool.listing()
    if others := list(installed_lines()):
        lines += ["of installed packages", *(f"  {line}" for line in others)]
    say("\n".join(lines))


def runs(words: Sequence[str]) -> None:
    """``lrdyn runs``: one line for each run in a folder of results."""
    folder = Path(help_pages.of_runs().parse(words).folder)
    if not os.path.isdir(folder):  # which is false for an impossible name, too
        got = shortened(str(folder))
        raise BadInput(f"runs: got {got!r}{_meant(folder)}, wanted a folder of results")
    say(
        "\n".join(
            past_runs.table(
                folder, {experiment.name: experiment for experiment in (*theorems(), *studies())}
            )
        )
    )


def _meant(folder: Path) -> str:
    """What to say of a folder that is not there."""
    return "" if os.path.lexists(folder) else f" ({no_such_file(folder)})"


def diff(words: Sequence[str]) -> Sameness:
    """``lrdyn diff``: settings, claims and residuals in which two runs differ."""
    runs = [Path(run) for run in help_pages.of_diff().parse(words).runs]
    lines = past_runs.differences(*runs)
    # The same numbers from another machine are no difference, but worth knowing.
    about = (
        [] if lines else past_runs.environment_differences(*map(results_file.read_verdict, runs))
    )
    same = ["environment only:", *about] if about else ["no difference"]
    say("\n".join(lines or same))
    return Sameness(same=not lines)


def data(words: Sequence[str]) -> None:
    """``lrdyn data``: where the data sets are; ``lrdyn data download NAME`` gets one."""
    options = help_pages.of_data().parse(words)
    if options.action is None:
        say("\n".join(sets.table(options.data_dir or "")))
        return
    try:
        say(str(download.download(options.name or "", folder=options.data_dir)))
    except (ValueError, ImportError) as error:
        raise BadInput(str(error)) from None
    except download.DownloadFailed as error:
        raise Fault(str(error)) from None


def completion(words: Sequence[str]) -> None:
    """``lrdyn completion``: a script for a shell."""
    say(help_pages.completion(help_pages.of_completion().parse(words).shell))


def helped(words: Sequence[str]) -> Ending:
    """``lrdyn help``: the page of a command, which its ``--help`` shows, too."""
    if not words or words[0] in ASKS:
        say(help_pages.OVERVIEW if not words else help_pages.of_help().format_help(), end="")
        return None
    return dispatch([*words, "--help"])


def figures(words: Sequence[str]) -> Ending:
    """``lrdyn figures``: draw and compare those of a folder; ``init`` makes one."""
    from lrdyn.commands import own_figures  # which loads xarray

    return own_figures.main(words)


COMMANDS: dict[str, Callable[[Sequence[str]], Ending]] = {
    "verify": verify,
    "list": list_all,
    "explain": explain.main,
    "runs": runs,
    "diff": diff,
    "judge-run": judge_run_command.main,
    "data": data,
    "diagnose": diagnose_command.main,
    "merge": merge_command.main,
    "figures": figures,
    "report": report_command.main,
    "completion": completion,
    "help": helped,
}
ASKS = ("-h", "--help")
"""Words that ask for a page."""


def dispatch(words: Sequence[str]) -> Ending:
    """Run one command line, without the program's name."""
    first = words[0] if words else "--help"
    if first in ASKS:
        say(help_pages.OVERVIEW, end="")
        return None
    if first == "--version":
        say(f"lrdyn {lrdyn.__version__}")
        return None
    if first not in COMMANDS:
        got = f"{shortened(first)!r}{near(first, COMMANDS)}"
        raise BadInput(f"command: got {got}, wanted one of {', '.join(COMMANDS)}")
    return COMMANDS[first](words[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lrdyn`` on these arguments, or on those of the process; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run("lrdyn", lambda: dispatch(words), own_process=argv is None)


if __name__ == "__main__":
    sys.exit(main())
