"""An adapter of PEFT as weights: W + s B A of a base, or s B A alone, known by their factors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.adapters import lora_files, peft, peft_experts
from lrdyn.adapters.peft import Stored, StoredFactors
from lrdyn.core import checks
from lrdyn.data.tensors import Info
from lrdyn.diagnosis.orientation import conv1d_modules

WEIGHT = ".weight"


class Products:
    """What an adapter makes of the matrices that it adapts, by their names in the base.

    PEFT saves W beside the factors of an embedding or a head (``<module>.base_layer.weight``). It
    is what the factors stand beside, in the place of the base's: more rows if tokens were added.

    Args:
        name: what it is called in messages.
        path: of the adapter.
        stored: the adapter.
        base: weights of the base, if there are any: W is needed for DoRA and PiSSA, and where the
            other side is no adapter.
        config: the content of the base's ``config.json``, if there is one.

    Example:
        >>> factors = peft.StoredFactors(np.ones((3, 1)), np.ones((1, 2)), 2.0)
        >>> product = Products("after", Path("a"), peft.described({"q": factors}))
        >>> product.factors("q.weight")[0].ravel().tolist(), product.infos["q.weight"].shape
        ([2.0, 2.0, 2.0], (3, 2))
    """

    def __init__(
        self,
        name: str,
        path: Path,
        stored: Stored,
        base: Any = None,
        config: Mapping[str, Any] | None = None,
    ):
        self.name, self.path, self.base = name, path, base
        self._as_read, self.notes = stored, {}
        if base is not None:
            modules = (n.removesuffix(WEIGHT) for n in base.infos if n.endswith(WEIGHT))
            stored, self.notes = lora_files.named_as_base(stored, modules)
            stored, notes = peft_experts.named_as_base(stored, base.infos)
            self.notes |= notes
        self.stored = _orient_factors(name, stored, config)
        self.tied = _tied_sizes(config)
        self.infos: dict[str, Info] = {}
        for module, factors in self.stored.factors.items():
            weight = peft_experts.weight_name(module)
            self.infos[weight] = Info(
                path,
                np.result_type(factors.B.dtype, np.float32).name,
                (len(factors.B), factors.A.shape[1]),
            )
            if base is not None:
                self._check_beside(base, weight)
        for saved, array in stored.saved.items():
            # The type of W is that in which W + s B A is rounded: that of the factors is not.
            shape = self.infos[saved].shape if saved in self.infos else array.shape
            self.infos[saved] = Info(path, array.dtype.name, shape)

    def _check_beside(self, base: Any, weight: str) -> None:
        """The base has that weight, of that shape, or the adapter brings it."""
        shape, own = self.infos[weight].shape, self.stored.saved.get(weight)
        known = base.infos.get(weight)
        if known is None:
            # Of two tied weights a file has one.
            if own is None and not self.may_be_tied(weight):
                # PEFT has the names of the model's modules, which its files may not have.
                wanted = f"{shape}: --rename it, or give the base as model.state_dict()"
                checks.refuse(f"{self.name}: {weight}", "no such weight in its base", wanted)
        elif known.shape != shape and (own is None or known.shape[1:] != shape[1:]):
            got, wanted = f"shape {known.shape} in its base", f"{shape}"
            if known.shape == shape[::-1]:
                wanted += ", or the model's config.json beside the base, if it is a Conv1D"
            checks.refuse(f"{self.name}: {weight}", got, wanted)

    def with_base(self, base: Any, config: Mapping[str, Any] | None = None) -> "Products":
        """This adapter beside the weights of a base, and the content of its ``config.json``."""
        return Products(self.name, self.path, self._as_read, base, config)

    def rename(self, names: Mapping[str, str]) -> "Products":
        """This adapter with other names: regular expression -> what takes the place of a match."""

        def rename_one(name: str) -> str:
            for pattern, text in names.items():
                name = re.sub(pattern, text, name)
            return name

        factors, saved = {}, {}
        for module, stored in self.stored.factors.items():
            renamed = rename_one(peft_experts.weight_name(module))
            _add_unique(factors, peft_experts.module_name(renamed) or renamed, stored)
        for name, array in self.stored.saved.items():
            _add_unique(saved, rename_one(name), array)
        embeddings = {rename_one(m + WEIGHT).removesuffix(WEIGHT) for m in self.stored.embeddings}
        stored = self.stored._replace(
            factors=factors, saved=saved, embeddings=frozenset(embeddings)
        )
        return Products(self.name, self.path, stored)

    def may_be_tied(self, name: str) -> bool:
        """Whether the base's configuration ties weights with as many rows as this one has."""
        return self.infos[name].shape[0] in self.tied

    def adapts(self, name: str) -> bool:
        """Whether there are factors of this weight."""
        return peft_experts.module_name(name) in self.stored.factors

    def is_product(self, name: str) -> bool:
        """Whether what is added to a weight is s B A; of DoRA and PiSSA it is not."""
        if not self.adapts(name) or self.stored.config.get("init_lora_weights") == "pissa":
            return False
        return self._factors_of(name).magnitude is None

    def _factors_of(self, name: str) -> StoredFactors:
        return self.stored.factors[peft_experts.module_name(name) or name]

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Factors s B and A of a weight; None where what is added is no such product."""
        if not self.is_product(name):
            return None
        factors = self._factors_of(name)
        B, A = (np.asarray(x, np.result_type(x.dtype, np.float32)) for x in factors[:2])
        return B * B.dtype.type(factors.scale), A

    def start(self, name: str) -> np.ndarray | None:
        """W beside which the factors of a weight stand; None where nobody has it."""
        if name in self.stored.saved:
            return np.asarray(self.stored.saved[name])
        if self.base is None or name not in self.base.infos:
            return None
        return np.asarray(self.base[name])

    def knows(self, name: str) -> bool:
        """Whether an array of the model with the adapter in it is known, and not its change alone.

        Nothing is read.
        """
        in_base = self.base is not None and name in self.base.infos
        return name in self.stored.saved or (self.adapts(name) and in_base)

    def __getitem__(self, name: str) -> np.ndarray:
        """One array of the model with the adapter in it."""
        if not self.adapts(name):
            return np.asarray(self.stored.saved[name])
        module, weight = peft_experts.module_name(name) or name, self.start(name)
        assert weight is not None, f"{name}: {self.name} does not know it"
        adapter = self.stored._replace(factors={module: self.stored.factors[module]}, saved={})
        # In full precision: half precision would round what the adapter adds.
        full = {name: weight.astype(np.result_type(weight.dtype, np.float32))}
        return peft.merged(adapter, full)[name]


def _add_unique(by_name: dict[str, Any], name: str, value: Any) -> None:
    if name in by_name:
        checks.refuse("rename", f"{name} for two", "a name for each")
    by_name[name] = value


def _orient_factors(name: str, stored: Stored, config: Mapping[str, Any] | None) -> Stored:
    """Factors the way round in which a base of this configuration stores each module's weight.

    PEFT goes by the class of a module, and writes into ``fan_in_fan_out`` what the last one of them
    needed: beside the head of a GPT-2, a ``Linear``, its ``Conv1D`` are written as if they were
    such, too.
    """
    conv1d = conv1d_modules(config)
    if not conv1d:
        return stored
    as_read, factors = bool(stored.config.get("fan_in_fan_out")), {}
    for module, own in stored.factors.items():
        is_conv1d = module.rpartition(".")[2] in conv1d
        if module in stored.embeddings or is_conv1d == as_read:
            factors[module] = own
        elif own.magnitude is not None:
            checks.refuse(f"{name}: {module}", "DoRA of a Conv1D", "LoRA of it, or DoRA of others")
        else:
            factors[module] = StoredFactors(own.A.T, own.B.T, own.scale)
    return stored._replace(factors=factors)


def _tied_sizes(config: Mapping[str, Any] | None) -> frozenset[int]:
    """Rows of the embeddings that a configuration ties with a head."""
    parts = [] if config is None else [config, *config.values()]
    parts = [part for part in parts if isinstance(part, Mapping)]
    if not any(part.get("tie_word_embeddings") is True for part in parts):
        return frozenset()
    sizes = (part.get("vocab_size") for part in parts)
    return frozenset(size for size in sizes if type(size) is int)
