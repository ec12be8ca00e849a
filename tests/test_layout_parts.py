"""Parts at rest: how ranges are cut and covered, how later attempts replace rows, and what damage says."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError
from pipeline.layout.features import (
    AGAIN,
    BASE,
    Features,
    FeatureSet,
    commit_features,
    is_settled,
    list_features,
    missing_features,
    next_attempt,
    read_feature_rows,
    read_features,
)
from pipeline.layout.parts import Part, Slice, cover, cut, list_parts, missing, part_name, shard_size
from pipeline.layout.root import Root, kept
from pipeline.layout.tables import (
    parquet_bytes,
    read_array,
    read_json,
    read_object,
    read_rows,
    read_table,
    write_array,
    write_table,
)
from pipeline.schemas import FEATURE_ROWS, TRANSIENT, Status
from pipeline.storage import StorageConfig, Store, open_store

END = 40


@st.composite
def parts_of(draw: st.DrawFn, most: int = 8) -> list[Part]:
    ranges = draw(st.lists(st.tuples(st.integers(0, END - 1), st.integers(1, END)), max_size=most))
    return [Part(lo, min(END, lo + size), 0, f"rows-{lo}-{min(END, lo + size)}") for lo, size in ranges]


bounds = st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda pair: (min(pair), max(pair)))


@given(lo=st.integers(0, 500), length=st.integers(0, 500), size=st.integers(1, 60))
def test_cut_falls_on_multiples(lo: int, length: int, size: int) -> None:
    """The pieces follow each other, fill the range, and meet only at multiples of the size."""
    pieces = cut(lo, lo + length, size)

    assert [at for start, stop in pieces for at in range(start, stop)] == list(range(lo, lo + length))
    assert all(start < stop for start, stop in pieces)
    assert all(start % size == 0 for start, _ in pieces[1:])
    assert all(stop - start <= size for start, stop in pieces)


@given(parts=parts_of(), within=bounds, seed=st.randoms())
def test_cover_holds_each_offset_once(parts: list[Part], within: tuple[int, int], seed: Any) -> None:
    """Every offset that any part holds comes once and in order, from a part that holds it, whatever the order."""
    lo, hi = within
    slices = cover(parts, lo, hi)
    held = sorted({at for part in parts for at in range(part.lo, part.hi) if lo <= at < hi})

    assert [at for piece in slices for at in range(piece.lo, piece.hi)] == held
    assert all(piece.part.lo <= piece.lo < piece.hi <= piece.part.hi for piece in slices)
    shuffled = list(parts)
    seed.shuffle(shuffled)
    assert cover(shuffled, lo, hi) == slices


@given(parts=parts_of(), within=bounds)
def test_cover_takes_the_part_that_reaches_furthest(parts: list[Part], within: tuple[int, int]) -> None:
    """Each slice is of the part with the largest end, then the smallest start, among those that hold its first row.

    A range within gives what the whole has there.
    """
    end = max((part.hi for part in parts), default=0)
    whole = cover(parts, 0, end)
    lo, hi = within
    clipped = [Slice(s.part, max(s.lo, lo), min(s.hi, hi)) for s in whole if max(s.lo, lo) < min(s.hi, hi)]
    assert cover(parts, lo, hi) == clipped
    for piece in whole:
        holding = [part for part in parts if part.lo <= piece.lo < part.hi]
        assert (piece.part.lo, piece.part.hi) == min(((p.lo, p.hi) for p in holding), key=lambda p: (-p[1], p[0]))


@given(parts=parts_of(), within=bounds)
def test_missing_is_what_no_part_holds(parts: list[Part], within: tuple[int, int]) -> None:
    lo, hi = within
    gaps = missing(parts, lo, hi)
    held = {at for part in parts for at in range(part.lo, part.hi)}

    assert [at for start, stop in gaps for at in range(start, stop)] == [at for at in range(lo, hi) if at not in held]
    assert all(start < stop for start, stop in gaps)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(gaps))


class CountedPart(Part):
    """Counts how often the bounds of parts are looked at."""

    looks = 0

    def __getattribute__(self, name: str) -> Any:
        CountedPart.looks += name in ("lo", "hi")
        return super().__getattribute__(name)


def test_many_parts_are_covered_in_one_pass() -> None:
    """12,000 parts: some 20 looks at each, most of them for the order, where all against all would be 144 million."""
    parts = [CountedPart(at * 7, at * 7 + 9, 0, str(at)) for at in range(12_000)]
    CountedPart.looks = 0

    assert len(cover(parts, 0, 84_002)) == 12_000
    assert CountedPart.looks < 100 * len(parts)


@given(total=st.integers(0, 10**12))
def test_shards_stay_about_a_thousand(total: int) -> None:
    size = shard_size(total)
    assert size >= 1024
    assert -(-total // size) <= 1024
    assert size == 1024 or total > (size // 2) * 1024


def test_names_of_others_are_no_parts(tmp_path: Path) -> None:
    """A listing shows the parts of its stem only, sorted by range and attempt."""
    store = open_store(tmp_path)
    names = [part_name(BASE, 5, 9), part_name(BASE, 0, 5), part_name(AGAIN, 2, 3, 2), part_name(AGAIN, 2, 3, 1)]
    others = ["rows-1-2.parquet", "rowsx-000000000000-000000000005.parquet", "rows-000000000000-000000000005.npy"]
    for name in (*names, *others, "rows-000000000000-000000000005.parquet.old"):
        store.put(f"f/{name}", b"")

    assert [(part.lo, part.hi, part.attempt) for part in list_parts(store, "f", BASE)] == [(0, 5, 0), (5, 9, 0)]
    assert [(part.lo, part.hi, part.attempt) for part in list_parts(store, "f", AGAIN)] == [(2, 3, 1), (2, 3, 2)]
    assert list_parts(store, "g", BASE) == []


def features_of(ids: list[int], status: Callable[[int], Status], mark: int) -> Features:
    """Rows whose values tell the attempt: message, embedding and signature hold `mark`."""
    columns: dict[str, Any] = {name: [None] * len(ids) for name in FEATURE_ROWS.schema.names}
    columns |= {"image_id": ids, "status": [status(i).value for i in ids], "message": [str(mark)] * len(ids)}
    columns["content_hash"] = [i.to_bytes(16, "big") if status(i) is Status.OK else None for i in ids]
    table = pa.table(columns, schema=FEATURE_ROWS.schema)
    vectors = np.array([[i + 1, 2] for i in ids], np.float16).reshape(-1, 2)
    return Features(table, vectors, np.full((len(ids), 4), mark, np.uint8))


@settings(max_examples=30, deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), min_size=1, max_size=4),
    retries=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True).map(sorted), max_size=5),
    within=st.tuples(st.integers(0, 11), st.integers(1, 12)),
)
def test_features_equal_a_model(
    tmp_path_factory: pytest.TempPathFactory,
    ranges: list[tuple[int, int]],
    retries: list[list[int]],
    within: tuple[int, int],
) -> None:
    """Base parts may overlap and rows may be tried again in any sets: a row holds its last attempt."""
    store, end = open_store(tmp_path_factory.mktemp("features")), 12
    for lo, size in {(lo, min(end, lo + size) - lo) for lo, size in ranges}:
        ids = list(range(lo, lo + size))
        commit_features(store, f"f/{part_name(BASE, lo, lo + size)}", features_of(ids, lambda _: Status.OK, 0))
    held = {at for lo, size in ranges for at in range(lo, min(end, lo + size))}
    model = dict.fromkeys(sorted(held), 0)
    for mark, wanted in enumerate(retries, 1):
        ids = [i for i in wanted if i in held]
        if ids:
            attempt = next_attempt(list_features(store, "f"), ids[0], ids[-1] + 1)
            key = f"f/{part_name(AGAIN, ids[0], ids[-1] + 1, attempt)}"
            commit_features(store, key, features_of(ids, lambda _: Status.OK, mark))
            model |= dict.fromkeys(ids, mark)
    features = list_features(store, "f")
    assert [at for lo, hi in missing_features(features, 0, end) for at in range(lo, hi)] == [
        at for at in range(end) if at not in held
    ]
    _compare_with(store, features, model, (within[0], max(within[0] + 1, within[1])))


def _compare_with(store: Store, features: FeatureSet, model: dict[int, int], within: tuple[int, int]) -> None:
    lo, hi = within
    if not set(range(lo, hi)) <= set(model):
        with pytest.raises(ArtifactError, match="not extracted"):
            read_features(store, features, lo, hi)
        return
    marks = [model[i] for i in range(lo, hi)]
    found = read_features(store, features, lo, hi)
    assert found.rows["image_id"].to_pylist() == list(range(lo, hi))
    assert [int(value) for value in found.rows["message"].to_pylist()] == marks
    assert np.array(found.signatures)[:, 0].tolist() == marks
    assert np.array(found.embeddings)[:, 0].tolist() == [i + 1 for i in range(lo, hi)]
    rows = read_feature_rows(store, features, lo, hi, ["message", "image_id"])
    assert rows.column_names == ["message", "image_id"]
    assert [int(value) for value in rows["message"].to_pylist()] == marks


@pytest.mark.parametrize("transient", sorted(TRANSIENT))
def test_attempts_of_one_part_may_differ_in_what_they_could_not_read(tmp_path: Path, transient: Status) -> None:
    """A twin that could not read an image does not fail the run; the first part stays."""
    store, ids, key = open_store(tmp_path), [0, 1, 2], f"f/{part_name(BASE, 0, 3)}"
    commit_features(store, key, features_of(ids, lambda _: Status.OK, 1))
    commit_features(store, key, features_of(ids, lambda i: transient if i == 1 else Status.OK, 2))
    commit_features(store, key, features_of(ids, lambda _: transient, 3))

    assert read_features(store, list_features(store, "f"), 0, 3).rows["message"].to_pylist() == ["1"] * 3


def test_footer_says_whether_a_part_is_settled(tmp_path: Path) -> None:
    """A run need not read the rows of the parts that hold nothing to try again; an older part is read."""
    store = open_store(tmp_path)
    for lo, second in enumerate([Status.OK, Status.EMPTY, *sorted(TRANSIENT)]):
        found = features_of([2 * lo, 2 * lo + 1], lambda i, status=second: status if i % 2 else Status.OK, 1)  # type: ignore[misc]
        commit_features(store, f"f/{part_name(BASE, 2 * lo, 2 * lo + 2)}", found)
    store.put(f"f/{part_name(BASE, 90, 92)}", parquet_bytes(found.rows))

    parts = list_features(store, "f").base
    assert [is_settled(store, part) for part in parts] == [True, True, *[False] * len(TRANSIENT), False]


@pytest.mark.parametrize("change", ["status", "hash", "vector", "ids"])
def test_settled_rows_must_agree(tmp_path: Path, change: str) -> None:
    """Another status, hash or vector of a settled image is an error that names the part; the first part stays."""
    store, ids, key = open_store(tmp_path), [0, 1, 2], f"f/{part_name(BASE, 0, 3)}"
    first = features_of(ids, lambda _: Status.OK, 1)
    commit_features(store, key, first)
    rows, vectors = first.rows, first.embeddings
    if change == "status":
        rows = features_of(ids, lambda i: Status.EMPTY if i == 2 else Status.OK, 1).rows
    elif change == "hash":
        at = rows.schema.get_field_index("content_hash")
        rows = rows.set_column(at, rows.schema.field(at), pa.array([b"x" * 16] * 3, rows.schema.field(at).type))
    elif change == "vector":
        vectors = np.array([[1, -2], [1, 2], [3, 2]], np.float16)
    else:
        rows = features_of([0, 1, 3], lambda _: Status.OK, 1).rows
    with pytest.raises(ArtifactError, match=r"rows-000000000000-000000000003.*two attempts"):
        commit_features(store, key, Features(rows, vectors, first.signatures))
    commit_features(store, key, Features(first.rows, first.embeddings * np.float16(2), first.signatures))

    assert np.array_equal(read_features(store, list_features(store, "f"), 0, 3).embeddings, first.embeddings)


TABLE = pa.table({"a": pa.array([1, 2, None], pa.int32()), "b": [0.5, float("nan"), -0.0]})


def test_equal_tables_may_be_written_twice(tmp_path: Path) -> None:
    """Equal rows are one part, NaN equal to NaN, even where the bytes differ; the first file stays."""
    store = open_store(tmp_path)
    write_table(store, "f/p.parquet", TABLE)
    inode = (tmp_path / "f/p.parquet").stat().st_ino
    write_table(store, "f/p.parquet", TABLE)
    write_table(store, "f/p.parquet", TABLE.replace_schema_metadata({"note": "other bytes"}))

    assert (tmp_path / "f/p.parquet").stat().st_ino == inode
    assert parquet_bytes(read_table(store, "f/p.parquet")) == parquet_bytes(TABLE)


@pytest.mark.parametrize(
    "other",
    [
        TABLE.slice(0, 2),
        TABLE.select(["a"]),
        TABLE.rename_columns(["a", "c"]),
        TABLE.select(["b", "a"]),
        TABLE.set_column(0, "a", pa.array([1, 2, 3], pa.int32())),
        TABLE.set_column(0, "a", pa.array(["x", "y", "z"])),
        TABLE.set_column(1, "b", pa.array([0.5, 0.25, -0.0])),
    ],
    ids=["rows", "columns", "names", "order", "null", "type", "value"],
)
def test_other_tables_are_refused(tmp_path: Path, other: pa.Table) -> None:
    store = open_store(tmp_path)
    write_table(store, "f/p.parquet", TABLE)
    with pytest.raises(ArtifactError, match=r"f/p\.parquet: two attempts of one part differ"):
        write_table(store, "f/p.parquet", other)

    assert parquet_bytes(read_table(store, "f/p.parquet")) == parquet_bytes(TABLE)


BIG = pa.table({"image_id": np.arange(20_000), "x": np.random.default_rng(1).random(20_000)})


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_damaged_parquet_is_told(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A cut or flipped part gives its rows or an error that names it and the way out; pages never give other rows."""
    whole = parquet_bytes(BIG)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    folder = tmp_path_factory.mktemp("damaged")
    is_cut = data.draw(st.booleans())
    at = data.draw(st.integers(0, (len(whole) if is_cut else footer) - 1))
    broken = (
        whole[:at] if is_cut else whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    )
    store = open_store(folder)
    store.put("features/p.parquet", broken)
    for read in (read_table, lambda store, key: read_rows(store, key, 0, 20_000)):
        said = _said_of_damage(lambda read=read: read(store, "features/p.parquet"))
        assert said == "" or f"{folder}/features/p.parquet" in said
        assert said == "" or "Delete that file and run again" in said
        assert said != "" or not is_cut


