"""Ranges listed side by side are the plain listing: whatever the keys, the server's faults and changes meanwhile."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left, insort
from itertools import islice

import pytest
from bucket_model import BucketModel, in_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import AccessDenied, StorageError, StorageUnavailable
from pipeline.storage import s3_cuts, s3_listing
from pipeline.storage.s3_cuts import Ask, guessed_cuts
from pipeline.storage.s3_listing import PAGES_AHEAD, REQUESTS_IN_FLIGHT, list_entries
from pipeline.storage.s3_pages import Entry, Page, page_of

PAGE = 5


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that pages of five keys are cut like pages of a thousand."""
    monkeypatch.setattr(s3_cuts, "_MIN_SAMPLE", 3)


def listed(server: BucketModel, prefix: str = "", page: int = PAGE) -> list[str]:
    return [entry.key for entry in list_entries(server, "list x", prefix, page)]


def hexadecimal(rng: random.Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def layouts(count: int) -> dict[str, list[str]]:
    rng = random.Random(5)
    names = [hexadecimal(rng, 12) for _ in range(count)]
    return {
        "flat": [f"img_{number:08d}.jpg" for number in range(count)],
        "not padded": in_order(f"image_{number}.jpg" for number in range(count)),
        "hashes": in_order(names),
        "hashes in folders": in_order(f"{name[:2]}/{name[2:4]}/{name}.jpg" for name in names),
        "a folder each": [f"{number:08d}/img.jpg" for number in range(count)],
        "one large folder": in_order([*(f"t/{name}" for name in names), "u/1", "v/2", *(f"w{n}/x" for n in range(50))]),
        "classes": in_order(f"train/n{number // 37 * 7919:08d}/{number}.JPEG" for number in range(count)),
        "beside the slash": in_order(f"a{sign}{number}" for number in range(count // 5) for sign in ["", *"-./0"]),
        "odd": in_order(
            f"{start}{number}" for number in range(count // 8)
            for start in ("/", "a//", "a/../", "%2F+&", "日本/", "😀", "\ufffd", "new\nline/")
        ),
    }  # fmt: skip


@pytest.mark.parametrize("layout", sorted(layouts(8)))
def test_every_key_once_in_order_for_few_requests_more(layout: str) -> None:
    keys = layouts(6000)[layout]
    server = BucketModel(keys, 50)
    assert listed(server, page=50) == keys
    assert len(server.asked) < 1.5 * len(keys) / 50
    begun = {ask.after for ask in server.asked if ask.after and not ask.is_by_folder}
    assert len(begun) > 8, "it was listed in one piece"


def test_a_short_listing_takes_one_request_a_page() -> None:
    server = BucketModel([f"{number:03d}" for number in range(8 * PAGE)], PAGE)
    assert len(listed(server)) == 8 * PAGE
    assert [(ask.prefix, ask.after, ask.is_by_folder) for ask in server.asked] == [("", "", False)] * 8


names = st.text(st.sampled_from("ab-./0é😀\ue000"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.sets(names, max_size=150), prefix=st.sampled_from(["", "a", "a/", "é", "😀/"]), page=st.integers(1, 4))
def test_any_keys_under_any_prefix(keys: set[str], prefix: str, page: int) -> None:
    ordered = in_order(keys)
    assert listed(BucketModel(ordered, page), prefix, page) == [key for key in ordered if key.startswith(prefix)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.sets(names, min_size=60, max_size=150), cuts=st.lists(names, max_size=12))
def test_a_bad_cut_costs_no_key(keys: set[str], cuts: list[str]) -> None:
    """Whatever a server answers when it is asked for folders."""
    ordered = in_order(keys)
    server = BucketModel(ordered, 2)

    def misled(ask: Ask) -> Page:
        page = server(ask)
        return Page([], sorted(cuts), "more") if ask.is_by_folder else page

    assert [entry.key for entry in list_entries(misled, "list x", "", 2)] == ordered


@pytest.mark.parametrize("seed", range(6))
def test_keys_that_stay_are_listed_while_others_come_and_go(seed: int) -> None:
    rng = random.Random(seed)
    kept = layouts(2000)[rng.choice(["flat", "hashes", "hashes in folders", "classes"])]
    keys = list(kept)
    lock = threading.Lock()

    def change(_: Ask) -> None:
        with lock:
            beside = rng.choice(kept) + rng.choice(["", "0", "!"])
            at = bisect_left(keys, beside)
            if at < len(keys) and keys[at] == beside:
                if beside not in stays:
                    del keys[at]
            else:
                insort(keys, beside)

    stays = set(kept)
    server = BucketModel(keys, PAGE, change)
    with lock_answers(server, lock):
        found = listed(server)
    assert found == in_order(found)
    assert stays <= set(found)
    assert all(key in stays or key[:-1] in stays for key in found)


class lock_answers:  # noqa: N801 - reads as a verb
    """Answers one request at a time, so that a change never falls into the middle of a page."""

    def __init__(self, server: BucketModel, lock: threading.Lock) -> None:
        self._server, self._lock = server, lock

    def __enter__(self) -> None:
        answered = self._server.answered

        def locked(ask: Ask) -> Page:
            with self._lock:
                return answered(ask)

        self._server.answered = locked  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        del self._server.answered


def test_a_server_that_does_not_know_start_after() -> None:
    keys = layouts(1500)["classes"]

    class Old(BucketModel):
        def answered(self, ask: Ask) -> Page:
            return super().answered(Ask(ask.prefix, "", ask.token, ask.is_by_folder))

    assert listed(Old(keys, PAGE)) == keys


@pytest.mark.parametrize("order", ["utf-16-be", "caseless", "shuffled"])
def test_another_order_is_refused(order: str) -> None:
    """As listing page by page would, whichever ranges it is listed in; no key is skipped before it is noticed."""
    rng = random.Random(1)
    keys = in_order(f"{rng.choice(['x/', 'Y/', '😀', chr(0xE000)])}{hexadecimal(rng, 6)}" for _ in range(1500))
    places = {
        "utf-16-be": lambda key: key.encode("utf-16-be"),
        "caseless": str.lower,
        "shuffled": lambda key: hexadecimal(random.Random(key), 6),
    }[order]

    class Other:
        def __init__(self) -> None:
            self.keys = sorted(keys, key=places)

        def __call__(self, ask: Ask) -> Page:
            behind = places(ask.token or ask.after) if ask.token or ask.after else ""
            left = [key for key in self.keys if not behind or places(key) > behind]
            entries = [Entry(key, 0, "", 0) for key in left[:50]]
            return Page(entries, [], left[49] if len(left) > 50 else "")

    with pytest.raises(StorageError, match="byte order"):
        list(list_entries(Other(), "list x", "", 50))


@pytest.mark.parametrize("position", [0, 700, 1499])
def test_an_error_comes_behind_all_keys_before_it(position: int) -> None:
    keys = layouts(1500)["flat"]

    def fail(ask: Ask) -> None:
        if (ask.token or ask.after) >= keys[position]:
            raise StorageUnavailable("list x: gave up")

    found: list[str] = []
    with pytest.raises(StorageUnavailable, match="gave up"):
        found.extend(entry.key for entry in list_entries(BucketModel(keys, PAGE, fail), "list x", "", PAGE))
    assert found == keys[: len(found)]
    assert position < len(found) <= position + 2 * PAGE or (position == 1499 and len(found) == 1500)


def test_folders_that_nobody_may_ask_for_only_cost_time() -> None:
    keys = layouts(1500)["classes"]

    def refuse(ask: Ask) -> None:
        if ask.is_by_folder:
            raise AccessDenied("list x: no")

    assert listed(BucketModel(keys, PAGE, refuse)) == keys


def test_nothing_is_asked_before_it_is_wanted_nor_after_it_is_closed() -> None:
    server = BucketModel(layouts(20_000)["flat"], PAGE)
    entries, others = list_entries(server, "list x", "", PAGE), threading.enumerate()
    assert server.asked == []
    assert len(list(islice(entries, PAGE))) == PAGE
    assert len(server.asked) == 1
    assert len(list(islice(entries, 60 * PAGE))) == 60 * PAGE
    begun = [thread for thread in threading.enumerate() if thread not in others]
    assert begun
    entries.close()
    asked = len(server.asked)
    for thread in begun:
        thread.join(60)
        assert not thread.is_alive()
    assert len(server.asked) <= asked + REQUESTS_IN_FLIGHT  # those under way


@pytest.mark.parametrize("layout", ["flat", "classes", "hashes in folders"])
def test_pages_ahead_of_the_caller_are_bounded(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the caller and long the listing."""
    keys = layouts(10_000)[layout]
    server = BucketModel(keys, PAGE)
    held = []
    answered = s3_listing._Listing._go_on

    def watched(listing: s3_listing._Listing, pool: object) -> None:
        answered(listing, pool)  # type: ignore[arg-type]
        held.append((sum(len(one.pages) for one in listing.ranges), len(listing.ranges)))

    monkeypatch.setattr(s3_listing._Listing, "_go_on", watched)
    assert listed(server) == keys
    assert max(pages for pages, _ in held) <= PAGES_AHEAD + REQUESTS_IN_FLIGHT
    assert max(pages for pages, _ in held) > REQUESTS_IN_FLIGHT
    assert max(ranges for _, ranges in held) < 500


def test_names_are_guessed_where_they_go_on_evenly() -> None:
    sample = [f"d/img_{number:06d}.jpg" for number in range(1000, 1100)]
    assert guessed_cuts("d/", sample, 500)[:3] == ["d/img_001500.jpg", "d/img_002000.jpg", "d/img_002500.jpg"]
    assert guessed_cuts("d/", sample[:1], 500) == []
    assert guessed_cuts("d/", ["d/日本"] * 3, 500) == []
    assert all(cut.startswith("d/") for cut in guessed_cuts("d/", sorted(f"d/{n * 7}" for n in range(900)), 50))


HEAD = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
CONTENTS = (
    "<Contents><Key>a%2Bb+c%0A</Key><LastModified>2026-11-21T18:00:05.700Z</LastModified><ETag>&quot;ab&quot;</ETag>"
    "<Size>7</Size></Contents>"
)


def test_a_page_is_read() -> None:
    told = "<IsTruncated>true</IsTruncated><NextContinuationToken>t/+=</NextContinuationToken>"
    folders = "<CommonPrefixes><Prefix>x%2Fy/</Prefix></CommonPrefixes>"
    page = page_of(f"{HEAD}{told}<EncodingType>url</EncodingType>{CONTENTS}{folders}</ListBucketResult>".encode())
    assert page == Page([Entry("a+b c\n", 7, "ab", 1_795_284_005 * 10**9)], ["x/y/"], "t/+=")
    plain = page_of(f"{HEAD}<IsTruncated>false</IsTruncated>{CONTENTS}{folders}</ListBucketResult>".encode())
    assert plain is not None
    assert (plain.entries[0].key, plain.prefixes, plain.token) == ("a%2Bb+c%0A", ["x%2Fy/"], "")
    zone = CONTENTS.replace("18:00:05.700Z", "19:00:05+01:00")
    moved = page_of(f"{HEAD}<IsTruncated>false</IsTruncated>{zone}</ListBucketResult>".encode())
    assert moved is not None
    assert moved.entries[0].mtime_ns == page.entries[0].mtime_ns


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no xml",
        "<Error><Code>InternalError</Code></Error>",
        f"{HEAD}</ListBucketResult>",
        f"{HEAD}<IsTruncated>true</IsTruncated></ListBucketResult>",
        f"{HEAD}<IsTruncated>false</IsTruncated>{CONTENTS}",
        f"{HEAD}<IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents></ListBucketResult>",
        f"{HEAD}<IsTruncated>false</IsTruncated><Contents><Key>a</Key><Size>x</Size></Contents></ListBucketResult>",
    ],
)
def test_what_is_no_whole_page_is_none(body: str) -> None:
    assert page_of(body.encode()) is None


def test_whoever_stops_does_not_wait_for_requests_under_way() -> None:
    """The collector may end a listing from within `threading`, as it may end `read_ahead`."""
    server = BucketModel([f"{number:06d}" for number in range(4000)], PAGE)
    release, begun = threading.Event(), threading.Event()

    def fetch(ask: Ask) -> Page:
        if ask.after >= "000500":
            begun.set()
            release.wait(60)
        return server(ask)

    entries = list_entries(fetch, "list x", "", PAGE)
    for entry in entries:
        if begun.is_set():
            break
        assert entry.key < "000500"
    ending = threading.Thread(target=entries.close)
    ending.start()
    ending.join(30)
    try:
        assert not ending.is_alive()
    finally:
        release.set()
