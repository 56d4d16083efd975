"""Records of a run: layers at increasing steps, from whatever library trained them."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lrdyn.verification.stating.mistakes import BadInput

Order = Literal["forward", "backward"]
"""Whether the layer that acts first, W_1, stands first or last."""
PRECISIONS = ("float32", "float64")
KERNEL = "kernel"
"""What flax calls a matrix that acts from the right: x @ kernel."""


class Records(NamedTuple):
    """Layers of one run at its recorded steps."""

    steps: tuple[int, ...]
    """Recorded steps, increasing; time in steps of the optimiser."""
    layers: tuple[Float[np.ndarray, "step ..."], ...]
    """W_1, ..., W_L, of shape (step, out, in)."""
    remarks: tuple[str, ...] = ()
    """What was done to read them, for the verdict."""

    @property
    def dtype(self) -> str:
        """Precision of the run."""
        return self.layers[0].dtype.name

    @property
    def first(self) -> tuple[np.ndarray, ...]:
        """The layers of the first record."""
        return tuple(W[0] for W in self.layers)


def records_of(
    weights: Iterable[tuple[Any, Any]],
    *,
    name: str = "weights",
    layers_of: Callable[[Any], Sequence[Any]] | None = None,
    order: Order = "forward",
    matrices: bool = True,
) -> Records:
    """Read the records of a run.

    Args:
        weights: ``(t, layers)`` for each recorded step t. The layers are arrays of NumPy, JAX or
            torch of shape (out, in): a sequence, W_1, which acts first, first; or a mapping or any
            PyTree of arrays, ordered by the numbers in their names (``"0.weight"``, ``"W2"``,
            ``Dense_1/kernel``). A ``kernel``, as flax has it, acts from the right and is
            transposed.
        name: what messages call them.
        layers_of: maps what was recorded at a step to the sequence of its layers.
        order: ``"backward"`` if the last layer, W_L, stands first.
        matrices: whether each layer must have two axes and fit the one before.

    Raises:
        BadInput: fewer than two records; a step that is no integer, negative, twice or out of
            order; names without an order; shapes that change or do not chain; another type than
            float32 or float64; a record that is a view of another; a first record that is not
            finite.

    Example:
        >>> records = records_of([(0, [np.eye(2)]), (5, [2 * np.eye(2)])])
        >>> records.steps, records.layers[0].shape, records.dtype
        ((0, 5), (2, 2, 2), 'float64')
        >>> records_of([(0, {"enc": np.eye(2), "dec": np.eye(2)}), (1, {})])
        Traceback (most recent call last):
        lrdyn.system.messages.BadInput: weights[0]: got names 'dec', 'enc', which ...
    """
    if order not in ("forward", "backward"):
        raise BadInput(f"order: got {order!r}, wanted 'forward' or 'backward'")
    records = list(weights)
    if len(records) < 2:
        got = "one record" if records else "no record"
        raise BadInput(f"{name}: got {got}, wanted two or more: the first is the start of theory")
    steps, every, remarks = [], [], dict[str, None]()
    for place, record in enumerate(records):
        where = f"{name}[{place}]"
        if not isinstance(record, tuple | list) or len(record) != 2:
            raise BadInput(f"{where}: got {type(record).__name__}, wanted a pair (step, layers)")
        steps.append(_step(where, record[0], steps))
        layers, said = _layers(where, record[1], layers_of)
        remarks |= dict.fromkeys(said)
        every.append(layers[::-1] if order == "backward" else layers)
    _check_alike(name, every, matrices=matrices)
    if lost := [place for place, W in enumerate(every[0]) if not np.all(np.isfinite(W))]:
        raise BadInput(
            f"{name}[0]: got a layer {lost[0] + 1} that is not finite, wanted numbers: theory "
            "starts from the first record"
        )
    stacked = tuple(np.stack(column) for column in zip(*every, strict=True))
    return Records(tuple(steps), stacked, tuple(remarks))


def _step(where: str, step: Any, before: Sequence[int]) -> int:
    is_integer = isinstance(step, int | np.integer) and not isinstance(step, bool)
    if not is_integer or not 0 <= step < 2**31:
        raise BadInput(f"{where}: got step {step!r}, wanted an integer, 0 or more")
    if before and step == before[-1]:
        raise BadInput(f"{where}: got step {step} twice, wanted each once")
    if before and step < before[-1]:
        raise BadInput(f"{where}: got step {step} behind {before[-1]}, wanted increasing steps")
    return int(step)


def _layers(
    where: str, recorded: Any, layers_of: Callable[[Any], Sequence[Any]] | None
) -> tuple[list[np.ndarray], list[str]]:
    """The layers of one record in the order in which they act, and what was done."""
    if layers_of is not None:
        recorded = layers_of(recorded)
    if _is_array(recorded):
        recorded = [recorded]
    if isinstance(recorded, list | tuple) and all(map(_is_array, recorded)):
        named, said = {str(i): W for i, W in enumerate(recorded)}, []
    else:
        named, said = _by_name(where, recorded)
    if not named:
        raise BadInput(f"{where}: got no array, wanted the layers of the network")
    arrays = [_as_numpy(where, key, W) for key, W in named.items()]
    return arrays, said


def _by_name(where: str, tree: Any) -> tuple[dict[str, Any], list[str]]:
    """Arrays of a mapping or a PyTree, ordered by the numbers in their names."""
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_array)[0]
    named = {"/".join(map(_key, path)): leaf for path, leaf in leaves if _is_array(leaf)}
    # One pattern with other numbers in it: anything else has no order that a reader would guess.
    patterns = {re.sub(r"\d+", "#", key) for key in named}
    if len(patterns) > 1:
        shown = ", ".join(map(repr, sorted(named)[:4]))
        raise BadInput(
            f"{where}: got names {shown}, which are not one name with numbers, wanted a sequence "
            "of layers, or layers_of="
        )
    ordered = {key: named[key] for key in sorted(named, key=natural_order)}
    if patterns and next(iter(patterns)).rpartition("/")[2].rpartition(".")[2] == KERNEL:
        said = ["layers: kernels, which act from the right, are transposed"]
        return {key: _transposed(W) for key, W in ordered.items()}, said
    return ordered, []


def natural_order(text: str) -> list[tuple[int, str]]:
    """A key by which names are sorted as one counts: 2 before 10.

    Example:
        >>> sorted(["W10", "W2"], key=natural_order)
        ['W2', 'W10']
    """
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or any(
        hasattr(value, name) for name in ("detach", "__jax_array__", "__array__")
    )


def _transposed(W: Any) -> Any:
    return np.swapaxes(_as_numpy("weights", "", W), -1, -2)


def _as_numpy(where: str, key: str, W: Any) -> np.ndarray:
    """An array of torch, JAX or NumPy as one of NumPy, in one of the two precisions."""
    try:
        if hasattr(W, "detach"):
            W = W.detach().cpu().numpy()
        elif hasattr(W, "__jax_array__"):  # a variable of NNX
            W = W.__jax_array__()
        array = np.asarray(W)
        kind = array.dtype.name
    except (TypeError, ValueError, RuntimeError):  # torch has types that NumPy does not know
        array, kind = np.zeros(()), str(getattr(W, "dtype", type(W).__name__))
    if kind not in PRECISIONS:
        raise BadInput(
            f"{where}: got {kind} of layer {key!r}, wanted float32 or float64: rounding of other "
            "types hides what theory says"
        )
    return array


def _check_alike(name: str, every: Sequence[Sequence[np.ndarray]], *, matrices: bool) -> None:
    """Refuse records that differ in number, type or shape, or that are views of each other."""
    first = every[0]
    for number, W in enumerate(first if matrices else (), start=1):
        where = f"{name}[0]: got shape {W.shape} of layer {number}"
        if W.ndim != 2 or not W.size:
            raise BadInput(f"{where}, wanted a matrix (out, in); layers_of= chooses the layers")
        rows = first[number - 2].shape[0]
        if number > 1 and W.shape[1] != rows:
            raise BadInput(
                f"{where}, wanted {rows} columns, the rows of layer {number - 1}; layers of shape "
                "(in, out) are transposed, and order='backward' has W_L first"
            )
    kind = first[0].dtype
    for place, layers in enumerate(every):
        if len(layers) != len(first):
            got = f"{len(layers)} layers"
            raise BadInput(f"{name}[{place}]: got {got}, wanted {len(first)} as in the first")
        for number, (W, of_first) in enumerate(zip(layers, first, strict=True), start=1):
            where = f"{name}[{place}]: got"
            if W.shape != of_first.shape:
                got = f"shape {W.shape} of layer {number}"
                raise BadInput(f"{where} {got}, wanted {of_first.shape} as in the first")
            if W.dtype != kind:
                raise BadInput(f"{where} {W.dtype} of layer {number}, wanted {kind} everywhere")
        # Some may be the same at all steps: frozen layers. So may arrays of JAX, which stay.
        pairs = list(zip(layers, first, strict=True))
        if place and all(W.flags.writeable and _address(W) == _address(A) for W, A in pairs):
            raise BadInput(
                f"{name}[{place}]: got the memory of the first record, wanted a copy: layers that "
                "are trained in place change their records"
            )


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
