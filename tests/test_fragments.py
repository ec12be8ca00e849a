"""What was found in archives: stored and read whole, ahead of the listing, once a pass; the rows that come of it."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from archives_made import tar_of
from audited import write_files
from hypothesis import example, given, settings
from hypothesis import strategies as st
from s3_servers import moto_port, new_store, use_credentials

from pipeline.errors import ArtifactError, StorageUnavailable
from pipeline.layout import fragments
from pipeline.layout.fragments import FOLDER, KnownFragments, Parent, write_fragments
from pipeline.layout.root import Root, claim
from pipeline.layout.snapshots import SourceRecord, catalog_rows, latest_snapshot
from pipeline.layout.tables import write_table
from pipeline.sources.boxed import ListedBoxes
from pipeline.sources.folder import LeftOut, encode_key, encode_keys
from pipeline.sources.fragments import Fragment
from pipeline.sources.selection import SelectParams
from pipeline.sources.tabular import BOX, FILENAME
from pipeline.stages import catalog, prepare_list, rows_by_place
from pipeline.stages.catalog import Content, Update, Wanted, update_catalog
from pipeline.stages.expand import ExpandSpec, expand
from pipeline.stages.listing import Listed, Taken
from pipeline.stages.rows_by_place import known_rows, row_of, rows_table, state_of
from pipeline.stages.source_files import source_kind
from pipeline.storage import ObjectInfo, StorageConfig, Store, open_store, request_counts
from pipeline.storage.ahead import READS_IN_FLIGHT

NUMBERS = st.integers(0, 2**62)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=9)
LABELS = st.just("") | NAMES
FRAGMENT = st.builds(Fragment, NAMES, NUMBERS, NUMBERS, NUMBERS, problem=st.just(""), label=LABELS)
FRAGMENTS = st.lists(FRAGMENT, max_size=9)
PROBLEM = Fragment("", -1, 0, 7, "truncated: it ends there")
PARENT = Parent("/photos", ObjectInfo("a.tar", 7, "", 5), "tar")
KEYS = st.binary(min_size=1, max_size=6).map(os.fsdecode) | st.text("ab#%4/", min_size=1, max_size=6)


@pytest.mark.parametrize("block", [2, 65_536])
@settings(max_examples=40, deadline=None)
@given(found=FRAGMENTS, broken=st.booleans(), hidden=NUMBERS)
def test_what_is_found_is_what_is_read(
    found: list[Fragment], broken: bool, hidden: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In the order of the finding, but for what broke it off, which stands first as in a listing by position."""
    store, left_out = open_store(tmp_path_factory.mktemp("root")), LeftOut(hidden=hidden, suffixes=Counter({".txt": 3}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fragments, "BLOCK", block)
        count = write_fragments(store, PARENT, "tar.gz", [*found, *[PROBLEM] * broken], left_out)
    (read,) = KnownFragments(store, is_tried=False).of([PARENT])
    assert list(read) == list(read) == [*[PROBLEM] * broken, *found]
    assert (count, read.kind, read.left_out) == (len(found) + broken, "tar.gz", left_out)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", None])
def test_damaged_fragments_are_named_and_made_anew(damage: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    world = World(tmp_path, 3)
    world.update()
    path = next((tmp_path / "root" / FOLDER).iterdir())
    data = path.read_bytes()
    for at in range(0, len(data), 97) if damage is None else [0]:
        path.write_bytes(damage(data) if damage else data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        with pytest.raises(ArtifactError, match=rf"{path.name}: it is damaged .* Delete that file and run again"):
            world.update()
    path.unlink()
    update = world.update()
    assert (update.snapshot.number, len(world.expanded)) == (1, 4)


class World:
    """A folder with `count` tars of 2 images each and a photograph, and a root of it; what is looked into is noted."""

    def __init__(self, folder: Path, count: int) -> None:
        self.photos = folder / "photos"
        self.root = Root(str(folder / "root"), StorageConfig())
        self.expanded: list[str] = []
        self.looking = 0  # requests for looking into archives, the last time
        write_files(self.photos, {f"{at:02}.tar": tar_of(self.members(at)) for at in range(count)} | {"x.jpg": b"1"})
        claim(self.root)

    @staticmethod
    def members(seed: int) -> list[tuple[str, bytes]]:
        return [(f"{name}.jpg", bytes([seed])) for name in ("a", "b")]

    def update(self, expand_parents: Callable[[Sequence[Parent]], None] | None = None) -> Update:
        wanted = Wanted((SourceRecord(str(self.photos), ""),))
        return update_catalog(
            self.root, wanted, lambda files: [Content.UNREAD] * len(files), expand_parents or self.expand
        )

    def expand(self, parents: Sequence[Parent]) -> None:
        self.expanded += [parent.info.key for parent in parents]
        self.looking = gets_of(lambda: expand(ExpandSpec(self.root, tuple(parents))))

    def uris(self) -> set[str]:
        store = self.root.open()
        snapshot = latest_snapshot(store)
        ids = [row.image_id for row in known_rows(store, snapshot) if row.is_live]
        return set(catalog_rows(store, snapshot, 0, snapshot.total).take(ids)["uri"].to_pylist())


def gets_of(action: Callable[[], object]) -> int:
    before = request_counts()
    action()
    return (request_counts() - before).requests.get("disk.get", 0)


def test_each_run_reads_what_was_found_once_and_looks_into_what_changed(tmp_path: Path) -> None:
    """Of the run that meets a changed archive the first pass reads nothing: it ends there."""
    plain, world = World(tmp_path / "plain", 0), World(tmp_path / "many", 20)
    plain.update()
    itself = gets_of(plain.update)
    world.update()
    assert len(world.expanded) == 20
    assert gets_of(world.update) == itself + 20
    (world.photos / "07.tar").write_bytes(tar_of([*world.members(7), ("c.jpg", b"9")]))
    (world.photos / "11.tar").unlink()
    asked = gets_of(world.update)
    assert asked - world.looking == 2 * itself + 19
    assert world.expanded[20:] == ["07.tar"]
    wanted = {f"{at:02}.tar#{name}.jpg" for at in range(20) for name in "ab" if at != 11}
    assert world.uris() == wanted | {"07.tar#c.jpg", "x.jpg"}
    assert gets_of(world.update) == itself + 19


def test_a_run_that_ended_between_goes_on_where_it_was(tmp_path: Path) -> None:
    world = World(tmp_path, 9)

    def stopped(parents: Sequence[Parent]) -> None:
        world.expand(parents[:4])
        raise StorageUnavailable("gone")

    with pytest.raises(StorageUnavailable):
        world.update(stopped)
    world.update()
    assert world.expanded == [f"{at:02}.tar" for at in range(9)]
    assert len(world.uris()) == 19


def test_a_bucket_is_asked_once_for_each_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    store, parents = new_store(moto_port(), "fragments"), parents_of(40)
    for at, parent in enumerate(parents):
        write_fragments(store, parent, "tar", [Fragment(f"{at}.jpg", 0, 1, 1)], LeftOut())
    before = request_counts()
    found = KnownFragments(store, is_tried=False).of(parents)
    assert [name for each in found for name, *_ in each] == [f"{at}.jpg" for at in range(40)]
    assert (request_counts() - before).requests == {"s3.list": 1, "s3.get": 40}


def parents_of(count: int) -> list[Parent]:
    return [Parent("s3://bucket", ObjectInfo(f"{at}.tar", 7, "e", 0), "tar") for at in range(count)]


class Together:
    """A store of which a read ends when as many others have begun as there may be in flight."""

    def __init__(self, store: Store) -> None:
        self.uri, self.list, self._read = store.uri, store.list, store.read
        self._barrier = threading.Barrier(READS_IN_FLIGHT)
        self.begun: list[str] = []

    def read(self, key: str) -> bytes:
        self.begun.append(key)
        self._barrier.wait(60)
        return self._read(key)


def test_reads_are_in_flight_together_and_not_without_bound(tmp_path: Path) -> None:
    """A reader that takes one has at most two for each thread ahead of it."""
    parents, plain = parents_of(10 * READS_IN_FLIGHT), open_store(tmp_path)
    for parent in parents:
        write_fragments(plain, parent, "tar", [], LeftOut())
    store = Together(plain)
    found = KnownFragments(store, is_tried=False).of(parents)  # type: ignore[arg-type]
    for count, _ in enumerate(found, 1):
        assert len(store.begun) <= count + 2 * READS_IN_FLIGHT
    assert len(store.begun) == len(set(store.begun)) == len(parents)


def test_a_listing_holds_no_members_of_other_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 members take 10 kB or more as objects; of each further archive under 1 kB of names and sizes stays."""
    monkeypatch.setattr(catalog, "PART_ROWS", 1_000)
    monkeypatch.setattr(rows_by_place, "BLOCK_ROWS", 1_000)

    def members() -> Iterator[Fragment]:
        return (Fragment(f"train/{at:08}.jpg", at * 1024, 100, 100) for at in range(100))

    def grown_of(count: int) -> int:
        world = World(tmp_path / str(count), count)
        store = world.root.open()
        world.update(lambda parents: [write_fragments(store, each, "tar", members(), LeftOut()) for each in parents])
        tracemalloc.start()
        world.update()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few = grown_of(70)
    assert (grown_of(110) - few) / 40 < 3_000


def test_a_list_with_archives_says_once_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though the pass that meets them is made again."""
    write_files(tmp_path, {"a.jpg": b"1", "b.tar": tar_of([("c.jpg", b"1")]), "list.txt": b"a.jpg\nb.tar\ngone.jpg\n"})
    root = Root(str(tmp_path / "root"), StorageConfig())
    claim(root)

    def prepare_or_expand(parents: Sequence[Parent]) -> None:
        for parent in parents:
            if parent.kind == "list":
                prepare_list.prepare(prepare_list.PrepareSpec(root, parent))
            else:
                expand(ExpandSpec(root, (parent,)))

    uri = str(tmp_path / "list.txt")
    wanted = Wanted((SourceRecord(uri, "", source_kind(uri, root.storage)),))
    assert update_catalog(root, wanted, lambda _: [], prepare_or_expand).added == 3
    assert sum("1 of its files are not there" in line for line in caplog.messages) == 1


def test_boxes_of_names_that_are_no_utf_8(tmp_path: Path) -> None:
    """A table names such a file by its uri, as it does where it gives labels."""
    write_files(tmp_path / "photos", {"a#1.jpg": b"1"})
    (tmp_path / "photos" / os.fsdecode(b"\xff.jpg")).write_bytes(b"1")
    root = Root(str(tmp_path / "root"), StorageConfig())
    claim(root)
    boxes = ListedBoxes(pa.table({FILENAME: ["a#1.jpg", "%FF.jpg"], BOX: ["xywh=1,2,3,4", "xywh=5,6,7,8"]}))
    wanted = Wanted((SourceRecord(str(tmp_path / "photos"), ""),), Taken(SelectParams(), boxes))
    snapshot = update_catalog(root, wanted, lambda _: [], lambda _: None).snapshot
    uris = catalog_rows(root.open(), snapshot, 0, 2)["uri"].to_pylist()
    assert uris == ["a%231.jpg#xywh=1,2,3,4", "%FF.jpg#xywh=5,6,7,8"]


@given(st.lists(KEYS, max_size=6))
@example(["a.jpg", "b\n.jpg"])
@example(["%", "41.jpg"])
def test_many_keys_are_escaped_as_one_is(keys: list[str]) -> None:
    uris, raws = encode_keys(keys)
    assert list(zip(uris.to_pylist(), raws.to_pylist(), strict=True)) == [encode_key(key) for key in keys]


LISTED = st.builds(
    lambda source, key, size, etag, inner: listed(source, ObjectInfo(key, size, etag, 0 if etag else size), inner),
    st.integers(0, 3), KEYS, NUMBERS, st.sampled_from(["", "e"]),
    st.none() | st.just(PROBLEM) | FRAGMENT,
)  # fmt: skip


def listed(source: int, info: ObjectInfo, fragment: Fragment | None) -> Listed:
    file = Listed((source, os.fsencode(info.key), -1, ""), info)
    return file if fragment is None else file.inside(fragment, "zip")


@settings(max_examples=40, deadline=None)
@given(entries=st.lists(LISTED, min_size=1, max_size=9, unique_by=lambda each: each.place))
def test_a_row_has_the_place_and_state_of_what_was_listed(
    entries: list[Listed], tmp_path_factory: pytest.TempPathFactory
) -> None:
    entries.sort(key=lambda each: each.place)
    store = open_store(tmp_path_factory.mktemp("root"))
    write_table(store, "catalog/rows.parquet", rows_table([row_of(each) for each in entries], 0))
    parts = (catalog.CatalogPart(0, len(entries), "catalog/rows.parquet", 1),)
    snapshot = catalog.Snapshot(1, len(entries), (), parts, "", 0, "")
    found = [(row.place, row.image_id, row.state) for row in known_rows(store, snapshot)]
    assert found == [(each.place, at, state_of(each)) for at, each in enumerate(entries)]
