"""Which rank before training: whether spectra at the start predict the rank of an update.

Every matrix of a network is tuned in full. Five numbers that are known before, the ranks of W, of
a gradient, of k gradients, of Adam's step from these and of the activations, are compared with the
rank of the update, matrix by matrix.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import language
from lrdyn.networks.attention import check_heads
from lrdyn.studies.adapter_training import sentences, tasks
from lrdyn.studies.adapter_training.sentences import AUTO
from lrdyn.studies.rank_before_training.one_gradient import ONE_GRADIENT
from lrdyn.studies.rank_before_training.trainings import CELLS, ENCODER, LANGUAGE, TRAININGS
from lrdyn.verification.stating.flags import POSITIVE, Domain, Flag, at_least, one_of
from lrdyn.verification.stating.statement import Study

PATH = Domain(text="a path")


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Refuse what does not fit together, and say which texts ``auto`` means here."""
    if {*settings["cell"]} - {ENCODER}:
        check_heads(settings["width"], settings["heads"])
        for flag in ("text", "tuned_on"):
            settings = settings | {flag: language.resolve_text(settings[flag])}
            language.text_files(settings[flag])
    return settings


def _about(settings: Mapping[str, Any]) -> str:
    """What is learned first, and then."""
    said = []
    if {*settings["cell"]} - {ENCODER}:
        first, second = (language.describe_text(settings[f]) for f in ("text", "tuned_on"))
        said.append(f"a language model learns {first}, then {second}")
    if ENCODER in settings["cell"]:
        # Here and not when flags are read: a preset may be looked at without its data.
        sentences.folder_of(settings["encoder"])
        said.append("an encoder learns the sentiment of sentences")
    return "; ".join(said)


def _files(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    cells, found = {*settings.get("cell", ())}, []
    if cells - {ENCODER}:
        found += [p for f in ("text", "tuned_on") for p in language.text_files(settings[f])]
    if ENCODER in cells:
        found += sentences.files_of(settings["encoder"])
        sentiment = tasks.file_of_sentiment(settings["text_file"], settings.get("data_dir", ""))
        found += [] if sentiment is None else [sentiment]
    return tuple(found)


FLAGS = (
    Flag(
        "cell",
        (LANGUAGE,),
        one_of(*CELLS),
        str,
        help="trainings to run: a language model tuned by Adam, by descent, a pretrained encoder",
        paper=CELLS,
        shapes=True,
    ),
    Flag(
        "small_depth", (1, 2), at_least(1), int, "L", "blocks of the identity's model", shapes=True
    ),
    Flag("small_rate", (0.1, 1.0), POSITIVE, symbol="eta", help="its step size"),
    Flag(
        "text",
        (language.PYTHON,),
        PATH,
        str,
        help="what the language model learns first: a file, a folder, or the name of a text",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag(
        "tuned_on",
        (language.SOURCE,),
        PATH,
        str,
        help="what it is then tuned on",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag("width", (64,), at_least(2), int, help="its width", shapes=True, swept=False),
    Flag("depth", (3,), at_least(2), int, help="its blocks", paper=(4,), swept=False, shapes=True),
    Flag("heads", (4,), at_least(1), int, help="its heads", swept=False, shapes=True),
    Flag("context", (64,), at_least(2), int, help="tokens of a window", swept=False, shapes=True),
    Flag("batch", (8,), at_least(1), int, help="windows of a batch", paper=(16,), swept=False),
    Flag(
        "steps",
        (300,),
        at_least(1),
        int,
        symbol="t_0",
        help="steps of the first training",
        paper=(1000,),
        swept=False,
    ),
    Flag(
        "tuning_steps",
        (200,),
        at_least(1),
        int,
        symbol="t",
        help="steps of the tuning",
        paper=(300,),
        swept=False,
    ),
    Flag(
        "gradients",
        (16,),
        at_least(2),
        int,
        symbol="k",
        help="batches whose gradients are known before",
        paper=(32,),
        swept=False,
    ),
    Flag(
        "encoder",
        (AUTO,),
        PATH,
        str,
        help="folder of a BERT; auto takes the package of make encoder",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag(
        "text_file",
        (AUTO,),
        PATH,
        str,
        help="scored sentences, a TSV; auto takes the tweets of VADER's corpus",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag("encoder_batch", (16,), at_least(1), int, help="sentences of a batch", swept=False),
    Flag("length", (24,), at_least(5), int, help="tokens of a sentence", swept=False),
    Flag(
        "sentences_learned",
        (1024,),
        at_least(16),
        int,
        help="sentences that the encoder learns",
        swept=False,
    ),
)

RANK_BEFORE_TRAINING = Study(
    "rank_before_training",
    "which rank before training: whether spectra at the start predict that of the update",
    FLAGS,
    (ONE_GRADIENT, *TRAININGS),
    prepare=_prepare,
    data=_files,
    about=_about,
    title="Which rank before training",
    page="docs/studies.md",
)
"""What ``python -m experiments.rank_before_training`` runs."""
