"""What is inside an archive, read from its headers alone: nothing is unpacked, and nothing is written.

A member is only ever a name and a range of bytes. Names that lead out of a folder (`../../x.jpg`, `/etc/x.jpg`) are
names like any other; links, devices and directories are no images.
"""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status
from pipeline.sources.folder import LeftOut, is_hidden
from pipeline.sources.fragments import (
    ARCHIVE_SUFFIXES,
    Fragment,
    fragment_name,
    is_image_member,
    member_name,
)
from pipeline.sources.samples import Member, is_label, label_text, samples

HEAD_BYTES = tarfile.BLOCKSIZE
"""First bytes of an archive by which it is known; those of one header of a tar."""
MOST_HEADER_BYTES = 2**24
"""Of one header of a tar, such as a list of extended attributes: a hostile one says that it is as long as the file."""
LONGEST_ARCHIVE = 2**43
"""Bytes, 8 TB: the file systems seek no further, and no object store holds more in one object."""
MOST_PADDING = 2**20
"""Zero bytes behind the end mark of a tar that are looked through for another one: GNU tar pads to 10 kB."""
LINKS, SPARSE = "links and devices in archives", "sparse files in archives"
BEHIND, FOLLOWED = "tars that go on behind their end mark", "gzips that go on behind their end"
_PACKED = ".tar.gz"
_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, ValueError, OverflowError, LookupError)
_BAD_STREAM = (EOFError, zlib.error, ValueError)


def archive_fragments(stream: BinaryIO, kind: str, left_out: LeftOut) -> Iterator[Fragment]:
    """The images of an archive in the order in which they lie in it; `left_out` counts what else there is.

    `stream`: seekable, of the kind `tar` (also an unpacked tar.gz) or `zip`. A name that comes again is told apart by
    its number, `#2`. An image of a WebDataset sample in a tar has its label. Raises ImageError: empty where it holds
    nothing but folders; truncated or unreadable at the place where it cannot be read on, what was yielded until then is
    there.
    """
    seen: Counter[str] = Counter()
    is_empty, before = True, _files(left_out)
    for sample in samples((_zip_members if kind == "zip" else _tar_members)(stream, left_out)):
        label = next((member.label for member in sample if member.label), "")
        is_empty = False
        for member in sample:
            name = member_name(member.name)
            if is_image_member(name):
                seen[name] += 1
                name = fragment_name(name, seen[name])
                yield Fragment(name, member.position, member.length, member.size, label=label)
            elif not member.label:
                _leave_out(name, left_out)
    if is_empty and _files(left_out) == before:
        raise ImageError(Status.EMPTY, "no file in the archive")


def archive_kind(head: bytes) -> str:
    """What an archive is by its first bytes, whatever its name says: `zip`, `tar.gz`, or else `tar`."""
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    return "tar.gz" if head[:2] == b"\x1f\x8b" else "tar"


def is_prefixed_zip(head: bytes, stream: BinaryIO) -> bool:
    """Whether a file that begins as neither zip nor gzip is a zip by the directory at its end, such as a program that
    unpacks itself. `head`: its first 512 bytes.
    """
    try:
        return bool(head) and not _is_header(head) and zipfile.is_zipfile(stream)
    except _BAD_ZIP:
        return False
    finally:
        stream.seek(0)


def nested_archives(left_out: LeftOut) -> int:
    """Archives among what an archive holds beside images: they are not opened."""
    return sum(count for suffix, count in left_out.suffixes.items() if suffix in ARCHIVE_SUFFIXES)


def _files(left_out: LeftOut) -> int:
    """What is counted of the members of archives, and not of what is behind these."""
    return left_out.files - left_out.suffixes[BEHIND]


def _leave_out(name: str, left_out: LeftOut) -> None:
    if name.lower().endswith(_PACKED) and not is_hidden(name):
        left_out.count(_PACKED)  # by the last suffix alone it would be any gzip
    else:
        left_out.add(name)


def _tar_members(stream: BinaryIO, left_out: LeftOut) -> Iterator[Member]:
    """The regular files; each is given when what follows it shows that it is there to its end."""
    before: Member | None = None
    try:
        for info in _tar_headers(stream, left_out):
            if before is not None:
                yield before
            before = _regular(info, left_out)
            if before is not None and is_label(before.name, before.size):
                before = before._replace(label=_label(stream, before))
    except ImageError:
        if before is not None and _is_whole(stream, before):
            yield before
        raise
    if before is not None:
        yield before


def _regular(info: tarfile.TarInfo, left_out: LeftOut) -> Member | None:
    if info.issparse():
        left_out.count(SPARSE)
    elif info.isreg():
        return Member(info.name, info.offset_data, info.size, info.size)
    elif not info.isdir():
        left_out.count(LINKS)
    return None


def _label(stream: BinaryIO, member: Member) -> str:
    """The label in a member that lies where the stream has come to; "" where the stream breaks off in it."""
    try:
        stream.seek(member.position)
        return label_text(stream.read(member.length))
    except _BAD_STREAM:
        return ""


