"""Help: a page for every command, with examples that parse; near words; completion."""

import re
import shlex
import subprocess
import sys

import pytest

from lrdyn import __main__ as command
from lrdyn.commands import help_pages, pool, verify
from lrdyn.commands.arguments import typed_command
from lrdyn.commands.ending import Help
from lrdyn.core.show import no_such_file
from lrdyn.registry import theorems
from lrdyn.studies import studies
from tests.runs import started
from tests.verification.test_theorem import MY_THEOREM

EVERY = (*theorems(), *studies())
PAGES = {
    "verify": "verify",
    "verify all": "verify all",
    **{f"verify {one.name}": f"verify {one.name}" for one in EVERY},
    "list": "list",
    "runs": "runs",
    "diff": "diff",
    "data": "data",
    "data download": "data",
    "figures": "figures",
    "figures init": "figures init",
    "figures draw": "figures",
    "figures check": "figures",
    "figures baseline": "figures",
    "completion": "completion",
    "diagnose": "diagnose",
    "judge-run": "judge-run",
    "merge": "merge",
    "report": "report",
}
"""Words -> the command that the usage line of their page names."""


@pytest.fixture
def lrdyn(tmp_path, monkeypatch, unchecked, capsys):
    """Run ``lrdyn`` here, in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: (command.main(list(words)), *capsys.readouterr())


def examples_of(page):
    """The command lines of a page of help."""
    return re.findall(r"^  \$ (.*)$", page.partition("\nexamples:\n")[2], re.M)


@pytest.mark.parametrize("words", PAGES)
def test_every_command_has_one_page_by_three_ways(words, lrdyn):
    status, page, err = lrdyn(*words.split(), "--help")
    assert (status, err) == (0, "")
    assert page.startswith(f"usage: lrdyn {PAGES[words]} [-h]")
    assert len(examples_of(page)) == 3
    assert lrdyn(*words.split(), "-h") == (0, page, "")
    assert lrdyn("help", *words.split()) == (0, page, "")


def test_help_itself_has_a_page(lrdyn):
    status, page, _ = lrdyn("help", "--help")
    assert (status, len(examples_of(page))) == (0, 3)
    assert lrdyn("help")[1] == lrdyn("--help")[1] == command.OVERVIEW
    assert len(examples_of(command.OVERVIEW)) == 3
    assert lrdyn("help", "hlep")[::2] == (
        2,
        "lrdyn: error: command: got 'hlep' (did you mean "
        "'help'?), wanted one of " + ", ".join(command.COMMANDS) + "\n",
    )


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_the_examples_of_a_theorem_are_ones_that_it_takes(one):
    page = verify.parser_of(one, "lrdyn verify NAME").format_help()
    for line in examples_of(page):
        _, _, _, *words = shlex.split(line)
        assert verify.parse(one, words)


def test_the_examples_of_other_pages_are_lines_of_commands(lrdyn, tmp_path):
    for words in ("verify", "verify all", "figures", "data", "completion", "runs", "diff", "list"):
        for line in examples_of(lrdyn(*words.split(), "--help")[1]):
            first = re.split(r" [|>] ", line)[0]
            if "my_theorem" not in line and "NAME" not in line:
                name, *rest = shlex.split(first)
                assert (name, rest[0] in command.COMMANDS) == ("lrdyn", True)


def test_the_page_of_all_shows_its_flags(lrdyn, capsys):
    _, page, _ = lrdyn("verify", "all", "--help")
    for flag in ("--jobs", "--preset", "--seeds", "--out", "--cluster", "--deterministic"):
        assert f"  {flag} " in page
    with pytest.raises(Help, match=r"^usage: lrdyn verify all \[-h\] \[--jobs JOBS\]"):
        pool.main(["all", "--help"])


def test_usage_names_the_command_as_it_was_typed(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    for argv, name in (
        (["python", "-m", "experiments.lora", "-h"], "python -m experiments.lora"),
        (["python", "mine.py", "-h"], "python mine.py"),
        (["lrdyn", "list"], "lrdyn"),
    ):
        monkeypatch.setattr(sys, "orig_argv", argv)
        monkeypatch.setattr(sys, "argv", ["/bin/lrdyn"] if argv[0] == "lrdyn" else argv[1:])
        assert typed_command() == name


# Near words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("verfy theorem2", "verify"),
        ("verify theorm2", "theorem2"),
        ("verify theorem2 --dpeth 3", "--depth"),
        ("verify all --optimiser sgd", "--optimizer"),
        ("verify mine.yp", None),
        ("verify mime.py", "mine.py"),
        ("verify mine.py:THEORME", "THEOREM"),
        ("verify theorem2 --target phy.npy", "phi.npy"),
        ("runs reslts", "results"),
        ("figures drw", "draw"),
        ("help dta", "data"),
    ],
)
def test_a_wrong_word_is_answered_with_the_near_one(words, meant, lrdyn, tmp_path):
    (tmp_path / "mine.py").write_text(MY_THEOREM)
    (tmp_path / "results").mkdir()
    (tmp_path / "phi.npy").touch()
    if words.startswith("figures"):
        lrdyn("figures", "init")
    status, _, err = lrdyn(*words.split())
    assert (status, err.count("\n")) == (2, 1)
    assert f"did you mean '{meant}'?" in err if meant else "did you mean" not in err, err


def test_a_folder_that_is_not_there_either_has_no_near_name(tmp_path):
    assert no_such_file(tmp_path / "no" / "x.py") == "no such file"


# XLA's log --------------------------------------------------------------------------------------

SLOW = """
import time, jax, jax.numpy as jnp
begin = time.monotonic()
add = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (20, 20), (1, 1), "SAME").sum()
jax.jit(lambda: add(jnp.ones((100, 100)))).lower().compile()
assert time.monotonic() - begin > 1, "too fast for an alarm"
"""


def test_no_alarm_of_xla_about_a_slow_compilation_reaches_a_command(tmp_path):
    """A constant that takes above a second to fold: XLA logs "This isn't necessarily a bug"."""
    (tmp_path / "slow.py").write_text(SLOW)
    with started("-m", "lrdyn", "verify", "slow.py", cwd=tmp_path) as process:
        _, err = process.communicate(timeout=200)
    wanted = "wanted a file that states a theorem"
    assert err == f"lrdyn: error: verify: got 'slow.py', {wanted}\n"


# Completion ------------------------------------------------------------------------------------


def test_completion_needs_its_package_and_says_so(lrdyn, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert lrdyn("completion", "bash")[::2] == (
        2,
        "lrdyn: error: completion: got no package 'shtab', wanted the extra 'completion': pip "
        "install 'lrdyn[completion]'\n",
    )


def completed(script, *words):
    """What bash offers for the last of these words."""
    line = f"""
source {shlex.quote(str(script))}
COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}; _shtab_lrdyn; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(("bash", "-c", line), capture_output=True, text=True, check=False)
    return {word.strip() for word in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", help_pages.SHELLS)
def test_completion_of_each_shell_has_every_command_and_flag(shell, lrdyn, tmp_path):
    pytest.importorskip("shtab")
    status, script, err = lrdyn("completion", shell)
    assert (status, err) == (0, "")
    for word in ("theorem2", "init-scale", "download", "deterministic", "fan-in-fan-out"):
        assert word in script


def test_bash_completes_commands_theorems_and_flags(lrdyn, tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "lrdyn.bash").write_text(lrdyn("completion", "bash")[1])

    def offered(*words):
        return completed(tmp_path / "lrdyn.bash", "lrdyn", *words)

    assert offered("ver") == {"verify"}
    assert offered("verify", "theorem") == {"theorem1", "theorem2", "theorem3", "theorem4"}
    assert {"--init-scale", "--init-spread"} <= offered("verify", "theorem2", "--init")
    assert offered("verify", "theorem2", "--preset", "p") == {"paper"}
