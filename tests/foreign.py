"""Readers of other people's files, small files for each, and what is done to them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.adapters import peft
from lrdyn.data import Refused, arrays, encoder, idx, pairs, tensors
from lrdyn.verification.storing import checkpoints, results_file
from lrdyn.verification.storing.parts import Store

DATA = Path(__file__).with_name("data")
FOREIGN, BERT, PEFT = DATA / "foreign", DATA / "bert", DATA / "peft_adapters" / "patterns"
TENSORS = "adapter_model.safetensors"


class Reader(NamedTuple):
    """What reads a file of a folder."""

    file: Path
    """The one that is damaged."""
    read: Callable[[Path], Any]
    """Reads it, of the folder that it lies in."""
    beside: tuple[Path, ...] = ()
    """What else lies there."""

    def place(self, folder: Path, content: bytes) -> None:
        """Put the file with another content, and what belongs to it, into a folder."""
        for path in self.beside:
            shutil.copyfile(path, folder / path.name)
        (folder / self.file.name).write_bytes(content)


def _npz(folder: Path) -> Any:
    found = arrays.opened(folder / "weights.npz")
    return [found[name] for name in found.infos]


def _tokenizer(folder: Path) -> Any:
    tokenizer = encoder._tokenizer(folder / "tokenizer.json", 123)
    return encoder.tokens(tokenizer, ["the cat is on " + 40 * "a", "zwölf !?"])


def _checkpoint(folder: Path) -> Any:
    like = {"W": np.zeros((2, 3), np.float32)}
    try:
        return checkpoints.read(folder / "step-0000000001.ckpt", "key", like)
    except Exception as error:  # it is for the caller, who takes the checkpoint before
        raise ValueError(f"{folder}: {type(error).__name__}") from None


READERS = {
    "safetensors": Reader(
        FOREIGN / "weights.safetensors",
        lambda folder: dict(tensors.opened(folder / "weights.safetensors")),
    ),
    "npz": Reader(FOREIGN / "weights.npz", _npz),
    "npy": Reader(FOREIGN / "array.npy", lambda folder: arrays.read_npy(folder / "array.npy")),
    "adapter config": Reader(PEFT / "adapter_config.json", peft.read, (PEFT / TENSORS,)),
    "adapter": Reader(PEFT / TENSORS, peft.read, (PEFT / "adapter_config.json",)),
    "encoder config": Reader(
        BERT / "config.json", encoder.read, (BERT / "model.safetensors", BERT / "tokenizer.json")
    ),
    "tokenizer": Reader(BERT / "tokenizer.json", _tokenizer),
    "verdict": Reader(FOREIGN / "verdict.json", results_file.read_verdict),
    "results": Reader(
        FOREIGN / "results.nc", lambda folder: results_file.load(folder / "results.nc")
    ),
    "part": Reader(FOREIGN / "part.npz", lambda folder: Store(folder, _nowhere).load("part")),
    "checkpoint": Reader(FOREIGN / "step-0000000001.ckpt", _checkpoint),
    "idx": Reader(
        FOREIGN / "labels-idx1-ubyte.gz",
        lambda folder: idx.read(folder / "labels-idx1-ubyte.gz", (4,)),
    ),
    "pairs": Reader(FOREIGN / "pairs.tsv", lambda folder: pairs.pairs(folder / "pairs.tsv")),
}


def _nowhere(line: str) -> None:
    pass


WORDS = (
    b"\0",
    b"\xff" * 8,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    (2**40).to_bytes(8, "little"),
    b"0",
    b"9" * 20,
    b"2147483647",
    b"-1",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b"[" * 40,
    b"{}",
    b'"a":',
    b",",
    b'"',
    b"\\ud800",
    b"\\u0000",
    b"\x1b[2J",
    b"(a+)+$",
    b"(",
    b"*",
    b"_FillValue",
    b"\n",
)
"""What stands in the place of a few bytes: integers, numbers, and parts of JSON and patterns."""

Edit = tuple[float, int, int]
"""Where (0 to 1), which of the words, and how many bytes it takes the place of; without a word
(-1) they are removed, (-2) repeated, (-3) everything behind is cut."""


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """A file after some edits."""
    for where, word, length in edits:
        place = int(where * len(content))
        behind = content[place + length :]
        if word == -3:
            content = content[:place]
        elif word == -2:
            content = content[: place + length] + content[place : place + length] + behind
        else:
            content = content[:place] + (WORDS[word] if word >= 0 else b"") + behind
    return content


def outcome(reader: Reader, folder: Path) -> str:
    """What is wrong with how a file is read; empty for a value, or one line that names the file."""
    try:
        reader.read(folder)
    except (Refused, results_file.Unreadable, ValueError) as error:
        line = str(error)
        if "MemoryError" in line:
            return f"more memory than there may be: {line}"
        named = line.startswith(f"{folder}") or line.startswith("tokenizer.json: ")
        return "" if named and "\n" not in line and line.isprintable() else f"the line {line!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"{type(error).__name__}: {error}"
    return ""