def _is_whole(stream: BinaryIO, member: Member) -> bool:
    if not member.size:
        return True
    try:
        stream.seek(member.position + member.length - 1)
        return bool(stream.read(1))
    except _BAD_STREAM:
        return False


def _tar_headers(stream: BinaryIO, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    """Every header, also of tars that were put behind it. TarFile.next takes a damaged one for the end of the archive,
    so each is read here.
    """
    source: Any = _Headers(stream)
    try:
        archive = tarfile.TarFile(fileobj=source, mode="r", encoding="utf-8", errors="surrogateescape")
    except (tarfile.TarError, RecursionError, *_BAD_STREAM) as error:
        if source.ended == 0:
            raise ImageError(Status.EMPTY, "the archive unpacks to 0 bytes") from error
        if source.ended is not None:
            said = f"the archive ends at byte {source.ended:,}, inside its first header"
            raise ImageError(Status.TRUNCATED, said) from error
        raise ImageError(Status.UNREADABLE, f"no archive that can be read ({error})") from error
    info = archive.firstmember  # type: ignore[attr-defined]
    try:
        info = info or _behind_the_end(archive)
        while info is not None:
            yield info
            if not info.offset < archive.offset <= LONGEST_ARCHIVE:  # a negative size would lead around in a circle
                raise ImageError(Status.UNREADABLE, f"its member {info.name!r} says that it has {info.size:,} bytes")
            source.seek(archive.offset)
            info = _next_header(archive) or _behind_the_end(archive, left_out)
    except _BAD_STREAM as error:
        raise ImageError(Status.TRUNCATED, f"the stream ends or breaks at byte {archive.offset:,} ({error})") from error


def _next_header(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    at = archive.offset
    source: Any = archive.fileobj
    try:
        return tarfile.TarInfo.fromtarfile(archive)
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
        raise ImageError(Status.TRUNCATED, f"the archive ends before byte {at:,}, without an end mark") from error
    except (tarfile.HeaderError, RecursionError) as error:  # an extended header of an extended header of a ...
        if source.ended is not None:
            said = f"the archive ends at byte {source.ended:,}, inside a header"
            raise ImageError(Status.TRUNCATED, said) from error
        raise ImageError(Status.UNREADABLE, f"no header of a member at byte {at:,} ({error})") from error


def _behind_the_end(archive: tarfile.TarFile, left_out: LeftOut | None = None) -> tarfile.TarInfo | None:
    """The first header behind an end mark, as `cat a.tar b.tar` puts it there; what else there is is counted. Without
    `left_out` no member was found before: raises ImageError for what else there is.
    """
    source: Any = archive.fileobj
    source.seek(archive.offset)
    for _ in range(MOST_PADDING // HEAD_BYTES + 1):
        block = source.read(HEAD_BYTES)
        if block.strip(b"\0"):
            break
        if len(block) < HEAD_BYTES:
            return None
    if not _is_header(block):
        if left_out is None:
            raise _no_archive(block, source.tell())
        left_out.count(BEHIND)
        return None
    archive.offset = source.tell() - HEAD_BYTES
    source.seek(archive.offset)
    return _next_header(archive)


def _no_archive(block: bytes, end: int) -> ImageError:
    """That nothing but zero bytes come before a block that is no header."""
    if block.strip(b"\0"):
        said = f"no header of a member at byte {end - len(block):,}, behind zero bytes alone"
        return ImageError(Status.UNREADABLE, said)
    return ImageError(Status.EMPTY, f"no file in the archive: its first {end:,} bytes are zeros")


def _is_header(block: bytes) -> bool:
    """Whether 512 bytes are the header of a member, by their checksum."""
    try:
        tarfile.TarInfo.frombuf(block[:HEAD_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Headers(io.RawIOBase):
    """A stream that refuses to read more at once than a header may take. ended: its length, once a read came to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.ended: int | None = None

    def read(self, size: int = -1) -> bytes:
        if size > MOST_HEADER_BYTES or size < 0:
            raise ValueError(f"a header of {size:,} bytes, at most {MOST_HEADER_BYTES:,} are read")
        data = self._stream.read(size)
        if len(data) < size:
            self.ended = self._stream.tell()
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _zip_members(stream: BinaryIO, left_out: LeftOut) -> Iterator[Member]:
    """The files of the central directory, in the order of their bytes."""
    try:
        with zipfile.ZipFile(stream) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            end = archive.start_dir
    except _BAD_ZIP as error:
        raise ImageError(Status.TRUNCATED, f"a zip archive without a directory that can be read ({error})") from error
    inside = [info for info in infos if 0 <= info.header_offset < end]
    for at, info in enumerate(inside):
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            left_out.count(LINKS)
            continue
        following = inside[at + 1].header_offset if at + 1 < len(inside) else end
        yield Member(info.filename, info.header_offset, following - info.header_offset, info.file_size)
    if len(inside) < len(infos):
        raise ImageError(Status.UNREADABLE, f"{len(infos) - len(inside)} of its {len(infos)} members lie outside of it")
