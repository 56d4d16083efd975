"""The update between two sets of weights as an adapter of PEFT: truncated SVDs, the rest whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters import peft
from lrdyn.adapters.peft import Stored, StoredFactors, described
from lrdyn.adapters.peft_config import NAME, PeftConfig
from lrdyn.adapters.peft_convention import WrittenAdapter
from lrdyn.core import checks, show
from lrdyn.core.selection import Patterns, checked_patterns, fits
from lrdyn.diagnosis import comparison, reading
from lrdyn.diagnosis.comparison import Compared
from lrdyn.diagnosis.cores import Told, map_on_cores
from lrdyn.diagnosis.decomposition import Wanted
from lrdyn.diagnosis.orientation import Orientation, orientation
from lrdyn.diagnosis.products import Products
from lrdyn.diagnosis.report import Diagnosis, checked_settings, open_sides
from lrdyn.diagnosis.spectrum import norm
from lrdyn.diagnosis.updates import NOISE, Examined, examine_all, rank_above_noise, rank_for
from lrdyn.system.progress import Progress

EMBEDDINGS = tuple(
    f"{front}{name}"
    for name in "embed_tokens embed_positions word_embeddings position_embeddings "
    "token_type_embeddings tok_embeddings embeddings embedding word_embedding token_embedding "
    "position_embedding tokens_embed positions_embed embed_in relative_attention_bias wte wpe "
    "shared".split()
    for front in ("", "*.")
)
"""Modules that are taken for embeddings, of which PEFT stores the factors transposed."""
WEIGHT, BIAS = ".weight", ".bias"
TIED = "tied with"
EXPERT = re.compile(r"\.experts\.\d+\.")
"""What stands in the names of an expert's modules."""


