"""What is inside an archive: compared with what the standard library unpacks, whole and damaged in many places."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from contextlib import suppress
from typing import Any, BinaryIO, cast

import pytest
from archives_made import KINDS, Members, archive, tar_entry, tar_of, zip_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels.header import ImageError
from pipeline.kernels.zip_member import unpack_member
from pipeline.layout.members import member_content
from pipeline.schemas import Status
from pipeline.sources.archives import (
    BEHIND,
    HEAD_BYTES,
    LINKS,
    MOST_PADDING,
    archive_fragments,
    archive_kind,
    is_prefixed_zip,
    nested_archives,
)
from pipeline.sources.folder import LeftOut
from pipeline.sources.fragments import Fragment, is_image_member, parent_kind, rule_path, shown_name
from pipeline.sources.gzip_stream import GzipStream

PHOTOS = [(f"cat/{at}.jpg", bytes([at]) * (700 * at)) for at in range(1, 9)]
NAMES = st.text("ab./#%é", min_size=1, max_size=12).map(lambda name: f"{name}.jpg")


def listed(data: bytes) -> tuple[list[Fragment], LeftOut, ImageError | None]:
    """The fragments of an archive, what else it has, and what broke it off."""
    left_out, found = LeftOut(), list[Fragment]()
    kind = archive_kind(data)
    fragments = archive_fragments(unpacked(data), "zip" if kind == "zip" else "tar", left_out)
    try:
        found += iter(fragments)
    except ImageError as error:
        return found, left_out, error
    return found, left_out, None


def unpacked(data: bytes) -> BinaryIO:
    is_packed = archive_kind(data) == "tar.gz"
    return cast(BinaryIO, GzipStream(io.BytesIO(data), len(data)) if is_packed else io.BytesIO(data))


def contents(data: bytes, found: list[Fragment]) -> list[bytes]:
    """The bytes of fragments, each read by its position and length alone."""
    stream, kind = unpacked(data), archive_kind(data)
    pieces = []
    for fragment in found:
        stream.seek(fragment.position)
        pieces.append(member_content(kind, stream.read(fragment.length), fragment))
    return pieces


@pytest.mark.parametrize("ending", KINDS)
def test_members_are_found_and_read(ending: str) -> None:
    data = archive(ending, [*PHOTOS, ("notes.txt", b"none"), ("cat/.hidden.jpg", b"x"), ("inner.zip", b"PK")])
    found, left_out, error = listed(data)
    assert error is None
    assert [fragment.name for fragment in found] == [name for name, _ in PHOTOS]
    assert contents(data, found) == [content for _, content in PHOTOS]
    assert (left_out.suffixes, left_out.hidden) == ({".txt": 1, ".zip": 1}, 1)
    assert [fragment.size for fragment in found] == [len(content) for _, content in PHOTOS]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8), st.sampled_from(KINDS))
def test_any_names_and_sizes(members: list[tuple[str, bytes]], ending: str) -> None:
    """Names are unique, whatever repeats; the n-th member of a name is the n-th of that name in the archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile: duplicate name
        data = archive(ending, members)
    found, _, error = listed(data)
    assert (error and error.status) == (None if members else Status.EMPTY)
    wanted = [content for name, content in members if is_image_member(stored_name(name))]
    assert contents(data, found) == wanted
    assert len({fragment.name for fragment in found}) == len(found)
    assert [fragment.position for fragment in found] == sorted(fragment.position for fragment in found)


