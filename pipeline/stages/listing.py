"""What the sources hold now, sorted: files, and the images inside of those that hold many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from pipeline.errors import NotFound
from pipeline.layout.fragments import KnownFragments, Parent
from pipeline.layout.images import ImageObject, listed_object
from pipeline.layout.lists import KnownLists
from pipeline.layout.root import Root, is_own, opened
from pipeline.layout.snapshots import LIST, SourceRecord, whole_path
from pipeline.sources.archives import nested_archives
from pipeline.sources.boxed import Boxes
from pipeline.sources.folder import LeftOut, is_image_key
from pipeline.sources.fragments import ARCHIVES, IMAGE, VIDEO, Fragment, fragment_uri, parent_kind, plain_name
from pipeline.sources.list_kinds import is_list_name
from pipeline.sources.listed import Tally
from pipeline.sources.selection import Selection, SelectParams, sample_limit
from pipeline.sources.vectors import holds_vectors, open_vectors
from pipeline.sources.videos import VideoParams, sampling_text
from pipeline.stages.list_rows import ListRow, list_rows
from pipeline.stages.prepare_list import list_batches
from pipeline.storage import ObjectInfo, StorageConfig, is_remote
from pipeline.storage.uri import parse_bucket

log = logging.getLogger(__name__)

UNBOXED = "images without a box"
LOOKED_AT = 16_384
FindBoxes = Callable[[Sequence[ImageObject]], Sequence[Sequence[str] | None]]
"""Images -> the names of the boxes in each, sorted; None for one that cannot be looked at."""


class Listed(NamedTuple):
    """An image of source number `source`: a file, or a fragment of one, of which `kind` is that of the file."""

    source: int
    info: ObjectInfo
    raw: bytes
    fragment: Fragment | None = None
    kind: str = ""

    @property
    def place(self) -> tuple[int, bytes, int, str]:
        """What a listing is sorted by, and what names an image: source, raw bytes of the key, place in its file."""
        if self.fragment is None:
            return self.source, self.raw, -1, ""
        return self.source, self.raw, self.fragment.position, self.fragment.name

    def boxed(self, name: str) -> Listed:
        """A box of it, which has its place and size."""
        if self.fragment is None:
            return self._replace(fragment=Fragment(name, 0, self.info.size, self.info.size), kind=IMAGE)
        return self._replace(fragment=self.fragment._replace(name=f"{self.fragment.name}#{name}"))

    @property
    def is_box(self) -> bool:
        """Whether it is a box already, as a list names it."""
        return self.fragment is not None and bool(self.fragment.box)

    @property
    def told(self) -> tuple[str, int, bool]:
        """What a selection asks of it: its name as its owner writes it, its size, whether it lies in an archive."""
        name = "" if self.fragment is None else plain_name(self.fragment.name)
        return fragment_uri(self.info.key, name), self.size, self.kind in ARCHIVES

    @property
    def size(self) -> int:
        """Bytes of the file, or of the member of an archive."""
        return self.info.size if self.fragment is None else self.fragment.size


@dataclass(frozen=True)
class Taken:
    """What is taken of a listing: which images, and in their place the `boxes` that are listed of them, or those that
    are `found` in them (None: whole images); which frames of videos.
    """

    select: SelectParams
    boxes: Boxes | None = None
    found: FindBoxes | None = None
    videos: VideoParams = field(default_factory=VideoParams)


class Listing:
    """One pass over the sources; what each holds beside images is counted in `left_out`, which is complete at its end.

    Of a file that holds images and was never looked into, and of a list that was never prepared, `fragments.missing`
    tells: from the first of them on nothing more is yielded, for the pass will be made again. `given`: for each source
    the key of what its list gives.
    """

    def __init__(self, root: Root, sources: Sequence[SourceRecord], fragments: KnownFragments, wanted: Taken) -> None:
        self.left_out = tuple(LeftOut() for _ in sources)
        self.given = [""] * len(sources)
        self._lists = KnownLists(root.open(), fragments.missing)
        self._root, self._sources, self._fragments, self._wanted = root, sources, fragments, wanted

    def images(self, known: int) -> Iterator[Listed]:
        """The selected images of every source, sorted by `place`, without the root's own files.

        One of the first `known` sources, which the root has listed before, may be gone: it is listed as empty. For a
        sample the sources are listed twice, and 8 bytes are held for each image.
        """
        params = self._wanted.select
        if params == SelectParams():
            yield from self._boxed(self._every(known))
            return
        limit = None
        if params.order == "sample":
            candidates = Selection(params)
            names = (item.told[0] for item in self._every(known) if candidates.is_candidate(*item.told))
            limit = sample_limit(names, params.num_images)
            self.left_out = tuple(LeftOut() for _ in self._sources)
        selection = Selection(params, limit)
        yield from self._boxed(self._selected(known, selection))
        if unseen := () if self._fragments.missing else selection.unseen():
            log.warning("%d names of the subset are no image, such as %r", len(unseen), unseen[0])

    def _selected(self, known: int, selection: Selection) -> Iterator[Listed]:
        for listed in self._every(known):
            if selection.takes(*listed.told):
                yield listed
            else:
                self.left_out[listed.source].images -= 1
                self.left_out[listed.source].unselected += 1

    def _boxed(self, images: Iterator[Listed]) -> Iterator[Listed]:
        """The boxes of each image in place of it, where boxes are audited; a file that is none stays what it is."""
        if self._wanted.found is not None:
            yield from self._looked_at(images, self._wanted.found)
            return
        boxes = self._wanted.boxes
        if boxes is None:
            yield from images
            return
        for image in images:
            if image.is_box or (image.fragment and image.fragment.problem):
                yield image
                continue
            name = image.told[0]
            names = boxes.of(name, whole_path(self._sources[image.source], name))
            self.left_out[image.source].images += len(names) - 1
            if not names:
                self.left_out[image.source].count(UNBOXED)
            yield from (image.boxed(name) for name in names)

    def _looked_at(self, images: Iterator[Listed], found: FindBoxes) -> Iterator[Listed]:
        """The boxes that a detector finds in each image; one that it cannot look at stays what it is."""
        while block := list(islice(images, LOOKED_AT)):
            answers = iter(found([self._object(image) for image in block if not image.is_box]))
            for image in block:
                names = None if image.is_box else next(answers)
                if names is None:
                    yield image
                    continue
                self.left_out[image.source].images += len(names) - 1
                if not names:
                    self.left_out[image.source].count(UNBOXED)
                yield from map(image.boxed, names)

    def _object(self, image: Listed) -> ImageObject:
        return listed_object(self._sources[image.source], image.info, image.fragment, image.kind)

    def _every(self, known: int) -> Iterator[Listed]:
        for index, source in enumerate(self._sources):
            left_out = self.left_out[index]
            if source.kind != LIST and (names := names_alone(source.uri, self._root.storage)) is not None:
                left_out.images += len(names)
                yield from (Listed(index, ObjectInfo(name, 0, "", 0), name.encode()) for name in names)
                continue
            try:
                yield from (self._listed if source.kind == LIST else self._images_of)(index, source)
            except NotFound:
                if index >= known or left_out != LeftOut():
                    raise
            is_listed = source.kind == LIST or left_out != LeftOut() or self._fragments.missing
            if index >= known and not is_listed:
                _require_path(source.uri, self._root.storage)

    def _images_of(self, index: int, source: SourceRecord) -> Iterator[Listed]:
        left_out = self.left_out[index]
        for info in _without_root(self._root, source, source_objects(source, self._root.storage)):
            if is_image_key(info.key):
                left_out.images += 1
                if not self._fragments.missing:
                    yield Listed(index, info, _raw(info))
            elif kind := parent_kind(info.key):
                yield from self._inside(index, info, kind)
            else:
                left_out.add(info.key)

    def _listed(self, index: int, source: SourceRecord) -> Iterator[Listed]:
        """The images and boxes that a list names, whatever they are called, and the images of the archives in it."""
        storage = self._root.storage
        name = source.uri.rpartition("/")[2]
        prepared = self._lists.of(Parent(source.place, opened(source.place, storage).stat(name), LIST))
        if prepared is None:
            return
        self.given[index] = prepared.given
        warnings: list[str] = []
        for row in list_rows(prepared, source, storage, warnings):
            if not row.box and (kind := parent_kind(row.info.key.rpartition("/")[2])):
                yield from self._inside(index, row.info, kind)
            elif not self._fragments.missing:
                self.left_out[index].images += 1
                yield _named(index, row)
        for said in () if self._fragments.missing else warnings:
            log.warning("%s", said)

    def _inside(self, index: int, info: ObjectInfo, kind: str) -> Iterator[Listed]:
        """The images of a file that holds many, or that file where it cannot be looked into."""
        place, key = self._sources[index].located(info.key)
        sampling = sampling_text(self._wanted.videos) if kind == VIDEO else ""
        parent = Parent(place, info if key == info.key else replace(info, key=key), kind, sampling)
        found = self._fragments.of(parent)
        if found is None or self._fragments.missing:
            return
        left_out, raw = self.left_out[index], _raw(info)
        left_out.join(found.left_out)
        if nested := nested_archives(found.left_out):
            log.warning("%s/%s: %d archives inside it are not opened", parent.place, parent.info.key, nested)
        for fragment in found:
            left_out.images += 1
            yield Listed(index, info, raw, fragment, found.kind)


def _named(index: int, row: ListRow) -> Listed:
    listed = Listed(index, row.info, row.raw)
    return listed.boxed(row.box) if row.box else listed


def source_objects(source: SourceRecord, storage: StorageConfig) -> Iterable[ObjectInfo]:
    """What lies in a source: all of a folder or prefix, or the one file (or list) that it is."""
    store = opened(source.place, storage)
    return store.list() if source.kind == "folder" else [store.stat(source.uri.rpartition("/")[2])]


def _raw(info: ObjectInfo) -> bytes:
    return info.key.encode("utf-8", "surrogateescape")


def _without_root(root: Root, source: SourceRecord, listed: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """A listing without what is the root's own, where that lies in the source: images may lie beside and around it."""
    inside = f"{root.uri.removeprefix(source.uri + '/')}/" if root.uri.startswith(source.uri + "/") else None
    hidden, first = 0, ""
    for info in listed:
        if inside is None or not info.key.startswith(inside) or not is_own(info.key[len(inside) :]):
            yield info
        elif is_image_key(info.key):
            hidden, first = hidden + 1, first or info.key
    if hidden:
        log.warning(
            "%s: images in folders that the root %s takes as its own are left out: %s, the first is %r. Choose another "
            "--root to audit them.", source.uri, root.uri, f"{hidden:,}", first,
        )  # fmt: skip


