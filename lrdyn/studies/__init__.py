"""The registry of studies: experiments whose runs train (a ``Study``)."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrdyn.verification.stating.statement import Study

REGISTRY = {
    "weight_updates": "lrdyn.studies.weight_updates:WEIGHT_UPDATES",
    "labels": "lrdyn.studies.labels:LABELS",
    "dropout_spectra": "lrdyn.studies.dropout_spectra:DROPOUT_SPECTRA",
    "adapters": "lrdyn.studies.adapter_training:ADAPTERS",
    "real_updates": "lrdyn.studies.real_updates:REAL_UPDATES",
    "lora_landscape": "lrdyn.studies.lora_landscape:LORA_LANDSCAPE",
    "low_rank_training": "lrdyn.studies.low_rank_training:LOW_RANK_TRAINING",
    "rank_before_training": "lrdyn.studies.rank_before_training:RANK_BEFORE_TRAINING",
}
"""Name of the command -> where the study is stated; imported when it is asked for."""


def study(name: str) -> "Study":
    """Look up a study by the name of its command.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> study("weight_updates").name
        'weight_updates'
    """
    if name not in REGISTRY:
        raise ValueError(f"study: got {name!r}, wanted one of {', '.join(REGISTRY)}")
    return resolve_name(REGISTRY[name])


def studies() -> "tuple[Study, ...]":
    """All studies, in the order in which they are listed."""
    return tuple(map(study, REGISTRY))
