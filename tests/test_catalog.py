"""The catalog against a naive model: ids are never reused, kept ones stay, what is gone is listed."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError, NotFound, UsageError
from pipeline.layout.fragments import Parent
from pipeline.layout.root import Root, claim
from pipeline.layout.snapshots import (
    EMPTY,
    Snapshot,
    SourceRecord,
    catalog_rows,
    catalog_rows_of,
    latest_snapshot,
    read_snapshot,
    removed_ids,
)
from pipeline.sources.folder import decode_key
from pipeline.stages import catalog, rows_by_place
from pipeline.stages.catalog import Content, Touched, Wanted, update_catalog
from pipeline.stages.listing import Listed, Listing
from pipeline.storage import ObjectInfo, StorageConfig

NAMES = [b"a.jpg", b"b.jpg", b"b/a.jpg", b"b0.png", b"Z.JPEG", b"\xff.jpg", b"%FF.jpg", b"\xe9/x.webp", b"note.txt"]
IMAGES = [name for name in NAMES if not name.endswith(b".txt")]
Name = tuple[int, bytes]


def no_parents(parents: Sequence[Parent]) -> None:
    """These sources hold images alone."""
    raise AssertionError(parents)


@dataclass
class World:
    """Two folders, their root, and what a naive catalog would hold: (source, raw name) -> (id, bytes, mtime)."""

    folder: Path
    files: dict[Name, tuple[bytes, int]] = field(default_factory=dict)
    listed: dict[Name, tuple[int, bytes, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    buried: dict[Name, list[tuple[int, bytes, int]]] = field(default_factory=dict)
    past: dict[Name, list[tuple[bytes, int]]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    total: int = 0
    sources: int = 1

    def __post_init__(self) -> None:
        claim(self.root)

    @property
    def root(self) -> Root:
        return Root(str(self.folder / "root"), StorageConfig())

    def path(self, name: Name) -> bytes:
        return os.fsencode(self.folder / f"source{name[0]}") + b"/" + name[1]

    def write(self, name: Name, content: bytes, mtime: int) -> None:
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)  # noqa: PTH103, PTH120 - names are bytes
        with open(self.path(name), "wb") as file:  # noqa: PTH123
            file.write(content)
        os.utime(self.path(name), ns=(mtime, mtime))
        self.files[name] = (content, mtime)
        self.past.setdefault(name, []).append((content, mtime))

    def remove(self, name: Name) -> None:
        os.unlink(self.path(name))  # noqa: PTH108
        del self.files[name]

    def update(self, accept_empty: bool = True) -> Snapshot:
        records = tuple(SourceRecord(str(self.folder / f"source{i}"), "") for i in range(self.sources))
        for record in records:
            Path(record.uri).mkdir(exist_ok=True)
        return update_catalog(self.root, Wanted(records, accept_empty=accept_empty), self.compare, no_parents).snapshot

    def compare(self, touched: Sequence[Touched]) -> list[Content]:
        self.asked += [file.image_id for file in touched]
        return [self._content(file) for file in touched]

    def _content(self, file: Touched) -> Content:
        assert file.image.source == str(self.folder / f"source{file.listed.source}")
        if file.image_id not in self.contents:
            return Content.UNREAD
        same = self.contents[file.image_id] == self.files[file.listed.place[:2]][0]
        return Content.SAME if same else Content.OTHER

    def expect(self) -> None:
        """The rule of the design on dictionaries: unchanged rows stay, those that were there before come back, new and
        changed ones get the next ids.
        """
        visible = {
            name: held for name, held in sorted(self.files.items()) if name[0] < self.sources and name[1] in IMAGES
        }
        for name in [name for name in self.listed if name not in visible]:
            self.bury(name)
        for name, (content, mtime) in visible.items():
            live = self.listed.get(name)
            earlier = [row for row in self.buried.get(name, []) if row[1:] == (content, mtime)]
            if live is not None and live[1:] == (content, mtime):
                continue
            if earlier:
                self.bury(name)
                self.buried[name].remove(earlier[-1])
                self.listed[name] = earlier[-1]
            elif live is not None and live[1] == content:
                self.listed[name] = (live[0], content, mtime)
            else:
                self.bury(name)
                self.contents[self.total] = content
                self.listed[name] = (self.total, content, mtime)
                self.total += 1

    def bury(self, name: Name) -> None:
        if name in self.listed:
            self.buried.setdefault(name, []).append(self.listed.pop(name))

    @property
    def gone(self) -> list[int]:
        return sorted(row[0] for rows in self.buried.values() for row in rows)


def seen_in(world: World, snapshot: Snapshot) -> dict[Name, int]:
    """Live (source, raw name) -> id, as stored."""
    store = world.root.open()
    gone = set(removed_ids(store, snapshot).tolist())
    found: dict[Name, int] = {}
    for lo in range(0, snapshot.total, 3):
        for row in catalog_rows(store, snapshot, lo, min(lo + 3, snapshot.total)).to_pylist():
            if row["image_id"] not in gone:
                name = (row["source"], os.fsencode(decode_key(row["uri"], row["raw_key"])))
                assert name not in found
                found[name] = row["image_id"]
    return found


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.sampled_from(NAMES), st.sampled_from([b"1", b"2", b"33"])),
        st.tuples(st.just("touch"), st.integers(0, 1), st.sampled_from(NAMES), st.just(b"")),
        st.tuples(st.just("remove"), st.integers(0, 1), st.sampled_from(NAMES), st.just(b"")),
        st.tuples(st.just("restore"), st.integers(0, 1), st.sampled_from(NAMES), st.sampled_from([b"1", b"2"])),
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(operations, min_size=1, max_size=4),
    second_from=st.integers(0, 3),
    rows=st.integers(1, 5),
    touched=st.integers(1, 4),
)
def test_catalog_equals_a_model(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[list[tuple[str, int, bytes, bytes]]],
    second_from: int,
    rows: int,
    touched: int,
) -> None:
    """Any sequence of writes, touches, removals and returns over two sources, in parts and comparisons of any size."""
    world, clock = World(tmp_path_factory.mktemp("world")), 1_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "PART_ROWS", rows)
        patch.setattr(catalog, "TOUCHED_ROWS", touched)
        patch.setattr(rows_by_place, "BLOCK_ROWS", rows + 1)
        for number, step in enumerate(steps):
            world.sources = 2 if number >= second_from else 1
            for what, source, raw, content in step:
                clock += 1
                name = (source, raw)
                if what == "write":
                    world.write(name, content, clock)
                elif what == "restore":
                    if len(world.past.get(name, [])) >= int(content):
                        world.write(name, *world.past[name][-int(content)])
                elif name in world.files and what == "touch":
                    world.write(name, world.files[name][0], clock)
                elif name in world.files:
                    world.remove(name)
            _check_update(world)


def _check_update(world: World) -> None:
    before, start = latest_snapshot(world.root.open()), world.total
    held = seen_in(world, before)
    snapshot = world.update()
    world.expect()
    store = world.root.open()

    assert seen_in(world, snapshot) == {name: image_id for name, (image_id, _, _) in world.listed.items()}
    assert removed_ids(store, snapshot).tolist() == world.gone
    assert (snapshot.total, snapshot.live) == (world.total, len(world.listed))
    added = [name for name, (image_id, _, _) in world.listed.items() if image_id >= start]
    assert sorted(added, key=lambda name: world.listed[name][0]) == sorted(added)
    assert all(
        world.listed[name][0] == image_id
        for name, image_id in held.items()
        if name in world.listed and name not in added
    )
    ids = catalog_rows(store, snapshot, 0, snapshot.total)["image_id"].to_pylist()
    assert ids == list(range(snapshot.total))
    assert world.update() == snapshot
    assert seen_in(world, before) == held
    assert read_snapshot(store, snapshot.number) == snapshot


def test_rows_of_ids_come_in_any_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    for name in IMAGES:
        world.write((0, name), b"1", 5)
    snapshot, store = world.update(), world.root.open()
    every = catalog_rows(store, snapshot, 0, snapshot.total)["uri"].to_pylist()
    ids = np.array([5, 0, 5, 3])

    assert catalog_rows_of(store, snapshot, ids)["uri"].to_pylist() == [every[i] for i in ids]
    assert catalog_rows_of(store, snapshot, np.empty(0, np.int64)).num_rows == 0
    with pytest.raises(NotFound, match="pass the end of snapshot 1"):
        catalog_rows(store, snapshot, 0, snapshot.total + 1)


def test_empty_folder_is_a_snapshot(tmp_path: Path) -> None:
    snapshot = World(tmp_path).update()
    assert (snapshot.number, snapshot.total) == (1, 0)


def test_dropped_source_is_named(tmp_path: Path) -> None:
    """A source that is left out is an error with its name, and the catalog stays as it is."""
    world = World(tmp_path, sources=2)
    world.write((1, b"a.jpg"), b"1", 5)
    snapshot = world.update()
    world.sources = 1
    with pytest.raises(UsageError, match=rf"leaves out: {tmp_path}/source1\. Name them too"):
        world.update()

    assert latest_snapshot(world.root.open()) == snapshot


@pytest.mark.parametrize("theirs", [0, 1, 3])
def test_lost_race_lists_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: int) -> None:
    """Another audit appends its own files between our listing and our snapshot: ours follow, no id is given twice."""
    world = World(tmp_path)
    for name in IMAGES[:3]:
        world.write((0, name), b"1", 5)
    world.update()
    world.expect()
    world.write((0, IMAGES[4]), b"1", 6)
    world.write((0, IMAGES[0]), b"other", 6)
    other = World(tmp_path, sources=world.sources)
    flush, raced = catalog._flush, []

    def race(*arguments: object) -> None:
        """Runs the other audit to its end, once, when ours has listed but not committed."""
        if not raced:
            raced.append(True)
            for name in IMAGES[5 : 5 + theirs]:
                other.write((0, name), b"1", 6)
            world.files |= other.files
            other.contents, other.files = world.contents, world.files
            raced.append(other.update())
        flush(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(catalog, "_flush", race)
    ours = world.update()
    world.expect()

    first = raced[1]
    assert isinstance(first, Snapshot)
    assert ours == first  # it lists what is there now, ours included: there is nothing left to add
    assert seen_in(world, ours).keys() == world.listed.keys()
    ids = catalog_rows(world.root.open(), ours, 0, ours.total)["image_id"].to_pylist()
    assert ids == list(range(world.total))


def test_damaged_snapshot_is_never_made_anew(tmp_path: Path) -> None:
    """Making a snapshot anew could give old ids to other images: the error asks for a backup or another root."""
    world = World(tmp_path)
    world.write((0, b"a.jpg"), b"1", 5)
    world.update()
    (tmp_path / "root/catalog/snapshot-000001.json").write_bytes(b'{"number": 1')
    with pytest.raises(ArtifactError, match=r"snapshot-000001\.json: .*restore that file from a backup"):
        world.update()


def test_no_snapshot_is_empty(tmp_path: Path) -> None:
    root = Root(str(tmp_path), StorageConfig())
    assert latest_snapshot(root.open()) == EMPTY
    assert catalog_rows(root.open(), EMPTY, 0, 0).num_rows == 0


def test_a_disk_has_no_etag(tmp_path: Path) -> None:
    """Null, as the schema says, also where the time is that of 1970; such a row is known again."""
    world = World(tmp_path)
    world.write((0, b"a.jpg"), b"1", 0)
    snapshot = world.update()
    (row,) = catalog_rows(world.root.open(), snapshot, 0, 1).to_pylist()

    assert (row["etag"], row["mtime_ns"]) == (None, 0)
    assert world.update() == snapshot


def test_a_source_that_is_away_removes_nothing(tmp_path: Path) -> None:
    """An empty mount point would make every image a new one when it is back: an error says so, and the ids stay."""
    world = World(tmp_path, sources=3)  # the last one never had an image
    for source in range(2):
        world.write((source, b"a.jpg"), b"1", 5)
        world.write((source, b"b.jpg"), b"2", 5)
    snapshot = world.update(accept_empty=False)
    (tmp_path / "source1").rename(tmp_path / "away")
    with pytest.raises(NotFound, match=r"source1: no image is left of the 2 .*Check that it is mounted"):
        world.update(accept_empty=False)
    (tmp_path / "source1").rmdir()
    (tmp_path / "away").rename(tmp_path / "source1")

    assert world.update(accept_empty=False) == snapshot
    world.remove((1, b"a.jpg"))
    assert world.update(accept_empty=False).removed_count == 1
    world.remove((1, b"b.jpg"))
    assert world.update(accept_empty=True).removed_count == 2


def test_a_file_that_was_never_read_keeps_its_id_and_its_old_time(tmp_path: Path) -> None:
    """Nothing is known of its bytes. Once they are, the next listing compares them, whoever read them and when."""
    world = World(tmp_path)
    for name in (b"a.jpg", b"b.jpg"):
        world.write((0, name), b"1", 5)
    first = world.update()
    world.write((0, b"a.jpg"), b"2", 6)
    world.write((0, b"b.jpg"), b"2", 6)
    assert world.update() == first
    assert world.update() == first
    world.contents = {0: b"2", 1: b"1"}  # another audit read the second one before it was replaced
    second = world.update()
    assert seen_in(world, second) == {(0, b"a.jpg"): 0, (0, b"b.jpg"): 2}
    assert world.asked == [0, 1] * 3
    assert world.update() == second
    assert len(world.asked) == 6


def test_times_of_touched_files_stay_known(tmp_path: Path) -> None:
    """Also those of earlier listings: each file is compared once for each touch."""
    world = World(tmp_path)
    for name in IMAGES[:3]:
        world.write((0, name), b"1", 5)
    world.update()
    world.expect()
    for time, name in enumerate((IMAGES[2], IMAGES[0], IMAGES[2]), 6):
        world.write((0, name), b"1", time)
        snapshot = world.update()
        assert world.update() == snapshot

    assert world.asked == [world.listed[0, name][0] for name in (IMAGES[2], IMAGES[0], IMAGES[2])]


def test_touched_and_removed_images_take_bytes_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night may touch or remove every file of millions: 16 bytes stay of each in the driver, and no object."""
    images, start, shift = 40_000, 0, 0

    def listing(*_: object) -> Iterator[Listed]:
        for at in range(start, images):
            key = f"{at:06}.jpg"
            yield Listed((0, key.encode(), -1, ""), ObjectInfo(key, 7, "", at + shift))

    def peak() -> int:
        tracemalloc.start()
        wanted = Wanted(records, accept_empty=True)
        update_catalog(root, wanted, lambda touched: [Content.SAME] * len(touched), no_parents)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    root, records = Root(str(tmp_path), StorageConfig()), (SourceRecord("/photos", ""),)
    monkeypatch.setattr(Listing, "images", listing)
    monkeypatch.setattr(rows_by_place, "BLOCK_ROWS", 1_000)
    for name in ("PART_ROWS", "TOUCHED_ROWS"):
        monkeypatch.setattr(catalog, name, 1_000)
    claim(root)
    peak()
    plain = peak()
    shift = 5
    touched, later = peak(), peak()
    start = images - 1
    removed, after = peak(), peak()

    assert latest_snapshot(root.open()).live == 1
    grown = [(found - plain) / images for found in (touched, later, removed, after)]
    assert max(grown) < 64, grown  # 164 to 248 with sets, and dictionaries of tuples
