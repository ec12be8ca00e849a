"""A gzip that is cut off or damaged: what lies before the damage is there, as zlib gives it byte by byte."""

from __future__ import annotations

import gzip
import io
import random
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pytest
from archives_made import tar_of
from audited import by_uri, noise_jpeg, rows, run, write_files
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status
from pipeline.sources import gzip_stream
from pipeline.sources.archives import archive_fragments
from pipeline.sources.folder import LeftOut
from pipeline.sources.fragments import Fragment
from pipeline.sources.gzip_front import GzipFront
from pipeline.sources.gzip_stream import SPACING, GzipStream

NOISE = random.Random(7)
TAR = tar_of([(f"cat/{at}.jpg", NOISE.randbytes(90 * at) + bytes(50 * at)) for at in range(1, 8)])
MEMBERS = list(archive_fragments(io.BytesIO(TAR), "tar", LeftOut()))
PACKED = {
    "one": gzip.compress(TAR, 6),
    "two": gzip.compress(TAR[:3000], 1) + gzip.compress(TAR[3000:], 9),
    "padded": gzip.compress(TAR) + bytes(40),
    "followed": gzip.compress(TAR) + b"not of it",
    "many": b"".join(gzip.compress(TAR[at : at + 1024]) for at in range(0, len(TAR), 1024)),
}


class Unpacked(NamedTuple):
    """All that zlib gives of a gzip, and what ended it: "" at its end, `cut`, or what zlib said; `bent` for a further
    gzip with one other byte in its first three, or with bytes before it. wrong: byte of `data` where each gzip ends
    that has another checksum, or another length.
    """

    data: bytes
    ended: str
    wrong: list[int]


def unpacked(data: bytes) -> Unpacked:
    """A gzip fed to zlib byte by byte."""
    out, wrong = bytearray(), list[int]()
    while data.startswith(b"\x1f\x8b") or not out:
        state, place, began = zlib.decompressobj(31), 0, len(out)
        try:
            while place < len(data) and not state.eof:
                out += state.decompress(data[place : place + 1])
                place += 1
        except zlib.error as error:
            is_checksum = str(error).endswith("incorrect data check")
            length = data[place + 1 : place + 5] if is_checksum else data[place - 3 : place + 1]
            is_long = length == (len(out) - began).to_bytes(4, "little")
            if is_long != is_checksum or not str(error).endswith((" data check", " length check")):
                return Unpacked(bytes(out), str(error), wrong)
            wrong.append(len(out))
            place += 5 if is_checksum else 1
        else:
            if not state.eof:
                return Unpacked(bytes(out), "cut", wrong)
        data = data[place:].lstrip(b"\0")
    is_bent = sum(a == b for a, b in zip(data, b"\x1f\x8b\x08", strict=False)) == 2
    places = [place for place in range(len(data)) if data.startswith(b"\x1f\x8b\x08", place)]
    return Unpacked(bytes(out), "bent" if is_bent or any(begins(data[place:]) for place in places) else "", wrong)


def begins(data: bytes) -> bool:
    with suppress(zlib.error):
        return bool(zlib.decompressobj(31).decompress(data))
    return False


def listed(stream: GzipStream) -> list[Fragment]:
    found = list[Fragment]()
    with suppress(ImageError):
        found += archive_fragments(cast(BinaryIO, stream), "tar", LeftOut())
    return found


