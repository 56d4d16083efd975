"""Checkpoints of trainings on disk: the last two of each, written whole, checked when read."""

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from lrdyn.data import guarded
from lrdyn.system import whole_files
from lrdyn.system.progress import Progress, Silent
from lrdyn.training.keeping import Moment
from lrdyn.verification.storing import files

FOLDER = "checkpoints"
"""Folder of the checkpoints of a run, beside its results."""

KEPT = 2
SECONDS = 30.0
"""Seconds between two checkpoints, unless a number of steps is given."""

LOST = "lost.json"
"""File that records a training whose loss is not finite; its last checkpoint stays."""


class Checkpoints:
    """Keeps the trainings of one run, see :class:`lrdyn.training.Keeper`.

    Every training has a folder, named by its key. A checkpoint is a line of JSON (key, step, length
    and SHA-256 of what follows) and the arrays as equinox writes them.

    Args:
        folder: made if missing.
        every: steps between two checkpoints; one in 30 seconds if not given.
        label: the run, in words.
        progress: told of every piece.
        log: ``metrics.csv``, a line for each number: run, step, name, value.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int | None = None,
        label: str = "",
        progress: Progress | None = None,
        log: Path | None = None,
    ):
        self.folder, self.every, self.label, self.log = folder, every, label, log
        self.progress = Silent() if progress is None else progress
        self.last = time.monotonic()

    def load(self, key: str, like: PyTree, name: str = "") -> tuple[int, PyTree] | None:
        """Read the last whole checkpoint; damaged ones are reported and set aside."""
        folder = self._folder_of(key)
        if folder.is_dir():
            whole_files.remove_scratch(folder)
        for path in reversed(_checkpoints(folder)):
            try:
                checkpoint = read(path, key, like)
            except Exception as error:  # a damaged array raises whatever error its reader runs into
                _set_aside(path, error, self.progress.note)
                continue
            self._forget_log(self._run_name(name), checkpoint[0])
            return checkpoint
        # No checkpoint: the training begins anew, and so do its lines.
        self._forget_log(self._run_name(name), -1)
        return None

    def due(self, step: int) -> bool:
        """Whether the steps or seconds between two checkpoints have passed."""
        if self.every:
            return step % self.every == 0
        return time.monotonic() - self.last >= SECONDS

    def save(self, key: str, step: int, state: PyTree) -> None:
        """Write a checkpoint, and remove all but the last two."""
        folder = self._folder_of(key)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"step-{step:010}.ckpt", key, step, state)
        # Two: where the last one is found damaged, the training goes on from the one before it.
        for path in _checkpoints(folder)[:-KEPT]:
            whole_files.remove(path)
        self.last = time.monotonic()

    def tell(self, moment: Moment, name: str) -> None:
        """Show the progress of a training, and append its numbers to the log."""
        run = self._run_name(name)
        numbers = {**moment.metrics, "examples_per_second": moment.rate}
        loss = moment.metrics["loss"]
        text = f"{run}: step {moment.step:,} of {moment.steps:,}, loss {loss:.4g}"
        self.progress.during(
            moment.step / moment.steps, f"{text}, {moment.rate:,.0f} examples a second"
        )
        if self.log:
            _append_rows(self.log, [(run, moment.step, *number) for number in numbers.items()])

    def lost(self, step: int, name: str, key: str) -> None:
        """Report a training whose loss is not finite, and keep its last checkpoint."""
        run, folder = self._run_name(name), self._folder_of(key)
        checkpoints = _checkpoints(folder)
        stays = (
            f"the checkpoint {checkpoints[-1]} stays" if checkpoints else "no checkpoint before it"
        )
        self.progress.note(f"{run}: diverged at step {step}; {stays}")
        if checkpoints:
            files.write_json(folder / LOST, {"run": run, "step": step})

    def _folder_of(self, key: str) -> Path:
        return self.folder / key[:20]

    def _run_name(self, name: str) -> str:
        return " ".join(word for word in (self.label, name) if word) or "training"

    def _forget_log(self, run: str, step: int) -> None:
        """Remove the log lines of steps that will be computed again."""
        if self.log is None or not self.log.exists():
            return
        with self.log.open(newline="") as file:
            rows = list(csv.reader(file))
        rows_before = [r for r in rows if r[0] != run or int(r[1]) <= step]
        with whole_files.replace_file(self.log) as path, path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows_before)


def write(path: Path, key: str, step: int, state: PyTree) -> None:
    """Write one checkpoint, whole or not at all."""
    payload = io.BytesIO()
    eqx.tree_serialise_leaves(payload, state)
    body = payload.getbuffer()
    head = {"key": key, "step": step, "bytes": len(body), "sha256": _sha256(body)}
    with whole_files.replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(json.dumps(head).encode() + b"\n")
        file.write(body)


def read(path: Path, key: str, like: PyTree) -> tuple[int, PyTree]:
    """Read one checkpoint, which must be of the training with this key.

    Raises:
        ValueError: it is damaged, or of another training.
    """
    with guarded.opened(path, links=False) as file:
        # A damaged file may have no line break at all: no more than a head can have is read.
        head = guarded.parsed(file.readline(1000), path, "what a checkpoint says of itself")
        body = file.read()
    if head["key"] != key:
        raise ValueError("it is of another training")
    if head["bytes"] != len(body) or head["sha256"] != _sha256(body):
        raise ValueError("its checksum differs")
    # Only behind the checksum: the reader of arrays trusts what it is given.
    return head["step"], eqx.tree_deserialise_leaves(io.BytesIO(body), like)


def clear(run: Path) -> None:
    """Remove the checkpoints of a run that has ended, by name; those of lost trainings stay."""
    checkpoint = r"step-[0-9]{10}\.ckpt(\.damaged)?"
    names = f"{checkpoint}|{whole_files.SCRATCH}"
    whole_files.clear(run, FOLDER, "[0-9a-f]{20}", names, unless=LOST)


LOG = "metrics.csv"
"""The log of trainings, a line for each number."""


def log_of(key: str) -> str:
    """The name of the log of one training, where several are written at a time."""
    return f"metrics-{key}.csv"


def gather_logs(source: Path, folder: Path) -> None:
    """Append the logs of trainings kept elsewhere to that of a run that has ended."""
    for path in sorted({*source.glob(log_of("*")), source / LOG}):
        # A store may be called by another name and still be the folder of the results.
        if path.exists() and not (path.name == LOG and source.samefile(folder)):
            with path.open(newline="") as file:
                rows = [tuple(row) for row in csv.reader(file)]
            _append_rows(folder / LOG, rows[1:])
            whole_files.remove(path)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.ckpt") if re.fullmatch(r"step-\d{10}", p.stem))


def _sha256(body: Any) -> str:
    return hashlib.sha256(body).hexdigest()


def _set_aside(path: Path, why: object, note: Callable[[str], None]) -> None:
    line = (str(why).splitlines() or [type(why).__name__])[0]
    whole_files.set_aside(path, line, note, "the one before it, if any, is used")


def _append_rows(log: Path, rows: list[tuple]) -> None:
    new = not log.exists()
    with whole_files.open_to_append(log) as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(("run", "step", "name", "value"))
        writer.writerows(rows)
