"""What counts as an image, how names are stored, and labels from tables."""

from __future__ import annotations

import io
import os
import re

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources.annotated import normal_table
from pipeline.sources.folder import (
    MAX_SUFFIXES,
    LeftOut,
    decode_key,
    encode_key,
    image_objects,
    is_hidden,
    is_image_key,
    own_name,
    together,
)
from pipeline.sources.fragments import parent_kind
from pipeline.sources.labels import RuleParams, assign, matched
from pipeline.sources.tabular import LabelTable, match_rows, read_label_table
from pipeline.storage import ObjectInfo

BY_TABLE = RuleParams(table="labels.csv")


def loaded(data: bytes, address: str) -> LabelTable:
    return read_label_table(normal_table(data, address, "/base", []), address)


def csv_bytes(columns: dict[str, list[str]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns), buffer)
    return buffer.getvalue()


def parquet_bytes(columns: dict[str, list[object]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "key",
    ["a.jpg", "a.JPEG", "a.jpe", "a.jfif", "a.PNG", "a.webp", "x/a.bmp", "x y/a.gif", "a.tif", "a.b.TIFF", "a\nb.jpg"],
)
def test_is_image(key: str) -> None:
    """Known suffixes in any case are images."""
    assert is_image_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "a.txt", "jpg", "a.jpg/", "a.jpg.part", "a.npy", "", ".jpg", ".git/a.jpg", "x/.cache/a.jpg", "x/._a.jpg",
        "__MACOSX/x/a.jpg", "x/__MACOSX/a.jpg", ".DS_Store", "x/Thumbs.db",
    ],
)  # fmt: skip
def test_is_no_image(key: str) -> None:
    """Other suffixes, hidden files and folders, and what operating systems leave behind are skipped."""
    assert not is_image_key(key)


def test_visible_names_with_dots() -> None:
    """A dot elsewhere than at the start hides nothing."""
    assert is_image_key("v1.2/a..jpg")
    assert is_image_key("my__MACOSX/a.jpg")
    for key in ("a/../b.jpg", "../b.jpg", "./b.jpg", "a/./b.jpg", "a//../../b.jpg"):
        assert is_image_key(key)
        assert parent_kind(key.replace("jpg", "tar")) == "tar"
    for key in ("a/...", "a/.../b.jpg", "..a/b.jpg", "a/../.b.jpg", "./..b.jpg", ".\n/b.jpg"):
        assert is_hidden(key)


def test_images_in_order_and_the_others_counted() -> None:
    """Only images pass, in the order of the listing; what else there is is counted by suffix, hidden files apart."""
    keys = ["b.jpg", "a.PSD", "x/b.psd", "c.exr", ".x/c.png", "a.png", "Makefile", "d.of-a-long-name", "x/.DS_Store"]
    left_out = LeftOut()
    passed = image_objects((ObjectInfo(key, 1, "", 0) for key in keys), left_out)

    assert [entry.key for entry in passed] == ["b.jpg", "a.png"]
    assert (left_out.images, left_out.files, left_out.hidden) == (2, 5, 2)
    assert str(left_out) == "5 files: 2 .psd, 2 without a suffix, 1 .exr; 2 hidden"
    assert str(together([left_out, LeftOut(), left_out])) == ("10 files: 4 .psd, 4 without a suffix, 2 .exr; 4 hidden")
    assert str(LeftOut()) == ""


def test_counts_of_suffixes_are_bounded() -> None:
    """A folder with a suffix per file fills no memory; each file is counted once."""
    left_out = LeftOut()
    for number in range(10_000):
        left_out.add(f"{number}.s{number}")
        left_out.add(os.fsdecode(b"x.\xff"))

    assert left_out.files == 20_000
    assert len(left_out.suffixes) <= MAX_SUFFIXES + 1
    assert str(left_out).startswith("20,000 files: 10,000 .%FF, 1 .s0, ")
    assert sum(int(part.split()[0].replace(",", "")) for part in str(left_out).split(": ")[1].split(", ")) == 20_000


PIECES = st.sampled_from([b"%", b"%25", b"%E9", b"%e9", b"\xe9", b"\xc3\xa9", b"2", b"5", b"F", b"g", b".jpg"])
NAMES = st.one_of(st.binary(max_size=40), st.lists(PIECES, max_size=8).map(b"".join))


@given(NAMES)
@settings(max_examples=200, deadline=None)
def test_names_round_trip(raw: bytes) -> None:
    """Any bytes of a name come back, with the raw bytes and from the uri alone; what is stored is UTF-8."""
    key = raw.decode("utf-8", "surrogateescape")
    uri, raw_key = encode_key(key)

    assert uri.encode().decode() == uri
    assert decode_key(uri, raw_key) == key
    assert (raw_key is None) == (uri == key)
    assert raw_key in (None, raw)
    assert re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes.fromhex(found[1].decode()), uri.encode()) == raw


def test_names_that_look_alike_have_uris_of_their_own() -> None:
    """Only invalid bytes and what reads like one are encoded; valid neighbours and other percent signs stay."""
    assert encode_key(os.fsdecode(b"caf\xe9 \xc3\xa9 50%.jpg")) == ("caf%E9 é 50%.jpg", b"caf\xe9 \xc3\xa9 50%.jpg")
    assert encode_key("caf%E9 é 50%.jpg") == ("caf%25E9 é 50%.jpg", "caf%E9 é 50%.jpg".encode())
    assert encode_key("50%.jpg") == ("50%.jpg", None)


