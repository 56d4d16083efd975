"""The update between two sets of weights as an adapter of PEFT: truncated SVDs, the rest whole."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters.peft import Stored, StoredFactors, described
from lrdyn.adapters.peft_config import NAME, Config
from lrdyn.core import checks, show
from lrdyn.core.selection import Patterns, checked_patterns, fits
from lrdyn.diagnosis import comparison, reading
from lrdyn.diagnosis.comparison import Compared, Pair
from lrdyn.diagnosis.report import rank_with
from lrdyn.diagnosis.spectrum import one_thread, truncated, values_of

EMBEDDINGS = tuple(
    f"{front}{name}"
    for name in "embed_tokens embed_positions word_embeddings position_embeddings "
    "token_type_embeddings tok_embeddings embeddings embedding wte wpe shared".split()
    for front in ("", "*.")
)
"""Modules that are taken for embeddings, of which PEFT stores the factors transposed."""
WEIGHT, BIAS = ".weight", ".bias"
TIED = "tied with"


class Extraction(NamedTuple):
    """An update as an adapter, and what that misses of it: see :func:`extract`."""

    adapter: Stored
    """The adapter, which :func:`lrdyn.adapters.peft.write` writes."""
    errors: dict[str, float]
    """Module -> ||W_after - (W_before + B A)|| / ||W_after - W_before||."""
    error: float
    """That of all arrays that both sides have, those that the adapter leaves out included."""
    left_out: dict[str, float]
    """Arrays that changed and are not in the adapter, with their relative change."""
    notes: dict[str, str]

    def lines(self) -> list[str]:
        """The report as text."""
        factors = self.adapter.factors
        rows = [("module", "r", "relative error")]
        rows += [(m, str(factors[m].A.shape[0]), f"{e:.2e}") for m, e in self.errors.items()]
        count = sum(factor.B.size + factor.A.size for factor in factors.values())
        lines = show.aligned(rows)
        lines.append(f"{len(factors)} matrices, {count:,} parameters, alpha = r")
        lines.append(
            f"taken for embeddings: {', '.join(sorted(self.adapter.embeddings)) or 'none'}"
        )
        lines.append(f"relative error of the whole update: {self.error:.2e}")
        if self.adapter.saved:
            lines.append(f"saved whole: {', '.join(self.adapter.saved)}")
        if self.left_out:
            changes = comparison.listed(self.left_out)
            lines.append(f"changed and left out (by how much of its norm): {changes}")
        return [show.printable(line) for line in lines + comparison.as_lines(self.notes)]


class _Whole(NamedTuple):
    """What is saved whole."""

    modules: frozenset[str]
    biases: str
    """As PEFT calls it: none, lora_only, all."""


def extract(
    before: Any,
    after: Any,
    *,
    rank: int | None = None,
    energy: float | None = None,
    select: Patterns = "*",
    save: Patterns = (),
    embeddings: Patterns = EMBEDDINGS,
    fan_in_fan_out: bool = False,
) -> Extraction:
    """The update as an adapter: of each matrix the nearest one of rank r, alpha = r.

    B and A are equally long. Weights of half precision are read in float32. A matrix that does not
    move gets no factors, and of tied weights the first does. PEFT adapts what is called
    ``<module>.weight``; a matrix with another name is left out and named.

    Args:
        before: weights before the training, as for :func:`lrdyn.diagnose`: names are those of
            PEFT's base model.
        after: weights after it.
        rank: r of every matrix, or its shorter side if that is less.
        energy: in place of ``rank``, the share of the squared norm that each r must have; .9 if
            neither is given.
        select: which matrices.
        save: which modules (or arrays) are saved whole, by name: norms, heads, embeddings with new
            rows. PEFT saves a module with all its arrays, and the biases of all adapted modules or
            of none.
        embeddings: which modules are embeddings.
        fan_in_fan_out: whether weights are stored transposed, as in GPT-2's Conv1D.

    Raises:
        ValueError: an argument is wrong, a pattern fits nothing, or no matrix moves.
        Refused: a file is damaged, a pickle, or of another format.
        OSError: a file cannot be read.

    Example:
        >>> W = np.diag([4.0, 3.0, 2.0])
        >>> extraction = extract({"q.weight": W}, {"q.weight": W + 0.1}, rank=1)
        >>> extraction.adapter.config["r"], extraction.error < 1e-12
        (1, True)
    """
    if rank is not None:
        checks.integer("rank", rank)
        if energy is not None:
            checks.refuse("energy", f"{energy} beside a rank", "one of the two")
    share = float(checks.fraction("energy", 0.9 if energy is None else energy))
    for name, patterns in {"select": select, "save": save, "embeddings": embeddings}.items():
        checked_patterns(name, patterns)
    first, second = reading.weights("before", before), reading.weights("after", after)
    both = comparison.compared(first, second, "*")
    modules, biases = _wanted(both, save)
    matrices = [name for name in both.matrices if fits(name, select)]
    if not matrices:
        some = comparison.some(both.matrices)
        checks.refuse("select", repr(select), f"some matrices that both sides have, among {some}")
    names = tuple(n for n in matrices if n.endswith(WEIGHT) and _module(n) not in modules)
    notes, parts = dict(both.notes), _Parts()
    factors, errors = {}, {}
    with one_thread():
        for pair in _untied(comparison.pairs(both, names, notes), notes):
            module, rows = _module(pair.name), both.before.infos[pair.name].shape[0]
            update = pair.update
            r = rank_with(values_of(update), share) if rank is None else min(rank, *update.shape)
            B, A = truncated(update, r)
            errors[module] = parts.add(_norm(update), _norm(update - B @ A))
            B = np.pad(B, ((0, rows - len(B)), (0, 0)))  # rows that the training removed
            factors[module] = StoredFactors(B, A, 1.0)
    if not factors:
        checks.refuse("after", "no <module>.weight that moved and is not saved", "one at least")
    which = "none" if not biases else "lora_only" if biases <= set(factors) else "all"
    whole = _Whole(modules, which)
    saved = dict(_saved(both, whole, set(factors), notes))
    left_out = _rest(both, {module + WEIGHT for module in factors}, set(saved), notes, parts)
    adapter = described(
        factors,
        saved=saved,
        bias=whole.biases,
        fan_in_fan_out=fan_in_fan_out,
        embeddings=[module for module in factors if fits(module, embeddings)],
        **_targets(both, factors, whole),
    )
    return Extraction(adapter, errors, parts.error, left_out, notes)


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64, copy=False)))


class _Parts:
    """Sums of squares of updates, and of what an adapter misses of them."""

    def __init__(self):
        self.all, self.missed = 0.0, 0.0

    def add(self, update: float, missed: float) -> float:
        """Take in the norms of one array; what is missed of it."""
        self.all, self.missed = self.all + update**2, self.missed + missed**2
        return missed / update

    @property
    def error(self) -> float:
        """Relative error of all."""
        return float(np.sqrt(self.missed / self.all))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _untied(pairs: Iterable[Pair], notes: dict[str, str]) -> Iterator[Pair]:
    """Pairs that move; of those that are equal on both sides the first."""
    written: dict[bytes, str] = {}
    for pair in pairs:
        if not np.any(pair.update):
            continue
        sides = (np.ascontiguousarray(W).tobytes() for W in (pair.before, pair.after))
        digest = hashlib.blake2b(b"|".join(sides), key=str(pair.before.shape).encode()).digest()
        if digest in written:
            notes[pair.name] = f"{TIED} {written[digest]}: written once, merge it into both"
            continue
        written[digest] = pair.name
        yield pair


def _wanted(both: Compared, save: Patterns) -> tuple[frozenset[str], set[str]]:
    """Modules that are saved whole, and modules of further biases that are asked for."""
    names = [name for name in both.before.infos if name in both.after.infos]
    modules: set[str] = set()
    biases: set[str] = set()
    for pattern in [save] if isinstance(save, str | re.Pattern) else save:
        fitting = {name for name in names if fits(name, pattern) or fits(_module(name), pattern)}
        if not fitting:
            text = pattern if isinstance(pattern, str) else pattern.pattern
            some = comparison.some(sorted({_module(name) for name in names} - {""}))
            checks.refuse("save", repr(text), f"a pattern of some module among {some}")
        for name in fitting:
            alone = name.endswith(BIAS) and not fits(_module(name), pattern)
            (biases if alone else modules).add(_module(name))
    if "" in modules | biases:
        checks.refuse("save", "an array outside of any module", "modules")
    # PEFT looks for these names at the end of a module's, so that it saves more than those asked.
    config = Config(Path(NAME), {"modules_to_save": sorted(modules)})
    every = {_module(name) for name in names}
    whole = frozenset(module for module in every if config.saves_module(module))
    return whole, biases - whole


def _saved(
    both: Compared, whole: _Whole, adapted: set[str], notes: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that are saved whole, in the type they have after."""
    for name in both.before.infos:
        module, bias = _module(name), name.endswith(BIAS)
        asked = whole.biases == "all" or (whole.biases == "lora_only" and module in adapted)
        if (module in whole.modules or (bias and asked)) and name in both.after.infos:
            if comparison.finite(both.after, name, "after", notes) is not None:
                yield name, both.after[name]
                if name in notes:
                    notes[name] += "; saved whole"


