"""The command ``lrdyn``: verify a theorem, list what there is, and look at what was run."""

import sys
from collections.abc import Sequence
from pkgutil import resolve_name

import lrdyn
from lrdyn.commands.ending import Ending, run
from lrdyn.system import interrupts
from lrdyn.system.messages import BadInput, near, shortened
from lrdyn.system.printer import say

OVERVIEW = """usage: lrdyn COMMAND [...]

  verify NAME [flags]            verify a theorem of the list; --help shows its flags
  verify FILE.py[:NAME] [flags]  verify a theorem of your own
  verify all [flags]             verify every theorem of the list, one table
  list                           the theorems and the studies
  explain NAME [CLAIM ...]       what a theorem claims, under which hypotheses, how it could fail
  runs [DIR]                     what was run: when, with which settings, its verdict
  report RESULTS [--out FILE]    one HTML page of results: verdicts, claims, figures, settings
  diff RUN RUN                   how two folders of results differ; status 1 if they do
  judge-run THEOREM RECORDS ...  a run that was trained and recorded elsewhere, judged
  data [--data-dir DIR]          the data sets: where each was found, or what would do
  data download NAME [...]       download one, into DIR or the first place looked into
  diagnose BEFORE AFTER [flags]  how low-rank an update is, what LoRA would cost
  merge ADAPTER[:WEIGHT] ...     one adapter of several, or a smaller one
  figures init                   make a folder `figures` with an example, for your repository
  figures draw|check|baseline    draw those of that folder, compare them with their baselines
  completion bash|zsh|fish       what your shell needs to complete these words
  help [COMMAND [...]]           this page, or that of a command, as its --help
  --version                      the version of lrdyn

examples:
  $ lrdyn verify theorem2
      a theorem at its quick settings; the table and a folder of results
  $ lrdyn help verify theorem2
      its flags
  $ lrdyn diagnose BEFORE.safetensors AFTER.safetensors
      which rank an update of your own model has
"""
COMMANDS = {
    "verify": "lrdyn.commands.short:verify",
    "list": "lrdyn.commands.short:list_all",
    "explain": "lrdyn.commands.explain:main",
    "runs": "lrdyn.commands.short:runs",
    "diff": "lrdyn.commands.short:diff",
    "judge-run": "lrdyn.commands.judge_run:main",
    "data": "lrdyn.commands.short:data",
    "diagnose": "lrdyn.commands.diagnose:main",
    "merge": "lrdyn.commands.merge:main",
    "figures": "lrdyn.commands.own_figures:main",
    "report": "lrdyn.commands.report:main",
    "completion": "lrdyn.commands.short:completion",
    "help": "lrdyn.commands.short:help_of_help",
}
"""Word -> what runs it; imported when it is asked for, and JAX with it."""
ASKS = ("-h", "--help")
"""Words that ask for a page."""


def dispatch(words: Sequence[str]) -> Ending:
    """Run one command line, without the program's name."""
    if not words or words[0] in ASKS or list(words) == ["help"]:
        say(OVERVIEW, end="")
        return None
    first, *rest = words
    if first == "--version":
        say(f"lrdyn {lrdyn.__version__}")
        return None
    if first not in COMMANDS:
        got = f"{shortened(first)!r}{near(first, COMMANDS)}"
        raise BadInput(f"command: got {got}, wanted one of {', '.join(COMMANDS)}")
    if first == "help" and rest[0] not in ASKS:  # the page of a command, as its --help shows it
        return dispatch([*rest, "--help"])
    with interrupts.guard_import():
        command = resolve_name(COMMANDS[first])
    return command(rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lrdyn`` on these arguments, or on those of the process; the exit status."""
    words = sys.argv[1:] if argv is None else argv
    return run("lrdyn", lambda: dispatch(words), own_process=argv is None)


if __name__ == "__main__":
    sys.exit(main())
