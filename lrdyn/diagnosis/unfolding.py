"""Weights of more than two axes as matrices: kernels of a convolution, and stacked experts.

A convolution's weight (out, in, k, k) is the matrix (out, in k k) that acts on patches. Experts of
a mixture are stored as one array (experts, a, b): each is a matrix of its own, ``name[e]``. Models
store them as (experts, out, in), as torch's Linear does, or as (experts, in, out): singular values
and ranks are the same, factors change places.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from lrdyn.data.tensors import Info

EXPERT = re.compile(r"(^|[._])experts?([._]|$)")
"""What stands in the name of a stack of experts."""
FIRST_LAYERS = ("gate_up_proj", "gate_proj", "up_proj", "w1", "w3", "wi")
"""Names of what maps the hidden size to the intermediate one."""
LAST_LAYERS = ("down_proj", "w2", "wo")


class Unfolded:
    """Weights whose arrays of three and four axes are matrices; each is read when it is asked for.

    Args:
        inner: the weights.

    Example:
        >>> from lrdyn.diagnosis.reading import Leaves
        >>> leaves = Leaves("W", {"conv": np.ones((4, 3, 2, 2)), "experts.up": np.ones((2, 5, 3))})
        >>> {name: info.shape for name, info in Unfolded(leaves).infos.items()}
        {'conv': (4, 12), 'experts.up[0]': (5, 3), 'experts.up[1]': (5, 3)}
    """

    def __init__(self, inner: Any):
        self._inner, self._places = inner, {}
        self.infos: dict[str, Info] = {}
        self.path: Path | None = getattr(inner, "path", None)
        # Cores ask for the experts of one stack side by side: it is read once.
        self._lock, self._last = Lock(), ("", np.zeros(0))
        for name, info in inner.infos.items():
            if is_stack(name, info):
                for e in range(info.shape[0]):
                    self._places[f"{name}[{e}]"] = name, e
                    self.infos[f"{name}[{e}]"] = info._replace(shape=info.shape[1:])
                continue
            shape = info.shape
            if len(shape) in (3, 4) and 0 not in shape:
                shape = shape[0], int(np.prod(shape[1:]))
            self._places[name] = name, None
            self.infos[name] = info._replace(shape=shape)

    def __getitem__(self, name: str) -> np.ndarray:
        """One array, as a matrix if it has three or four axes."""
        place, expert = self._places[name]
        if expert is None:
            return np.asarray(self._inner[place]).reshape(self.infos[name].shape)
        with self._lock:
            if self._last[0] != place:
                self._last = place, np.asarray(self._inner[place])
            return self._last[1][expert]


def is_stack(name: str, info: Info) -> bool:
    """Whether an array of three axes is a stack of experts, by its name; else it is a kernel.

    Example:
        >>> info = Info(Path(), "float32", (8, 6, 4))
        >>> is_stack("layers.0.mlp.experts.down_proj", info), is_stack("conv.weight", info)
        (True, False)
    """
    return len(info.shape) == 3 and 0 not in info.shape and bool(EXPERT.search(name))


def orientation_notes(
    infos: Mapping[str, Info], config: Mapping[str, Any] | None
) -> dict[str, str]:
    """Name of each stack -> which way round its experts are stored, or that it is not known.

    The input of the first layer and the output of the last have the hidden size h, which
    ``config.json`` says; without it, a gate and an up in one array beside a down tell: (2 i, h) and
    (h, i) are (out, in), (h, 2 i) and (i, h) are (in, out), and no shapes are both.

    Args:
        infos: of the weights as they are stored.
        config: the content of ``config.json``, if there is one.

    Example:
        >>> infos = {"experts.gate_up_proj": Info(Path(), "float32", (2, 4, 10))}
        >>> infos["experts.down_proj"] = Info(Path(), "float32", (2, 5, 4))
        >>> orientation_notes(infos, None)["experts.down_proj"]
        'each expert is a matrix, stored in x out'
    """
    hidden = _hidden_sizes(config)
    stacks = {name: info.shape[1:] for name, info in infos.items() if is_stack(name, info)}
    ways: dict[str, set[str]] = {}
    for name, (a, b) in stacks.items():
        module, leaf = _module_and_leaf(name)
        if leaf in (*FIRST_LAYERS, *LAST_LAYERS):
            inner, outer = (a, b) if leaf in FIRST_LAYERS else (b, a)
            for h in hidden or _shared_size(stacks, module):
                # A square matrix fits both ways, and says nothing.
                if (inner == h) != (outer == h):
                    ways.setdefault(module, set()).add("in x out" if inner == h else "out x in")
    notes = {}
    for name in stacks:
        # All stacks of one module are stored alike.
        known = ways.get(_module_and_leaf(name)[0], set())
        said = "which way round is not known, and ranks do not tell"
        if len(known) == 1:
            said = f"stored {next(iter(known))}"
        notes[name] = f"each expert is a matrix, {said}"
    return notes


def _module_and_leaf(name: str) -> tuple[str, str]:
    module, _, leaf = name.removesuffix(".weight").rpartition(".")
    return module, leaf


def _hidden_sizes(config: Mapping[str, Any] | None) -> set[int]:
    parts = [] if config is None else [config, *config.values()]
    sizes = (part.get("hidden_size") for part in parts if isinstance(part, Mapping))
    return {size for size in sizes if type(size) is int}


def _shared_size(stacks: Mapping[str, tuple[int, ...]], module: str) -> set[int]:
    """The hidden size, from a gate and an up in one array, and the down beside it."""
    both = [
        shape
        for leaf in ("gate_up_proj", "down_proj")
        for end in ("", ".weight")
        if (shape := stacks.get(f"{module}.{leaf}{end}".removeprefix("."))) is not None
    ]
    if len(both) != 2:
        return set()
    (a, b), (c, d) = both
    return ({b} if b == c and a == 2 * d else set()) | ({a} if a == d and b == 2 * c else set())


def grouped_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """One note for all layers whose experts are stored in one way.

    Example:
        >>> grouped_notes({"l.0.experts.up": "x", "l.1.experts.up": "x"})
        {'l.*.experts.up': 'x'}
    """
    grouped: dict[str, str] = {}
    for name, note in notes.items():
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        key = kind if grouped.get(kind, note) == note else name
        grouped[key] = note
    return grouped


def unfold(weights: Any) -> Any:
    """The weights, with a view of matrices where there is something to unfold.

    Example:
        >>> from lrdyn.diagnosis.reading import Leaves
        >>> unfold(Leaves("W", {"conv": np.ones((4, 3, 2, 2))})).infos["conv"].shape
        (4, 12)
    """
    few: Iterable[Info] = weights.infos.values()
    return Unfolded(weights) if any(len(info.shape) in (3, 4) for info in few) else weights
