"""Pages of help, one for each command of ``lrdyn``, and completion made of the same parsers.

Theorems, ``diagnose``, ``merge``, ``report`` and figures have parsers of their own, which come
first; here are those of the other commands, and the tree of all.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from lrdyn.commands import diagnose, explain, judge_run, merge, pool, report, verify
from lrdyn.commands.arguments import Example, Parser, parse_folder
from lrdyn.data import download
from lrdyn.registry import theorems
from lrdyn.studies import studies
from lrdyn.verification.running.configuration import BadInput

SHELLS = ("bash", "zsh", "fish")


def of_verify() -> Parser:
    """The parser of ``lrdyn verify``, which passes the flags on to the theorem."""
    examples = [
        Example("lrdyn verify theorem2 --depth 2 3", "a theorem of the list, at two depths"),
        Example("lrdyn verify my_theorem.py", "one of your own"),
        Example("lrdyn verify all --seeds 4", "all of the list, one table, results/summary.json"),
    ]
    about = "Verify a theorem, run a study: lrdyn verify NAME --help shows its flags."
    parser = Parser("lrdyn verify", about, examples=examples)
    names = ", ".join(experiment.name for experiment in (*theorems(), *studies()))
    parser.add_argument("name", metavar="NAME", help=f"{names}, all, FILE.py or FILE.py:NAME")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="those of the theorem")
    return parser


def of_list() -> Parser:
    """The parser of ``lrdyn list``."""
    examples = [
        Example("lrdyn list", "a line each"),
        Example("lrdyn list | grep -i dropout", "those about dropout"),
        Example("lrdyn verify theorem3 --help", "the flags of one"),
    ]
    return Parser("lrdyn list", "The theorems and the studies, a line each.", examples=examples)


def of_runs() -> Parser:
    """The parser of ``lrdyn runs``."""
    examples = [
        Example("lrdyn runs", "those in results/"),
        Example("lrdyn runs mine", "those of commands with --out mine"),
        Example("lrdyn runs | grep FALSE", "those with a false claim"),
    ]
    parser = Parser("lrdyn runs", "What was run: when, verdict, settings.", examples=examples)
    parser.add_argument(
        "folder",
        nargs="?",
        type=parse_folder,
        default="results",
        metavar="DIR",
        help="default: results",
    )
    return parser


def of_diff() -> Parser:
    """The parser of ``lrdyn diff``."""
    examples = [
        Example("lrdyn diff results/lora/A results/lora/B", "A, B: the folders that runs shows"),
        Example("lrdyn diff results/lora/A other/lora/A", "the same run on another machine"),
        Example("lrdyn diff ONE OTHER > changes.txt", "status 0 if they are the same, else 1"),
    ]
    about = "Settings, claims and residuals in which two runs differ."
    parser = Parser("lrdyn diff", about, examples=examples)
    parser.add_argument(
        "runs", nargs=2, type=parse_folder, metavar="RUN", help="a folder of results"
    )
    return parser


def of_data() -> Parser:
    """The parser of ``lrdyn data``."""
    examples = [
        Example("lrdyn data", "what is here, and what would do"),
        Example("lrdyn data --data-dir pictures", "the same with a folder to look into first"),
        Example("lrdyn data download cifar10", "into the first place that is looked into"),
    ]
    about = "Data sets: where each was found, or what would do."
    parser = Parser("lrdyn data", about, examples=examples)
    parser.add_argument("action", nargs="?", choices=("download",), help="get the one named")
    parser.add_argument("name", nargs="?", help=", ".join(download.REMOTE))
    parser.add_argument("--data-dir", type=parse_folder, metavar="DIR", help="look here first")
    return parser


def of_completion() -> Parser:
    """The parser of ``lrdyn completion``."""
    examples = [
        Example(
            "lrdyn completion bash > ~/.local/share/bash-completion/completions/lrdyn",
            "from the next shell on",
        ),
        Example("lrdyn completion zsh > ~/.zfunc/_lrdyn", "a folder of fpath, before compinit"),
        Example("lrdyn completion fish > ~/.config/fish/completions/lrdyn.fish", "at once"),
    ]
    about = "What a shell needs to complete commands, theorems and flags; write it to a file once."
    parser = Parser("lrdyn completion", about, examples=examples)
    parser.add_argument("shell", choices=SHELLS, help="whose script is printed")
    return parser


def of_help() -> Parser:
    """The parser of ``lrdyn help``."""
    examples = [
        Example("lrdyn help", "all commands"),
        Example("lrdyn help diagnose", "the page of one"),
        Example("lrdyn help verify theorem2", "the flags of a theorem"),
    ]
    parser = Parser(
        "lrdyn help", "The page of a command, as its --help shows it.", examples=examples
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="its words (default: none)")
    return parser


def completion(shell: str) -> str:
    """The script with which a shell completes command lines of ``lrdyn``.

    Raises:
        BadInput: shtab, which writes it, is not installed.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        wanted = "the extra 'completion': pip install 'lrdyn[completion]'"
        raise BadInput(f"completion: got no package 'shtab', wanted {wanted}") from None
    return shtab.complete(tree(shtab.FILE, shtab.DIRECTORY), shell)


def tree(file: Any = None, directory: Any = None) -> argparse.ArgumentParser:
    """All commands as one parser, for completion only: no command line is parsed with it.

    Args:
        file: mark of an argument that is a file.
        directory: that of a folder.
    """
    from lrdyn.commands import figures, own_figures  # which load xarray

    root = argparse.ArgumentParser("lrdyn")
    words = root.add_subparsers()
    verified = words.add_parser("verify", help="verify a theorem").add_subparsers()
    _add(verified, "all", pool.parser_of_all("lrdyn verify all"))
    for experiment in (*theorems(), *studies()):
        _add(
            verified,
            experiment.name,
            verify.parser_of(experiment, f"lrdyn verify {experiment.name}"),
        )
    drawn = words.add_parser("figures", help="figures of your own").add_subparsers()
    _add(drawn, "init", own_figures.parser_of_init())
    for action in figures.ACTIONS:
        _add(drawn, action, figures.parser_of((), "lrdyn figures"))
    for name, parser in PAGES.items():
        if name != "verify":
            _add(words, name, parser())
    _add(words, "diagnose", diagnose.parser())
    _add(words, "judge-run", judge_run.parser())
    _add(words, "merge", merge.parser())
    _add(words, "report", report.parser())
    for action in _actions(root):
        if action.type is parse_folder:
            mark = directory if action.option_strings else file
            action.complete = mark  # pyright: ignore[reportAttributeAccessIssue]
    return root


def _add(words: Any, name: str, parser: argparse.ArgumentParser) -> None:
    text = (parser.description or "").split(":")[0].rstrip(".")
    words.add_parser(name, parents=[parser], add_help=False, help=text)


def _actions(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """The actions of a parser and of those below it."""
    actions: list[argparse.Action] = []
    for action in parser._actions:
        actions.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                actions += _actions(below)
    return actions


PAGES: dict[str, Callable[[], Parser]] = {
    "verify": of_verify,
    "list": of_list,
    "explain": explain.parser,
    "runs": of_runs,
    "diff": of_diff,
    "data": of_data,
    "completion": of_completion,
    "help": of_help,
}
