"""Random command lines: 100 for each command, see ``tests/faults/command_lines.py`` for more."""

import random
from functools import partial

import pytest

from tests.faults import command_lines


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
