"""Random settings of an experiment: shapes that share few programs, and points of them."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lrdyn.verification.machine.device_defaults import ON_A_CPU
from lrdyn.verification.running.configuration import BadInput, Run, run_of
from lrdyn.verification.searching.domains import draw_value, words_of
from lrdyn.verification.stating.flags import Flag, option_string
from lrdyn.verification.stating.statement import Experiment

SHAPES = 6
"""Combinations of the flags that decide what is compiled, the first half of them near the quick
preset: to compile takes longer than all else."""

DRAWS = 300
"""Draws of combinations before giving up on finding more: an experiment may have few."""

TRIES = 30
"""Draws of points before a combination of shapes counts as one that has none."""

FEW_TRIES = 5
"""Draws if flags are held at values with which there may be no point at all."""

Settings = dict[str, list[Any]]
"""Flag -> its values."""


def shape_flags(experiment: Experiment) -> list[Flag]:
    """Flags that decide what is compiled: shapes, and steps, which are not swept."""
    return [f for f in experiment.flags if f.domain and (f.shapes or not f.swept)]


def point_flags(experiment: Experiment) -> list[Flag]:
    """The other flags, whose values differ among the points of one program."""
    return [f for f in experiment.flags if f.domain and f.swept and not f.shapes]


def random_generator(experiment: Experiment, seed: int, n: int) -> np.random.Generator:
    """Generator of the random numbers of the n-th draw of an experiment."""
    # CRC-32, since ``hash`` of a text differs from one process to the next.
    return np.random.default_rng([seed, n, zlib.crc32(experiment.name.encode())])


def choose_flags(flags: list[Flag], rng: np.random.Generator) -> set[str]:
    """The names of one or two of several flags."""
    count = min(len(flags), int(rng.integers(1, 3)))
    return {flag.name for flag in rng.permutation(np.array(flags, object))[:count]}


def draw_combination(
    experiment: Experiment,
    k: int,
    words: Mapping[str, list[str]],
    rng: np.random.Generator,
) -> Settings:
    """The k-th combination of compiled flags; the first half lie near the quick preset.

    Args:
        experiment: the experiment.
        k: its number.
        words: the words of each flag of words, in an order of their own: one after the other.
        rng: random numbers.
    """
    flags = shape_flags(experiment)
    far = set() if k < SHAPES // 2 else choose_flags([f for f in flags if f.type is not str], rng)
    return {
        f.name: [words[f.name][k % len(words[f.name])]]
        if f.type is str
        else [draw_value(f, rng, far=f.name in far)]
        for f in flags
    }


def draw_shapes(
    experiment: Experiment, seed: int, several: int, held: Settings | None = None
) -> list[Settings]:
    """Combinations of the flags that decide what is compiled.

    Each word of a flag is in one of them, or in as many as there are. Each has a point that the
    experiment accepts.

    Args:
        experiment: the experiment.
        seed: of the draw.
        several: settings of one sweep, see :func:`draw_values`.
        held: flags that are drawn from these values alone.

    Returns:
        At most :data:`SHAPES`; none if no point of any was accepted.
    """
    rng, combinations = random_generator(experiment, seed, 0), []
    flags = shape_flags(experiment)
    words = {f.name: rng.permutation(words_of(f)).tolist() for f in flags if f.type is str}
    tries_each = FEW_TRIES if held else TRIES
    for n in range(DRAWS):
        if len(combinations) == SHAPES or (held and not combinations and n == TRIES):
            break
        combination = draw_combination(experiment, len(combinations), words, rng)
        if held:
            combination |= choose_values({n: v for n, v in held.items() if n in combination}, rng)
        tries = (
            combination | draw_values(experiment, rng, set(), several) for _ in range(tries_each)
        )
        # A combination may have no point that the theorem accepts.
        if combination not in combinations and any(
            is_accepted(experiment, settings) for settings in tries
        ):
            combinations.append(combination)
    return combinations


def choose_values(held: Settings, rng: np.random.Generator) -> Settings:
    """One of the values of each flag."""
    return {name: [values[rng.integers(len(values))]] for name, values in held.items()}


def draw_values(
    experiment: Experiment, rng: np.random.Generator, far: set[str], several: int
) -> Settings:
    """Values of the points: near the quick preset, but of some flags far from it.

    Args:
        experiment: the experiment.
        rng: random numbers.
        far: names of those flags.
        several: how many points all values together make, a power of two.
    """
    flags, values_of = point_flags(experiment), {}
    for n, flag in enumerate(flags):
        # The doublings are shared among the flags: the first get one more where they do not come
        # out even.
        doubled = np.log2(several) + len(flags) - 1 - n
        count = 2 ** int(doubled // len(flags))
        drawn = set()
        while len(drawn) < count:
            drawn.add(draw_value(flag, rng, far=flag.name in far))
        values_of[flag.name] = sorted(drawn)
    return values_of


def is_accepted(experiment: Experiment, settings: Settings) -> bool:
    """Whether a command would accept these values."""
    try:
        configure_run(experiment, settings)
    except BadInput:
        return False
    return True


def configure_run(experiment: Experiment, settings: Settings, **common: Any) -> Run:
    """The configuration of a run with these values.

    Raises:
        BadInput: they are outside the experiment.
    """
    swept = {flag.name for flag in experiment.flags if flag.swept}
    given = {name: v if name in swept else v[0] for name, v in settings.items()}
    return run_of(experiment, memory=ON_A_CPU, **given, **common)


def command_words(settings: Settings) -> list[str]:
    """Settings as words of a command line.

    Example:
        >>> command_words({"dim": [3], "init_scale": [0.1, 1.0]})
        ['--dim', '3', '--init-scale', '0.1', '1.0']
    """
    several = [(option_string(name), *map(str, v)) for name, v in settings.items()]
    return [word for words in several for word in words]
