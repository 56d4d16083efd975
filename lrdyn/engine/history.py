"""What was run: the verdicts below a folder of results, and how two of them differ."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrdyn import whole_files
from lrdyn.engine import parts, results
from lrdyn.engine.configuration import BadInput, run_of, typed
from lrdyn.engine.report import word
from lrdyn.show import aligned
from lrdyn.theorem import Experiment

LIMIT = 60
"""Characters of the settings that a line of the table shows."""


def table(folder: Path, known: Mapping[str, Experiment]) -> list[str]:
    """A heading and a line for each run below a folder, the latest last.

    Settings are shown where they differ from the preset, of experiments that are ``known``.
    """
    rows = [("ended (UTC)", "name", "verdict", "settings", "folder")]
    for when, path in sorted(_runs(folder)):
        ended = datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M")
        try:
            verdict = results.read_verdict(path)
        except results.Missing:
            rows.append(("-", path.parent.name, "unfinished", "", str(path)))
        except results.Unreadable:
            rows.append((ended, path.parent.name, "damaged", "", str(path)))
        else:
            said = settings_text(verdict["config"], known.get(verdict["name"]))
            judged = word(verdict) if verdict["claims"] else "no claims"
            rows.append((ended, verdict["name"], judged, said, str(path)))
    return aligned(rows)


def _runs(folder: Path) -> Iterator[tuple[float, Path]]:
    """Folders that hold a run, finished or not, with the time of their last results."""
    names = (parts.FOLDER, whole_files.VERDICT)
    for path in {file.parent for name in names for file in folder.rglob(name)}:
        made = path / results.NAME
        yield (made if made.is_file() else path).stat().st_mtime, path


def settings_text(config: Mapping[str, Any], experiment: Experiment | None) -> str:
    """Settings as they are typed, without those that the preset has anyway.

    Example:
        >>> settings_text({"dim": [3, 4], "target": None, "seed": 1}, None)
        '--dim 3 4 --seed 1'
    """
    usual = run_of(experiment, preset=config["preset"]).config if experiment else {}
    shown = [
        f"{typed(name)} {_words(value)}"
        for name, value in config.items()
        if value is not None and (name not in usual or usual[name] != value)
    ]
    text = " ".join(shown)
    return text if len(text) <= LIMIT else f"{text[: LIMIT - 3]}..."


def _words(value: Any) -> str:
    if isinstance(value, Mapping):  # an array
        return f"(sha256 {value['sha256'][:12]})"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def differences(first: Path, second: Path) -> list[str]:
    """A line for each setting, claim and residual in which two runs differ.

    What they were run on is told beside them, and makes no difference alone.

    Raises:
        BadInput: one of the two is no folder of results.
    """
    try:
        one, other = map(results.read_verdict, (first, second))
    except (results.Unreadable, OSError) as error:
        raise BadInput(f"diff: got {error}, wanted two folders of results") from None
    lines = [*_unequal("theorem", one["name"], other["name"])]
    lines += _unequal_entries("setting", one["config"], other["config"])
    lines += _unequal("verdict", one["holds"], other["holds"])
    claims = [{claim["id"]: _facts(claim) for claim in v["claims"]} for v in (one, other)]
    lines += _unequal_entries("claim", *claims)
    about = _unequal_entries("environment", one["environment"], other["environment"])
    return [*lines, *about] if lines else []


FACTS = ("holds", "residual", "tolerance", "residual_float32", "tolerance_float32", "judged")


def _facts(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {name: claim.get(name) for name in FACTS}


def _unequal_entries(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other:
            lines.append(f"{what} {name}: only in the {'first' if name in one else 'second'}")
        elif isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            lines += _unequal_entries(f"{what} {name}:", one[name], other[name])
        else:
            lines += _unequal(f"{what} {name}", one[name], other[name])
    return lines


def _unequal(what: str, one: Any, other: Any) -> list[str]:
    return [] if one == other else [f"{what}: {one} -> {other}"]
