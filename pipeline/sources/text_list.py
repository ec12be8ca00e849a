"""Text files with one path or URL per line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.sources.line_blocks import line_blocks, unpacked
from pipeline.sources.listed import BLANK, COMMENTS, Origin, Tally, batch_of


def read_text(stream: BinaryIO, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    r"""Batches of LISTED, a row per line; `row` is the line, from 1.

    Lines end in \n or \r\n. Blank lines are left out, and comments: a line that is `#` or begins with `# `. `#1.jpg` is
    a name (write `./# 1.jpg` for the other one). Other spaces and quotes belong to the name. May be gzip. Raises
    UsageError for what is no text and for a line that is too long.
    """
    for first, text in line_blocks(unpacked(stream, origin), origin):
        lines = text.removesuffix("\n").split("\n")
        if "\r" in text:
            lines = [line.removesuffix("\r") for line in lines]
        blank = [number for number, line in enumerate(lines, first) if not line or line.isspace()]
        comments = [number for number, line in enumerate(lines, first) if line == "#" or line[:2] == "# "]
        tally.add(BLANK, len(blank), origin.at(blank[0]) if blank else "")
        tally.add(COMMENTS, len(comments), origin.at(comments[0]) if comments else "")
        numbers = range(first, first + len(lines))
        if blank or comments:
            out = {*blank, *comments}
            lines = [line for number, line in enumerate(lines, first) if number not in out]
            numbers = [number for number in numbers if number not in out]  # type: ignore[assignment]
        if lines:
            yield batch_of(lines, numbers, {})
