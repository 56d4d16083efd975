"""Commands that are forked behave as those that have an interpreter of their own."""

import json
import os
import shlex
import subprocess
import sys
import time

import pytest

from tests import forked

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone forks commands"),
]

TELL = """
import json, os, signal, sys
facts = {
    "argv": sys.argv,
    "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "path": sys.path[0],
    "folder": os.getcwd(),
    "word": os.environ.get("LRDYN_WORD"),
    "lost": os.environ.get("LRDYN_LOST"),
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "encodings": [s.encoding.lower() for s in (sys.stdin, sys.stdout, sys.stderr)],
    "errors": [s.errors for s in (sys.stdin, sys.stdout, sys.stderr)],
    "buffered": sys.stdout.line_buffering,
    "seen": sys.orig_argv[1:],
}
print(json.dumps(facts))
"""


@pytest.fixture(params=["own", "forked"])
def interpreter(request):
    """Words of an interpreter of its own, and of one that is forked."""
    return [sys.executable] if request.param == "own" else forked.interpreter()


def told(words, folder, **how):
    """How a command ended that is run in a folder, with a variable more."""
    environment = os.environ | {"LRDYN_WORD": "here", "PYTHONPATH": os.fspath(forked.ROOT)}
    return subprocess.run(
        words,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **how,
    )


@pytest.mark.parametrize("kind", ["module", "script", "input"])
def test_the_command_sees_what_it_would_see_in_an_interpreter_of_its_own(
    kind, tmp_path, monkeypatch
):
    forked.interpreter()  # a server that is there before the variable
    monkeypatch.setenv("LRDYN_LOST", "there")
    (tmp_path / "telling.py").write_text(TELL)
    words = {
        "module": ["-m", "telling", "a b"],
        "script": ["telling.py", "a b"],
        "input": ["-", "a b"],
    }[kind]
    given = {"input": TELL} if kind == "input" else {"stdin": subprocess.DEVNULL}
    mine, theirs = (
        json.loads(told([*interpreter, *words], tmp_path, **given).stdout)
        for interpreter in ([sys.executable], forked.interpreter())
    )
    if kind == "module":  # until the module is found this is "-m", then its file
        mine["argv"], theirs["argv"] = mine["argv"][1:], theirs["argv"][1:]
    assert mine == theirs


def test_libraries_are_there_already(tmp_path, monkeypatch):
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "True")  # as another library leaves it behind
    source = "import sys; print('jax' in sys.modules, 'jax' in dir())"
    run = [
        told([*words, "-"], tmp_path, input=source)
        for words in ([sys.executable], forked.interpreter())
    ]
    assert [done.stdout for done in run] == ["False False\n", "True False\n"]


@pytest.mark.parametrize(
    ("source", "status", "error"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("raise SystemExit", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit, os; atexit.register(lambda: os.write(2, b'late'))", 0, "late"),
    ],
)
def test_it_ends_as_the_command_does(source, status, error, interpreter, tmp_path):
    done = told([*interpreter, "-"], tmp_path, input=source)
    assert (done.returncode, done.stderr.strip().rpartition("\n")[2]) == (status, error)


def test_threads_are_waited_for(interpreter, tmp_path):
    source = "import threading\nthreading.Timer(0.2, print, ['late']).start()"
    assert told([*interpreter, "-"], tmp_path, input=source).stdout == "late\n"


@pytest.mark.parametrize(
    "variable", ["JAX_ENABLE_X64", "XLA_FLAGS", "PYTHONHASHSEED", "OMP_NUM_THREADS"]
)
def test_a_variable_that_is_read_at_import_gets_an_interpreter_of_its_own(variable, tmp_path):
    source = "import sys; print('jax' in sys.modules)"
    words = shlex.join([*forked.interpreter(), "-"])
    done = told(["bash", "-c", f"{variable}=1 {words}"], tmp_path, input=source)
    assert done.stdout == "False\n", done.stderr


def begun(source, folder):
    """A script that is running, forked."""
    (folder / "begun.py").write_text(source)
    return subprocess.Popen(
        [*forked.interpreter(), "begun.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.fspath(forked.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_command_is_killed_with_what_started_it(tmp_path):
    source = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    with begun(source, tmp_path) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert os.path.exists(f"/proc/{number}")
        process.kill()
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{number}"):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_run_at_the_same_time(tmp_path):
    """The first waits for a file that the second makes."""
    wait = "import os, time\nwhile not os.path.exists('made'): time.sleep(.01)\nprint('seen')"
    with begun(wait, tmp_path) as first:
        done = told([*forked.interpreter(), "-"], tmp_path, input="open('made', 'w')")
        assert done.returncode == 0
        assert first.communicate(timeout=60)[0] == "seen\n"


def test_where_each_process_is_watched_none_is_forked(monkeypatch):
    monkeypatch.setenv("COVERAGE_PROCESS_CONFIG", "x")
    assert forked.interpreter() == [sys.executable]
