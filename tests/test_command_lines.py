"""Random command lines: 100 for each command, see ``tests/faults/command_lines.py`` for more."""

import random
from functools import partial

import pytest

from tests.faults import command_lines, whole_runs

pytestmark = pytest.mark.tools


@pytest.fixture(scope="module")
def everywhere():
    return command_lines.commands()


@pytest.mark.parametrize("name", command_lines.commands())
def test_no_command_line_ends_otherwise_than_the_contract_says(
    name, everywhere, tmp_path, unchecked
):
    line, one = everywhere[name]
    rng = random.Random(name)
    with command_lines.without_work():
        for _ in range(100):
            words = command_lines.words_for(one, rng)
            ended = command_lines.ended(partial(line, words), tmp_path)
            assert not ended.fault(), words


def test_a_line_that_ends_badly_is_seen(tmp_path):
    ended = command_lines.ended(lambda: 1 // 0, tmp_path)
    assert ended.fault().startswith("status ZeroDivisionError")
    assert command_lines.ended(lambda: 3, tmp_path).fault()
    assert command_lines.ended(lambda: 2, tmp_path).fault()
    assert not command_lines.ended(lambda: 0, tmp_path).fault()
    assert command_lines.ended(lambda: int(print("x") or 2), tmp_path).fault()
    assert command_lines.ended(lambda: (tmp_path / "new").mkdir() or 0, tmp_path).fault()


def test_whole_runs_cover_every_command_and_stay_in_their_folder():
    assert set(whole_runs.COMMANDS) == {*command_lines.commands(), "lrdyn verify FILE.py"}
    rng = random.Random(0)
    for one in whole_runs.COMMANDS.values():
        lines = [whole_runs.line(one, rng, ["results/corollary1/x"]) for _ in range(50)]
        assert len(set(lines)) > 1
        for words in lines:
            assert not {"--out", "paper", "baseline", "..", "/"} & set(words)


def test_a_whole_run_that_ends_badly_is_seen():
    line = "lrdyn: error: command: got 'x', wanted one of verify\n"
    points = "theorem2: 3 of 1,024 points, 3:20 left\n"

    def fault(status, out="", err="", written=False):
        return whole_runs.Ended(status, out, err, written).fault((0, 2, 4))

    assert not fault(0, "theorem2 holds\n", written=True)
    assert not fault(4, "undecided\n", points)
    assert not fault(2, "", points + line)
    assert fault(2, "", line, written=True) == "something was written"
    assert fault(1).startswith("status 1")
    assert fault(3, "", line).startswith("status 3")
    assert fault(-9).startswith("status -9")
    for wrong in ("", line + line, "x" * 201 + "\n"):
        assert fault(2, "", wrong)
    assert fault(2, "said\n", line)
    assert fault(0, "", "Traceback (most recent call last):\n").startswith("Traceback")
