"""Which way round a model stores its matrices: out x in, or in x out as transformers' ``Conv1D``.

An adapter for PEFT has to know. A square matrix does not tell, so nothing is guessed: the model's
``config.json`` says which family it is of, or the caller does.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lrdyn.core import checks

GPT = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
FAMILIES: dict[str, frozenset[str]] = {
    "gpt2": GPT,
    "openai-gpt": GPT,
    "imagegpt": GPT,
    "decision_transformer": GPT,
    "clvp": frozenset({"c_fc", "c_proj"}),
    "clvp_decoder": frozenset({"c_fc", "c_proj"}),
}
"""``model_type`` of transformers -> modules that are a ``Conv1D``, by the last part of their name;
all others of these models are ``torch.nn.Linear``."""


class Orientation(NamedTuple):
    """Which way round matrices are stored."""

    fan_in_fan_out: bool
    """Whether any is stored transposed: PEFT's word for it."""
    modules: frozenset[str] | None
    """The last parts of the names of those that are; None for all but embeddings."""
    said: str
    """How this is known, in words."""

    def is_transposed(self, module: str) -> bool:
        """Whether the weight of a module, which is no embedding, is stored in x out.

        Example:
            >>> Orientation(True, GPT, "").is_transposed("h.0.attn.c_attn")
            True
        """
        if not self.fan_in_fan_out:
            return False
        return self.modules is None or module.rpartition(".")[2] in self.modules


def orientation(
    modules: Iterable[str], config: Mapping[str, Any] | None, fan_in_fan_out: bool | None
) -> Orientation:
    """Find which way round the weights of modules are stored.

    Args:
        modules: names of the modules.
        config: the content of the model's ``config.json``, if there is one.
        fan_in_fan_out: what the caller says; that counts.

    Raises:
        ValueError: nobody says, and a module is called as those of a family that has both.

    Example:
        >>> orientation(["h.0.attn.c_proj"], {"model_type": "gpt2"}, None).fan_in_fan_out
        True
        >>> orientation(["h.0.attn.c_proj"], None, None)
        Traceback (most recent call last):
        ValueError: fan_in_fan_out: got none for h.0.attn.c_proj and no config.json, wanted True ...
    """
    if fan_in_fan_out is not None:
        way = "in x out" if fan_in_fan_out else "out x in"
        # Beside the Conv1D of such a model its head is a Linear.
        like_gpt = any(module.rpartition(".")[2] in GPT for module in modules)
        names = GPT if fan_in_fan_out and like_gpt else None
        return Orientation(fan_in_fan_out, names, f"weights are stored {way}, as was said")
    if config is not None:
        types = sorted(set(_model_types(config)))
        names = conv1d_modules(config)
        if names:
            known = [kind for kind in types if kind in FAMILIES]
            reason = (
                f"config.json says {', '.join(known)}: {', '.join(sorted(names))} are Conv1D, "
                "stored in x out (--fan-in-fan-out)"
            )
            return Orientation(True, names, reason)
        named = ", ".join(types) or "no model_type"
        return Orientation(False, None, f"config.json says {named}: weights are stored out x in")
    for module in modules:
        if module.rpartition(".")[2] in GPT:
            checks.refuse(
                "fan_in_fan_out",
                f"none for {module} and no config.json",
                "True where it is a Conv1D of transformers, as in GPT-2, False where it is a "
                "torch.nn.Linear",
            )
    return Orientation(
        False, None, "no config.json: weights were taken to be stored out x in, as by nn.Linear"
    )


def conv1d_modules(config: Mapping[str, Any] | None) -> frozenset[str]:
    """The modules that are a ``Conv1D`` in a model of this configuration, by their last parts.

    Example:
        >>> [sorted(conv1d_modules({"model_type": name})) for name in ("clvp", "llama")]
        [['c_fc', 'c_proj'], []]
    """
    types = set() if config is None else set(_model_types(config))
    return frozenset().union(*(names for kind, names in FAMILIES.items() if kind in types))


def _model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """The model_type of a model and of those that it is made of."""
    for key, value in config.items():
        if key == "model_type" and isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _model_types(value)
