"""A tiny BERT and made-up pairs of sentences, for tests of what reads them."""

import csv
from pathlib import Path

import numpy as np

BERT = Path(__file__).with_name("data") / "bert"
"""3 layers of width 24, a table of 40 positions, a pooler."""
WORDS = "a man plays the guitar some cat sleeps on it someone makes music".split()


def write_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Pairs that share more words the higher their score is."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        for k in range(count):
            first, shared = rng.choice(WORDS, 5), k % 6
            second = [*first[:shared], *rng.choice(WORDS, 5 - shared)]
            csv.writer(file).writerow([" ".join(first), " ".join(second), f"{shared:.1f}"])
    return path


def write_sentences(path: Path, count: int, seed: int = 1) -> Path:
    """Sentences whose score is how many of their words are of music, with some noise."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(count):
            words = rng.choice(WORDS, 6)
            score = sum(word in ("guitar", "music", "plays") for word in words)
            file.write(f"{score + 0.1 * rng.normal():.4f}\t{' '.join(words)}\n")
    return path
