"""An adapter of PEFT as weights: W + s B A of a base, or s B A alone, known by their factors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.adapters import peft
from lrdyn.adapters.peft import Stored
from lrdyn.core import checks
from lrdyn.data.tensors import Info

WEIGHT = ".weight"


class Products:
    """What an adapter makes of the matrices that it adapts, by their names in the base.

    Args:
        name: what it is called in messages.
        path: of the adapter.
        stored: the adapter.
        base: weights of the base, if there are any: W is needed for DoRA, and where the other side
            is no adapter.

    Example:
        >>> factors = peft.StoredFactors(np.ones((3, 1)), np.ones((1, 2)), 2.0)
        >>> product = Products("after", Path("a"), peft.described({"q": factors}))
        >>> product.factors("q.weight")[0].ravel().tolist(), product.infos["q.weight"].shape
        ([2.0, 2.0, 2.0], (3, 2))
    """

    def __init__(self, name: str, path: Path, stored: Stored, base: Any = None):
        self.name, self.path, self.stored, self.base = name, path, stored, base
        if stored.config.get("init_lora_weights") == "pissa":
            checks.refuse(
                name,
                "a PiSSA adapter, which does not stand beside the base",
                "a LoRA: lrdyn.adapters.peft.converted makes one of it",
            )
        self.infos: dict[str, Info] = {}
        for module, factors in stored.factors.items():
            kind = np.result_type(factors.B.dtype, np.float32).name
            shape = (len(factors.B), factors.A.shape[1])
            known = getattr(base, "infos", {}).get(module + WEIGHT)
            if base is not None and (known is None or known.shape != shape):
                got = "no such weight" if known is None else f"shape {known.shape}"
                checks.refuse(f"{name}: {module}{WEIGHT}", f"{got} in its base", f"{shape}")
            self.infos[module + WEIGHT] = Info(path, kind, shape)
        for saved, array in stored.saved.items():
            self.infos[saved] = Info(path, array.dtype.name, array.shape)

    def beside(self, base: Any) -> "Products":
        """This adapter beside the weights of a base."""
        return Products(self.name, self.path, self.stored, base)

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Factors s B and A of a weight; None where it is saved whole, or scaled by DoRA."""
        module = name.removesuffix(WEIGHT)
        factors = self.stored.factors.get(module)
        if factors is None or factors.magnitude is not None or name in self.stored.saved:
            return None
        B, A = (np.asarray(x, np.result_type(x.dtype, np.float32)) for x in factors[:2])
        return B * B.dtype.type(factors.scale), A

    def __getitem__(self, name: str) -> np.ndarray:
        """One array of the model with the adapter in it."""
        if name in self.stored.saved:
            return np.asarray(self.stored.saved[name])
        if self.base is None:
            checks.refuse(self.name, f"an adapter without its base for {name}", "its base: --base")
        module = name.removesuffix(WEIGHT)
        adapter = self.stored._replace(factors={module: self.stored.factors[module]}, saved={})
        weight: Mapping[str, Any] = {name: np.asarray(self.base[name])}
        # In full precision: half precision would round what the adapter adds.
        full = {name: weight[name].astype(np.result_type(weight[name].dtype, np.float32))}
        return peft.merged(adapter, full)[name]
