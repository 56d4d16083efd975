"""Pairs of sentences, single ones, and text."""

import csv
import io
import tarfile

import numpy as np
import pytest

from lrdyn import data
from lrdyn.data import pairs, sentiment
from tests.datasets import refused

pytestmark = pytest.mark.usefixtures("small_sets")


# Sentences and text ------------------------------------------------------------------------------


TSV = 'index\tsentence1\tsentence2\tscore\n0\tA "cat.\tA dog.\t1.500\n1\tB\tC\t5.000\n'


def test_glue_files_of_stsb(tmp_path):
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B/dev.tsv").write_text(TSV)
    found = data.stsb(split="dev")
    assert found.sentence1 == ['A "cat.', "B"]  # a quotation mark is a letter in GLUE
    assert found.sentence2 == ["A dog.", "C"]
    assert found.scores.tolist() == [1.5, 5.0]


def test_a_test_part_has_no_scores(tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tA\tB\n")
    found = data.stsb(tmp_path / "test.tsv")
    assert (found.sentence1, np.isnan(found.scores).tolist()) == (["A"], [True])


@pytest.mark.parametrize("head", [True, False])
def test_csv_files_of_stsb(head, tmp_path):
    rows = [("A, b", 'say "c"', "0.25"), ("D", "e\nf", "5")]
    with (tmp_path / "stsb-en-train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "score")] * head + rows)
    found = data.stsb()
    assert list(zip(found.sentence1, found.sentence2, strict=True)) == [row[:2] for row in rows]
    assert found.scores.tolist() == [0.25, 5.0]


def test_other_pairs_by_the_names_of_their_columns(tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeffQuality\t#1 String\t#2 String\n1\tA\tB\n")
    found = pairs.pairs(
        tmp_path / "a.tsv", first="#1 String", second="#2 String", score="Quality", highest=1
    )
    assert (found.sentence1, found.sentence2, found.scores.tolist()) == (["A"], ["B"], [1.0])


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("a.tsv", b"", "the columns , wanted one named sentence1"),
        ("a.tsv", b"sentence1\tscore\n", "the columns sentence1, score, wanted one named"),
        ("a.tsv", TSV.encode() + b"2\tA\n", "2 columns in line 4, wanted 4"),
        (
            "a.tsv",
            TSV.replace("5.000", "5.1").encode(),
            "the score 5.1 in line 3, wanted a score from 0 to 5",
        ),
        (
            "a.tsv",
            TSV.replace("5.000", "nan").encode(),
            "the score nan in line 3, wanted a score from 0 to 5",
        ),
        ("a.tsv", TSV.replace("5.000", "x").encode(), r"\(ValueError\), wanted a number as score"),
        ("a.tsv", b"\xff" + TSV.encode(), r"\(UnicodeDecodeError\), wanted UTF-8"),
        ("a.csv", b"A,B\n", "2 columns in line 1, wanted 3"),
        ("a.csv", b'A,"B\n', r"a damaged file \(Error\), wanted lines of cells"),
        ("a.csv", b"A," + b"B" * 200_000 + b",1\n", r"a damaged file \(Error\)"),
        ("a.csv", b"\0" * 100, r"columns in line 1|a damaged file"),
    ],
    ids="empty column cells high nan word utf8 csv quote wide zeros".split(),
)
def test_pairs_are_refused(name, body, said, tmp_path):
    path = tmp_path / name
    path.write_bytes(body)
    refused(path, said, lambda: data.stsb(path))


def test_large_files_of_text_are_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(TSV)
    refused(path, "bytes, wanted at most 10", lambda: pairs.pairs(path, limit=10))
    refused(path, "bytes, wanted at most 10", lambda: data.text(path, limit=10))


def test_text_from_a_path_or_a_place(tmp_path, monkeypatch):
    (tmp_path / "plays.txt").write_bytes("\ufeffTo bé\r\n".encode())
    monkeypatch.chdir("/")
    assert data.text("plays.txt") == data.text(tmp_path / "plays.txt") == "To bé\r\n"
    with pytest.raises(data.MissingData, match=r"data: got no such text, wanted none\.txt in "):
        data.text("none.txt")


def test_missing_pairs_are_one_line(tmp_path):
    with pytest.raises(data.MissingData, match=r"no STS-B \(dev\), wanted STS-B/dev.tsv or .* in "):
        data.stsb(split="dev")
    with pytest.raises(data.MissingData, match=r"wanted none.tsv in "):
        data.stsb("none.tsv")
    with pytest.raises(ValueError, match="split: got 'all', wanted one of train, dev, test"):
        data.stsb(split="all")


# Single sentences --------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["", "score\ttext\n"])
def test_scored_sentences_with_and_without_a_first_line(head, tmp_path):
    (tmp_path / "a.tsv").write_text(f'{head}-1.5\tnot "great\n2\tcafé\n')
    found = sentiment.scored(tmp_path / "a.tsv")
    assert (found.texts, found.scores.tolist()) == (['not "great', "café"], [-1.5, 2.0])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "got no sentences, wanted lines of score, tab, text"),
        ("score\tsentence\n1\ta\n", "the columns score, sentence, wanted one named text"),
        ("1\ta\n2\tb\tc\n", "got 3 columns in line 2, wanted 2"),
        ("one\ta\n", "wanted a number as score"),
        ("nan\ta\n", "got the score nan in line 1, wanted a finite number"),
    ],
)
def test_other_tables_of_sentences_are_refused(body, said, tmp_path):
    (tmp_path / "a.tsv").write_text(body)
    path = tmp_path / "a.tsv"
    refused(path, said, lambda: sentiment.scored(path))


def write_corpus(folder, rows, name="tweets_GroundTruth.txt"):
    """An archive as the corpus has it, with one part and a file that is not read."""
    path = folder / sentiment.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for inner, text in ((name, rows), ("_README_.txt", "what this is")):
            content = text.encode("cp1252")
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{inner}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_the_corpus_is_read_from_its_archive(tmp_path):
    write_corpus(tmp_path, "1\t2.5\tbread &amp; butter \r\n2\t-4\tnaïve\r\n")
    found = sentiment.vader()
    assert (found.texts, found.scores.tolist()) == (["bread & butter", "naïve"], [2.5, -4.0])


def test_a_table_of_tweets_comes_before_the_archive(tmp_path):
    write_corpus(tmp_path, "1\t2.5\tof the archive\n")
    (tmp_path / "vader_tweets.tsv").write_text("1\tof the table\n")
    assert sentiment.vader().texts == ["of the table"]


@pytest.mark.parametrize(
    ("rows", "name", "said"),
    [
        (
            "1\t4.5\ta\n",
            "tweets_GroundTruth.txt",
            "the score 4.5 in line 1, wanted a score from -4 to 4",
        ),
        ("1\ta\n", "tweets_GroundTruth.txt", "got 2 columns in line 1 of tweets, wanted 3"),
        ("1\t1\ta\n", "nytEditorialSnippets_GroundTruth.txt", "got no tweets_GroundTruth.txt"),
        ("1\t1\ta\n", "evil.txt", "got the unknown member hutto_ICWSM_2014/evil.txt"),
    ],
)
def test_another_archive_is_refused(rows, name, said, tmp_path):
    path = write_corpus(tmp_path, rows, name)
    refused(path, said, sentiment.vader)


def test_tweets_that_are_missing_name_the_command_that_brings_them(tmp_path):
    with pytest.raises(data.MissingData, match="lrdyn data download vader"):
        sentiment.vader()