def assert_kept(data: bytes) -> None:
    """Every member that lies before the damage is found and has its bytes, here and for who has the index alone."""
    out, ended, wrong = unpacked(data)
    stream = GzipStream(io.BytesIO(data), len(data))
    index, problem, found = stream.index(), stream.problem(), listed(stream)
    same = next((at for at, (a, b) in enumerate(zip(out, TAR, strict=False)) if a != b), min(len(out), len(TAR)))
    whole = [member for member in MEMBERS if member.position + member.length <= same]
    assert found[: len(whole)] == whole
    later = GzipStream(io.BytesIO(data), len(data), index)
    for reader, members in ((stream, found[::-1]), (later, found), (later, found[::-1])):
        for member in members:
            end = member.position + member.length
            assert reader.read_at(member.position, member.length) == out[member.position : end]
    assert later.read_at(0, len(TAR))[: len(out)] == out[: len(TAR)]
    if not ended and not wrong:
        assert problem is None
        return
    assert problem is not None
    assert problem.status is (Status.TRUNCATED if ended == "cut" and not wrong else Status.UNREADABLE)
    assert not wrong or f" to {wrong[0]:,}: any member in them" in str(problem)
    assert not ended or f"after {len(out):,} unpacked" in str(problem) or f"to {len(out):,}, nor" in str(problem)
    doubt = re.search(r"any member from unpacked byte ([\d,]+) on may be damaged", str(problem))
    if doubt is None:
        assert ended in ("", "cut", "bent") or f"to {len(out):,}, nor" in str(problem)
    else:
        assert wrong or int(doubt[1].replace(",", "")) <= same


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(PACKED)), st.data())
def test_any_cut_keeps_what_is_before_it(kind: str, data: st.DataObject) -> None:
    packed = PACKED[kind]
    assert_kept(packed[: data.draw(st.integers(1, len(packed)))])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(PACKED)), st.integers(1, 255), st.data())
def test_any_changed_byte_keeps_what_is_before_it(kind: str, change: int, data: st.DataObject) -> None:
    bent = bytearray(PACKED[kind])
    bent[data.draw(st.integers(2, len(bent) - 1))] ^= change
    assert_kept(bytes(bent))


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_the_last_bytes_of_a_gzip(kind: str) -> None:
    """Each cut and each changed byte of its checksum and length, and of what follows them."""
    packed = PACKED[kind]
    for at in range(len(packed) - 50, len(packed)):
        assert_kept(packed[:at])
        assert_kept(packed[:at] + bytes([packed[at] ^ 0x10]) + packed[at + 1 :])


@pytest.mark.parametrize(("at", "bit"), [(at, bit) for at in range(3) for bit in range(8)])
def test_a_changed_bit_where_a_further_gzip_begins(at: int, bit: int) -> None:
    """Of the magic or the method of each: what is behind it does not join on to what is before it, and it is told."""
    for kind in ("two", "many"):
        packed = bytearray(PACKED[kind])
        starts = [place for place in range(1, len(packed)) if packed.startswith(b"\x1f\x8b\x08", place)]
        assert len(starts) == (1 if kind == "two" else len(TAR) // 1024 - 1)
        for start in starts:
            bent = packed.copy()
            bent[start + at] ^= 1 << bit
            assert_kept(bytes(bent))
            assert_members_are_their_own(bytes(bent))


def assert_members_are_their_own(data: bytes) -> None:
    stream = GzipStream(io.BytesIO(data), len(data))
    index = stream.index()
    later = GzipStream(io.BytesIO(data), len(data), index)
    for member in listed(stream):
        own = TAR[member.position : member.position + member.length]
        assert later.read_at(member.position, member.length) == own
        assert stream.read_at(member.position, member.length) == own


NOISE_GZIP = gzip.compress(TAR[:2048]) + NOISE.randbytes(300_000)


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (b"", None),
        (b"\x1f\x8b\x08 as by chance", None),
        (gzip.compress(TAR[2048:])[:9], None),
        (gzip.compress(TAR[2048:]), "bytes that are no gzip, with one behind them"),
        (
            b"\x1f\x8b\x08 as by chance" + gzip.compress(TAR[2048:])[:-99],
            "bytes that are no gzip, with one behind them",
        ),
    ],
    ids=["noise", "magic", "short", "whole", "cut"],
)
def test_what_is_behind_a_gzip_is_no_part_of_it(behind: bytes, said: str | None) -> None:
    """Unless a gzip is behind it: then what is between them was one."""
    data = NOISE_GZIP + behind
    stream = GzipStream(io.BytesIO(data), len(data))
    stream.index()
    problem = stream.problem()
    assert (said or "") in str(problem)
    assert (problem is None, stream.is_followed) == (said is None, True)
    assert stream.read_at(0, len(TAR)) == TAR[:2048]


