"""``adapter_config.json``: what of it is read, and what is refused by name.

A key that this module does not know may stand in the file if it is off (null, false or empty): what
later releases of PEFT add then changes nothing.
"""

import contextlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrdyn.data import patterns
from lrdyn.data.guarded import Refused, read_json, refused
from lrdyn.data.patterns import Patterns, Unsupported

NAME = "adapter_config.json"
READ = frozenset(
    "peft_type r lora_alpha use_rslora use_dora rank_pattern alpha_pattern target_modules "
    "exclude_modules modules_to_save layers_to_transform layers_pattern fan_in_fan_out bias "
    "init_lora_weights target_parameters".split()
)
"""Keys that say what the tensors mean, or which there are."""
KEPT = frozenset(
    "auto_mapping base_model_name_or_path ephemeral_gpu_offload eva_config inference_mode "
    "lora_dropout megatron_core peft_version qalora_group_size revision runtime_config "
    "task_type".split()
)
"""Keys that change nothing of what the tensors mean."""
STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica", "pissa")
"""Starts (``init_lora_weights``) that leave the base as it is; PiSSA's change follows from it."""
EMBEDDINGS = ("embed_tokens", "lm_head", "word_embeddings")
"""Modules that PEFT saves whole unasked, when the vocabulary has changed or they are adapted."""
ALL_LINEAR = "all-linear"
REGULAR = "a regular expression without flags, references to groups and atomic parts"


@dataclass(frozen=True)
class PeftConfig:
    """The content of the file, checked."""

    path: Path
    content: dict[str, Any]
    patterns: Patterns = field(default_factory=Patterns, compare=False, repr=False)
    """Matches its regular expressions."""

    def get(self, key: str) -> Any:
        """Value of a key, or None if it is not there."""
        return self.content.get(key)

    @property
    def entries(self) -> int:
        """Names and patterns that every module is compared with."""
        keys = (
            "target_modules exclude_modules modules_to_save layers_to_transform rank_pattern "
            "alpha_pattern"
        )
        values = (self.get(key) for key in keys.split())
        return sum(len(value) for value in values if isinstance(value, list | dict))

    def refusal(self, key: str, got: Any, wanted: str) -> Refused:
        """Error that refuses the value of a key."""
        return refused(self.path, got if isinstance(got, str) else repr(got), wanted, key)

    def rank(self, module: str) -> int:
        """The rank r of a module: that of the first pattern that fits it, or ``r``."""
        return self._pattern_value("rank_pattern", module, self.content["r"])

    def alpha(self, module: str) -> float | int:
        """The numerator alpha of a module: of the first pattern that fits it, or ``lora_alpha``."""
        return self._pattern_value("alpha_pattern", module, self.content["lora_alpha"])

    def scale(self, module: str) -> float | int:
        """The scale s of a module: alpha / r, or alpha / sqrt(r) of rsLoRA (arXiv 2312.03732).

        Example:
            >>> PeftConfig(Path(), {"r": 4, "lora_alpha": 8, "use_rslora": True}).scale("q")
            4.0
        """
        rank = self.rank(module)
        return self.alpha(module) / (math.sqrt(rank) if self.get("use_rslora") else rank)

    def adapts(self, module: str) -> bool:
        """Whether the module is one of ``target_modules``.

        Example:
            >>> PeftConfig(Path(), {"target_modules": ["query"]}).adapts("layer.0.query")
            True
        """
        target = self.get("target_modules")
        if self.saves_module(module) or self._matches("exclude_modules", module):
            return False
        fits = target == ALL_LINEAR or self._matches("target_modules", module)
        return fits and (target == ALL_LINEAR or self._in_layers(module))

    def holds_parameters(self, module: str) -> bool:
        """Whether a module has one of ``target_parameters``, such as a stack of experts.

        Example:
            >>> config = PeftConfig(Path(), {"target_parameters": ["experts.down_proj"]})
            >>> config.holds_parameters("layers.0.mlp.experts")
            True
        """
        holders = (target.rpartition(".")[0] for target in self.get("target_parameters") or ())
        return any(f".{module}".endswith(f".{holder}") for holder in holders)

    def _matches(self, key: str, module: str) -> bool:
        """Whether the module is one of a key, which has names or a regular expression."""
        target = self.get(key) or ()
        if not isinstance(target, str):
            return any(module == name or module.endswith(f".{name}") for name in target)
        try:
            return self.patterns.fullmatch(target, module)
        except Unsupported as error:
            raise self.refusal(key, target, f"{REGULAR}: {error}") from None

    def _pattern_value(self, key: str, module: str, otherwise: Any) -> Any:
        """The value of the first pattern of a key that fits the module."""
        for pattern, value in (self.get(key) or {}).items():
            try:
                if self.patterns.ends_with(pattern, module):
                    return value
            except Unsupported as error:
                raise self.refusal(key, pattern, f"{REGULAR}: {error}") from None
        return otherwise

    def _in_layers(self, module: str) -> bool:
        layers, patterns = self.get("layers_to_transform"), self.get("layers_pattern")
        if layers is None or layers == []:
            return True
        heads = [patterns] if isinstance(patterns, str) else patterns
        forms = [rf"(?:^|.*?\.){head}\.(\d+)\." for head in heads or ()] or [r".*?\.[^.]*\.(\d+)\."]
        match = next(filter(None, (re.match(form, module) for form in forms)), None)
        # A number of more than 20 digits is that of no layer, and Python refuses it above 4,300.
        number = int(match[1]) if match and len(match[1]) <= 20 else None
        return number in ([layers] if type(layers) is int else layers)

    def saves_module(self, module: str) -> bool:
        """Whether the module, or one that it is in, is saved whole (``modules_to_save``)."""
        parts = module.split(".")
        above = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(
            name.endswith(suffix) for suffix in self.get("modules_to_save") or () for name in above
        )

    def saves(self, name: str, adapted: Iterable[str]) -> bool:
        """Whether a tensor of the base is saved whole: of such a module, a bias, an embedding.

        Args:
            name: its name in the base.
            adapted: modules with factors.
        """
        module, _, leaf = name.rpartition(".")
        bias = self.get("bias")
        if leaf == "bias" and (bias == "all" or (bias == "lora_only" and module in adapted)):
            return True
        return self.saves_module(module) or is_embedding(module)


