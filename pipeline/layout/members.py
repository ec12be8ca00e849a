"""Reading members of archives, one at a time or many that lie side by side."""

from __future__ import annotations

from pipeline.errors import NotFound
from pipeline.kernels.header import ImageError
from pipeline.kernels.zip_member import unpack_member
from pipeline.layout.fragments import INDEX, Parent
from pipeline.layout.root import Root, kept, opened_source
from pipeline.schemas import Status
from pipeline.sources.fragments import Fragment
from pipeline.sources.gzip_stream import GzipStream
from pipeline.storage import Begun, ObjectInfo


def read_span(root: Root, parent: Parent, start: int, length: int, expect: ObjectInfo) -> bytes:
    """Bytes [start, start + length) of a tar or zip, or of what a tar.gz unpacks to; fewer at the end.

    Raises a StorageError, ObjectChanged where the file is not `expect` any more.
    """
    source = opened_source(parent.place, root.storage)
    if parent.kind != "tar.gz":
        return source.read_range(parent.info.key, start, length, expect=expect)
    source.read_range(parent.info.key, 0, 1, expect=expect)
    return _unpacked(root, parent).read_at(start, length)


def begin_span(root: Root, parent: Parent, start: int, length: int, expect: ObjectInfo) -> Begun | None:
    """Ask for the bytes that `read_span` is going to return of a tar or zip."""
    return opened_source(parent.place, root.storage).begin(parent.info.key, start, length, expect=expect)


def member_content(kind: str, span: bytes, fragment: Fragment) -> bytes:
    """The bytes of a member, from those that it takes in its archive. Raises ImageError."""
    if kind == "zip":
        return unpack_member(span, fragment.size)
    if len(span) < fragment.size:
        raise ImageError(Status.TRUNCATED, f"{len(span):,} of its {fragment.size:,} bytes are in the archive")
    return span


def _unpacked(root: Root, parent: Parent) -> GzipStream:
    """The unpacked stream of a tar.gz, open in this process for its next members."""
    source, store = opened_source(parent.place, root.storage), root.open()

    def load() -> GzipStream:
        try:
            index = store.read(parent.stem + INDEX)
        except NotFound:  # it broke off: what is there is unpacked from the start
            index = b""
        return GzipStream(source.open(parent.info.key), parent.info.size, index)

    return kept(store, parent.stem, load)
