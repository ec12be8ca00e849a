"""What ListObjectsV2 promises, over keys in memory: pages, tokens, StartAfter and folders by Delimiter=/."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from threading import Lock

from pipeline.storage.s3_cuts import Ask
from pipeline.storage.s3_pages import Entry, Page


def next_after(text: str) -> str:
    """The first text behind all that start with `text`; keys here end before the last code point."""
    return text + chr(0x10FFFF)


class BucketModel:
    """Answers `Ask` from sorted keys; `asked` holds every request. `before_answer` is called with each of them."""

    def __init__(self, keys: Sequence[str], page_keys: int, before_answer: Callable[[Ask], None] | None = None) -> None:
        self.keys = keys
        self.asked: list[Ask] = []
        self._page_keys, self._before_answer, self._lock = page_keys, before_answer, Lock()

    def __call__(self, ask: Ask) -> Page:
        with self._lock:
            self.asked.append(ask)
        if self._before_answer is not None:
            self._before_answer(ask)
        return self.answered(ask)

    def answered(self, ask: Ask) -> Page:
        keys = self.keys
        at = bisect_left(keys, ask.prefix)
        behind = ask.token or ask.after
        if behind:
            at = max(at, bisect_right(keys, behind))
        entries: list[Entry] = []
        prefixes: list[str] = []
        while at < len(keys) and keys[at].startswith(ask.prefix):
            if len(entries) + len(prefixes) == self._page_keys:
                last = max([*[entry.key for entry in entries[-1:]], *map(next_after, prefixes[-1:])])
                return Page(entries, prefixes, last)
            name, slash, _ = keys[at][len(ask.prefix) :].partition("/")
            if ask.is_by_folder and slash:
                prefixes.append(ask.prefix + name + slash)
                at = bisect_left(keys, next_after(prefixes[-1]))
            else:
                entries.append(Entry(keys[at], len(keys[at]), "", 0))
                at += 1
        return Page(entries, prefixes, "")


def in_order(keys: Iterable[str]) -> list[str]:
    return sorted(set(keys), key=lambda key: key.encode())