LARGE = random.Random(9).randbytes(5 * SPACING + 12_345)
LARGE_PACKED = gzip.compress(LARGE, 1)


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "status", "kept", "said"),
    [
        (LARGE_PACKED, None, len(LARGE), ""),
        (LARGE_PACKED[:-4], Status.TRUNCATED, len(LARGE), f"cut off at byte {len(LARGE_PACKED) - 4:,} of the file"),
        (LARGE_PACKED[:-300], Status.TRUNCATED, len(LARGE) - 300, "cut off"),
        (LARGE_PACKED[: 3 * SPACING], Status.TRUNCATED, 3 * SPACING - 6000, f"cut off at byte {3 * SPACING:,}"),
        (changed(LARGE_PACKED, len(LARGE_PACKED) - 6), Status.UNREADABLE, len(LARGE), "the checksum at byte"),
        (
            gzip.compress(LARGE[:-99], 1) + b"\x1f\x8b\0" + bytes(20),
            Status.UNREADABLE,
            len(LARGE) - 99,
            "damaged at byte",
        ),
    ],
    ids=["whole", "4 bytes", "300 bytes", "half", "checksum", "second"],
)
def test_a_gzip_of_many_points(data: bytes, status: Status | None, kept: int, said: str) -> None:
    """Pieces of 20 MB in any order, from the points alone and behind them."""
    stream = GzipStream(io.BytesIO(data), len(data))
    index, problem = stream.index(), stream.problem()
    assert (problem and problem.status, said in str(problem)) == (status, True)
    assert index
    later = GzipStream(io.BytesIO(data), len(data), index)
    places = [*range(0, kept - 7000, 999_983), kept - 7000]
    for place in (*places, *places[::-2], *random.Random(1).sample(places, 9)):
        assert later.read_at(place, 7000) == LARGE[place : place + 7000]


def test_a_gzip_is_read_back_from_marks() -> None:
    """The last 64 MB of them are kept; what lies before is unpacked from the start again."""
    data = bytes(range(251)) * 400_000
    packed = gzip.compress(data, 1)
    front = GzipFront(io.BytesIO(packed), len(data))
    for place in (99_000_000, 98_000_000, 60_000_000, 5, 70_000_000, len(data) - 3):
        assert front.read_at(place, 1000) == data[place : place + 1000]
    assert front.read_at(len(data) + 1, 5) == b""
    assert front.problem() is None


class Away(io.BytesIO):
    """A stream whose store goes away."""

    is_away = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.is_away:
            raise ConnectionError("no answer")
        return super().read(size)


def test_a_store_that_goes_away_at_the_damage_is_no_damage() -> None:
    """Its error comes as it is, and what was there is there again once the store is back."""
    data = LARGE_PACKED[:-4]
    source = Away(data)
    stream = GzipStream(source, len(data))
    assert stream.read_at(len(LARGE) - 50, 50) == LARGE[-50:]
    source.is_away = True
    with pytest.raises(ConnectionError, match="no answer"):
        stream.read_at(5, 50)
    source.is_away = False
    assert stream.read_at(5, 50) == LARGE[5:55]
    assert stream.read_at(len(LARGE) - 50, 50) == LARGE[-50:]


def test_members_before_the_damage_are_images(tmp_path: Path) -> None:
    """Beside a row of the archive that says what is wrong and where; all are read again in extraction."""
    files = {f"{at:02}.jpg": noise_jpeg(at) for at in range(12)}
    packed = tar_of(files.items(), is_packed=True)
    middle = len(packed) * 3 // 4
    archives = {
        "four.tgz": packed[:-4],
        "crc.tgz": changed(packed, len(packed) - 6),
        "bent.tgz": changed(packed, middle),
        "cut.tgz": packed[:middle],
    }
    audit = run(write_files(tmp_path / "photos", {**archives, "whole.tgz": packed}), root=tmp_path / "audit")
    invalid = {uri: (row["status"], row["message"]) for uri, row in by_uri(audit, "invalid").items() if "#" not in uri}
    assert {uri: status for uri, (status, _) in invalid.items()} == {
        "four.tgz": "truncated",
        "crc.tgz": "unreadable",
        "bent.tgz": "unreadable",
        "cut.tgz": "truncated",
    }
    assert f"the gzip is cut off at byte {middle:,} of the file" in invalid["cut.tgz"][1]
    assert "any member in them may be damaged" in invalid["crc.tgz"][1]
    found = [row["uri"] for row in rows(audit, "images") if row["status"] == "ok"]
    for name in ("whole.tgz", "four.tgz", "crc.tgz"):
        assert [uri for uri in found if uri.startswith(f"{name}#")] == [f"{name}#{member}" for member in files]
    same = {(row["uri"], row["match_uri"]) for row in rows(audit, "duplicates") if row["kind"] == "same_bytes"}
    groups = [{uri for pair in same if name in "".join(pair) for uri in pair} for name in files]
    before = len(unpacked(packed[:middle]).data)
    for member in archive_fragments(io.BytesIO(gzip.decompress(packed)), "tar", LeftOut()):
        is_before = member.position + member.length <= before
        names = [name for name in (*archives, "whole.tgz") if is_before or name not in ("bent.tgz", "cut.tgz")]
        (group,) = [group for group in groups if f"whole.tgz#{member.name}" in group]
        assert {f"{name}#{member.name}" for name in names} <= group