def stored_name(name: str) -> str:
    """A name as both formats give it back, without leading `./`."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_tars(form: int) -> None:
    names = [f"{'d' * 90}/{'n' * 80}.jpg", "\udce9.jpg", "é.jpg"]
    found, _, error = listed(tar_of([(name, b"x") for name in names], form=form))
    assert error is None
    assert [fragment.name for fragment in found] == [names[0], "%E9.jpg", "é.jpg"]


def test_names_that_lead_out_are_names() -> None:
    names = ["../../x.jpg", "/etc/x.jpg", "a/../../b.jpg", "C:\\x.jpg"]
    for ending in (".tar", ".zip"):
        assert [fragment.name for fragment in listed(archive(ending, [(name, b"x") for name in names]))[0]] == names


def test_repeats_are_numbered() -> None:
    found = listed(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("./a.jpg", b"3"), ("a.jpg", b"4"), ("a.jpg#2", b"")]))[0]
    assert [fragment.name for fragment in found] == ["a.jpg", "b.jpg", "a.jpg#2", "a.jpg#3"]


def test_members_that_are_named_as_boxes_are_none() -> None:
    """Their `=` is escaped, also where a name has it so; a box of one is told from it."""
    names = ["xywh=1,2,30,40.jpg", "corners=x.jpg", "xywh%3D1.jpg", "t=1.000.jpg", "a/xywh=1.jpg", "xywh=1,2,30,40.jpg"]
    found = listed(tar_of([(name, b"x") for name in names]))[0]
    assert [fragment.box for fragment in found] == [""] * 6
    assert [fragment.whole for fragment in found] == found
    assert len({fragment.name for fragment in found}) == 6
    uris = [(f"a.tar#{fragment.name}", fragment.name) for fragment in found]
    assert [shown_name(uri, None, name) for uri, name in uris] == [f"a.tar#{name}" for name in names[:5]] + [
        "a.tar#xywh=1,2,30,40.jpg#2"
    ]
    assert [rule_path(uri, None, name) for uri, name in uris] == [f"a.tar/{name}" for name in names]
    boxed = found[0]._replace(name=f"{found[0].name}#xywh=1,2,3,4")
    assert (boxed.box, boxed.whole) == ("xywh=1,2,3,4", found[0])


def test_nested_archives_are_told_by_their_names() -> None:
    names = ["a.tar", "b.tgz", "c.tar.gz", "D.TAR.GZ", "e.zip", "labels.json.gz", "f.gz", "g.tar.bz2", ".h.tar.gz"]
    left_out = listed(tar_of([(name, b"x") for name in names]))[1]
    assert nested_archives(left_out) == 5
    assert (left_out.suffixes[".gz"], left_out.hidden, left_out.files) == (2, 1, 8)


def test_links_devices_and_folders_are_no_images() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            file.addfile(tar_entry("x.jpg", 0, kind, "/etc/passwd"))
        file.addfile(tar_entry("folder.jpg", 0, tarfile.DIRTYPE))
        file.addfile(tar_entry("y.jpg", 1), io.BytesIO(b"y"))
    found, left_out, error = listed(sink.getvalue())
    assert ([fragment.name for fragment in found], error) == (["y.jpg"], None)
    assert left_out.suffixes == {LINKS: 5}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file_of_zip:
        link = zipfile.ZipInfo("x.jpg")
        link.external_attr = 0o120777 << 16
        file_of_zip.writestr(link, "/etc/passwd")
        file_of_zip.writestr("folder.jpg/", b"")
    found, left_out, error = listed(packed.getvalue())
    assert (found, error, left_out.suffixes) == ([], None, {LINKS: 1})


def test_a_tar_cut_anywhere_keeps_what_is_whole() -> None:
    """Every member that ends before the cut is there, and the cut is told; only the full archive is complete."""
    data = tar_of(PHOTOS)
    whole = listed(data)[0]
    end = whole[-1].position + -(-whole[-1].length // 512) * 512
    for cut in [*range(0, len(data), 257), end - 1, end, end + 100, end + 512]:
        found, _, error = listed(data[:cut])
        if cut < 512:
            assert (found, error and error.status) == ([], Status.TRUNCATED if cut else Status.EMPTY)
            continue
        assert found == [fragment for fragment in whole if fragment.position + fragment.length <= cut], cut
        assert (error is None) == (cut >= end + 512), cut
        assert error is None or error.status is Status.TRUNCATED


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_in_a_header_of_several_blocks_is_truncated(form: int) -> None:
    """The first one, and one behind a whole member, which stays."""
    long = f"{'d' * 90}/{'n' * 180}.jpg"
    data = tar_of([(long, b"x"), (f"2{long}", b"y")], form=form)
    first, second = listed(data)[0]
    for cut in [*range(1, first.position, 73), *range(first.position + 512, second.position, 73)]:
        found, _, error = listed(data[:cut])
        assert found == ([first] if cut > first.position else [])
        assert error is not None
        assert error.status is Status.TRUNCATED, cut


@pytest.mark.parametrize("is_packed", [False, True], ids=["tar", "tar.gz"])
def test_tars_put_behind_one_another_are_one(is_packed: bool) -> None:
    """As `cat` does it, whatever their padding is, packed before or after; the first may be empty."""
    parts = [tar_of([]), tar_of(PHOTOS[:3]), tar_of(PHOTOS[3:5])[:-1024], tar_of(PHOTOS[5:])]
    for padding in (0, 512, MOST_PADDING // 2):
        padded = [part + bytes(padding) for part in parts]
        whole = b"".join(map(gzip.compress, padded)) if is_packed else b"".join(padded)
        found, left_out, error = listed(whole)
        assert (error, left_out.files) == (None, 0)
        assert contents(whole, found) == [content for _, content in PHOTOS]
        assert [fragment.name for fragment in found] == [name for name, _ in PHOTOS]
    bent = bytearray(b"".join(parts))
    bent[len(parts[0]) + len(parts[1]) + 150] ^= 0xFF
    for data in (bent, parts[1] + b"\0junk", parts[1] + bytes(MOST_PADDING)):
        found, left_out, error = listed(gzip.compress(data) if is_packed else bytes(data))
        assert (len(found), error, left_out.suffixes) == (3, None, {BEHIND: 1})
    cut = parts[1] + parts[3][:-12_000]
    found, left_out, error = listed(gzip.compress(cut) if is_packed else cut)
    assert error is not None
    assert (error.status, left_out.files, len(found) > 3) == (Status.TRUNCATED, 0, True)


def test_end_marks_without_end() -> None:
    """A header after each: all are listed, and none twice."""
    one = tar_entry("x.jpg").tobuf(tarfile.GNU_FORMAT)
    data = (one + bytes(512)) * 5_000
    found, _, error = listed(data)
    assert (len(found), error) == (5_000, None)
    assert found[-1].position == len(data) - 512


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_behind_a_program(method: int) -> None:
    """Its directory counts from its own first byte, or, where that was mended, from that of the file."""
    program = b"#!/bin/sh\nexit\n" * 99
    appended = io.BytesIO(program)
    with zipfile.ZipFile(appended, "a", method) as file:
        for name, content in PHOTOS:
            file.writestr(name, content)
    for data in (program + zip_of(PHOTOS, method), appended.getvalue()):
        stream = io.BytesIO(data)
        assert (archive_kind(data), is_prefixed_zip(data[:HEAD_BYTES], stream), stream.tell()) == ("tar", True, 0)
        found = list(archive_fragments(stream, "zip", LeftOut()))
        spans = [data[fragment.position : fragment.position + fragment.length] for fragment in found]
        pieces = [member_content("zip", span, fragment) for span, fragment in zip(spans, found, strict=True)]
        assert pieces == [content for _, content in PHOTOS]


def test_what_only_ends_as_a_zip_is_none() -> None:
    """A tar whose last member is a zip, text, a zip that is cut off."""
    whole = zip_of(PHOTOS)
    for data in (tar_of([("a.zip", whole)])[:-9000], b"text" * 200, b"text" + whole[:-30], b""):
        assert not is_prefixed_zip(data[:HEAD_BYTES], io.BytesIO(data))
    assert is_prefixed_zip(b"text" + whole[:508], io.BytesIO(b"text" + whole))


@pytest.mark.parametrize("ending", KINDS)
def test_a_cut_or_bent_archive_is_a_status(ending: str) -> None:
    """Every member that is still listed is itself or a status; nothing else is raised, and a cut is always told."""
    data = archive(ending, PHOTOS)
    for at in range(0, len(data), max(1, len(data) // 150)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
            found, _, error = listed(damaged)
            assert error is not None or damaged[at:] or contents(damaged, found) == [photo for _, photo in PHOTOS], at
            for fragment in found:
                with suppress(ImageError, EOFError):
                    contents(damaged, [fragment])


def test_a_damaged_header_is_no_end() -> None:
    """The standard library takes it for the end of the archive, and what follows for nothing."""
    data = bytearray(tar_of(PHOTOS))
    second = listed(bytes(data))[0][1].position - 512
    data[second + 150] ^= 0xFF
    found, _, error = listed(bytes(data))
    assert [fragment.name for fragment in found] == ["cat/1.jpg"]
    assert error is not None
    assert (error.status, f"at byte {second:,}" in str(error)) == (Status.UNREADABLE, True)


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"not an archive" * 99, "unreadable"), (b"PK\x03\x04junk", "truncated"), (b"junk", "truncated"), (b"", "empty")],
    ids=["text", "zip", "short", "none"],
)
def test_what_is_none_is_a_status(data: bytes, status: str) -> None:
    found, _, error = listed(data)
    assert found == []
    assert error is not None
    assert error.status.value == status


def test_hostile_headers() -> None:
    """An extended header as long as the file, extended headers of extended headers, a member of 2^60 bytes."""
    long = tar_entry("x", 2**40, tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT) + bytes(20_480)
    nested = tar_entry("x", 0, tarfile.XHDTYPE).tobuf() * 5000
    far = tar_entry("x.jpg", 2**60).tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    back = tar_entry("x.jpg").tobuf(tarfile.GNU_FORMAT)
    back = _with_size(back, -512) + bytes(2048)
    for data in (long, nested, far, back):
        tracemalloc.start()
        found, _, error = listed(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found, error is not None) == ([], True)
        assert peak < 40_000_000


def _with_size(header: bytes, size: int) -> bytes:
    """A header of GNU tar with any size, a negative one too, and the checksum that goes with it."""
    changed = bytearray(header)
    changed[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else changed[124:136]
    changed[148:156] = b" " * 8
    changed[148:156] = f"{sum(changed[:512]):06o}\0 ".encode()
    return bytes(changed)


def test_a_zip_directory_that_points_nowhere() -> None:
    """Its members lie before the archive, or behind its end: they are told, and the others stay."""
    data = bytearray(zip_of(PHOTOS[:3]))
    entry = bytes(data).index(b"PK\x01\x02")
    for offset in (2**31, len(data)):
        data[entry + 42 : entry + 46] = struct.pack("<I", offset)
        found, _, error = listed(bytes(data))
        assert [fragment.name for fragment in found] == ["cat/2.jpg", "cat/3.jpg"]
        assert error is not None
        assert (error.status, "outside" in str(error)) == (Status.UNREADABLE, True)


def test_a_zip_bomb_unpacks_to_what_it_says_and_no_more() -> None:
    """A member of 50 MB that says it has 1,000 bytes gives 1,000; one that says more than it has is truncated."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packed.compress(bytes(50_000_000)) + packed.flush()

    def header(checksum: int) -> bytes:
        return struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 8, 0, 0, checksum, len(stream), 1000, 5, 0) + b"x.jpg"

    tracemalloc.start()
    assert unpack_member(header(zlib.crc32(bytes(1000))) + stream, 1000) == bytes(1000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    with pytest.raises(ImageError, match="its checksum is"):
        unpack_member(header(1) + stream, 1000)
    with pytest.raises(ImageError, match=r"unpack of the 60,000,000"):
        unpack_member(header(1) + stream, 60_000_000)


class Pipe(io.RawIOBase):
    """A sink that cannot seek: zipfile then writes checksums behind its members."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def streamed_zip(members: Members, method: int, is_large: bool) -> bytes:
    sink = Pipe()
    with zipfile.ZipFile(cast(BinaryIO, sink), "w", method) as file:
        for name, data in members:
            with file.open(name, "w", force_zip64=is_large) as member:
                member.write(data)
    return bytes(sink.data)


@pytest.mark.parametrize("is_large", [False, True], ids=["32 bits", "zip64"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_damaged_member_of_a_streamed_zip(method: int, is_large: bool) -> None:
    """Its checksum lies behind it, with a signature or without: any other byte of the content is told."""
    noise = random.Random(3).randbytes(3000)
    members = [(f"{at}.jpg", noise[at:]) for at in range(2)]
    data = streamed_zip([*members, ("zero.jpg", b"")], method, is_large)
    found = listed(data)[0]
    assert contents(data, found) == [*(content for _, content in members), b""]
    span = data[found[0].position : found[1].position]
    plain = span.replace(b"PK\7\x08", b"")
    assert len(plain) == len(span) - 4
    for whole in (span, plain):
        assert unpack_member(whole, 3000) == noise
        start = struct.unpack_from("<26xHH", whole)
        for at in range(40 + sum(start), len(plain) - 24, 37):
            damaged = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
            with pytest.raises(ImageError) as error:
                unpack_member(damaged, 3000)
            assert error.value.status in (Status.UNREADABLE, Status.TRUNCATED)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(6, 1, "encrypted"), (8, 14, "zip method 14"), (0, 0, "no member begins there"), (14, 9, "its checksum is")],
    ids=["encrypted", "lzma", "no header", "checksum"],
)
def test_members_that_cannot_be_unpacked(at: int, value: int, message: str) -> None:
    data = bytearray(zip_of([("a.jpg", b"content")], zipfile.ZIP_STORED))
    data[at] = value
    with pytest.raises(ImageError, match=message):
        unpack_member(bytes(data), 7)


def test_a_gzip_is_read_from_its_points() -> None:
    """Random places of 30 MB, with the stored index and without: the same bytes."""
    noise = bytes(range(256)) * 40
    members: Members = [(f"{at}.jpg", bytes([at]) + noise * (40 + at)) for at in range(60)]
    data = tar_of(members, is_packed=True)
    stream = GzipStream(io.BytesIO(data), len(data))
    found = list(archive_fragments(cast(BinaryIO, stream), "tar", LeftOut()))
    indexed = GzipStream(io.BytesIO(data), len(data), stream.index())
    for fragment in (*found[::-7], *found[::11]):
        at = int(fragment.name.removesuffix(".jpg"))
        for reader in (indexed, GzipStream(io.BytesIO(data), len(data))):
            assert reader.read_at(fragment.position, fragment.length) == bytes([at]) + noise * (40 + at)
    assert indexed.read_at(10**12, 5) == b""


class Away(io.BytesIO):
    """A stream whose store goes away."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 100:
            raise ConnectionError("no answer")
        return super().read(size)


def test_the_error_of_a_store_stays_what_it_is() -> None:
    data = tar_of([("a.jpg", bytes(range(256)) * 40_000)], is_packed=True)
    with pytest.raises(ConnectionError, match="no answer"):
        GzipStream(Away(data + data), len(data)).read_at(5_000_000, 10)


def test_kinds_by_name() -> None:
    assert [parent_kind(name) for name in ("a.tar", "b/A.TAR.GZ", "c.tgz", "d.Zip")] == [
        "tar",
        "tar.gz",
        "tar.gz",
        "zip",
    ]
    assert [parent_kind(name) for name in (".tar", ".git/a.tar", "a.tar.bz2", "a.gz", "tar", "a.jpg")] == [""] * 6


def test_names_of_rows() -> None:
    assert shown_name("a%23.tar#b%231.jpg", b"a#.tar", "b%231.jpg") == "a#.tar#b#1.jpg"
    assert rule_path("a%23.tar#cat/b%231.jpg#2", b"a#.tar", "cat/b%231.jpg#2") == "a#.tar/cat/b#1.jpg"
    assert rule_path("a.tar#%E9.jpg", None, "%E9.jpg") == "a.tar/%E9.jpg"
    assert rule_path("cat/1.jpg", None, None) == shown_name("cat/1.jpg", None, None) == "cat/1.jpg"
    assert rule_path("broken.zip", None, "") == "broken.zip"
    assert rule_path("cat/1.jpg#xywh=1,2,3,4", None, "xywh=1,2,3,4") == "cat/1.jpg"
    assert rule_path("cat/v.mp4#t=1.500", None, "t=1.500") == "cat/v.mp4"
    boxed = "t=1.500#corners=1,2,3,4,5,6,7,8"
    assert rule_path(f"cat/v.mp4#{boxed}", None, boxed) == "cat/v.mp4"
    assert rule_path("a.tar#b.jpg#2#xywh=1,2,3,4", None, "b.jpg#2#xywh=1,2,3,4") == "a.tar/b.jpg"
