"""What was run: the verdicts below a folder of results, and how two of them differ."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lrdyn.core.show import aligned, make_printable, shortened
from lrdyn.data import guarded
from lrdyn.system import whole_files
from lrdyn.verification.judging.verdict_text import word
from lrdyn.verification.running.configuration import BadInput, run_of
from lrdyn.verification.stating.flags import option_string
from lrdyn.verification.stating.statement import Experiment
from lrdyn.verification.storing import parts, results_file

LIMIT = 60
"""Characters of the settings that a line of the table shows."""


def table(folder: Path, known: Mapping[str, Experiment]) -> list[str]:
    """A heading and a line for each run below a folder, the latest last.

    Settings are shown where they differ from the preset, of experiments that are ``known``. A run
    that cannot be read, or whose results are gone, has a line that says so. Links to folders are
    not followed; checksums, which take reading all results, are compared by ``diff`` and
    ``--judge``.
    """
    rows = [("ended (UTC)", "name", "verdict", "settings", "folder")]
    for when, path, fault in sorted(_runs(folder)):
        ended = _minute(when)
        try:
            if fault:
                raise results_file.Damaged(path, fault)
            verdict = results_file.read_verdict(path)
            if not _has_content(path / results_file.NAME):
                raise results_file.Damaged(path, f"no {results_file.NAME}")
        except results_file.Missing:
            rows.append(_unfinished_row(path))
        except (results_file.Unreadable, OSError) as error:
            rows.append((ended, path.parent.name, "damaged", _reason(error), str(path)))
        else:
            name = verdict["name"]
            settings = settings_text(verdict["config"], known.get(name))
            judged = word(verdict) if verdict["claims"] else "no claims"
            judged += " (changed)" if verdict.get("changed") else ""
            rows.append((ended, shortened(name), judged, settings, str(path)))
    return aligned(rows)


def _unfinished_row(path: Path) -> tuple[str, str, str, str, str]:
    """The line of a run that has not ended, or of a search, which leaves no verdict."""
    name, file = path.parent.name, path / results_file.SEARCH
    if not os.path.lexists(file):
        return "-", name, "unfinished", "", str(path)
    ended = _minute(_time(file))
    try:
        content = guarded.read_json(file, "a search", most=results_file.VERDICT)
        # One beyond the hypotheses says nothing of the theorem: what fails there fails no claim.
        outcome = {True: " holds", False: " IS FALSE", None: ""}[content.get("holds")]
        return ended, name, f"search{outcome}", f"--search {content['points']:d}", str(path)
    except (guarded.Refused, OSError) as error:
        return ended, name, "damaged", shortened(str(error)), str(path)
    except (AttributeError, LookupError, TypeError, ValueError):
        return ended, name, "damaged", "no search", str(path)


def _minute(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M") if when else "-"


def _runs(folder: Path) -> Iterator[tuple[float, Path, str]]:
    """Folders that hold a run, finished or not: when its results were written, and what is wrong.

    The time is 0 where it cannot be read.
    """
    unreadable: list[OSError] = []
    for here, folders, names in os.walk(folder, onerror=unreadable.append):
        path = Path(here)
        if parts.FOLDER in folders or whole_files.VERDICT in (*folders, *names):
            saved = path / results_file.NAME
            yield _time(saved if _has_content(saved) else path), path, ""
            inside = (parts.FOLDER, whole_files.VERDICT)
            # In place: this is how ``os.walk`` is told not to enter them.
            folders[:] = [name for name in folders if name not in inside]
    for error in unreadable:
        yield _time(Path(error.filename)), Path(error.filename), error.strerror or "unreadable"


def _has_content(path: Path) -> bool:
    """Whether a path is a file that is not empty."""
    try:
        return path.is_file() and path.stat().st_size > 0
    except OSError:
        return False


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it was removed meanwhile
        return 0.0


def _reason(error: results_file.Unreadable | OSError) -> str:
    """Why a file cannot be read, without its path, which the line shows anyway."""
    if isinstance(error, OSError):
        return shortened(error.strerror or "")
    return shortened(str(error).partition(": damaged (")[2].removesuffix(")"))


def settings_text(config: Mapping[str, Any], experiment: Experiment | None) -> str:
    """Settings as they are typed, except those that equal the preset's.

    Example:
        >>> settings_text({"dim": [3, 4], "target": None, "seed": 1}, None)
        '--dim 3 4 --seed 1'
    """
    # Without an experiment, one of somebody's own file, nothing is known of its preset.
    usual = run_of(experiment, preset=config["preset"]).config if experiment else {}
    shown = [
        f"{option_string(name)} {_words(value)}"
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

    So has a difference of their sources, and a ``results.nc`` that is not the one of its verdict.
    What they were run on is told beside them, and makes no difference alone.

    Raises:
        BadInput: one of the two is no folder of results.
    """
    folders = {"first": first, "second": second}
    try:
        before, after = map(results_file.read_verdict, folders.values())
    except (results_file.Unreadable, OSError) as error:
        raise BadInput(f"diff: got {error}, wanted two folders of results") from None
    lines = [*_change("theorem", before["name"], after["name"])]
    lines += _changed_entries("setting", before["config"], after["config"])
    digests = []
    for (which, folder), verdict in zip(folders.items(), (before, after), strict=True):
        try:
            digests.append(_source_digest(folder))
            if verdict.get("changed"):
                lines.append(f"{results_file.NAME} of the {which}: changed since its run")
            elif results_file.checksum(folder / results_file.NAME) != verdict["results_sha256"]:
                lines.append(f"{results_file.NAME} of the {which}: not the one of its verdict")
        except (results_file.Unreadable, OSError) as error:
            reason = "not found" if isinstance(error, results_file.Missing) else _reason(error)
            lines.append(f"{results_file.NAME} of the {which}: {reason or 'damaged'}")
    if len(digests) == 2:
        lines += _change("sources (SHA-256)", *digests)
    lines += _change("verdict", before["holds"], after["holds"])
    claims = [
        {claim["id"]: {fact: claim.get(fact) for fact in FACTS} for claim in v["claims"]}
        for v in (before, after)
    ]
    lines += _changed_entries("claim", *claims)
    about = environment_differences(before, after)
    return [*map(make_printable, lines), *(about if lines else [])]


