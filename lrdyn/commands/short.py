"""The commands of a few lines: verify, list, runs, diff, data and completion."""

import os
from collections.abc import Sequence
from pathlib import Path

from lrdyn.commands import data as sets
from lrdyn.commands import help_pages, pool
from lrdyn.commands import verify as of_theorem
from lrdyn.commands.ending import Ending, Sameness
from lrdyn.core.show import no_such_file, shortened
from lrdyn.data import download
from lrdyn.registry import theorems
from lrdyn.statements import installed_lines, statement
from lrdyn.studies import studies
from lrdyn.system.messages import BadInput, Fault
from lrdyn.system.printer import say
from lrdyn.verification.runs import past_runs
from lrdyn.verification.storing import results_file


def verify(words: Sequence[str]) -> Ending:
    """``lrdyn verify``: the command of a theorem, or that of all."""
    if not words:
        raise BadInput("verify: got nothing, wanted a theorem, FILE.py[:NAME] or all")
    name, *rest = words
    if name in ("-h", "--help"):
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


def help_of_help(words: Sequence[str]) -> None:
    """``lrdyn help --help``."""
    say(help_pages.of_help().format_help(), end="")
