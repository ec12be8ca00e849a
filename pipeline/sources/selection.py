"""Which of the listed images an audit takes: by name, by size, or a number of them."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from pipeline.errors import UsageError
from pipeline.sources.fragments import table_name

ORDERS = ("first", "sample")


@dataclass(frozen=True)
class SelectParams:
    """Which images are taken, of all sources together; the others are counted and have no row.

    num_images: at most so many (0: all), in the `order` first (of the sorted listing) or sample (those whose names have
    the smallest hashes, so that an image stays in it while others come and go). find_regex: searched in each name,
    relative to its source, as in `cat/1.jpg` or `a.tar#cat/1.jpg`. subset: these names alone, or whole paths or URLs
    (None: all). min_file_size: bytes of a file or a member. tar_only: members of archives alone. Raises UsageError for
    what cannot be.
    """

    num_images: int = 0
    order: str = "first"
    find_regex: str = ""
    subset: tuple[str, ...] | None = None
    min_file_size: int = 0
    tar_only: bool = False

    def __post_init__(self) -> None:
        problems = [f"{name} {getattr(self, name)}, want at least 0" for name in _COUNTS if getattr(self, name) < 0]
        if self.order not in ORDERS:
            problems.append(f"order {self.order!r}, want {' or '.join(ORDERS)}")
        if self.order == "sample" and not self.num_images:
            problems.append("order 'sample' without num_images: say how many")
        if self.subset is not None and not any(self.subset):
            problems.append("subset is empty: give it a name, one per line of a file, or leave it out")
        try:
            re.compile(self.find_regex)
        except re.error as error:
            problems.append(f"find_regex {self.find_regex!r} is no regular expression ({error})")
        if problems:
            raise UsageError("select: " + "; ".join(problems))

    def __str__(self) -> str:
        """What is set, as `find_regex 'cat', tar_only`; of a subset the first name."""
        shown = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "subset" and value:
                shown.append(f"subset of {len(value):,} {'names' if len(value) > 1 else 'name'} such as {value[0]!r}")
            elif value != item.default:
                shown.append(item.name if value is True else f"{item.name} {value!r}")
        return ", ".join(shown)


_COUNTS = ("num_images", "min_file_size")


class Selection:
    """Decides image by image, in the order of the listing; made anew for each pass over it."""

    def __init__(self, params: SelectParams, largest_hash: int | None = None) -> None:
        """`largest_hash`: of the sample, as `sample_limit` tells it."""
        self._params, self._largest = params, largest_hash
        self._search = re.compile(params.find_regex).search if params.find_regex else None
        self._subset = {table_name(name.removeprefix("./")): name for name in params.subset or ()}
        self._unseen = set(self._subset)
        self._taken = 0

    def takes(self, name: str, size: int, is_member: bool, path: str = "") -> bool:
        """Whether an image is taken; counts it. path: its whole one, or its URL."""
        params = self._params
        if not self.is_candidate(name, size, is_member, path):
            return False
        if params.order == "sample":
            return self._largest is None or name_hash(name) <= self._largest
        self._taken += 1
        return not params.num_images or self._taken <= params.num_images

    def is_candidate(self, name: str, size: int, is_member: bool, path: str = "") -> bool:
        """Whether all but the number of images speaks for it."""
        params = self._params
        is_named = not self._subset or self._is_named(name, path)
        if size < params.min_file_size or (params.tar_only and not is_member):
            return False
        if self._search is not None and not self._search(name):
            return False
        return is_named

    def may_hold(self, folder: str, path: str) -> bool:
        """Whether images may be taken of a folder that nobody can look into; names end in a slash, path is whole."""
        inside = (table_name(folder), table_name(path))
        return not self._subset or any(name.startswith(inside) for name in self._subset)

    def _is_named(self, name: str, path: str) -> bool:
        """Whether the subset has an image, by its name or its whole path, as a table of labels has it."""
        found = self._subset.keys() & {table_name(name), table_name(path)}
        self._unseen -= found
        return bool(found)

    def unseen(self) -> list[str]:
        """Names of the subset that no image had so far, sorted."""
        return sorted(self._subset[name] for name in self._unseen)


def name_hash(name: str) -> int:
    """64 bits of a name."""
    data = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def sample_limit(names: Iterable[str], count: int) -> int | None:
    """The largest hash of a sample of `count` names; None where there are no more. 8 bytes are held for each name."""
    hashes = np.array(array("Q", map(name_hash, names)), np.uint64)
    if len(hashes) <= count:
        return None
    return int(np.partition(hashes, count - 1)[count - 1])
