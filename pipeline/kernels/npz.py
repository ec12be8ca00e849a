"""Named arrays as bytes: npz without pickle, equal arrays giving equal bytes."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError


def pack_arrays(arrays: dict[str, Any]) -> bytes:
    """The arrays as npz, compressed; NumPy dates every entry 1980, so only names and values decide the bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack_arrays(data: bytes, wanted: tuple[str, ...], what: str) -> dict[str, NDArray[Any]]:
    """The arrays named in `wanted` from npz bytes. ArtifactError naming `what` if one is missing or damaged."""
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise ArtifactError(f"{what}: {len(data)} bytes that are no npz file; delete it and rerun")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in wanted}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(f"{what}: cannot be read ({error}); delete it and rerun") from error
