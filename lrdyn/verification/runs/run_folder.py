"""A run on disk: its folder, what is written there, and judging it again."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lrdyn.system import progress, whole_files
from lrdyn.verification.judging.judging import Groups
from lrdyn.verification.judging.outcomes import MissingArray, groups_of
from lrdyn.verification.running.configuration import COMMON, BadInput, Run
from lrdyn.verification.running.produce import select_scenarios
from lrdyn.verification.running.work import DEFAULT, Context
from lrdyn.verification.runs import consistency
from lrdyn.verification.runs.verify import Verification, judge_written, produce_run, verify_groups
from lrdyn.verification.stating.flags import Flag, option_string
from lrdyn.verification.stating.mistakes import (
    as_bad_input,
    first_line,
    folders_of,
    line_of,
    name_mistakes,
)
from lrdyn.verification.stating.sources import judges_digest, source_digest
from lrdyn.verification.stating.statement import Experiment
from lrdyn.verification.storing import checkpoints, files, parts, results_file, verdict_schema

Draw = Callable[[Experiment, Verification, Path], None]
"""Draws what was verified into a folder, as :func:`lrdyn.figures.verdicts.draw` does."""


OF_THE_MACHINE = {
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOLCK,
}
"""Errors of the machine; any other error is about the folder that was named."""


@contextlib.contextmanager
def open_run_folder(run: Run, out: Path | str) -> Iterator[Path]:
    """Make the folder of a run and keep it for this process; bad input inside leaves nothing.

    Raises:
        BadInput: it cannot be made, another process has it, or a symbolic link stands in it.
    """
    path = run.folder(out)
    with hold_folder(path, Path(out), "--out") as new_folders:
        try:
            yield path
        except BadInput:
            # What was computed from bad input is worth nothing; after any other error the parts
            # stay, for the next attempt.
            parts.clear(path)
            remove_empty(path, new_folders)
            raise


@contextlib.contextmanager
def hold_folder(path: Path, given: Path, flag: str) -> Iterator[list[Path]]:
    """Make a folder below a given one and lock it; yields the folders that were made for it.

    Args:
        path: the folder.
        given: the folder that the user named, at or above it.
        flag: by which it was named, for messages.

    Raises:
        BadInput: it cannot be made, another process has it, or a symbolic link stands in it.
        OSError: the disk or the system fails.
    """
    # The deepest first, the order in which empty folders can be removed again.
    new_folders = [p for p in (path, *path.parents) if not os.path.exists(p)]
    got = f"{flag}: got {os.fspath(given)!r}"
    with contextlib.ExitStack() as stack:
        try:
            whole_files.make_folder(path, below=given)
            stack.enter_context(files.lock(path))
            # After the lock, so that nobody else of this library changes the folder while it is
            # looked through.
            whole_files.refuse_links(path)
            try:
                whole_files.remove_scratch(path)
                whole_files.mark_folder(path)
                # Making a file fails if the folder cannot be written to.
                whole_files.remove(whole_files.make_scratch(path, ""))
            except OSError:
                with contextlib.suppress(OSError):
                    whole_files.unmark_folder(path)
                raise
        except files.InUse as error:
            raise BadInput(f"{got} ({error}), wanted a folder of its own") from None
        except whole_files.Linked as error:
            where = os.fspath(error.filename)
            raise BadInput(f"{got} with a symbolic link {where!r}, wanted none") from None
        except OSError as error:
            for folder in new_folders:
                whole_files.remove_empty(folder)
            if error.errno in OF_THE_MACHINE:
                raise
            raise BadInput(f"{got} ({error.strerror}), wanted a writable folder") from None
        yield new_folders


def remove_empty(path: Path, new_folders: list[Path]) -> None:
    """Remove a folder that holds nothing but its mark, and those made on the way to it."""
    with contextlib.suppress(OSError):
        whole_files.unmark_folder(path)
    for folder in new_folders:
        whole_files.remove_empty(folder)


def describe_run(run: Run) -> str:
    """Describe a run in a line: the data of a study, which must be there.

    Raises:
        Lacking: they are not.
        BadInput: they are refused.
    """
    try:
        return run.experiment.about(run.settings)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise as_bad_input(error) from None


def carry_out(
    run: Run,
    out: Path | str,
    *,
    draw: Draw | None = None,
    bar: bool = True,
    context: Context = DEFAULT,
) -> tuple[Verification, Path]:
    """Produce, judge, save and draw; returns what was verified and the folder of the results.

    A terminal shows a ``bar``; lines suit several processes that share one. Parts are kept in the
    store of the ``context``, or beside the results.

    Args:
        run: the configuration.
        out: folder of the results, in which the run gets one of its own.
        draw: draws what was verified.
        bar: whether a terminal shows a bar.
        context: where and how it is computed.

    Raises:
        BadInput: data are missing, the folder cannot be used, or no claim applies.
    """
    experiment = run.experiment
    describe_run(run)
    theirs = name_mistakes(folders_of(experiment), of=experiment)
    store = context.store or out
    with open_run_folder(run, out) as path, _open_store_folder(run, store, path) as folder, theirs:
        with progress.shown(experiment.name, bar=bar) as shown:
            context = context._replace(store=folder / parts.FOLDER, progress=shown)
            kept = context.programs
            if kept and (path / results_file.NAME).exists():
                # Who asks once more for what is there wants it measured once more.
                context = context._replace(programs=kept._replace(records=None))
            groups = produce_run(run, context)
            if kept and kept.records:
                shown.note(
                    f"{sum(kept.records):,} points were measured before, by the same programs from "
                    "the same cases; the same command once more measures them again"
                )
        with whole_files.replace_file(path / results_file.NAME) as temporary:
            write(run, groups, temporary)
            # What is judged is what anybody will read.
            verification = judge_written(run, groups, temporary, context)
            if experiment.has_claims:
                _refuse_nothing_decided(experiment, verification)
            # An earlier verdict must not stand beside results that it does not judge.
            whole_files.remove(path / whole_files.VERDICT)
        # The parts go only when everything else is on disk: a kill before that costs no
        # computation.
        save(run, verification, path, draw)
        checkpoints.gather_logs(folder, path)
        parts.clear(folder)
        checkpoints.clear(folder)
    return verification, path


@contextlib.contextmanager
def _open_store_folder(run: Run, store: Path | str, results_folder: Path) -> Iterator[Path]:
    """The folder of a run in a store, made if missing and removed if it stays empty.

    Raises:
        BadInput: it cannot be made, another process has it, or a symbolic link stands in it.
    """
    path = run.folder(store)
    # By the file system, not by name: one folder may be given in two ways.
    if path.exists() and path.samefile(results_folder):  # this process has locked it already
        yield path
        return
    with hold_folder(path, Path(store), "--store") as new_folders:
        try:
            yield path
        finally:
            remove_empty(path, new_folders)


def load_results(
    run: Run, out: Path | str, *, note: Callable[[str], None] | None = None
) -> Groups | None:
    """Results of a run that ended earlier; None if there are none.

    A damaged file is none: it is set aside, ``note`` receives a line about it, or else a warning.
    """
    folder = run.folder(out)
    try:
        return read_intact(folder)
    except results_file.Damaged as error:
        # Another process may just be writing the file.
        with contextlib.suppress(files.InUse), files.lock(folder):
            whole_files.set_aside(
                folder / results_file.NAME, error.why, note or progress.Silent().note
            )
        return None
    except results_file.Unreadable:
        return None


def read_intact(folder: Path) -> Groups:
    """Read results that are to the bit those of the run, which writes its verdict last."""
    path = folder / results_file.NAME
    groups = results_file.read(path)
    # A verdict on a changed file has no checksum.
    # None, of a verdict on changed results, equals no checksum, and so counts as damaged, too.
    if results_file.checksum(path) != results_file.read_verdict(folder)["results_sha256"]:
        raise results_file.Damaged(path, "its checksum differs")
    return groups


def _refuse_nothing_decided(theorem: Experiment, verification: Verification) -> None:
    """Refuse a run without a verdict, or a claim that other settings could decide.

    Raises:
        BadInput: it is one; the message says why nothing applies.
    """
    if verification.verdict["holds"] is not None or verification.verdict["undecided"]:
        return
    claims = verification.verdict["claims"]
    if any(claim.get("decided_by", {}).get("trivial") for claim in claims):
        trivial = "every case is trivial: theory says 0 there, as anybody would guess"
        raise BadInput(f"{theorem.name}: {trivial}")
    root = verification.results["/"]
    unmet = [str(n)[4:] for n in root if str(n).startswith("met_") and not root[n].values.any()]
    names = ", ".join(unmet) or "the hypotheses of its claims"
    # A side scenario at settings of its own may have been judged.
    judged = any(claim["cases"] for claim in claims if claim["kind"] != "control")
    which = "nothing of the main scenario judged" if judged else "nothing judged"
    # Of the library's own the settings alone can be at fault.
    where = f" ({line_of(theorem, unmet[0])})" if unmet and folders_of(theorem) else ""
    wanted = "wanted settings of which one does"
    raise BadInput(f"{theorem.name}: {which}: no case meets {names}{where}, {wanted}")


def write(run: Run, groups: Groups, path: Path) -> None:
    """Write the ``results.nc`` of a run, with what made it.

    Args:
        run: the configuration.
        groups: what was produced.
        path: of the file.
    """
    experiment = run.experiment
    results_file.write(
        path,
        label_results(experiment, groups, run.dtype),
        name=experiment.name,
        title=experiment.summary,
        about=experiment.about(run.settings),
        config=run.config,
        digest=source_digest(experiment, run.settings),
        judges=judges_digest(experiment),
        dtype=run.dtype,
    )


def save(run: Run, verification: Verification, path: Path, draw: Draw | None) -> None:
    """Write the figures and ``verdict.json`` beside ``results.nc``, in this order.

    Args:
        run: the configuration.
        verification: what was verified; its verdict gets the checksum of the results.
        path: folder of the run.
        draw: draws what was verified.
    """
    experiment, verdict = run.experiment, verification.verdict
    # The verdict comes last, when everything that it vouches for is on disk: a folder that has one
    # is a finished run.
    verdict["results_sha256"] = results_file.checksum(path / results_file.NAME)
    verdict["changed"] = False
    if draw:
        draw(experiment, verification, path)
    files.write_json(path / "verdict.json", verdict)


def label_results(experiment: Experiment, groups: Groups, dtype: str) -> Groups:
    """Label the axes and arrays of results with the paper's symbols and their meaning.

    Axes of settings have ``symbol``, ``long_name`` and ``units``; an array that claims read has
    their statements as its ``long_name``.
    """
    axes = {
        flag.name: {"symbol": flag.symbol, "long_name": flag.help, "units": "1"}
        for flag in experiment.flags
    }
    axes["step"] = {"symbol": "t", "long_name": "recorded steps", "units": "steps"}
    axes["seed"] = {"long_name": "seed of the random key of a case", "units": "1"}
    labelled = dict(groups)
    for scenario in experiment.scenarios:
        statements: dict[str, list[str]] = {}
        for claim in scenario.claims:
            for name in scenario.arrays_of(claim):
                statements.setdefault(name, []).append(f"{claim.id}: {claim.statement}")
        texts = {
            f"{name}{side}": {"long_name": f"{words}{'; '.join(claims)}", "units": "1"}
            for name, claims in statements.items()
            for side, words in SIDES.items()
        }
        # A scenario that the settings do not concern has no group.
        for group in labelled.keys() & set(groups_of(experiment, scenario, dtype).values()):
            dataset = labelled[group].copy()
            for name in dataset.variables:
                dataset[name].attrs.update((texts | axes).get(str(name), {}))
            labelled[group] = dataset
    return labelled


SIDES = {"": "", "_predicted": "predicted: ", "_measured": "measured: "}
"""End of the name of an array -> what it says of the side."""


# Judging again -------------------------------------------------------------------------------


def judge_again(
    theorem: Experiment, folder: Path, draw: Draw | None = None, *, changed: bool = False
) -> tuple[Verification, list[str]]:
    """Judge saved results again, without a run; the verdict is written beside them.

    The lines returned are what a reader should know: files that are not the run's, a theorem or
    judges that are others than then, a folder that cannot be written to.

    Args:
        theorem: the theorem.
        folder: where results are saved.
        draw: draws what was judged.
        changed: whether files that are not the run's are judged, too. The verdict then says so,
            and has no checksum.

    Raises:
        BadInput: a file or an array is missing or damaged, of another theorem or, unless
            ``changed``, not the run's, or no claim applies.
    """
    where = f"--judge: got {os.fspath(folder)!r}"
    wanted = f"wanted a folder of results of {theorem.name}"
    try:
        groups, before = (
            results_file.read(folder / results_file.NAME),
            results_file.read_verdict(folder),
        )
        run = _recorded_run(theorem, groups["/"].attrs)
        # One is enough to refuse, and reading on may meet whatever a damaged file holds.
        most = SHOWN + 1 if changed else 1
        changes = list(islice(_changes(run, groups, folder, before), most))
        verification = (
            None if changes and not changed else verify_groups(run.concerned, groups, run.dtype)
        )
    except (results_file.Unreadable, MissingArray, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{where} ({first_line(error)}), {wanted}") from None
    if verification is None:
        raise BadInput(f"{where} ({changes[0]}), {wanted} as its run left it, or --changed")
    _refuse_nothing_decided(theorem, verification)
    notes = [f"changed: {line}" for line in changes[:SHOWN]]
    notes += ["changed: and more"] if len(changes) > SHOWN else []
    notes += _source_changes(run, groups["/"].attrs)
    verification.verdict["config"] = json.loads(groups["/"].attrs["config"])
    verification.verdict["environment"] = before["environment"]
    verification.verdict["results_sha256"] = None if changes else before["results_sha256"]
    verification.verdict["changed"] = bool(changes)
    try:
        if draw:
            draw(run.concerned, verification, folder)
        files.write_json(folder / "verdict.json", verification.verdict)
    except PermissionError as error:
        notes.append(f"nothing written: {error.filename}: {error.strerror}")
    return verification, notes


SHOWN = 4
"""Number of differences of a changed file that are listed."""


def _changes(run: Run, groups: Groups, folder: Path, before: Mapping[str, Any]) -> Iterator[str]:
    """A line for each way in which the files differ from those of the run."""
    if before.get("changed") or before["results_sha256"] is None:
        yield "verdict.json is of a changed file and has no checksum of the run"
    elif results_file.checksum(folder / results_file.NAME) != before["results_sha256"]:
        yield f"{results_file.NAME} is not the file that the run wrote: its checksum differs"
    if before["config"] != json.loads(groups["/"].attrs["config"]):
        yield "verdict.json has other settings"
    if before["environment"]["dtype"] != run.dtype:
        yield f"verdict.json is of {before['environment']['dtype']}, wanted {run.dtype}"
    with_cases = "judges" in groups["/"].attrs
    for line in consistency.differences(run, groups, with_cases=with_cases):
        yield f"{results_file.NAME}: {line}"


def _source_changes(run: Run, attributes: Mapping[str, Any]) -> list[str]:
    """A line if the theorem's source has changed since the run, and one if its judges have."""
    name, lines = run.experiment.name, []
    if attributes["digest"] != source_digest(run.experiment, run.settings):
        lines.append(f"the source of {name} is not that of the run")
    if "judges" not in attributes:
        lines.append(
            f"{results_file.NAME} is of an earlier release: no cases, no digest of its judges"
        )
    elif attributes["judges"] != judges_digest(run.experiment):
        lines.append(f"the judges of {name} are not those of the run")
    return lines


