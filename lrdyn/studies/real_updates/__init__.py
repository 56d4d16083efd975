"""How low-rank updates of real models are: two checkpoints that somebody names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.diagnosis import comparison, reading
from lrdyn.studies.real_updates.energies import ENERGIES
from lrdyn.studies.real_updates.figures import plot_energies
from lrdyn.verification.stating.flags import Domain, Flag, at_least
from lrdyn.verification.stating.statement import Study

NONE = "none"
"""The value of a flag that must be given."""
ANY = Domain(text="a path")
PATTERN = Domain(text="a pattern")
FILES = ("*.safetensors", "*.safetensors.index.json")
"""What is read of a folder."""

FLAGS = (
    Flag(
        "before",
        (NONE,),
        ANY,
        str,
        help="weights before the training: .safetensors, its index, a folder of these, .npz",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag(
        "after", (NONE,), ANY, str, help="weights after it", shapes=True, swept=False, source=True
    ),
    Flag(
        "select",
        ("*",),
        PATTERN,
        str,
        help="which matrices, a pattern on their names",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag(
        "outputs",
        (0,),
        at_least(0),
        int,
        symbol="K",
        help="outputs of the model, of which 2K are marked; 0 to mark none",
        swept=False,
        source=True,
    ),
)


def _open_both(settings: Mapping[str, Any]) -> comparison.Compared:
    """What the two checkpoints have in common; no numbers are read.

    Raises:
        ValueError: one is not named, cannot be read, or no matrix fits that both have.
    """
    sides = []
    for name in ("before", "after"):
        path = settings[name]
        if path == NONE:
            raise ValueError(f"--{name}: got none, wanted weights {name} the training")
        try:
            sides.append(reading.weights(name, path))
        except OSError as error:
            got = f"{path!r} ({error.strerror})"
            raise ValueError(f"--{name}: got {got}, wanted weights that can be read") from None
    return comparison.compare(sides[0], sides[1], settings["select"])


def _about(settings: Mapping[str, Any]) -> str:
    """What is compared, and what is not."""
    both = _open_both(settings)
    left_out = f", {len(both.notes)} arrays not, or not as a whole" if both.notes else ""
    return f"{len(both.matrices)} matrices that both checkpoints have{left_out}"


def _files(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files of both checkpoints, as far as they are there."""
    files: list[Path] = []
    for name in ("before", "after"):
        path = Path(settings.get(name, NONE))
        if path.is_dir():
            files += [file for end in FILES for file in sorted(path.glob(end))]
        elif path.is_file():
            files.append(path)
            if path.name.endswith(".index.json"):
                files += sorted(path.parent.glob("*.safetensors"))
    return tuple(files)


REAL_UPDATES = Study(
    "real_updates",
    "how low-rank updates of real models are, by kind of layer",
    FLAGS,
    (ENERGIES,),
    plots={"energies": plot_energies},
    data=_files,
    about=_about,
    title="Updates of real models",
    page="docs/updates.md",
)
"""What ``python -m experiments.real_updates`` runs."""
