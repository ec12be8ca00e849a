"""What the sources hold now, sorted: files, and the images inside of those that hold many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from pipeline.errors import NotFound, UsageError
from pipeline.layout.fragments import Found, KnownFragments, Parent
from pipeline.layout.images import ImageObject, listed_object
from pipeline.layout.lists import KnownLists
from pipeline.layout.root import Root, opened
from pipeline.layout.snapshots import LIST, SourceRecord, whole_path
from pipeline.sources.archives import nested_archives
from pipeline.sources.boxed import Boxes, ListedBoxes
from pipeline.sources.folder import LeftOut, encode_key, escape_bytes, is_hidden, is_image_key
from pipeline.sources.fragments import (
    ARCHIVES,
    IMAGE,
    VIDEO,
    Fragment,
    fragment_uri,
    parent_kind,
    plain_name,
    shown_name,
)
from pipeline.sources.selection import Selection, SelectParams, sample_limit
from pipeline.sources.videos import VideoParams, sampling_text
from pipeline.stages.list_rows import ListRow, list_rows, unseen
from pipeline.stages.source_files import names_alone, require_path, with_closed, without_root
from pipeline.storage import ObjectInfo

log = logging.getLogger(__name__)

UNBOXED = "images without a box"
LOOKED_AT = 16_384
OPENED = 16_384
ASKED_AT_ONCE = 8192  # 3 us an image; each alone took 42
"""Files behind a parent among which others are read ahead with it: 6 MB of names and sizes."""
FindBoxes = Callable[[Sequence[ImageObject]], Sequence[Sequence[str] | None]]
"""Images -> the names of the boxes in each, sorted; None for one that cannot be looked at."""


Place = tuple[int, bytes, int, str]
"""What a listing is sorted by, and what names an image: number of the source, raw bytes of the key, place in its file
(-1 for the file itself), name there.
"""


class Listed(NamedTuple):
    """An image: a file, or a fragment of one, of which `kind` is that of the file; or a parent, still to be opened."""

    place: Place
    info: ObjectInfo
    fragment: Fragment | None = None
    kind: str = ""

    @property
    def source(self) -> int:
        """Number of its source."""
        return self.place[0]

    def inside(self, fragment: Fragment, kind: str) -> Listed:
        """A fragment of its file, which is of a kind."""
        return Listed((self.place[0], self.place[1], fragment.position, fragment.name), self.info, fragment, kind)

    def boxed(self, name: str) -> Listed:
        """A box of it, which has its place and size."""
        if self.fragment is None:
            return self.inside(Fragment(name, 0, self.info.size, self.info.size), IMAGE)
        return self.inside(self.fragment._replace(name=f"{self.fragment.name}#{name}"), self.kind)

    @property
    def is_parent(self) -> bool:
        """Whether it is a file that holds images, in whose place these are listed."""
        return bool(self.kind) and self.fragment is None

    @property
    def is_box(self) -> bool:
        """Whether it is a box already, as a list names it."""
        return self.fragment is not None and bool(self.fragment.box)

    @property
    def is_closed(self) -> bool:
        """Whether it is a folder that may not be listed."""
        return self.fragment is not None and bool(self.fragment.problem) and self.info.key.endswith("/")

    @property
    def told(self) -> tuple[str, int, bool]:
        """What a selection asks of it: its name as its owner writes it, its size, whether it lies in an archive."""
        name = "" if self.fragment is None else plain_name(self.fragment.name)
        return fragment_uri(self.info.key, name), self.size, self.kind in ARCHIVES

    @property
    def shown(self) -> str:
        """What a table of annotations is asked: its name as its owner writes it, or its uri where that is no UTF-8."""
        uri, raw = encode_key(self.info.key)
        name = "" if self.fragment is None else self.fragment.name
        return shown_name(fragment_uri(uri, name), raw, name)

    @property
    def size(self) -> int:
        """Bytes of the file, or of the member of an archive."""
        return self.info.size if self.fragment is None else self.fragment.size


@dataclass(frozen=True)
class Taken:
    """What is taken of a listing: which images, and in their place the `boxes` that are listed of them, or those that
    are `found` in them (None: whole images); which frames of videos. needs_boxes: that some have to be boxes. table:
    what the table is called that `boxes` are of, "" for none.
    """

    select: SelectParams
    boxes: Boxes | None = None
    found: FindBoxes | None = None
    videos: VideoParams = field(default_factory=VideoParams)
    needs_boxes: bool = False
    table: str = ""


class Listing:
    """One pass over the sources; what each holds beside images is counted in `left_out`, which is complete at its end.

    Of a file that holds images and was never looked into, and of a list that was never prepared, `fragments.missing`
    tells: from the first of them on nothing more is yielded, for the pass will be made again. `given`: for each source
    the key of what its list gives.
    """

    def __init__(self, root: Root, sources: Sequence[SourceRecord], fragments: KnownFragments, wanted: Taken) -> None:
        self.left_out = tuple(LeftOut() for _ in sources)
        self.given = [""] * len(sources)
        self.selected, self._first = 0, ""
        self._whole = self._boxes = 0
        self._unboxed = ""
        self._is_named = False
        self._unasked: list[tuple[str, str]] = []
        self._lists = KnownLists(root.open(), fragments.missing)
        self._root, self._sources, self._fragments, self._wanted = root, sources, fragments, wanted

    def images(self, known: int) -> Iterator[Listed]:
        """The selected images of every source, sorted by `place`, without the root's own files.

        One of the first `known` sources, which the root has listed before, may be gone: it is listed as empty. For a
        sample the sources are listed twice, and 8 bytes are held for each image.
        """
        every = self._every(known)
        taken = every if self._wanted.select == SelectParams() else self._selected(known, every)
        if self._wanted.found is not None:
            return self._looked_at(taken, self._wanted.found)
        boxed = taken if self._wanted.boxes is None else self._boxed(taken, self._wanted.boxes)
        return self._counted(boxed) if self._wanted.needs_boxes or self._wanted.table else boxed

    def _counted(self, images: Iterator[Listed]) -> Iterator[Listed]:
        for listed in images:
            self._boxes += listed.is_box
            self._whole += not (listed.is_box or (listed.fragment and listed.fragment.problem))
            yield listed

    def _selected(self, known: int, every: Iterator[Listed]) -> Iterator[Listed]:
        params, limit = self._wanted.select, None
        if params.order == "sample":
            candidates = Selection(params)
            told_of = map(self._told, (listed for listed in self._every(known) if not listed.is_closed))
            limit = sample_limit((told[0] for told in told_of if candidates.is_candidate(*told)), params.num_images)
            self.left_out = tuple(LeftOut() for _ in self._sources)
        selection = Selection(params, limit)
        for listed in every:
            told = self._told(listed)
            if listed.is_closed and selection.may_hold(told[0], told[3]):
                yield listed
                continue
            self._first = self._first or f"{told[0]!r} ({told[3]})"
            if selection.takes(*told):
                self.selected += 1
                yield listed
            else:
                self._note_named(listed)
                self.left_out[listed.source].images -= 1
                self.left_out[listed.source].unselected += 1
        if absent := () if self._fragments.missing else selection.unseen():
            log.warning("%d names of the subset are no image, such as %r", len(absent), absent[0])

    def _told(self, listed: Listed) -> tuple[str, int, bool, str]:
        """What a selection asks of it."""
        return *listed.told, whole_path(self._sources[listed.source], listed.told[0])

    def refuse(self, accept_empty: bool) -> None:
        """Raises UsageError, at its end, where there are images and none of them is selected, has a box of those that
        are wanted, or is named by the table of boxes.
        """
        self._ask_boxes()
        unboxed = self._whole + sum(found.suffixes[UNBOXED] for found in self.left_out)
        unselected = sum(found.unselected for found in self.left_out)
        if self._wanted.needs_boxes and unboxed and not self._boxes:
            raise UsageError(
                f"bounding_box takes the boxes of annotations, and none of {unboxed:,} {'selected ' * bool(unselected)}"
                "images has one: name images as the sources do, or give a list or table with col_x, row_y, width, "
                "height or x1, y1, ..., x4, y4"
            )
        if isinstance(self._wanted.boxes, ListedBoxes) and unboxed and not (self._boxes or self._is_named):
            raise UsageError(
                f"the table {self._wanted.table} names none of the {unboxed + unselected:,} images: the table has "
                f"{self._wanted.boxes.first!r}, the source has {self._unboxed!r}. Write each filename as the path "
                "relative to the source, or as a file name that one row has."
            )
        if unselected and not self.selected and not accept_empty:
            closed = sum(found.closed for found in self.left_out)
            beside = f", and {closed:,} folders may not be listed" if closed else ""
            raise UsageError(
                f"select takes none of {unselected:,} images ({self._wanted.select}): the first one is "
                f"{self._first}{beside}. Correct it, or say --accept-empty (accept_empty) for an audit of nothing."
            )

    def _boxed(self, images: Iterator[Listed], boxes: Boxes) -> Iterator[Listed]:
        """The boxes of each image in place of it; a file that is none stays what it is."""
        for image in images:
            if image.is_box or (image.fragment and image.fragment.problem):
                yield image
                continue
            names = next(filter(None, (boxes.of(*named) for named in self._names_of(image))), ())
            self.left_out[image.source].images += len(names) - 1
            if not names:
                self._unboxed = self._unboxed or image.shown
                self._note_named(image)
                self.left_out[image.source].count(UNBOXED)
            yield from (image.boxed(name) for name in names)

    def _note_named(self, image: Listed) -> None:
        """Notes whether the table of boxes names any image, selected or not, with a box or without: then it is of
        these sources. None is looked for behind the first ones that it names.
        """
        if isinstance(self._wanted.boxes, ListedBoxes) and not (self._is_named or self._boxes or image.is_box):
            self._unasked.extend(self._names_of(image))
            if len(self._unasked) >= ASKED_AT_ONCE:
                self._ask_boxes()

    def _ask_boxes(self) -> None:
        if isinstance(self._wanted.boxes, ListedBoxes) and self._unasked and not self._boxes:
            self._is_named |= self._wanted.boxes.have(*zip(*self._unasked, strict=True))
        self._unasked = []

    def _names_of(self, image: Listed) -> Iterator[tuple[str, str]]:
        """Names by which a table may have an image, each with the whole path: its own, and its uri."""
        uri = fragment_uri(encode_key(image.info.key)[0], "" if image.fragment is None else image.fragment.name)
        for name in dict.fromkeys((image.shown, uri)):
            yield name, whole_path(self._sources[image.source], name)

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
                yield from (Listed((index, name.encode(), -1, ""), ObjectInfo(name, 0, "", 0)) for name in names)
                continue
            try:
                yield from (
                    self._listed(index, source) if source.kind == LIST else self._opened(self._files(index, source))
                )
            except NotFound:
                if index >= known or left_out != LeftOut():
                    raise
            is_listed = source.kind != "folder" or left_out != LeftOut() or self._fragments.missing
            if index >= known and not is_listed:
                require_path(source.uri, self._root.storage)

    def _files(self, index: int, source: SourceRecord) -> Iterator[Listed]:
        """The images and parents of a source."""
        left_out = self.left_out[index]
        problems, closed = dict[str, str](), ""
        for info in without_root(self._root, source, with_closed(source, self._root.storage, problems)):
            key = info.key
            if key in problems and not is_hidden(key):
                left_out.images += 1
                left_out.closed += 1
                closed = closed or key
                yield Listed((index, _raw(key), -1, ""), info).inside(unseen(problems[key]), IMAGE)
            elif is_image_key(key):
                left_out.images += 1
                yield Listed((index, _raw(key), -1, ""), info)
            elif kind := parent_kind(key):
                yield Listed((index, _raw(key), -1, ""), info, None, kind)
            else:
                left_out.add(key)
        if closed and not self._fragments.missing:
            log.warning(
                "%s: nothing is known of what lies in %s folders that may not be listed, such as %r",
                source.uri, f"{left_out.closed:,}", escape_bytes(closed),
            )  # fmt: skip

    def _listed(self, index: int, source: SourceRecord) -> Iterator[Listed]:
        """The images and boxes that a list names, whatever they are called, and the images of the archives in it."""
        storage = self._root.storage
        name = source.uri.rpartition("/")[2]
        prepared = self._lists.of(Parent(source.place, opened(source.place, storage).stat(name), LIST))
        if prepared is None:
            return
        self.given[index] = prepared.given
        warnings: list[str] = []
        yield from self._opened(self._named(index, list_rows(prepared, source, storage, warnings)))
        for said in () if self._fragments.missing else warnings:
            log.warning("%s", said)

    def _named(self, index: int, rows: Iterable[ListRow]) -> Iterator[Listed]:
        left_out = self.left_out[index]
        for row in rows:
            kind = "" if row.box or row.problem else parent_kind(row.info.key.rpartition("/")[2])
            listed = Listed((index, row.raw, -1, ""), row.info, None, kind)
            if not kind:
                left_out.images += 1
            if row.problem:
                left_out.missing += 1
                yield listed.inside(unseen(row.problem, row.box), IMAGE)
            else:
                yield listed.boxed(row.box) if row.box else listed

    def _opened(self, entries: Iterator[Listed]) -> Iterator[Listed]:
        """The images, and in place of each parent those inside it, or that file where it cannot be looked into."""
        missing = self._fragments.missing
        for entry in entries:
            if entry.kind and entry.is_parent:
                yield from self._looked_into([entry, *islice(entries, OPENED)])
            elif not missing:
                yield entry

    def _looked_into(self, block: Sequence[Listed]) -> Iterator[Listed]:
        found = self._fragments.of([self._parent(entry) for entry in block if entry.is_parent])
        for entry in block if not self._fragments.missing else ():
            if entry.is_parent:
                yield from self._inside(entry, next(found))
            else:
                yield entry

    def _parent(self, entry: Listed) -> Parent:
        info = entry.info
        place, key = self._sources[entry.source].located(info.key)
        sampling = sampling_text(self._wanted.videos) if entry.kind == VIDEO else ""
        return Parent(place, info if key == info.key else replace(info, key=key), entry.kind, sampling)

    def _inside(self, entry: Listed, found: Found) -> Iterator[Listed]:
        left_out = self.left_out[entry.source]
        left_out.join(found.left_out)
        if nested := nested_archives(found.left_out):
            place = whole_path(self._sources[entry.source], entry.info.key)
            log.warning("%s: %d archives inside it are not opened", place, nested)
        for fragment in found:
            left_out.images += 1
            yield entry.inside(fragment, found.kind)


def _raw(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
