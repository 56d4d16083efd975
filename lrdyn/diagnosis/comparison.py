"""Two sets of weights side by side: which arrays can be compared, and notes on the others."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from lrdyn.core import checks
from lrdyn.core.selection import Patterns
from lrdyn.core.show import make_printable
from lrdyn.data import Refused
from lrdyn.data.tensors import Info
from lrdyn.diagnosis import reading
from lrdyn.diagnosis.products import Products
from lrdyn.diagnosis.reading import Weights

SHOWN = 8
"""Names in a line, at most."""


class ArrayPair(NamedTuple):
    """One array before and after, on the rows that both have."""

    name: str
    stored_before: np.ndarray | None
    """W before, as it was stored; None where an adapter stands alone."""
    stored_after: np.ndarray | None
    """W after, as it was stored; None where the update is known by its factors."""
    types: tuple[str, str]
    """Types in which they were stored."""
    factors: tuple[np.ndarray, np.ndarray] | None = None
    """B and A, whose product is the update, of an adapter."""

    @property
    def before(self) -> np.ndarray | None:
        """W before the training, as float32 or float64."""
        return None if self.stored_before is None else reading.widen(self.stored_before)

    @property
    def after(self) -> np.ndarray | None:
        """W after the training, as float32 or float64; None where factors are all that is known."""
        return None if self.stored_after is None else reading.widen(self.stored_after)

    @property
    def update(self) -> np.ndarray:
        """Difference W after - W before, or the product of the factors."""
        if self.factors is not None:
            return self.factors[0] @ self.factors[1]
        assert self.before is not None
        assert self.after is not None
        return self.after - self.before

    @property
    def whole_after(self) -> np.ndarray:
        """W after the training, also where it is known by its factors alone."""
        if self.after is not None:
            return self.after
        return self.update if self.before is None else self.before + self.update


class Compared(NamedTuple):
    """What two sets of weights have in common."""

    before: Weights
    after: Weights
    matrices: tuple[str, ...]
    """Names of those that are compared."""
    vectors: tuple[str, ...]
    """Names of other arrays that both have: norms, biases, kernels of a convolution."""
    notes: dict[str, str]
    """Name -> why it is not compared, or not as a whole."""


def compare(before: Weights, after: Weights, select: Patterns) -> Compared:
    """Look at names, shapes and types; no numbers are read.

    Args:
        before: weights before the training.
        after: weights after it.
        select: which matrices.

    Raises:
        ValueError: no matrix fits that both have.

    Example:
        >>> sides = ({"W": np.eye(2), "b": np.ones(2)}, {"W": np.eye(2), "b": np.ones(3)})
        >>> both = compare(*(reading.weights("", side) for side in sides), "*")
        >>> both.matrices, both.notes
        (('W',), {'b': 'shape (2,) before and (3,) after'})
    """
    if isinstance(after, Products):
        return _compare_adapter(before, after, select)
    matrices, vectors, notes = [], [], {}
    wanted = set(reading.matrices(before.infos, select))
    for name, info in before.infos.items():
        other = after.infos.get(name)
        is_matrix = reading.is_matrix(info)
        if is_matrix and name not in wanted:
            continue
        note, comparable = _compare_infos(info, other)
        if note:
            notes[name] = note
        if comparable:
            (matrices if is_matrix else vectors).append(name)
    wanted_after = set(reading.matrices(after.infos, select))
    for name, info in after.infos.items():
        if name not in before.infos and (name in wanted_after or not reading.is_matrix(info)):
            notes[name] = f"only after, of shape {info.shape}"
    if not matrices:
        among = first_names(reading.matrices(before.infos, "*"))
        checks.refuse("select", repr(select), f"some matrices that both sides have, among {among}")
    return Compared(before, after, tuple(matrices), tuple(vectors), notes)


def _compare_adapter(before: Weights, after: Products, select: Patterns) -> Compared:
    """What an adapter changes of its base, or of another adapter of it."""
    other = before if isinstance(before, Products) else None
    infos = after.infos if other is None else other.infos | after.infos
    fitting = set(reading.matrices(infos, select))
    matrices, vectors, notes = [], [], dict(after.notes)
    for name, info in infos.items():
        is_matrix = reading.is_matrix(info)
        if is_matrix and name not in fitting:
            continue
        if other is not None:
            note, comparable = _note_beside_another(other, after, name)
        elif after.base is None:
            note, comparable = _note_alone(after, name)
        else:
            note, comparable = _note_beside_base(before, after, name)
        if note:
            notes[name] = note
        if comparable:
            (matrices if is_matrix else vectors).append(name)
    if not matrices:
        among = first_names(reading.matrices(infos, "*"))
        checks.refuse("select", repr(select), f"some matrices of the adapter, among {among}")
    return Compared(before, after, tuple(matrices), tuple(vectors), notes)


def _note_beside_base(before: Weights, after: Products, name: str) -> tuple[str, bool]:
    """Note on an array that an adapter changes, and whether its change is known."""
    info, known = after.infos[name], before.infos.get(name)
    if known is not None:
        note, comparable = _compare_infos(known, info)
        if after.adapts(name) and after.may_be_tied(name):
            tied = (
                "where the model has a head tied with it (config.json), PEFT moves this one alone "
                "beside the base, and both when it merges"
            )
            note = f"{note}; {tied}" if note else tied
        return note, comparable
    if after.is_product(name):
        # Files have one of two tied weights.
        return "not in the base, as if tied with another: known by its factors alone", True
    return f"only after, of shape {info.shape}", False


def _note_alone(after: Products, name: str) -> tuple[str, bool]:
    """Likewise without its base."""
    if after.is_product(name):
        return "", True
    if after.adapts(name):
        _refuse_without_base(after, name)
    return "saved whole: what changed is seen beside its base", False


def _note_beside_another(before: Products, after: Products, name: str) -> tuple[str, bool]:
    """Likewise beside another adapter; where one of the two lacks it, it adds nothing."""
    sides = [side for side in (before, after) if name in side.infos]
    for side in sides:
        if (
            side.adapts(name)
            and not side.is_product(name)
            and not all(other.knows(name) for other in (before, after))
        ):
            _refuse_without_base(side, name)
    if len(sides) == 1:
        adapts = sides[0].adapts(name)
        return ("" if adapts else "saved whole by one side only"), adapts
    if before.adapts(name) != after.adapts(name) and not (before.knows(name) and after.knows(name)):
        return "factors on one side, saved whole on the other: compare each with the base", False
    return _compare_infos(before.infos[name], after.infos[name])


def _refuse_without_base(adapter: Products, name: str) -> None:
    got = f"an adapter without its base for {name}, whose change is no product of factors"
    checks.refuse(adapter.name, got, "its base before it: BASE ADAPTER")


def _compare_infos(info: Info, other: Info | None) -> tuple[str, bool]:
    """Note on two arrays of one name, and whether they can be compared at all."""
    if other is None:
        return "only before", False
    if not {info.dtype, other.dtype} <= set(reading.FLOATS):
        return f"type {info.dtype} before and {other.dtype} after", False
    if other.shape == info.shape:
        return "", 0 not in info.shape
    shapes = f"shape {info.shape} before and {other.shape} after"
    if len(info.shape) == len(other.shape) == 2 and info.shape[1] == other.shape[1]:
        rows = min(info.shape[0], other.shape[0])
        return f"{shapes}: compared on the first {rows} rows", rows > 0
    return shapes, False


def pairs(both: Compared, names: tuple[str, ...], notes: dict[str, str]) -> Iterator[ArrayPair]:
    """Read one pair after the other; what is not finite is noted and left out.

    Args:
        both: what is compared.
        names: which of it.
        notes: where notes are added.

    Example:
        >>> I, bad = np.eye(2), np.full((2, 2), np.inf)
        >>> sides = ({"W": I, "V": I}, {"W": I, "V": bad})
        >>> both, notes = compare(*(reading.weights("", side) for side in sides), "*"), {}
        >>> [pair.name for pair in pairs(both, both.matrices, notes)], notes
        (['W'], {'V': '4 entries after are not finite'})
    """
    for name in names:
        factors = _factors(both, name)
        sides: dict[str, np.ndarray] = {}
        for when, weights in (("before", both.before), ("after", both.after)):
            # Of an adapter the product is enough, and beside another one there is no W.
            if name not in weights.infos or (factors is not None and isinstance(weights, Products)):
                continue
            array = read_finite(weights, name, when, notes)
            if array is not None:
                sides[when] = array
        rows = _common_rows(both, name)
        before, after = (
            None if side is None else side[:rows] if side.ndim else side
            for side in (sides.get("before"), sides.get("after"))
        )
        if factors is not None:
            yield ArrayPair(
                name, before, None, ("float32", "float32"), (factors[0][:rows], factors[1])
            )
        elif before is not None and after is not None:
            types = both.before.infos[name].dtype, both.after.infos[name].dtype
            yield ArrayPair(name, before, after, types)


def _common_rows(both: Compared, name: str) -> int | None:
    """Rows that both sides have of an array."""
    infos = (side.infos.get(name) for side in (both.before, both.after))
    lengths = [info.shape[0] for info in infos if info is not None and info.shape]
    return min(lengths, default=None)


def _factors(both: Compared, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Factors of the update, if it is a product, or the difference of two."""
    if not isinstance(both.after, Products) or _has_other_start(both, name):
        return None
    after = both.after.factors(name)
    if not isinstance(both.before, Products):
        return after
    before = both.before.factors(name)
    # Where one of the two has no such module, it adds nothing to the base.
    if before is None or after is None:
        alone = name not in both.before.infos or name not in both.after.infos
        if not alone:
            return None
        if before is None:
            return after
        return -before[0], before[1]
    rows = _common_rows(both, name)
    # The difference of two products is one of twice the rank: no matrix is built.
    left = [after[0][:rows], -before[0][:rows]]
    return np.concatenate(left, axis=1), np.concatenate([after[1], before[1]])