def names_alone(uri: str, storage: StorageConfig) -> list[str] | None:
    """The names of a source that is a file of vectors without images, sorted as keys are; None for any other."""
    place, slash, key = uri.rpartition("/")
    if not key.endswith(".parquet") or not opened(place or slash, storage).exists(key):
        return None
    names = open_vectors(opened(place or slash, storage), key, uri).names
    return sorted([] if names is None else names.to_pylist(), key=str.encode)


def source_kind(uri: str, storage: StorageConfig) -> str:
    """What a source is: where there is such a file, `file` by the name of an archive, a video or an image and `list` by
    that of a list (a Parquet of vectors is none); else `folder`.
    """
    place, slash, name = uri.rpartition("/")
    if not parent_kind(name) and not is_image_key(name) and not is_list_name(name):
        return "folder"
    store = opened(place or slash, storage)
    if not store.exists(name):
        return "folder"
    if not is_list_name(name):
        return "file"
    return "folder" if name.endswith(".parquet") and holds_vectors(store, name) else LIST


def require_source(source: SourceRecord, storage: StorageConfig) -> None:
    """Raises NotFound, or another StorageError, for a source that cannot be listed."""
    if source.kind == LIST:
        _require_list(source, storage)
        return
    if names_alone(source.uri, storage) is not None:
        return
    if next(iter(source_objects(source, storage)), None) is None:
        _require_path(source.uri, storage)


def _require_list(source: SourceRecord, storage: StorageConfig) -> None:
    """Raises UsageError for what is wrong with the first rows of a list: nothing is written before that is known."""
    info = opened(source.place, storage).stat(source.uri.rpartition("/")[2])
    next(list_batches(Parent(source.place, info, LIST), storage, Tally()), None)


def _require_path(uri: str, storage: StorageConfig) -> None:
    """An object store has no folders: a path under which nothing is does not exist, but for a console's marker."""
    if is_remote(uri) and parse_bucket(uri, storage).prefix and not opened(uri, storage).exists(""):
        raise NotFound(f"list {uri}: nothing is there. Check the path")