def _said_of_damage(read: Callable[[], pa.Table]) -> str:
    """The error's message; "" where the rows of BIG were read."""
    try:
        table = read()
    except ArtifactError as error:
        return str(error)
    assert table.equals(BIG)
    return ""


@pytest.mark.parametrize("length", [0, 5, 100, 127, 128, 300])
def test_cut_arrays_are_told(tmp_path: Path, length: int) -> None:
    store = open_store(tmp_path)
    name = write_array(store, "f", "embeddings", np.arange(100, dtype=np.float32))
    assert np.array_equal(read_array(store, "f", name), np.arange(100, dtype=np.float32))
    path = tmp_path / "f" / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=name):
        read_array(store, "f", name)


def test_lost_vectors_name_the_part_to_delete(tmp_path: Path) -> None:
    store, key = open_store(tmp_path), f"f/{part_name(BASE, 0, 3)}"
    commit_features(store, key, features_of([0, 1, 2], lambda _: Status.OK, 1))
    (vectors,) = (tmp_path / "f").glob("embeddings-*.npy")
    vectors.unlink()
    with pytest.raises(ArtifactError, match=rf"{vectors.name}.*Delete .*{part_name(BASE, 0, 3)}, .*run again"):
        read_features(store, list_features(store, "f"), 0, 3)
    (tmp_path / key).unlink()
    commit_features(store, key, features_of([0, 1, 2], lambda _: Status.OK, 1))

    assert read_features(store, list_features(store, "f"), 0, 3).rows.num_rows == 3