def _has_other_start(both: Compared, name: str) -> bool:
    """Whether an adapter stands beside another W than that of the other side, and brings it."""
    before, after = both.before, both.after
    assert isinstance(after, Products)
    if not after.adapts(name) or name not in after.stored.saved or name not in before.infos:
        return False
    own = np.asarray(after.stored.saved[name])
    if isinstance(before, Products):
        if not before.adapts(name) or name not in before.stored.saved:
            return False
        base = np.asarray(before.stored.saved[name])
    else:
        base = read_finite(before, name, "before", {})
    if base is None:  # which is noted where it is read
        return False
    rows = min(len(base), len(own))
    return not np.array_equal(reading.widen(base[:rows]), reading.widen(own[:rows]))


def read_finite(weights: Weights, name: str, when: str, notes: dict[str, str]) -> np.ndarray | None:
    """One array as it is stored; None and a note if it is not finite.

    Args:
        weights: weights by name.
        name: of the array.
        when: ``before`` or ``after``, for the note.
        notes: where a note is added.

    Example:
        >>> notes = {}
        >>> read_finite(reading.weights("", {"b": np.array([np.inf])}), "b", "after", notes), notes
        (None, {'b': '1 entries after are not finite'})
    """
    try:
        array = weights[name]
    except Refused as error:  # a NaN, of which a reader of files says how many
        notes[name] = f"{when}: {str(error).partition(f'{name}: ')[2] or error}"
        return None
    if bad := reading.count_nonfinite(array):
        notes[name] = f"{bad} entries {when} are not finite"
        return None
    return array