def _recorded_run(theorem: Experiment, attributes: Mapping[str, Any]) -> Run:
    """The configuration that results were made from, by their own attributes.

    Raises:
        Unreadable: they are of another theorem, or none that a run of this one has written.
    """
    name, digest = attributes.get("name"), attributes.get("digest")
    if name != theorem.name:
        raise results_file.Unreadable(f"{results_file.NAME}: of {name!r}")
    try:
        config = json.loads(attributes["config"])
        results_file.canonical_json(config)  # refuses NaN, which is not a value of any setting
        missing = [flag.name for flag in theorem.flags if config and flag.name not in config]
        known = [flag for flag in theorem.flags if flag.name not in missing]
        wrong = [flag.name for flag in known if not _is_setting(flag, config[flag.name])]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"its settings: {type(error).__name__}"
        raise results_file.Damaged(Path(results_file.NAME), why) from None
    if missing and isinstance(digest, str) and digest != source_digest(theorem):
        why = f"of another version of {name}, without {option_string(missing[0])}"
        raise results_file.Unreadable(f"{results_file.NAME}: {why}")
    wrong = missing + wrong
    if wrong or not isinstance(digest, str):
        why = f"its setting {wrong[0]}" if wrong else "no digest of the source"
        raise results_file.Damaged(Path(results_file.NAME), why)
    if why := verdict_schema.CONFIG.mismatch(config):
        raise results_file.Damaged(Path(results_file.NAME), f"its settings: {why}")
    # JSON has no tuples, which is what settings of swept flags are.
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in config.items()}
    settings = {flag.name: values[flag.name] for flag in theorem.flags}
    others = {name: config[name] for name in COMMON if name in config}
    return Run(theorem, settings, select_scenarios(theorem, settings), **others)


def _is_setting(flag: Flag, value: Any) -> bool:
    """Whether a setting has the type of its flag; a preset's value may lie outside the domain."""
    if value is None:
        return True
    if flag.type == "array":  # its shape and checksum
        return isinstance(value, dict)
    values = value if flag.swept else [value]
    kind = str if flag.type is str else int | float
    return isinstance(values, list) and bool(values) and all(isinstance(v, kind) for v in values)
