"""Lists of paths: what a line means, what is refused with its number, and how much is held."""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import re
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources.addresses import joined, resolve
from pipeline.sources.line_blocks import BLOCK_BYTES, MAX_LINE
from pipeline.sources.list_kinds import Kind, kind_of, read_list
from pipeline.sources.listed import LISTED, Tally, addresses_of

BASE = "/data/lists"


def read(data: bytes, base: str = BASE, tally: Tally | None = None, name: str = "list.txt") -> list[tuple[int, str]]:
    """Row and address of each row."""
    batches = list(read_list(io.BytesIO(data), name, base, Tally() if tally is None else tally))
    assert all(batch.schema.equals(LISTED) for batch in batches)
    return [
        (row, address)
        for batch in batches
        for row, address in zip(batch["row"].to_pylist(), addresses_of(batch), strict=True)
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_line_is_a_name(end: bytes, mark: bytes) -> None:
    """Blank lines and comments are counted; everything else belongs to the name."""
    lines = [
        b"a.jpg",
        b"",
        b"# a note",
        b"#1.jpg",
        b" b .jpg ",
        b"#",
        b"  ",
        "ä#.jpg".encode(),
        b'"q".jpg',
        b"./# c.jpg",
    ]
    tally = Tally()

    found = read(mark + end.join(lines), tally=tally)

    assert found == [(1, "a.jpg"), (4, "#1.jpg"), (5, " b .jpg "), (8, "ä#.jpg"), (9, '"q".jpg'), (10, "# c.jpg")]
    assert tally.counts == {"blank lines": 2, "comments": 2}
    assert tally.first["comments"] == "list.txt line 3"
    assert str(tally) == "2 blank lines (first: list.txt line 2); 2 comments (first: list.txt line 3)"


def test_bytes_that_are_no_utf8_stay() -> None:
    batches = list(read_list(io.BytesIO(b"b\xff.jpg\na.jpg\n/data/lists/x/\xe9/1.jpg\n"), "l", BASE, Tally()))

    (batch,) = batches
    assert [os.fsencode(address) for address in addresses_of(batch)] == [b"b\xff.jpg", b"a.jpg", b"x/\xe9/1.jpg"]
    assert batch["address"].to_pylist() == ["b%FF.jpg", "a.jpg", "x/%E9/1.jpg"]
    assert batch["raw_address"].to_pylist() == [b"b\xff.jpg", None, b"x/\xe9/1.jpg"]


def test_blocks_meet_without_a_seam() -> None:
    """Lines that straddle blocks, among them one of several bytes a character."""
    lines = [f"{number:07d}-ü€-{'x' * (number % 220)}.jpg" for number in range(20_000)]
    data = "\n".join(lines).encode()
    assert len(data) > 2 * BLOCK_BYTES

    assert read(data) == list(enumerate(lines, 1))
    assert read(gzip.compress(data, mtime=0), name="list.txt.gz") == list(enumerate(lines, 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\0\n\r/:\\#. \t\x0b\x0c\x1c\x1d\x1e\x1f\x85")),
        max_size=30,
    )
)
def test_every_line_comes_back(names: list[bytes]) -> None:
    """Names of any bytes but separators, in order, each with its line."""
    wanted = [(number, name) for number, name in enumerate(names, 1) if name and not os.fsdecode(name).isspace()]
    if names and names[0].startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"{", b"PAR1")):
        return

    assert [(row, os.fsencode(name)) for row, name in read(b"\n".join(names))] == wanted


class Endless(io.RawIOBase):
    """A file of one byte, over and over; counts what was read of it."""

    def __init__(self, byte: bytes, size: int) -> None:
        self.byte, self.size, self.at, self.given = byte, size, 0, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset
        return offset

    def read(self, count: int = -1) -> bytes:
        count = min(count, self.size - self.at)
        self.at, self.given = self.at + count, self.given + count
        return self.byte * count