def _rest(
    both: Compared, adapted: set[str], saved: set[str], notes: dict[str, str], parts: _Parts
) -> dict[str, float]:
    """Count in all other arrays, and name those that changed and are left out."""
    for name in adapted & set(notes):
        notes[name] += "; others are lost unless the module is saved"
    tied = {name for name, note in notes.items() if note.startswith(TIED)}
    left_out: dict[str, float] = {}
    names = [n for n in (*both.matrices, *both.vectors) if n not in adapted | tied]
    for pair in comparison.pairs(both, tuple(names), notes):
        if change := _norm(pair.update):
            parts.add(change, 0.0 if pair.name in saved else change)
            if pair.name not in saved:
                start = _norm(pair.before)
                left_out[pair.name] = change / start if start else np.inf
    return left_out


def _targets(both: Compared, factors: dict[str, StoredFactors], whole: _Whole) -> dict[str, Any]:
    """``target_modules`` as one expression, where a list would take in further modules.

    PEFT looks for the names of a list at the end of a module's.
    """
    content = {"target_modules": sorted(factors), "modules_to_save": sorted(whole.modules)}
    config = Config(Path(NAME), content)
    others = {_module(name) for name in both.before.infos} - set(factors)
    if not any(config.adapts(module) for module in others):
        return {}
    return {"target_modules": "|".join(map(re.escape, sorted(factors)))}