def relative_changes(both: Compared, notes: dict[str, str]) -> dict[str, float]:
    """Compute ||after - before|| / ||before|| of the norms, biases and the like that changed.

    Args:
        both: what is compared.
        notes: where notes are added.

    Example:
        >>> sides = ({"W": np.eye(2), "b": np.ones(1)}, {"W": np.eye(2), "b": np.full(1, 3.0)})
        >>> both = compare(*(reading.weights("", side) for side in sides), "*")
        >>> relative_changes(both, {})
        {'b': 2.0}
    """
    changed = {}
    for pair in pairs(both, both.vectors, notes):
        before = pair.before
        assert before is not None
        if norm := float(np.linalg.norm(pair.update)):
            start = float(np.linalg.norm(before))
            changed[pair.name] = norm / start if start else np.inf
    return changed


def list_changes(changes: Mapping[str, float]) -> str:
    """Names with relative changes, the largest first, and how many more there are.

    Example:
        >>> list_changes({"a.bias": 0.5, "b.bias": np.inf})
        'b.bias (from 0), a.bias (5.0e-01)'
    """
    ordered = sorted(changes.items(), key=lambda change: change[1], reverse=True)
    words = [f"{n} ({f'{x:.1e}' if np.isfinite(x) else 'from 0'})" for n, x in ordered]
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def first_names(names: Iterable[str]) -> str:
    r"""The first names, for a message.

    Example:
        >>> first_names(["a\n", "b"]), first_names([])
        ('a\\n, b', 'none, since there are no matrices')
    """
    return make_printable(", ".join(islice(names, 4))) or "none, since there are no matrices"


def note_lines(notes: Mapping[str, str]) -> list[str]:
    """A line for each note."""
    return [f"{name}: {note}" for name, note in notes.items()]


def digest(pair: ArrayPair) -> bytes:
    """Equal for pairs that are equal on both sides, as tied weights are.

    Example:
        >>> pair = ArrayPair("a", np.eye(2), np.ones((2, 2)), ("float64", "float64"))
        >>> digest(pair) == digest(pair._replace(name="b"))
        True
    """
    # The types belong to it: equal bytes of two types are two matrices.
    hasher = hashlib.blake2b(key=repr(pair.types).encode())
    for array in (pair.stored_before, pair.stored_after, *(pair.factors or ())):
        shape = () if array is None else array.shape
        hasher.update(repr(shape).encode())
        if array is not None:
            hasher.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return hasher.digest()