def test_a_line_of_a_gigabyte_is_refused_early() -> None:
    stream = Endless(b"a", 2**30)

    with pytest.raises(UsageError, match=r"list.txt line 1 has over 65,536 bytes"):
        list(read_list(stream, "list.txt", BASE, Tally()))  # type: ignore[arg-type]

    assert stream.given < 3 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a.jpg\nb\0.jpg\n", "list.txt line 2 has a NUL"),
        (b"a" * 200 + b"\n" + b"b\n" * 99_999 + b"c" * BLOCK_BYTES, "line 100,001 has over"),
        (b"abcdefg\n" * 300_000 + b"b\0", "line 300,001 has a NUL"),
        ("a.jpg\n".encode("utf-16"), "list.txt is UTF-16: save it as UTF-8"),
        (b"a\n\n" + b"x" * (MAX_LINE + 1) + b"\nb\n", "line 3 has over 65,536 bytes"),
        (b"a\nhttps://h/1.jpg\n", "line 2: 'https://h/1.jpg': https:// is no storage .* download the images first"),
        (b"gs://b/1.jpg\n", "line 1: .* gs:// is no storage"),
        (b"a\nC:\\photos\\1.jpg\n", "line 2: .* a path of Windows"),
        (b"\\\\server\\share\\1.jpg\n", "line 1: .* a path of Windows"),
        (b"s3://bucket\n", "line 1: 's3://bucket' names no object"),
        (b"s3:///key\n", "names no object"),
        (b"minio://server/bucket\n", "names no object"),
        (b"s3://me:secret@bucket/k\n", r"s3://\*\*\*@bucket/k.*credentials"),
        (b"a\n.\n", "line 2: '/data/lists' is a folder"),
        (b"x/" * 2100 + b"1.jpg\n", "line 1: .* bytes; wanted at most 4,096"),
        (b"x" * 256 + b"\n", "and 255 in each name"),
        (b"\x1f\x8b\x08\x00 no gzip", "list.txt: a damaged gzip file"),
        (gzip.compress(b"a.jpg\n" * 99, mtime=0)[:-9], "list.txt: a damaged gzip file"),
        (gzip.compress(b"a.jpg\n" * 3, mtime=0) + b"garbage", "list.txt: a damaged gzip file"),
    ],
)  # fmt: skip
def test_one_clear_error(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(data)


def test_a_gzip_bomb_is_refused() -> None:
    bomb = gzip.compress((b"a" * 199 + b"\n") * 2**18, mtime=0)
    assert len(bomb) < 2**18

    with pytest.raises(UsageError, match=r"grew to .* bytes from .*; wanted at most 200 times"):
        for _ in read_list(io.BytesIO(bomb), "list.txt.gz", BASE, Tally()):
            pass


@pytest.mark.parametrize(
    ("address", "base", "wanted"),
    [
        ("a/1.jpg", BASE, (BASE, "a/1.jpg", "a/1.jpg")),
        ("./a//b/./1.jpg", BASE, (BASE, "a/b/1.jpg", "a/b/1.jpg")),
        ("../images/1.jpg", BASE, ("/", "data/images/1.jpg", "/data/images/1.jpg")),
        ("../lists/1.jpg", BASE, (BASE, "1.jpg", "1.jpg")),
        ("../../../../1.jpg", BASE, ("/", "1.jpg", "/1.jpg")),
        ("/data/lists/a/1.jpg", BASE, (BASE, "a/1.jpg", "a/1.jpg")),
        ("//data//lists/1.jpg", BASE, (BASE, "1.jpg", "1.jpg")),
        ("/data/listsb/1.jpg", BASE, ("/", "data/listsb/1.jpg", "/data/listsb/1.jpg")),
        ("file:///data/lists/a%20b.jpg", BASE, (BASE, "a b.jpg", "a b.jpg")),
        ("a%20b.jpg", BASE, (BASE, "a%20b.jpg", "a%20b.jpg")),
        ("a\\b.jpg", BASE, (BASE, "a\\b.jpg", "a\\b.jpg")),
        ("~/1.jpg", BASE, (BASE, "~/1.jpg", "~/1.jpg")),
        ("s3://bkt/k/1.jpg", BASE, ("s3://bkt", "k/1.jpg", "s3://bkt/k/1.jpg")),
        ("S3://bkt/k/1.jpg", BASE, ("s3://bkt", "k/1.jpg", "s3://bkt/k/1.jpg")),
        ("x/1.jpg", "/", ("/", "x/1.jpg", "x/1.jpg")),
        ("/x/1.jpg", "/", ("/", "x/1.jpg", "x/1.jpg")),
        ("a/1.jpg", "s3://bkt/p", ("s3://bkt/p", "a/1.jpg", "a/1.jpg")),
        ("./a//b/../1.jpg", "s3://bkt/p", ("s3://bkt/p", "a//b/../1.jpg", "a//b/../1.jpg")),
        ("s3://bkt/p/a/1.jpg", "s3://bkt/p", ("s3://bkt/p", "a/1.jpg", "a/1.jpg")),
        ("s3://bkt/p//a.jpg", "s3://bkt/p", ("s3://bkt", "p//a.jpg", "s3://bkt/p//a.jpg")),
        ("s3://bkt/p/./a.jpg", "s3://bkt/p", ("s3://bkt", "p/./a.jpg", "s3://bkt/p/./a.jpg")),
        ("s3://bkt/pp/1.jpg", "s3://bkt/p", ("s3://bkt", "pp/1.jpg", "s3://bkt/pp/1.jpg")),
        ("s3://cc/1.jpg?x#y", "s3://bkt/p", ("s3://cc", "1.jpg?x#y", "s3://cc/1.jpg?x#y")),
        ("/mnt/1.jpg", "s3://bkt/p", ("/", "mnt/1.jpg", "/mnt/1.jpg")),
        ("minio://h:9000/bkt/1.jpg", "minio://h:9000/bkt", ("minio://h:9000/bkt", "1.jpg", "1.jpg")),
        ("minio://h:9000/cc/1.jpg", "minio://h:9000/bkt", ("minio://h:9000/cc", "1.jpg", "minio://h:9000/cc/1.jpg")),
    ],
)  # fmt: skip
def test_resolve(address: str, base: str, wanted: tuple[str, str, str]) -> None:
    assert resolve(address, base) == wanted
    assert read(address.encode() + b"\n", base) == [(1, wanted[2])]
    assert resolve(wanted[2], base) == wanted


PLACES = st.sampled_from(["", "", "/", "/data/lists/", "/data/", "s3://buck/p/", "s3://buck/", "minio://h:1/buck/p/"])
NAMES = st.builds(str.__add__, PLACES, st.text(st.sampled_from("ab./\\:% ~#-"), min_size=1, max_size=12))


@settings(max_examples=300, deadline=None)
@given(NAMES, st.sampled_from([BASE, "/", "s3://buck", "s3://buck/p/q", "minio://h:1/buck/p"]))
def test_what_is_stored_resolves_to_the_same(address: str, base: str) -> None:
    """A uri of the catalog, resolved again, is itself; on disk it is what the path module says; both ways agree."""
    try:
        found = resolve(address, base)
    except UsageError:
        with pytest.raises(UsageError):
            read(b"a.jpg\n" + address.encode(), base)
        return

    assert resolve(found.uri, base) == found
    assert read(b"a.jpg\n" + address.encode(), base)[1:] == (
        [] if address.isspace() or address[:2] == "# " or address == "#" else [(2, found.uri)]
    )
    if address.startswith(("s3://", "minio://")):
        assert f"{found.place}/{found.key}" == address
    elif base.startswith("/"):
        whole = posixpath.join(found.place, found.key)
        assert whole == "/" + posixpath.normpath(posixpath.join(base, address)).lstrip("/")
    else:
        is_path = address.startswith("/")
        assert is_path or f"{found.place}/{found.key}" == f"{base}/{re.sub('^([.]/)+', '', address)}"


@pytest.mark.parametrize(
    ("base", "address", "wanted"),
    [
        ("/d/yaml", "", "/d/yaml"),
        ("/d/yaml", "../images/", "/d/images"),
        ("/d/yaml", "/x/../y", "/y"),
        ("/d/yaml", "file:///a%20b", "/a b"),
        ("/d/yaml", "s3://bkt/x/../y/", "s3://bkt/y"),
        ("s3://bkt/d/yaml", "../train/images", "s3://bkt/d/train/images"),
        ("s3://bkt/d/yaml", ".", "s3://bkt/d/yaml"),
        ("minio://h:1/bkt/d", "..", "minio://h:1/bkt"),
    ],
)
def test_joined(base: str, address: str, wanted: str) -> None:
    assert joined(base, address) == wanted


@pytest.mark.parametrize(
    ("base", "address"), [("s3://bkt/d", "../../x"), ("minio://h:1/bkt", ".."), ("/d", "http://x/y")]
)
def test_a_folder_out_of_its_bucket_is_refused(base: str, address: str) -> None:
    with pytest.raises(UsageError):
        joined(base, address)


@pytest.mark.parametrize(
    ("name", "head", "wanted"),
    [
        ("a.txt", b"1.jpg\n2.jpg\n", Kind.TEXT),
        ("a", b"", Kind.TEXT),
        ("list", b"filename,label\n1.jpg,cat\n", Kind.CSV),
        ("list.txt", b'"filename","split"\n', Kind.CSV),
        ("list.txt", b"filename\n", Kind.TEXT),
        ("list.txt", b"{1}.jpg\n", Kind.TEXT),
        ("a.csv", b"x", Kind.CSV),
        ("a.CSV.GZ", gzip.compress(b"filename,label\n", mtime=0), Kind.CSV),
        ("a.csv", b"PAR1....", Kind.PARQUET),
        ("coco", b'\xef\xbb\xbf {"images": [', Kind.COCO),
        ("coco.json", b"", Kind.COCO),
        ("coco.json.gz", gzip.compress(b'{"images": []}', mtime=0), Kind.COCO),
        ("manifest.json", b'{"sourceBucket": "b", "destinationBucket": "x"', Kind.INVENTORY),
        ("data.yaml", b"train: x", Kind.YOLO),
        ("data.yml", b"{train: x}", Kind.YOLO),
    ],
)
def test_kinds(name: str, head: bytes, wanted: Kind) -> None:
    assert kind_of(name, head) is wanted


def test_an_image_is_no_list() -> None:
    with pytest.raises(UsageError, match=r"photo\.jpg is no list"):
        kind_of("photo.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00")


def test_a_list_of_another_kind_says_so() -> None:
    with pytest.raises(UsageError, match="of kind yolo"):
        list(read_list(io.BytesIO(b"train: x"), "data.yaml", BASE, Tally()))


def lines_of(count: int) -> Iterator[bytes]:
    """Lines of a long list, a megabyte at a time."""
    for start in range(0, count, 20_000):
        yield b"".join(
            b"train/class_%03d/%09d.jpg\n" % (number % 500, number) for number in range(start, start + 20_000)
        )


def test_memory_is_flat() -> None:
    """Arrow holds a batch, whatever the length of the list."""
    data = io.BytesIO(b"".join(lines_of(200_000)))
    before, most, rows = pa.total_allocated_bytes(), 0, 0

    for batch in read_list(data, "list.txt", BASE, Tally()):
        rows += batch.num_rows
        most = max(most, pa.total_allocated_bytes() - before)

    assert rows == 200_000
    assert most < 2**24