def is_embedding(module: str) -> bool:
    """Whether PEFT may save the module whole unasked.

    Example:
        >>> is_embedding("model.embed_tokens")
        True
    """
    return module.rpartition(".")[2] in EMBEDDINGS


def read(path: Path) -> PeftConfig:
    """Read and check the file.

    Raises:
        Refused: it is damaged, no LoRA, or turns something on that is not read.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), NAME)
        >>> _ = path.write_text('{"peft_type": "ADALORA"}')
        >>> read(path)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: ...: peft_type: got ADALORA, wanted LORA: ...
    """
    content = read_json(path, "the configuration of an adapter")
    if not isinstance(content, dict):
        raise refused(path, f"a {type(content).__name__}", "the configuration of an adapter")
    return check_config(PeftConfig(path, content))


def check_config(config: PeftConfig) -> PeftConfig:
    """The configuration itself, if all that is turned on in it is read.

    Raises:
        Refused: a key holds what is not read.

    Example:
        >>> check_config(PeftConfig(Path("a"), {"peft_type": "LORA", "r": 0}))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: r: got 0, wanted an integer >= 1
    """
    if config.get("peft_type") != "LORA":
        wanted = "LORA: of PEFT's adapters LoRA, rsLoRA, DoRA and PiSSA are read"
        raise config.refusal("peft_type", config.get("peft_type"), wanted)
    for key, (fits, wanted) in FORMS.items():
        if key == "target_modules" and config.get(key) is None and config.get("target_parameters"):
            continue
        if not fits(config.get(key)):
            raise config.refusal(key, config.get(key), wanted)
    start = config.content.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in STARTS:
        wanted = (
            "a start that leaves the base as it is, or pissa: "
            "convert it with PEFT's path_initial_model_for_weight_conversion"
        )
        raise config.refusal("init_lora_weights", start, wanted)
    if config.get("fan_in_fan_out") and config.get("use_dora"):
        wanted = "false beside use_dora: magnitudes of a transposed weight are not read"
        raise config.refusal("fan_in_fan_out", True, wanted)
    for key, value in config.content.items():
        # Refused, not ignored: an unknown switch that is on may change what the tensors mean.
        if key not in READ | KEPT and value not in (None, False, "", [], {}):
            raise config.refusal(key, value, "it off (null, false or empty): it is not read")
    return config


def _is_number(x: Any) -> bool:
    # ``type`` and not ``isinstance``: a bool is an int of Python's, and of JSON something else.
    return (type(x) is int and abs(x) < 2**64) or (type(x) is float and math.isfinite(x))


def _is_length(x: Any) -> bool:
    return type(x) is int and 1 <= x < 2**31


def _is_switch(x: Any) -> bool:
    return x is None or type(x) is bool


def _is_pattern(x: Any) -> bool:
    """Whether it is a regular expression, of parts that are matched in polynomial time."""
    with contextlib.suppress(Unsupported):
        return isinstance(x, str) and bool(patterns.parsed(x) or not x)
    return False


def _is_plain(x: Any) -> bool:
    with contextlib.suppress(Unsupported):
        return isinstance(x, str) and patterns.is_plain(x)
    return False


def _are_texts(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(text, str) and text for text in x)


def _maps_patterns(fits: Any) -> Any:
    return lambda x: (
        x is None
        or (
            isinstance(x, dict)
            and all(_is_pattern(key) and fits(value) for key, value in x.items())
        )
    )


FORMS: dict[str, tuple[Any, str]] = {
    "r": (_is_length, "an integer >= 1"),
    "lora_alpha": (_is_number, "a number"),
    "use_rslora": (_is_switch, "true or false"),
    "use_dora": (_is_switch, "true or false"),
    "fan_in_fan_out": (_is_switch, "true or false"),
    "rank_pattern": (_maps_patterns(_is_length), "regular expressions with integers >= 1"),
    "alpha_pattern": (_maps_patterns(_is_number), "regular expressions with numbers"),
    "target_modules": (
        lambda x: _are_texts(x) or _is_pattern(x),
        "names of modules or a regular expression",
    ),
    "exclude_modules": (
        lambda x: x is None or _are_texts(x) or _is_pattern(x),
        "names or a regular expression",
    ),
    "modules_to_save": (lambda x: x is None or _are_texts(x), "names of modules"),
    "target_parameters": (
        lambda x: x is None or (_are_texts(x) and all("." in name for name in x)),
        "names of parameters of modules, such as experts.down_proj",
    ),
    "layers_to_transform": (
        lambda x: x is None or all(type(n) is int for n in (x if isinstance(x, list) else [x])),
        "integers",
    ),
    "layers_pattern": (
        # They stand within an expression whose groups are read: ``re`` matches them.
        lambda x: (
            x is None or _is_plain(x) or (_are_texts(x) and len(x) <= 64 and all(map(_is_plain, x)))
        ),
        "regular expressions without repetitions and groups",
    ),
    "bias": (lambda x: x in (None, "none", "all", "lora_only"), "none, all or lora_only"),
}
"""What the values must be."""
