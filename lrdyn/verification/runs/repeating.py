"""Command lines that repeat a case."""

import shlex
from collections.abc import Mapping
from typing import Any

from lrdyn.verification.running.configuration import COMMON
from lrdyn.verification.stating.flags import option_string

OWN = "lrdyn verify FILE.py"
"""Command of a user's theorem, whose file the results do not name."""
ARRAY = "FILE.npy"
"""A setting that is an array, of which the results have the shape and the checksum."""


def repeating(command: str, config: Mapping[str, Any], worst: Mapping[str, Any]) -> str:
    """The command line that runs one case again; empty if there is none.

    A setting of the case that the command line does not have comes from the scenario itself, from
    the same flags.

    Args:
        command: what verifies the theorem.
        config: settings of the run.
        worst: those of the case.

    Example:
        >>> repeating("lrdyn verify t", {"dim": [3, 4], "steps": 9, "seed": 0, "seeds": 2,
        ...     "preset": "quick", "dtype": "float64", "perturb": False}, {"dim": 4, "seed": 1})
        'lrdyn verify t --dim 4 --steps 9 --seed 1 --seeds 1 --dtype float64'
    """
    return _typed_out(command, config, worst) if worst else ""


def repeating_all(command: str, config: Mapping[str, Any]) -> str:
    """The command line of a whole run, its controls included.

    Args:
        command: what verifies the theorem.
        config: settings of the run.
    """
    return _typed_out(command, config, {})


def _typed_out(command: str, config: Mapping[str, Any], worst: Mapping[str, Any]) -> str:
    # The preset stays although every flag is typed out: it also decides how XLA compiles, and in
    # which precisions controls run.
    words = ["--preset", config["preset"]] if config["preset"] != "quick" else []
    for name, value in config.items():
        if name in (*COMMON, "data_files") or value in (None, []):
            continue
        if isinstance(value, Mapping):
            words += [option_string(name), ARRAY]
        elif isinstance(value, list):
            case = worst.get(name)
            words += [option_string(name), *map(str, [case] if case in value else value)]
        else:
            words += [option_string(name), str(value)]
    single_case = "seed" in worst
    seeds = 1 if single_case else config["seeds"]
    words += ["--seed", str(worst["seed"] if single_case else config["seed"])]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    words += ["--dtype", config["dtype"]]
    if config.get("precision", "highest") != "highest":
        words += ["--precision", config["precision"]]
    return f"{command} {shlex.join(words)}"