def test_parts_behind_a_damaged_one_do_not_join_on(tmp_path: Path) -> None:
    """Of a tar in many gzips: members up to the damage are images with their own bytes, and a row says where it is."""
    files = {f"{at:02}.jpg": noise_jpeg(at) for at in range(8)}
    tar = tar_of(files.items())
    parts = [gzip.compress(tar[at : at + 4096]) for at in range(0, len(tar), 4096)]
    half = len(parts) // 2
    start = len(b"".join(parts[:half]))
    bent, whole = changed(b"".join(parts), start), gzip.compress(tar)
    photos = {"bent.tgz": bent, "junk.tgz": whole + b"junk", **files}
    audit = run(write_files(tmp_path / "photos", photos), root=tmp_path / "audit")
    kept = [
        member.name
        for member in archive_fragments(io.BytesIO(tar), "tar", LeftOut())
        if member.position + member.length <= half * 4096
    ]
    assert 1 < len(kept) < len(files)
    images = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert {uri: status for uri, status in images.items() if uri.startswith("bent.tgz")} == {
        "bent.tgz": "unreadable",
        **{f"bent.tgz#{name}": "ok" for name in kept},
    }
    assert by_uri(audit, "invalid")["bent.tgz"]["message"] == (
        f"the gzip is damaged at byte {start:,} of the file, after {half * 4096:,} unpacked bytes "
        "(incorrect header of a further gzip)"
    )
    same = {(row["uri"], row["match_uri"]) for row in rows(audit, "duplicates") if row["kind"] == "same_bytes"}
    for name in kept:
        assert f"bent.tgz#{name}" in {uri for pair in same if name in "".join(pair) for uri in pair}
    assert audit.summary()["left_out"] == 1  # what follows the gzip of junk.tgz
    assert {uri for uri in images if uri.startswith("junk.tgz")} == {f"junk.tgz#{name}" for name in files}


