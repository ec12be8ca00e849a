"""The arrays of one large JSON object, element by element: an element is all that is held, where json.load of a COCO
file takes six times its size.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import UsageError
from pipeline.sources.line_blocks import Readable

CHUNK_BYTES = 2**20
MAX_ELEMENT = 2**26
"""Characters of one element or value at most: a polygon has thousands."""
LONGEST_TAIL = 3
"""Characters behind a number without which it may go on: `1` and `e+5`."""

_SPACE = re.compile(r"[ \t\n\r]*")


def json_elements(stream: Readable, address: str) -> Iterator[tuple[str, Any]]:
    """(name, element) for each element of each array of the object in a stream, in order; (name, value) for others.

    NaN and infinity are read, as json.load does; bytes that are not UTF-8 become surrogates. Raises UsageError for
    what is no JSON, no object, nested too deeply or cut off, with the place in characters.
    """
    text = _Text(stream, address)
    text.expect("{", "a JSON object")
    if text.peek() == "}":
        return
    while True:
        name = text.value()
        if not isinstance(name, str):
            raise text.wrong("a name in quotes")
        text.expect(":", "`:` after a name")
        if text.peek() == "[":
            yield from ((name, element) for element in _array(text))
        else:
            yield name, text.value()
        if text.one_of(",}") == "}":
            break
    if text.peek():
        raise text.wrong("nothing after the last `}`")


def _array(text: _Text) -> Iterator[Any]:
    text.expect("[", "`[`")
    if text.peek() == "]":
        text.expect("]", "`]`")
        return
    while True:
        yield text.value()
        if text.one_of(",]") == "]":
            return


class _Text:
    """A window of the file that begins at what is read next."""

    def __init__(self, stream: Readable, address: str) -> None:
        self._stream, self._address = stream, address
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._window, self._at, self._before, self._is_over = "", 0, 0, False
        self._fill()
        self._window = self._window.removeprefix("\ufeff")

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            match = _SPACE.match(self._window, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._window) or self._is_over:
                return self._window[self._at : self._at + 1]
            self._fill()

    def expect(self, wanted: str, what: str) -> None:
        """Steps over one character. Raises UsageError where another one stands there."""
        if self.peek() != wanted:
            raise self.wrong(what)
        self._at += 1

    def one_of(self, wanted: str) -> str:
        """Steps over one of some characters and gives it."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.wrong(" or ".join(f"`{character}`" for character in wanted))
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self._window, self._at)
            except json.JSONDecodeError as error:
                if self._is_over or len(self._window) - self._at > MAX_ELEMENT:
                    raise self.wrong(f"a JSON value ({error.msg})", error.pos) from error
            except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
                raise self.wrong(f"a plain JSON value ({error})") from error
            else:
                if end + LONGEST_TAIL <= len(self._window) or self._is_over:
                    self._at = end
                    return value
            self._fill()

    def wrong(self, wanted: str, at: int | None = None) -> UsageError:
        """The error that says where, what stands there and what should."""
        at = self._at if at is None else at
        seen = self._window[at : at + 20].encode("utf-8", "backslashreplace").decode() or "the end of the file"
        return UsageError(
            f"{self._address} character {self._before + at:,}: {seen!r}; wanted {wanted}: is it JSON, and whole?"
        )

    def _fill(self) -> None:
        """Twice what is held, so that a long element is not scanned once a chunk."""
        left = self._window[self._at :]
        chunk = self._stream.read(max(CHUNK_BYTES, len(left)))
        self._is_over = not chunk
        self._before += self._at
        self._window, self._at = left + self._decode(chunk, self._is_over), 0