class Extraction(NamedTuple):
    """An update as an adapter, and what that misses of it: see :func:`extract`."""

    adapter: Stored
    """The adapter, which :meth:`write` writes."""
    errors: dict[str, float]
    """Module -> ||W_after - (W_before + B A)|| / ||W_after - W_before||."""
    error: float
    """Relative error of all arrays that both sides have, those that are left out included."""
    left_out: dict[str, float]
    """Arrays that changed and are not in the adapter, with their relative change."""
    notes: dict[str, str]
    diagnosis: Diagnosis
    """What the same decompositions say of the update."""
    both: Compared
    orientation: Orientation
    """Which way round the weights are stored."""

    def lines(self) -> list[str]:
        """Lines of text: ranks and errors of the modules, what it costs, what it leaves out."""
        factors = self.adapter.factors
        rows = [("module", "r", "relative error")]
        rows += [(m, str(factors[m].A.shape[0]), f"{e:.2e}") for m, e in self.errors.items()]
        count = sum(factor.B.size + factor.A.size for factor in factors.values())
        full = sum(len(factor.B) * factor.A.shape[1] for factor in factors.values())
        lines = show.aligned(rows)
        lines.append(f"{len(factors)} matrices, {count:,} parameters, alpha = r")
        if count >= full:
            lines[-1] += f": {count / full:.3g} times the matrices themselves, not worth it"
        lines.append(
            f"taken for embeddings: {', '.join(sorted(self.adapter.embeddings)) or 'none'}"
        )
        lines.append(f"relative error of the whole update: {self.error:.2e}")
        lines.append(self.orientation.said)
        lines += self._name_lines()
        if self.adapter.saved:
            lines.append(f"saved whole: {', '.join(self.adapter.saved)}")
        if self.left_out:
            changes = comparison.list_changes(self.left_out)
            lines.append(f"changed and left out (by this share of the norm): {changes}")
        return [show.make_printable(line) for line in lines + comparison.note_lines(self.notes)]

    def _name_lines(self) -> list[str]:
        """What was not looked up in a model of transformers, where the files are of one."""
        config = _config(self.both)
        if config is None or not isinstance(config.get("model_type"), str):
            return []
        lines = [
            "names of modules are those of the files, not looked up in the model: what it calls "
            "otherwise (as transformers 5 does in ViT) PEFT leaves out; extract then from files of "
            "torch.save(model.state_dict(), FILE)"
        ]
        ranks = {factors.A.shape[0] for factors in self.adapter.factors.values()}
        if len(ranks) > 1 and any(map(EXPERT.search, self.adapter.factors)):
            lines.append(
                "there are experts, and modules of several ranks: where transformers stacks "
                f"experts (since release 5) PEFT wants one rank of all: --rank {min(ranks)}"
            )
        return lines

    def write(self, folder: str | Path, progress: Progress | None = None) -> Extraction:
        """Write the adapter, and read it back as PEFT does.

        Args:
            folder: where; it is made if it is not there.
            progress: is told of each array that is read back.

        Returns:
            The same with the errors of the files.

        Raises:
            ValueError: the files have another shape than the base: PEFT would not load them.
            OSError: a file could not be written.
        """
        peft.write(folder, self.adapter)
        written = WrittenAdapter(folder)
        tied = {name for name, note in self.notes.items() if note.startswith(TIED)}
        names = [n for n in (*self.both.matrices, *self.both.vectors) if n not in tied]

        def norms(name: str) -> tuple[float, float]:
            """Norms of the update of an array, and of what the files miss of it."""
            for pair in comparison.pairs(self.both, (name,), {}):
                update = pair.update
                if moved := norm(update):
                    # Of an adapter without its base the product is looked at, W being 0.
                    base = np.zeros_like(update) if pair.before is None else pair.before
                    is_conv1d = self.orientation.is_transposed(_module(name))
                    applied = written.apply(name, base, is_conv1d=is_conv1d)
                    if applied is None:
                        return moved, moved
                    rows = min(len(applied), len(base)) if base.ndim else None
                    return moved, norm(base + update - reading.widen(applied)[:rows])
            return 0.0, 0.0

        known = {**self.both.before.infos, **self.both.after.infos}
        shapes = [known[name].shape for name in names]
        ranks = {module: factors.A.shape[0] for module, factors in self.adapter.factors.items()}
        counts = [
            float(np.prod(shape)) * (10 + ranks.get(_module(name), 0))
            for name, shape in zip(names, shapes, strict=True)
        ]
        norms_of_all = map_on_cores(norms, names, counts, Told(progress, counts))
        parts, errors = _Parts(), {}
        for name, (moved, missed) in zip(names, norms_of_all, strict=True):
            if moved:
                error = parts.add(moved, missed)
                if _module(name) in self.errors and name.endswith(WEIGHT):
                    errors[_module(name)] = error
        return self._replace(errors=errors, error=parts.error)


class _Whole(NamedTuple):
    """Modules and biases that are saved whole."""

    modules: frozenset[str]
    biases: str
    """Which biases are saved, by PEFT's words: none, lora_only, all."""