@pytest.mark.parametrize(("key", "says"), [("spaces/x", "Delete that file"), ("catalog/x", "restore that file")])
def test_ways_out_differ_for_the_catalog(tmp_path: Path, key: str, says: str) -> None:
    """The catalog is what ids hang on: no message asks to delete a piece of it."""
    store = open_store(tmp_path)
    store.put(f"{key}.json", b"{")
    store.put(f"{key}.parquet", b"PAR1")
    store.put(f"{key}.npz", b"PK\x03\x04 no zip")
    reads: list[tuple[str, Callable[[], Any]]] = [
        (f"{key}.json", lambda: read_json(store, f"{key}.json")),
        (f"{key}.parquet", lambda: read_table(store, f"{key}.parquet")),
        (f"{key}.parquet", lambda: read_rows(store, f"{key}.parquet", 0, 1)),
        (f"{key}.npz", lambda: read_object(store, f"{key}.npz", lambda data: np.load(io.BytesIO(data)))),
    ]
    for name, read in reads:
        with pytest.raises(ArtifactError, match=rf"{name}: .*{says}"):
            read()


def test_what_is_kept_belongs_to_its_server() -> None:
    """One uri at two endpoints: the spaces of the first were taken for those of the second."""
    stores = [
        Root("s3://bucket/root", StorageConfig(endpoint_url=f"http://127.0.0.1:{port}")).open() for port in (1, 2)
    ]
    first, second = (kept(store, "spaces/a", lambda at=at: at) for at, store in enumerate(stores))  # type: ignore[misc]

    assert stores[0].uri == stores[1].uri
    assert (first, second, kept(stores[0], "spaces/a", lambda: 2)) == (0, 1, 0)