def environment_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each way in which two verdicts come from another environment.

    Example:
        >>> library = {"name": "openblas", "version": "0.3.30", "threads": 1}
        >>> runs = [
        ...     {"environment": {"jax": "0.10.2", "blas": [{**library, "architecture": kernels}]}}
        ...     for kernels in ("SkylakeX", "Haswell")
        ... ]
        >>> environment_differences(*runs)
        ['environment blas: openblas 0.3.30 SkylakeX 1 -> openblas 0.3.30 Haswell 1']
    """
    one, other = (_write_out_blas(verdict["environment"]) for verdict in (before, after))
    return [make_printable(line) for line in _changed_entries("environment", one, other)]


def _write_out_blas(environment: Mapping[str, Any]) -> dict[str, Any]:
    if "blas" not in environment:
        return dict(environment)
    names = ("name", "version", "architecture", "threads")
    libraries = [" ".join(str(library[n]) for n in names) for library in environment["blas"]]
    return {**environment, "blas": ", ".join(libraries)}


def _source_digest(folder: Path) -> str:
    """The digest of the sources that made the results of a folder."""
    with ExitStack() as opened:
        groups = results_file.read(folder / results_file.NAME)
        for group in groups.values():
            opened.enter_context(group)
        return str(groups["/"].attrs.get("digest"))


FACTS = ("holds", "residual", "tolerance", "residual_float32", "tolerance_float32", "judged")


def _changed_entries(label: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            lines.append(f"{label} {name}: only in the {'first' if name in before else 'second'}")
        elif isinstance(before[name], Mapping) and isinstance(after[name], Mapping):
            lines += _changed_entries(f"{label} {name}:", before[name], after[name])
        else:
            lines += _change(f"{label} {name}", before[name], after[name])
    return lines


def _change(label: str, before: Any, after: Any) -> list[str]:
    return [] if before == after else [f"{label}: {before} -> {after}"]