@pytest.mark.parametrize("at", [-8, -1], ids=["checksum", "length"])
def test_a_wrong_checksum_loses_nothing_behind_it(at: int, tmp_path: Path) -> None:
    """Of one of many gzips: all members are images, a row says which bytes are in doubt, and what else is wrong."""
    files = {f"{at:02}.jpg": noise_jpeg(at) for at in range(8)}
    tar = tar_of(files.items())
    parts = [gzip.compress(tar[place : place + 4096]) for place in range(0, len(tar), 4096)]
    ends = [len(b"".join(parts[: count + 1])) for count in range(len(parts))]
    second, cut = bytearray(changed(b"".join(parts), ends[1] + at)), tar.rstrip(b"\0")
    thrice = bytearray(second)
    for part in (3, 5):
        thrice[ends[part] + at] ^= 1
    cut_tar = changed(gzip.compress(cut[:9000]) + gzip.compress(cut[9000:]), len(gzip.compress(cut[:9000])) + at)
    archives = {"second.tgz": bytes(second), "thrice.tgz": bytes(thrice), "ends.tgz": cut_tar}
    archives["both.tgz"] = changed(changed(b"".join(parts), ends[1] - 8), ends[1] - 1)
    audit = run(write_files(tmp_path / "photos", {**archives, **files}), root=tmp_path / "audit")
    images = {row["uri"]: row["status"] for row in rows(audit, "images") if "#" in row["uri"]}
    whole = [f"{name}#{file}" for name in ("second.tgz", "thrice.tgz", "ends.tgz") for file in files]
    kept = [m.name for m in archive_fragments(io.BytesIO(tar), "tar", LeftOut()) if m.position + m.length <= 8192]
    assert images == dict.fromkeys([*whole, *(f"both.tgz#{name}" for name in kept)], "ok")
    invalid = by_uri(audit, "invalid")
    assert {invalid[name]["status"] for name in archives} == {"unreadable"}
    place, what = ends[1] + (-5 if at == -8 else -1), "checksum" if at == -8 else "length"
    named = f"at byte {place:,} of the file is not that of the unpacked bytes 4,096 to 8,192"
    said = f"the {what} {named}: any member in them may be damaged"
    assert invalid["second.tgz"]["message"] == said
    assert invalid["thrice.tgz"]["message"] == f"{said}; 2 further checksums are wrong"
    assert "bytes 0 to 9,000: any member in them may be damaged; the archive ends " in invalid["ends.tgz"]["message"]
    assert "not that of the unpacked bytes 4,096 to 8,192, nor is the length" in invalid["both.tgz"]["message"]
    same = {(row["uri"], row["match_uri"]) for row in rows(audit, "duplicates") if row["kind"] == "same_bytes"}
    groups = {name: {uri for pair in same if name in "".join(pair) for uri in pair} for name in files}
    for uri in images:
        assert uri in groups[uri.partition("#")[2]]


@pytest.mark.parametrize("damage", [None, -8, -1], ids=["whole", "checksum", "length"])
def test_points_do_not_grow_with_what_a_gzip_unpacks_to(damage: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 MB in 1 MB there are no more than the bound, and what lies in between is read from them."""
    monkeypatch.setattr(gzip_stream, "MOST_POINTS", 8)
    tar = tar_of([("a.bmp", bytes(150_000_000)), ("b.jpg", NOISE.randbytes(70_000)), ("c.bmp", bytes(150_000_000))])
    packed = gzip.compress(tar, 1)
    packed = packed if damage is None else changed(packed, len(packed) + damage)
    stream = GzipStream(io.BytesIO(packed), len(packed))
    index = stream.index()
    assert 1 < len(index) // 32_768 <= 8
    assert (stream.problem() is None) is (damage is None)
    found = listed(stream)
    assert [member.name for member in found] == ["a.bmp", "b.jpg", "c.bmp"]
    later = GzipStream(io.BytesIO(packed), len(packed), index)
    for reader in (stream, later):
        for place in (found[1].position, 5, found[2].position - 600, len(tar) - 9000):
            assert reader.read_at(place, 70_000) == tar[place : place + 70_000]


def test_a_gzip_that_unpacks_to_far_too_much_ends_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies before the bound is there, a row says so; also of one that is cut off behind it."""
    monkeypatch.setattr(gzip_stream, "MOST_UNPACKED", 30_000_000)
    tar = tar_of([("a.jpg", noise_jpeg(1)), ("b.bmp", bytes(40_000_000)), ("c.jpg", noise_jpeg(2))])
    packed = gzip.compress(tar)
    fits = gzip.compress(tar_of([("d.jpg", noise_jpeg(3)), ("e.bin", bytes(29_000_000))]))
    files = {"bomb.tgz": packed, "cut.tgz": packed[:-9], "fits.tgz": fits}
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")
    assert {row["uri"]: row["status"] for row in rows(audit, "images")} == {
        "bomb.tgz": "too_large",
        "bomb.tgz#a.jpg": "ok",
        "cut.tgz": "too_large",
        "cut.tgz#a.jpg": "ok",
        "fits.tgz#d.jpg": "ok",
    }
    invalid = by_uri(audit, "invalid")
    for name in ("bomb.tgz", "cut.tgz"):
        assert invalid[name]["message"].startswith("the gzip unpacks to more than 30,000,000 bytes")
    data = bytes(50_000_000)
    front = GzipFront(io.BytesIO(gzip.compress(data)[:-9]), 30_000_000)
    problem = front.problem()
    assert problem is not None
    assert (problem.status, front.breaks_off(), front.end() < 40_000_000) == (Status.TOO_LARGE, True, True)
