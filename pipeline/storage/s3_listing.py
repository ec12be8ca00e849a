"""One listing from many requests at once: ranges of keys listed side by side, yielded in order, bounded in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import StorageError
from pipeline.storage.s3_cuts import Ask, Cuts, Fetch, Span, find_cuts
from pipeline.storage.s3_pages import Entry, Page

REQUESTS_IN_FLIGHT = 8
"""Reading a page of 1,000 keys takes 8 ms of a core, so 8 keep one busy up to 60 ms a request."""
RANGE_PAGES = 8
"""Pages wanted in one range: the last one of each reaches into the next range and is read twice."""
PAGES_AHEAD = 64
"""Pages held at most before they are asked for, 0.35 MB each."""
_MIN_RANGE_PAGES = 2
_UNKNOWN_PAGES = 2
"""Pages read ahead of a range of unknown length: near ones need the room, and it may be cut in better places."""
_MAX_PATIENCE = 64


@dataclass
class _Batch:
    """Ranges made by one set of cuts. A unit lies between two cuts; its keys as far as seen, None = not yet."""

    unit_keys: float | None
    is_guessed: bool = False
    seen_keys: int = 0
    seen_units: int = 0

    def add(self, keys: int, units: int) -> None:
        self.seen_keys += keys
        self.seen_units += units
        self.unit_keys = self.seen_keys / self.seen_units


@dataclass(eq=False)
class _Range:
    """Keys behind `after` up to and including `until` (None: to the end), page by page.

    at: the last key that came, page: its page. first: the first key, "" where none came, None before that is known.
    beyond: what the last page held behind `until`. is_wide: to be cut before it is begun.
    """

    after: str
    until: str | None
    batch: _Batch
    is_wide: bool = False
    units: int = 1
    at: str = ""
    page: Sequence[Entry] = ()
    token: str = ""
    first: str | None = None
    pages: deque[list[Entry]] = field(default_factory=deque)
    beyond: list[Entry] = field(default_factory=list)
    waiting: Future[Page] | None = None
    is_begun: bool = False
    is_complete: bool = False
    failure: Exception | None = None
    keys: int = 0
    uncut_pages: int = 0
    patience: int = 2

    def take(self, entries: list[Entry], token: str, where: str) -> None:
        """Add one page. A key out of order is a failure, to be raised behind those before it."""
        if self.first is None and (entries or not token):
            self.first = entries[0].key if entries else ""
            if entries and entries[0].key <= self.after:  # the server does not know StartAfter: the seam will not fit
                self.is_complete = True
                return
        entries = self._in_order(entries, where)
        cut = len(entries) if self.until is None else bisect_right(entries, self.until, key=lambda entry: entry.key)
        inside, self.beyond, self.token = entries[:cut], entries[cut:], token
        self.is_complete = bool(self.beyond) or not token or self.failure is not None
        if inside:
            self.pages.append(inside)
            self.at, self.page = inside[-1].key, inside
            self.keys += len(inside)
        self.uncut_pages += 1
        if self.is_complete:
            self.page = ()

    def _in_order(self, entries: list[Entry], where: str) -> list[Entry]:
        last = self.at
        for number, entry in enumerate(entries):
            if entry.key <= last:
                self.failure = out_of_order(where, entry.key)
                return entries[:number]
            last = entry.key
        return entries


def out_of_order(where: str, key: str) -> StorageError:
    """The refusal of a server whose order is another."""
    return StorageError(
        f"{where}: the server lists {key!r} after a key that sorts behind it; "
        "wanted UTF-8 byte order as on S3. Use another server"
    )


def list_entries(fetch: Fetch, where: str, prefix: str, page_keys: int) -> Generator[Entry, None, None]:
    """Yield every key that starts with `prefix`, in order; raises what `fetch` raises, behind all keys before it.

    One page after the other up to RANGE_PAGES, then up to REQUESTS_IN_FLIGHT at once, run only while it is asked
    for entries. Equals the plain listing for every cut: where two ranges meet, the key that the first one saw behind
    its end must be the one that the second began with; else the first one goes on. Closing it has
    its threads end after the requests that are under way.
    """
    page = fetch(Ask(prefix))
    listing = _Listing(fetch, where, prefix, page_keys)
    listing.ranges[0].take(page.entries, page.token, where)
    try:
        yield from listing.entries()
    finally:
        listing.close()


class _Listing:
    """The ranges of one listing, in order. Only `fetch` runs on other threads; all state is the caller's thread's."""

    def __init__(self, fetch: Fetch, where: str, prefix: str, page_keys: int) -> None:
        self.ranges = [_Range("", None, _Batch(None), is_begun=True, patience=1)]
        self._fetch, self._where, self._prefix, self._page_keys = fetch, where, prefix, page_keys
        self._before: _Range | None = None
        self._cutting: tuple[_Range, Future[list[Cuts]]] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._patience = 1

    def close(self) -> None:
        """Have the threads end after the requests that are under way. As for `read_ahead`, nobody waits for that."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def entries(self) -> Iterator[Entry]:
        last = ""
        while self.ranges:
            head = self.ranges[0]
            if self._before is not None and head.first is not None:
                self._check_seam(self._before, head)
                continue
            if self._before is None and head.pages:
                page = head.pages.popleft()
                if self._pool is not None:  # more is asked for while the caller works on this page
                    self._collect()
                    self._go_on(self._pool)
                for entry in page:
                    if entry.key <= last:
                        raise out_of_order(self._where, entry.key)
                    last = entry.key
                    yield entry
            elif self._before is None and head.is_complete:
                self._leave(head)
            elif head.failure is not None:
                raise head.failure
            else:
                self._advance()

    def _leave(self, head: _Range) -> None:
        if head.failure is not None:
            raise head.failure
        del self.ranges[0]
        self._before = head

    def _check_seam(self, before: _Range, head: _Range) -> None:
        """Begin the next range, or, where it does not begin with what the one before saw behind its end, drop it."""
        self._before = None
        if head.first == (before.beyond[0].key if before.beyond else ""):
            return
        self._patience = min(2 * self._patience, _MAX_PATIENCE)
        before.until, before.is_complete = head.until, False
        before.patience = self._patience
        self.ranges[0] = before
        before.take(before.beyond, before.token, self._where)

    def _advance(self) -> None:
        """Keep requests going, and wait until one has an answer."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT)
        self._go_on(self._pool)
        running: list[Future[Any]] = [one.waiting for one in self.ranges if one.waiting is not None]
        if self._cutting is not None:
            running.append(self._cutting[1])
        wait(running, return_when=FIRST_COMPLETED)
        self._collect()

    def _go_on(self, pool: ThreadPoolExecutor) -> None:
        self._cut_next(pool)
        self._ask_next(pool)

    def _collect(self) -> None:
        for one in list(self.ranges):
            if one.waiting is not None and one.waiting.done():
                answer, one.waiting = one.waiting, None
                self._take(one, answer)
        if self._cutting is not None and self._cutting[1].done():
            one, found = self._cutting
            self._cutting = None
            # a request for cuts is a guess: what is wrong with the store shows in the listing itself
            self._cut(one, [] if isinstance(found.exception(), StorageError) else found.result())

    def _take(self, one: _Range, answer: Future[Page]) -> None:
        failure = answer.exception()
        if isinstance(failure, StorageError):
            one.failure, one.is_complete = failure, True
            return
        page = answer.result()
        one.take(page.entries, page.token, self._where)
        if one.is_complete and one in self.ranges:
            one.batch.add(one.keys, one.units)
            self._drop_empty(one)

    def _drop_empty(self, one: _Range) -> None:
        """Count the ranges behind it that end before the next key that it saw as part of it."""
        following = self.ranges.index(one) + 1
        if one.failure is not None or one.first is None or (one.first and one.first <= one.after):
            return
        while following < len(self.ranges) and not self.ranges[following].is_begun:
            until = self.ranges[following].until
            if one.beyond and (until is None or until >= one.beyond[0].key):
                return
            one.until = until
            self._forget(following)

    def _forget(self, position: int) -> None:
        gone = self.ranges.pop(position)
        if self._cutting is not None and self._cutting[0] is gone:
            self._cutting[1].cancel()
            self._cutting = None

    def _ask_next(self, pool: ThreadPoolExecutor) -> None:
        """Ask for the next page of the first ranges, as far as the bounds allow; the first range is always served."""
        free = REQUESTS_IN_FLIGHT - sum(one.waiting is not None for one in self.ranges) - (self._cutting is not None)
        held = sum(len(one.pages) + (one.waiting is not None) for one in self.ranges)
        for position, one in enumerate(self.ranges):
            if position and (free <= 0 or held >= PAGES_AHEAD or (one.is_wide and not one.is_begun)):
                return
            if one.failure is not None:  # the listing ends there: nothing behind it is of use
                return
            if one.is_complete or one.waiting is not None or (position and self._is_stalled(one)):
                continue
            if not one.is_begun:
                self._begin(position)
            after = "" if one.token else one.after
            one.waiting = pool.submit(self._fetch, Ask(self._prefix, after, one.token))
            free, held = free - 1, held + 1

    def _is_stalled(self, one: _Range) -> bool:
        """Tell whether a range far ahead has used its share of the pages: little while nobody knows how long it is."""
        return len(one.pages) >= (_UNKNOWN_PAGES if one.batch.unit_keys is None else 2 * RANGE_PAGES)

    def _begin(self, position: int) -> None:
        """Join as many units as make a range of RANGE_PAGES, fewer where few are left for the other threads."""
        one = self.ranges[position]
        one.is_begun = True
        one.at = one.after
        if one.is_wide or one.batch.unit_keys is None:
            return
        left = 0
        while self._is_unit(position + 1 + left, one.batch):
            left += 1
        page_units = self._page_keys / max(one.batch.unit_keys, 1e-9)
        most, fewest = RANGE_PAGES * page_units - 1, _MIN_RANGE_PAGES * page_units - 1
        joined = int(min(left, most, max(fewest, left / REQUESTS_IN_FLIGHT)))
        if joined > 0:
            one.until = self.ranges[position + joined].until
            one.units += joined
            for _ in range(joined):
                self._forget(position + 1)

    def _is_unit(self, position: int, batch: _Batch) -> bool:
        if position >= len(self.ranges):
            return False
        one = self.ranges[position]
        return one.batch is batch and not one.is_begun and not one.is_wide

    def _cut_next(self, pool: ThreadPoolExecutor) -> None:
        """Look for cuts in the first range that needs them, while there are too few before it to begin."""
        if self._cutting is not None:
            return
        to_begin = 0
        for position, one in enumerate(self.ranges):
            if self._needs_cuts(position, one):
                one.is_wide = True
                known = None if one.batch.is_guessed else one.batch.unit_keys
                span = Span(self._prefix, one.at or one.after, one.until, one.page, known)
                self._cutting = one, pool.submit(find_cuts, self._fetch, span, self._range_keys())
                return
            to_begin += not one.is_begun
            if to_begin > 2 * REQUESTS_IN_FLIGHT:
                return

    def _range_keys(self) -> int:
        return self._page_keys * RANGE_PAGES - self._page_keys // 2  # so that its end shows in the last of its pages

    def _needs_cuts(self, position: int, one: _Range) -> bool:
        if one.is_wide or one.is_complete:
            return not one.is_complete
        pages = RANGE_PAGES * max(one.patience, self._patience)
        if not one.is_begun:
            return one.batch.unit_keys is not None and one.batch.unit_keys > 2 * pages * self._page_keys
        is_unknown = position > 0 and one.batch.unit_keys is None and one.uncut_pages >= _UNKNOWN_PAGES
        return one.uncut_pages >= pages or (is_unknown and one.patience <= 2)

    def _cut(self, one: _Range, found: list[Cuts]) -> None:
        """Make ranges of the rest of `one`."""
        one.is_wide, one.uncut_pages = False, 0
        span = Span(self._prefix, one.at or one.after, one.until)
        kept = [(cut, cuts) for cuts in found for cut in cuts.keys if span.holds(cut)]
        if one.is_complete or not kept or one not in self.ranges:
            one.patience = min(2 * one.patience, _MAX_PATIENCE)
            return
        batches = {id(cuts): _Batch(cuts.unit_keys, cuts.is_guessed) for cuts in found}
        ends = [*(cut for cut, _ in kept[1:]), one.until]
        made = [
            _Range(cut, end, batches[id(cuts)], is_wide=cut == cuts.open_at)
            for (cut, cuts), end in zip(kept, ends, strict=True)
        ]
        position = self.ranges.index(one)
        one.until = kept[0][0]
        self.ranges[position + 1 : position + 1] = made
