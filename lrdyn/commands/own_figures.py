"""Figures in a user's folder: ``lrdyn figures init|draw|check|baseline``."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from lrdyn.commands import example, example_arrays, figures
from lrdyn.commands.arguments import Example, Parser
from lrdyn.commands.ending import Sameness
from lrdyn.figures.baselines import write_baseline
from lrdyn.figures.exhibits import Exhibit
from lrdyn.system import whole_files
from lrdyn.system.printer import say
from lrdyn.verification.machine.process import setup
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.stating import mistakes
from lrdyn.verification.stating.own_files import import_script

FOLDER = Path("figures")
"""Folder of the figures, below the one in which the command runs."""
BASELINES = "baselines"
TEST = '''\
"""For pytest: the figures of this folder are as their baselines."""

from pathlib import Path

from lrdyn.__main__ import main


def test_figures(tmp_path, monkeypatch):
    """Everything is computed anew."""
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["figures", "check", "--out", str(tmp_path)]) == 0
'''
SCRIPT = """\
#!/bin/sh
# For any CI with lrdyn installed: every theorem in theorems/, every figure in figures/, and one
# page of what came of them. Status 1 if one fails; the page is written all the same.
cd "$(dirname "$0")/.." || exit 1
results=${1:-results}
failed=""
for file in theorems/[!_]*.py; do
    [ ! -e "$file" ] || lrdyn verify "$file" --out "$results" || failed="$failed $file ($?)"
done
if [ -d figures/baselines ]; then
    lrdyn figures check --recompute --out "$results" || failed="$failed figures ($?)"
fi
lrdyn report "$results" || failed="$failed report ($?)"
if [ -n "$failed" ]; then
    echo "check: failed, with its status:$failed" >&2
    exit 1
fi
"""


def main(words: Sequence[str]) -> Sameness | None:
    """``lrdyn figures``: the command of figures for those of a folder; ``init`` makes one."""
    if list(words[:1]) == ["init"]:
        parser_of_init().parse(words[1:])
        init()
        return None
    machine = figures.begin(words, figures.OWN)
    helped = {"-h", "--help"} & set(words) and not FOLDER.is_dir()
    mine = {FOLDER.resolve()}
    with mistakes.name_mistakes(mine):
        exhibits = [] if helped else exhibits_in(FOLDER)
    where = FOLDER / BASELINES
    how = {"prog": figures.OWN, "written_in": mine, "machine": machine}
    return figures.main(exhibits, where, words, **how)


def parser_of_init() -> Parser:
    """The parser of ``lrdyn figures init``."""
    examples = [
        Example("lrdyn figures init", "make figures/ here, with two examples and their baselines"),
        Example("lrdyn figures draw example", "draw that one"),
        Example("lrdyn figures check", "compare all with their baselines, as a test"),
    ]
    about = "Make a folder of figures with an example of a run and one of arrays of your own."
    return Parser("lrdyn figures init", about, examples=examples)


def exhibits_in(folder: Path) -> list[Exhibit]:
    """The figures and tables that the Python files of a folder state, by name.

    Raises:
        BadInput: there is no such folder, a file cannot be imported, or a name is there twice.
    """
    if not folder.is_dir():
        raise BadInput(f"figures: got no folder {os.fspath(folder)!r}, wanted `lrdyn figures init`")
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("test_"))
    stated = [value for path in paths for value in vars(import_script(path)).values()]
    exhibits = {id(value): value for value in stated if isinstance(value, Exhibit)}
    names = sorted(exhibit.name for exhibit in exhibits.values())
    if twice := [name for name, other in itertools.pairwise(names) if name == other]:
        raise BadInput(f"figures: got two of the name {twice[0]!r}, wanted one")
    if not names:
        raise BadInput(f"figures: got no figure in {os.fspath(folder)!r}, wanted one in a file")
    return sorted(exhibits.values(), key=lambda exhibit: exhibit.name)


def init() -> None:
    """Make the folder with two examples, their baselines, a test and a script, all or nothing."""
    if os.path.lexists(FOLDER):
        raise BadInput(
            f"init: got an existing {os.fspath(FOLDER)!r}, wanted no folder or file of that name"
        )
    setup("float64")
    # In the working folder, so that giving it its name is one rename.
    with whole_files.scratch_folder(Path()) as scratch:
        folder = scratch / FOLDER
        folder.mkdir()
        (folder / "example.py").write_text(inspect.getsource(example))
        (folder / "arrays.py").write_text(inspect.getsource(example_arrays))
        (folder / "test_figures.py").write_text(TEST)
        (folder / "check.sh").write_text(SCRIPT)
        (folder / "check.sh").chmod(0o755)
        for figure in exhibits_in(folder):
            results, silent = scratch / "results", lambda line: None
            write_baseline(figure, results, folder / BASELINES, report=silent)
        whole_files.rename_new(folder, FOLDER)
    say(f"{FOLDER / 'example.py'}: an example, and what it is compared with in {BASELINES}/")
    say(f"{FOLDER / 'arrays.py'}: one of arrays of your own, without an experiment")
    say(f"{FOLDER / 'test_figures.py'}, {FOLDER / 'check.sh'}: for pytest, for any CI")
