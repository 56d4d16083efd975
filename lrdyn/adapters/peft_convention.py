"""What a written adapter does to a weight, by PEFT's own rules: a check of what was written.

It shares no code with :mod:`lrdyn.adapters.peft`, which writes: names, ranks, scales and which way
round a weight lies are found anew, as PEFT finds them when it loads the files. In PEFT the way
round follows from the module (``torch.nn.Linear``, transformers' ``Conv1D``, an embedding), not
from what the configuration says of it, so that it is asked for here.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.data import guarded, tensors

FRONT = "base_model.model."


class WrittenAdapter:
    """The two files of an adapter, opened.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Example:
        >>> import tempfile
        >>> from lrdyn.adapters import peft
        >>> folder = tempfile.mkdtemp()
        >>> factors = peft.StoredFactors(np.ones((3, 2)), np.ones((2, 4)), 1.5)
        >>> peft.write(folder, peft.described({"q": factors}))
        >>> WrittenAdapter(folder).apply("q.weight", np.zeros((3, 4)))[0]
        array([3., 3., 3., 3.])
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        content = guarded.content(folder / "adapter_config.json", most=guarded.CONFIGURATION)
        self._config: dict[str, Any] = json.loads(content)
        self._tensors = tensors.opened(folder / "adapter_model.safetensors")

    def modules(self) -> Iterator[str]:
        """Names of the modules of the base that have factors."""
        for name in self._tensors:
            if name.endswith((".lora_A.weight", ".lora_embedding_A")):
                yield name.removeprefix(FRONT).rsplit(".lora_", 1)[0]

    def _pattern_value(self, key: str, module: str, otherwise: Any) -> Any:
        # PEFT's get_pattern_key: a whole name, or its end behind a dot.
        for pattern, value in (self._config.get(key) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return otherwise

    def _scaling(self, module: str) -> tuple[int, float]:
        r = self._pattern_value("rank_pattern", module, self._config["r"])
        alpha = self._pattern_value("alpha_pattern", module, self._config["lora_alpha"])
        return r, alpha / (math.sqrt(r) if self._config.get("use_rslora") else r)

    def apply(self, name: str, weight: np.ndarray, *, is_conv1d: bool = False) -> np.ndarray | None:
        """The array that PEFT has in place of one of the base; None where that stays.

        Args:
            name: of the array in the base.
            weight: the array.
            is_conv1d: whether its module is a ``Conv1D`` of transformers, which stores it
                transposed.

        Raises:
            ValueError: the product has another shape than the weight: PEFT does not load the file.
        """
        module, _, leaf = name.rpartition(".")
        if FRONT + name in self._tensors:
            return self._tensors[FRONT + name]
        # What the module wraps: a weight with what its factors add, or a bias.
        inner = f"{FRONT}{module}.base_layer.{leaf}"
        replaced = self._tensors[inner] if inner in self._tensors else None
        A_name = f"{FRONT}{module}.lora_A.weight"
        is_embedding = f"{FRONT}{module}.lora_embedding_A" in self._tensors
        if leaf != "weight" or not (is_embedding or A_name in self._tensors):
            return replaced
        weight = weight if replaced is None else replaced
        r, scaling = self._scaling(module)
        if is_embedding:
            A = self._tensors[f"{FRONT}{module}.lora_embedding_A"]
            B = self._tensors[f"{FRONT}{module}.lora_embedding_B"]
        else:
            A, B = self._tensors[A_name], self._tensors[f"{FRONT}{module}.lora_B.weight"]
        kind = np.result_type(weight.dtype, np.float32)
        delta = (B.astype(kind) @ A.astype(kind)) * kind.type(scaling)
        delta = delta.T if is_embedding or is_conv1d else delta
        if delta.shape != weight.shape or len(A) != r:
            raise ValueError(
                f"{name}: got a product of shape {delta.shape} and rank {len(A)} in the file, "
                f"wanted {weight.shape} and {r}"
            )
        return weight.astype(kind) + delta
