"""Figures 4, 5, 7 and 8: adapters on a pretrained encoder that learns from few sentences.

Named ``adapters`` on the command line.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrdyn.data import encoder
from lrdyn.studies.adapter_training import sentences, tasks
from lrdyn.studies.adapter_training.cells import METHODS
from lrdyn.studies.adapter_training.factors import FACTORS
from lrdyn.studies.adapter_training.few_shot import FEW_SHOT
from lrdyn.studies.adapter_training.one_step import REAL_STEP
from lrdyn.studies.adapter_training.ranks import RANKS
from lrdyn.studies.adapter_training.sentences import AUTO
from lrdyn.studies.adapter_training.singular_value_evolution import EVOLUTION
from lrdyn.studies.adapter_training.tasks import POOLS
from lrdyn.studies.adapter_training.widths import WIDTH_SWEEP
from lrdyn.verification.stating.flags import POSITIVE, Domain, Flag, at_least, one_of
from lrdyn.verification.stating.statement import Study


def _about(settings: Mapping[str, Any]) -> str:
    """What is read, after it was: what is missing or does not fit is said before anything runs."""
    model = sentences.read(sentences.folder_of(settings["encoder"])).model
    width = len(model.embeddings.norm.gain)
    _check(
        settings,
        layers=len(model.layers),
        width=width,
        positions=len(model.embeddings.positions),
        pooler=model.pooler is not None,
    )
    learned = []
    for name in settings["task"]:
        if name == tasks.DIGITS:
            learned.append("digits, by a perceptron that knows others")
            continue
        task = tasks.Task(
            name,
            encoder=settings["encoder"],
            text_file=settings["text_file"],
            train_file=settings["train_file"],
            dev_file=settings["dev_file"],
            data_dir=settings.get("data_dir", ""),
            tested=settings["dev_pairs"],
            layers=settings["layers"],
            length=settings["length"],
            pool=settings["pool"],
        )
        parts = tasks.texts_of(task)[2]
        few = min(len(parts["train"]), len(parts["rate_train"]))
        if few < max(settings["examples"]):
            got = max(settings["examples"])
            raise ValueError(f"--examples: got {got}, wanted at most {few}, the texts of {name}")
        learned.append(
            f"{name} ({len(parts['train']):,} texts to draw from, {len(parts['test']):,} to test "
            f"on, {len(parts['rate_train']):,} and {len(parts['rate_test']):,} to choose rates on)"
        )
    every = ", all of them adapted," if settings["layers"] == len(model.layers) else ""
    about = f"on an encoder of {len(model.layers)} layers{every} of width {width}"
    return f"{about}: {'; '.join(learned)}"


def _prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Take no more layers and tokens than the encoder at hand has, unless they were asked for."""
    try:
        config = encoder.config_of(sentences.folder_of(settings["encoder"]))
    except (ValueError, OSError):  # said before a run begins, as is what else is wrong
        return settings
    most = {"layers": config.num_hidden_layers, "length": config.max_position_embeddings}
    return settings | {n: min(settings[n], m) for n, m in most.items() if n not in given}


def _check(
    settings: Mapping[str, Any], *, layers: int, width: int, positions: int, pooler: bool
) -> None:
    """Refuse what does not fit to the encoder."""
    if settings["layers"] > layers:
        raise ValueError(f"--layers: got {settings['layers']}, wanted at most {layers}")
    if settings["length"] > positions:
        raise ValueError(
            f"--length: got {settings['length']}, wanted at most {positions}, the encoder's table "
            "of positions"
        )
    if settings["pool"] == "pooler" and not pooler:
        raise ValueError("--pool: got 'pooler', wanted 'mean': the encoder has no pooler")
    rank = settings["rank"][0]
    if "evolution" in settings["part"] and 2 * rank >= width:
        raise ValueError(f"--rank: got {rank}, wanted less than half of the width {width}")


def _files(settings: Mapping[str, Any]) -> tuple[Path, ...]:
    place = settings.get("data_dir", "")
    names = [settings[name] for name in ("encoder", "train_file", "dev_file")]
    own = tasks.file_of_sentiment(settings["text_file"], place)
    return (*sentences.files_of(*names, data_dir=place), *((own,) if own else ()))


PARTS = ("evolution", "factors", "few_shot", "ranks")
PATH = Domain(text="a path")

FLAGS = (
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
        "task",
        ("sentiment",),
        one_of(*tasks.TASKS, tasks.DIGITS),
        str,
        help="what is learned: the sentiment of a sentence, the similarity of two, digits",
        paper=tasks.TASKS,
        shapes=True,
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
    Flag(
        "train_file",
        (AUTO,),
        PATH,
        str,
        help="pairs to learn similarity from, a TSV or CSV; auto takes STS-B's",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag(
        "dev_file",
        (AUTO,),
        PATH,
        str,
        help="pairs to test on",
        shapes=True,
        swept=False,
        source=True,
    ),
    Flag(
        "dev_pairs",
        (500,),
        at_least(2),
        int,
        help="texts to test on, at most",
        paper=(1500,),
        swept=False,
    ),
    Flag(
        "part", PARTS, one_of(*PARTS), str, help="trainings to run: Figure 4, 5, 7, 8", shapes=True
    ),
    Flag(
        "method",
        ("lora_unit", "lora", "deep_lora"),
        one_of(*METHODS),
        str,
        help="methods of Figures 7 and 8",
        paper=tuple(name for name in METHODS if name != "lora_b"),
        shapes=True,
    ),
    Flag(
        "rank",
        (8, 16, 64),
        at_least(1),
        int,
        symbol="r",
        help="ranks of Figure 8; the first is that of the other figures",
        paper=(8, 4, 16, 32, 64),
        shapes=True,
    ),
    Flag(
        "examples",
        (16, 64),
        at_least(2),
        int,
        symbol="n",
        help="examples of Figure 7; Figure 4 takes the most, 5 takes 64, 8 takes 16 and 64",
        paper=(16, 64, 256, 1024),
        shapes=True,
    ),
    Flag(
        "layers", (2,), at_least(1), int, help="layers that are adapted, the last ones", swept=False
    ),
    Flag("length", (32,), at_least(5), int, help="tokens of a text", paper=(40,), swept=False),
    Flag(
        "pool",
        ("mean",),
        one_of(*POOLS),
        str,
        help="what the head reads: the mean over the tokens, or what the pooler makes of the first",
        shapes=True,
        swept=False,
    ),
    Flag("steps", (100,), at_least(1), int, symbol="t", help="steps of a training", swept=False),
    Flag(
        "rate_seeds",
        (3,),
        at_least(1),
        int,
        help="trainings on which each rate is tried",
        paper=(4,),
        swept=False,
    ),
    Flag(
        "init_scale",
        (1.0, 1e-3),
        POSITIVE,
        float,
        symbol="eps",
        help="init scale of Deep LoRA in Figure 4; the smallest is that of the other figures",
        shapes=True,
    ),
    Flag(
        "center",
        ("no", "yes"),
        one_of("no", "yes"),
        str,
        help="whether Figure 4's product is added less its start",
        shapes=True,
    ),
)

ADAPTERS = Study(
    "adapters",
    "Figures 4, 5, 7, 8: adapters on a pretrained encoder",
    FLAGS,
    (REAL_STEP, WIDTH_SWEEP, FEW_SHOT, RANKS, EVOLUTION, FACTORS),
    prepare=_prepare,
    data=_files,
    about=_about,
    title="Figures 4, 5, 7 and 8",
    page="docs/studies.md",
)
"""What ``python -m experiments.adapters`` runs."""
