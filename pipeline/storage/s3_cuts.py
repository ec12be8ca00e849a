"""Where to cut a listing into ranges that can be listed side by side: at folders, or at guessed names in flat ones.

A cut is any text: keys up to it belong to the range before it, the others to the one behind. So a bad cut costs time
and never a key.
"""

from __future__ import annotations

import string
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from pipeline.storage.s3_pages import Entry, Page

MAX_DEPTH = 8
"""Folders gone down into for one set of cuts, a request each."""
GUESSED_CUTS = 64
"""Cuts guessed from one sample: further out the names may be others."""
_WIDTH = 24
_MIN_SAMPLE = 100
_SMALL_FOLDER = 32
"""Keys per folder under which asking for the folders costs too much beside listing their keys."""
_CLASSES = (string.digits, "abcdef", string.ascii_lowercase, "ABCDEF", string.ascii_uppercase)


@dataclass(frozen=True)
class Ask:
    """One request: keys that start with `prefix` and sort behind `after`, or what follows the page with `token`."""

    prefix: str
    after: str = ""
    token: str = ""
    is_by_folder: bool = False


@dataclass(frozen=True)
class Cuts:
    """Ascending cuts of one kind: at the folders of one level, or guessed.

    unit_keys: keys between two of them, None where nothing is known. open_at: the cut behind which there are more to
    be found, None where these are all.
    """

    keys: list[str]
    unit_keys: float | None
    is_guessed: bool = False
    open_at: str | None = None


@dataclass(frozen=True)
class Span:
    """What is to be cut: keys that start with `prefix`, sort behind `at` and, unless None, not behind `until`.

    page: the keys up to `at`, as far as they are at hand. unit_keys: keys per folder as seen elsewhere, None = unseen.
    """

    prefix: str
    at: str
    until: str | None
    page: Sequence[Entry] = ()
    unit_keys: float | None = None

    def holds(self, cut: str) -> bool:
        """Tell whether a cut lies inside."""
        return cut > self.at and (self.until is None or cut < self.until)

    def keys_per_folder(self, folder: str) -> float | None:
        """Keys in each folder right below `folder`: of the page if it has some whole ones, or as seen elsewhere."""
        names = [entry.key[len(folder) :].partition("/")[0] for entry in self.page if entry.key.startswith(folder)]
        folders = len(set(names))
        return len(names) / folders if folders > 2 else None if names else self.unit_keys


Fetch = Callable[[Ask], Page]


def find_cuts(fetch: Fetch, span: Span, range_keys: int) -> list[Cuts]:
    """Ask for the folders behind `at`, level by level down to its own folder; there, or among tiny ones, guess.

    range_keys: keys wanted between two guessed cuts. The answer is in the order of keys: the deepest level first.
    """
    folder = _common_folder(span)
    found: list[Cuts] = []
    for _ in range(MAX_DEPTH):
        page = fetch(Ask(folder, span.at if span.at.startswith(folder) else "", is_by_folder=True))
        cuts = _cuts_at_folders(span, folder, page, range_keys)
        if cuts.keys:
            found.insert(0, cuts)
            span = replace(span, until=cuts.keys[0])
        below, slash, _ = span.at[len(folder) :].partition("/")
        if not span.at.startswith(folder) or not slash or cuts.is_guessed:
            return found
        folder += below + slash
    return found


def _cuts_at_folders(span: Span, folder: str, page: Page, range_keys: int) -> Cuts:
    folders = [name for name in page.prefixes if span.holds(name)]
    each = span.keys_per_folder(folder)
    if folders:
        if page.token and each is not None and each < _SMALL_FOLDER:
            return _guessed(span, guessed_cuts(folder, folders, range_keys / max(each, 1.0)), range_keys)
        return Cuts(folders, each, open_at=folders[-1] if page.token else None)
    names = [entry.key for entry in page.entries if span.holds(entry.key)]
    return _guessed(span, guessed_cuts(folder, names, range_keys) if page.token else [], range_keys)


def _guessed(span: Span, cuts: list[str], range_keys: int) -> Cuts:
    kept = [cut for cut in cuts if span.holds(cut)]
    return Cuts(kept, range_keys, is_guessed=bool(kept), open_at=kept[-1] if kept else None)


def _common_folder(span: Span) -> str:
    """The deepest folder that all of the span is in: at least the listed prefix."""
    if span.until is None:
        return span.prefix
    same = next(
        (place for place, (one, other) in enumerate(zip(span.at, span.until, strict=False)) if one != other),
        min(len(span.at), len(span.until)),
    )
    folder = span.at[: span.at.rfind("/", 0, same) + 1]
    return folder if len(folder) > len(span.prefix) else span.prefix


def guessed_cuts(folder: str, sample: Sequence[str], step: float) -> list[str]:
    """Names about `step` keys apart behind the start of a sample of consecutive keys, as if these went on evenly.

    Names count as numbers: each place has the digits seen there, completed to 0-9, a-f or a-z. [] where they cannot.
    """
    names = [key[len(folder) :] for key in sample]
    if len(names) < _MIN_SAMPLE:
        return []
    places = _places(names)
    if not places:
        return []
    first, last = _number(names[0], places), _number(names[-1], places)
    stride = int((last - first) * step / (len(names) - 1))
    if stride <= 0:
        return []
    limit = prod(map(len, places))
    numbers = (first + stride * count for count in range(1, GUESSED_CUTS + 1))
    cuts = [folder + _name(number, places) for number in numbers if number < limit]
    return [cut for cut, before in zip(cuts, ["", *cuts], strict=False) if cut > before]


def _places(names: Sequence[str]) -> list[str]:
    """The digits of each place, in order; it ends before the first place that is not plain ASCII.

    A place where the names differ shows which classes of digits they use; a place with one of those may have them all.
    """
    seen: list[set[str]] = []
    for place in range(min(_WIDTH, max(map(len, names)))):
        signs = {name[place] for name in names if place < len(name)}
        if not all(" " <= sign <= "~" for sign in signs):
            break
        seen.append(signs)
    used = _completed(set().union(*(signs for signs in seen if len(signs) > 1)))
    return ["".join(sorted(signs | used if signs & used else signs)) for signs in seen]


def _completed(seen: set[str]) -> set[str]:
    found = set(seen)
    for hexadecimal, letters in ((_CLASSES[1], _CLASSES[2]), (_CLASSES[3], _CLASSES[4])):
        of_class = seen & set(letters)
        if of_class:
            found |= set(hexadecimal) if of_class <= set(hexadecimal) else set(letters)
    return found | set(string.digits) if seen & set(string.digits) else found


def _number(name: str, places: Sequence[str]) -> int:
    number = 0
    for place, digits in enumerate(places):
        digit = min(bisect_left(digits, name[place]), len(digits) - 1) if place < len(name) else 0
        number = number * len(digits) + digit
    return number


def _name(number: int, places: Sequence[str]) -> str:
    signs = []
    for digits in reversed(places):
        number, digit = divmod(number, len(digits))
        signs.append(digits[digit])
    return "".join(reversed(signs))