def test_rules_see_the_name_that_its_owner_wrote() -> None:
    """A table says `a%20b.jpg` for the file of that name; one that is not UTF-8 goes by its uri."""
    assert own_name(*encode_key("a%20b/1.jpg")) == "a%20b/1.jpg"
    assert own_name(*encode_key("é.jpg")) == "é.jpg"
    assert own_name(*encode_key(os.fsdecode(b"%20\xe9.jpg"))) == "%2520%E9.jpg"


def test_surrogate_that_is_no_byte() -> None:
    """A lone surrogate that no file system gives is refused by name."""
    with pytest.raises(UsageError, match="stands for no byte"):
        encode_key("a\ud800.jpg")


@pytest.mark.parametrize("make", [csv_bytes, parquet_bytes])
def test_table_by_path(make: object) -> None:
    """Rows are found by relative path; split names become splits; labels stay text; empty ones are none."""
    columns = {
        "filename": ["a/1.jpg", './b/"2", x.jpg', "c\nd/3.jpg", "é/4.jpg"],
        "label": ["007", "cat, grey", "", "0.10"],
        "split": ["Training", "valid", "fold1", ""],
        "width": ["1", "2", "3", "4"],
    }
    table = loaded(make(columns), "labels.csv")  # type: ignore[operator]
    listed = ["é/4.jpg", 'b/"2", x.jpg', "c\nd/3.jpg", "a/1.jpg", "train/z/5.jpg"]

    assert assign(listed, BY_TABLE, table) == (
        [None, "val", "fold1", "train", None],
        ["0.10", "cat, grey", None, "007", None],
    )
    assert matched(listed, BY_TABLE, table).tolist() == [3, 1, 2, 0, -1]


def test_table_numbers_and_nulls() -> None:
    """Parquet labels may be numbers, and null is none."""
    columns = {"filename": ["1.jpg", "2.jpg"], "label": [7, None]}

    assert assign(["1.jpg", "2.jpg"], BY_TABLE, loaded(parquet_bytes(columns), "t"))[1] == ["7", None]


def test_table_by_own_name() -> None:
    """A file's own name finds its row where one row has it and the folders do not contradict."""
    names = ["1.jpg", "cat/2.jpg", "/data/photos/train/3.jpg", "dog/4.jpg", "a/5.jpg", "b/5.jpg"]
    table = loaded(csv_bytes({"filename": names, "label": list("abcdef")}), "labels.csv")
    listed = ["x/1.jpg", "train/cat/2.jpg", "train/3.jpg", "cat/4.jpg", "x/b/5.jpg", "b/5.jpg", "5.jpg"]

    labels = assign(listed, BY_TABLE, table)[1]

    assert labels == ["a", "b", "c", None, None, "f", None]


def test_table_without_a_column_takes_it_from_folders() -> None:
    """A table of labels leaves the splits to the folders, and the other way round."""
    only_labels = loaded(csv_bytes({"filename": ["1.jpg"], "label": ["cat"]}), "t")
    only_splits = loaded(csv_bytes({"filename": ["dog/1.jpg"], "split": ["holdout"]}), "t")

    assert assign(["test/dog/1.jpg"], BY_TABLE, only_labels) == (["test"], ["cat"])
    assert assign(["dog/1.jpg", "dog/2.jpg"], BY_TABLE, only_splits) == (["holdout", None], ["dog", "dog"])


def test_table_without_rows() -> None:
    """A header alone matches nothing."""
    table = loaded(b"filename,label,split\n", "t")

    assert assign(["1.jpg"], BY_TABLE, table) == ([None], [None])
    assert matched(["1.jpg"], BY_TABLE, table).tolist() == [-1]


names = st.lists(st.text("ab/.", min_size=1, max_size=6), unique=True, max_size=12)


@given(names, names)
@settings(max_examples=150, deadline=None)
def test_match_rows_is_the_naive_rule(named: list[str], listed: list[str]) -> None:
    """Hashes and sorting find what a scan of the table finds."""
    named = [name for name in named if not name.startswith("./")]
    if not named:
        return
    table = loaded(parquet_bytes({"filename": named, "label": ["x"] * len(named)}), "t")

    def scan(path: str) -> int:
        if path in named:
            return named.index(path)
        own = [i for i, name in enumerate(named) if name.split("/")[-1] == path.rsplit("/", maxsplit=1)[-1]]
        ends = len(own) == 1 and (f"/{path}".endswith(f"/{named[own[0]]}") or f"/{named[own[0]]}".endswith(f"/{path}"))
        return own[0] if ends else -1

    assert match_rows(listed, table).tolist() == [scan(path) for path in listed]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (csv_bytes({"file": ["1.jpg"], "label": ["a"]}), "has the columns file, label; wanted one of filename"),
        (csv_bytes({"filename": ["1.jpg"]}), "at least one of split and label"),
        (csv_bytes({"filename": ["1.jpg", ""], "label": ["a"] * 2}), "line 3 has no filename"),
        (b"filename,label,label\n1.jpg,a,b\n", "column label more than once"),
        (b"filename,label\n1.jpg\n", "line 2 has 1 values; wanted 2"),
        (b"filename,label\n1.jpg,\xff\n", "line 2: label '%FF' is not UTF-8"),
        (b"", "is empty; wanted a header"),
        (b"PAR1 and no more", "a Parquet file that cannot be read"),
    ],
)  # fmt: skip
def test_wrong_table(data: bytes, said: str) -> None:
    """A table that cannot rule is one error that names the file and what is wrong with it."""
    with pytest.raises(UsageError, match=said) as raised:
        loaded(data, "some/labels.csv")
    assert "some/labels.csv" in str(raised.value)


def test_rule_with_a_table_not_loaded() -> None:
    """The table has to be passed."""
    with pytest.raises(UsageError, match="was not loaded"):
        assign(["1.jpg"], BY_TABLE)