def extract(
    before: Any,
    after: Any = None,
    *,
    rank: int | str | Mapping[str, int] | None = None,
    energy: float | None = None,
    select: Patterns = "*",
    save: Patterns = (),
    embeddings: Patterns = EMBEDDINGS,
    fan_in_fan_out: bool | None = None,
    k: int = 8,
    sketch: int | None = None,
    bulk: bool = False,
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """The update as an adapter: of each matrix the nearest one of rank r, alpha = r.

    B and A are equally long. Weights of half precision are read in float32. A matrix that does not
    move gets no factors, and of tied weights the first does. PEFT adapts what is called
    ``<module>.weight``; a matrix with another name is left out and named. Each matrix is decomposed
    once, for its factors and for ``diagnosis``.

    Args:
        before: weights before the training, as for :func:`lrdyn.diagnose`: names are those of
            PEFT's base model.
        after: weights after it.
        rank: r of every matrix, or its shorter side if that is less; or r by the name of the
            matrix, and none for others; or ``"noise"``: as many as lie above its noise floor.
        energy: in place of ``rank``, the share of the squared norm that each r must have; .9 if
            neither is given. Beside ``"noise"`` it is that of matrices without a noise floor.
        select: which matrices.
        save: which modules (or arrays) are saved whole, by name: norms, heads, embeddings with new
            rows. PEFT saves a module with all its arrays, and the biases of all adapted modules or
            of none.
        embeddings: which modules are embeddings.
        fan_in_fan_out: whether weights are stored transposed, as in GPT-2's Conv1D; by default as
            the model's ``config.json`` says, see :func:`lrdyn.diagnosis.orientation.orientation`.
        k: as for :func:`lrdyn.diagnose`, like the following.
        sketch: likewise.
        bulk: likewise.
        rename: likewise.
        progress: likewise.

    Raises:
        ValueError: an argument is wrong, a pattern fits nothing, no matrix moves, or nobody says
            which way round the weights of a model are stored that is called like GPT-2.
        Refused: a file is damaged, quantised, a pickle that torch does not read, or of another
            format.
        OSError: a file cannot be read.

    Example:
        >>> W = np.diag([4.0, 3.0, 2.0])
        >>> extraction = extract({"q.weight": W}, {"q.weight": W + 0.1}, rank=1)
        >>> extraction.adapter.config["r"], extraction.error < 1e-12
        (1, True)
    """
    if isinstance(rank, str):
        if rank != NOISE:
            checks.refuse("rank", repr(rank), f"{NOISE!r}, an integer, or integers by name")
    elif rank is not None:
        for name, r in rank.items() if isinstance(rank, Mapping) else [("", rank)]:
            checks.integer(f"rank[{name!r}]" if name else "rank", r)
        if energy is not None:
            checks.refuse("energy", f"{energy} beside a rank", "one of the two")
    share = float(checks.fraction("energy", 0.9 if energy is None else energy))
    for name, patterns in {"select": select, "save": save, "embeddings": embeddings}.items():
        checked_patterns(name, patterns)
    settings = checked_settings(k, sketch, bulk)
    both = open_sides(before, after, "*", rename)
    modules, biases = _modules_to_save(both, save)
    matrices = [name for name in both.matrices if fits(name, select)]
    if not matrices:
        some = comparison.first_names(both.matrices)
        checks.refuse("select", repr(select), f"some matrices that both sides have, among {some}")
    names = {n for n in matrices if n.endswith(WEIGHT) and _module(n) not in modules}
    if isinstance(rank, Mapping):
        # A plan names the matrices that get factors; others stay as they are.
        names &= set(rank)
    notes = dict(both.notes)
    tables = _tables(both, embeddings)
    way = _orientation(both, [_module(name) for name in sorted(names - tables)], fan_in_fan_out)
    if way.modules is not None:
        for name in sorted(names - tables):
            if not way.is_transposed(_module(name)):
                notes[name] = (
                    "a Linear beside Conv1D: one adapter cannot hold both, save its module"
                )
        names = {n for n in names if n in tables or way.is_transposed(_module(n))}

    def choose_rank(name: str) -> Wanted | None:
        if name not in names:
            return None
        if rank is None:
            return rank_for(share)
        if isinstance(rank, str):
            return rank_above_noise(_shape_of(both, name), share)
        r = rank[name] if isinstance(rank, Mapping) else rank
        return lambda values, _: min(r, len(values)) if values[0] > 0 else 0

    examined = examine_all(both, matrices, notes, settings, wanted=choose_rank, progress=progress)
    diagnosis = Diagnosis(
        tuple(matrix.update for matrix in examined),
        comparison.relative_changes(both, {}),
        dict(notes),
        settings.k,
    )
    floors = _floor_notes(diagnosis, names, share) if rank == NOISE else {}
    factors, errors, parts = {}, {}, _Parts()
    written: dict[bytes, str] = {}
    for matrix in _drop_tied(examined, written, notes):
        assert matrix.factors is not None
        B, A = matrix.factors
        name, module = matrix.update.name, _module(matrix.update.name)
        # Rows that the training removed; of an adapter alone there are none.
        rows = both.before.infos[name].shape[0] if name in both.before.infos else len(B)
        # Where rows were removed the update is known on the others alone: there it is taken to be
        # 0.
        B = np.pad(B, ((0, rows - len(B)), (0, 0)))
        errors[module] = parts.add(matrix.update.norm, matrix.missed)
        factors[module] = StoredFactors(B, A, 1.0)
    if not factors:
        checks.refuse("after", "no <module>.weight that moved and is not saved", "at least one")
    which = "none" if not biases else "lora_only" if biases <= set(factors) else "all"
    whole = _Whole(modules, which)
    saved = dict(_read_saved(both, whole, set(factors), notes))
    adapted = {module + WEIGHT for module in factors}
    left_out = _count_others(both, adapted, written, set(saved), notes, parts)
    adapter = described(
        factors,
        saved=saved,
        bias=whole.biases,
        fan_in_fan_out=way.fan_in_fan_out,
        embeddings=[module for module in factors if module + WEIGHT in tables],
        others={_module(name) for name in both.before.infos},
    )
    return Extraction(adapter, errors, parts.error, left_out, floors | notes, diagnosis, both, way)


def _tables(both: Compared, embeddings: Patterns) -> set[str]:
    """The matrices that are those of embeddings: an adapter knows of its own."""
    known: dict[str, bool] = {}
    for side in (both.before, both.after):
        if isinstance(side, Products):
            stored = side.stored
            known |= {module + WEIGHT: module in stored.embeddings for module in stored.factors}
    return {name for name in both.matrices if known.get(name, fits(_module(name), embeddings))}


def _orientation(
    both: Compared, modules: Iterable[str], fan_in_fan_out: bool | None
) -> Orientation:
    """Which way round weights are stored: as is said, as config.json or as the adapter says."""
    config = _config(both)
    if fan_in_fan_out is None and config is None and isinstance(both.after, Products):
        is_turned = bool(both.after.stored.config.get("fan_in_fan_out"))
        way = "in x out" if is_turned else "out x in"
        return Orientation(
            is_turned, None, f"weights are stored {way}, as the adapter's configuration says"
        )
    return orientation(modules, config, fan_in_fan_out)


def _config(both: Compared) -> dict[str, Any] | None:
    """The configuration of the model, beside the weights before or after."""
    configs = (reading.config_of(side) for side in (both.before, both.after))
    return next((config for config in configs if config is not None), None)


def _floor_notes(diagnosis: Diagnosis, names: set[str], share: float) -> dict[str, str]:
    """Matrix -> why its rank is not that above a noise floor, or that it is 0.

    Raises:
        ValueError: none of them has a floor with something above it.
    """
    moved = [matrix for matrix in diagnosis.matrices if matrix.name in names and matrix.norm]
    if moved and all(matrix.noise is None for matrix in moved):
        checks.refuse("rank", f"{NOISE!r} where no update has a noise floor", "R, or an energy")
    if moved and all(matrix.rank_noise == 0 for matrix in moved):
        got = f"{NOISE!r} where nothing lies above the noise floors"
        checks.refuse("rank", got, "R, or an energy")
    without = f"no noise floor: r keeps {share:.3g} of its squared norm"
    notes = {matrix.name: without for matrix in moved if matrix.noise is None}
    return notes | {
        matrix.name: "nothing above its noise floor: no factors"
        for matrix in moved
        if matrix.rank_noise == 0
    }


def _shape_of(both: Compared, name: str) -> tuple[int, int]:
    """Rows that both sides have, and columns: those of the update."""
    shapes = [side.infos[name].shape for side in (both.before, both.after) if name in side.infos]
    return min(shape[0] for shape in shapes), shapes[0][1]


class _Parts:
    """Sums of squares of updates, and of what an adapter misses of them."""

    def __init__(self):
        self.all, self.missed = 0.0, 0.0

    def add(self, update: float, missed: float) -> float:
        """Take in the norms of one array, and return its relative error."""
        self.all, self.missed = self.all + update**2, self.missed + missed**2
        return missed / update

    @property
    def error(self) -> float:
        """Relative error of all arrays together."""
        return float(np.sqrt(self.missed / self.all))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _drop_tied(
    examined: Iterable[Examined], written: dict[bytes, str], notes: dict[str, str]
) -> Iterator[Examined]:
    """Matrices that move and have factors; of tied ones, equal before and after, the first.

    ``written`` is filled with the name of each by its digest.
    """
    for matrix in examined:
        if matrix.factors is None or not matrix.factors[0].shape[1]:
            continue
        name = matrix.update.name
        if matrix.digest in written:
            notes[name] = _tied_note(written[matrix.digest])
            continue
        written[matrix.digest] = name
        yield matrix


def _tied_note(name: str) -> str:
    return f"{TIED} {name}: factors are written once, merge them into both"


def _modules_to_save(both: Compared, save: Patterns) -> tuple[frozenset[str], set[str]]:
    """Modules that are saved whole, and modules of further biases that are asked for."""
    names = [name for name in both.before.infos if name in both.after.infos]
    modules: set[str] = set()
    biases: set[str] = set()
    for pattern in [save] if isinstance(save, str | re.Pattern) else save:
        fitting = {name for name in names if fits(name, pattern) or fits(_module(name), pattern)}
        if not fitting:
            text = pattern if isinstance(pattern, str) else pattern.pattern
            some = comparison.first_names(sorted({_module(name) for name in names} - {""}))
            checks.refuse("save", repr(text), f"a pattern of some module among {some}")
        for name in fitting:
            alone = name.endswith(BIAS) and not fits(_module(name), pattern)
            (biases if alone else modules).add(_module(name))
    if "" in modules | biases:
        checks.refuse("save", "an array outside of any module", "names of modules")
    # PEFT looks for these names at the end of a module's, so that it saves more than those asked.
    config = PeftConfig(Path(NAME), {"modules_to_save": sorted(modules)})
    every = {_module(name) for name in names}
    whole = frozenset(module for module in every if config.saves_module(module))
    return whole, biases - whole


def _read_saved(
    both: Compared, whole: _Whole, adapted: set[str], notes: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that are saved whole, in the type they have after."""
    for name in both.before.infos:
        module, bias = _module(name), name.endswith(BIAS)
        asked = whole.biases == "all" or (whole.biases == "lora_only" and module in adapted)
        if (module in whole.modules or (bias and asked)) and name in both.after.infos:
            if comparison.read_finite(both.after, name, "after", notes) is not None:
                yield name, both.after[name]
                if name in notes:
                    notes[name] += "; saved whole"


def _count_others(
    both: Compared,
    adapted: set[str],
    written: Mapping[bytes, str],
    saved: set[str],
    notes: dict[str, str],
    parts: _Parts,
) -> dict[str, float]:
    """Count in all other arrays, and name those that changed and are left out."""
    for name in adapted & set(notes):
        notes[name] += "; other rows are lost unless the module is saved"
    tied = {name for name, note in notes.items() if note.startswith(TIED)}
    left_out: dict[str, float] = {}
    names = [n for n in (*both.matrices, *both.vectors) if n not in adapted | tied]
    for pair in comparison.pairs(both, tuple(names), notes):
        update = pair.update
        if change := norm(update):
            # A head that can have no factors beside Conv1D may be tied with an embedding that has.
            if update.ndim == 2 and pair.name not in saved:
                tied_with = written.get(comparison.digest(pair))
                if tied_with is not None:
                    notes[pair.name] = _tied_note(tied_with)
                    continue
            parts.add(change, 0.0 if pair.name in saved else change)
            if pair.name not in saved:
                start = 0.0 if pair.before is None else norm(pair.before)
                left_out[pair.name] = change / start if start else np.inf
    return left_out
