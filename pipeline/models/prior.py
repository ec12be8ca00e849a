"""What ships beside the default model: how similar varied photos and known edits are in its copy space."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from pipeline.errors import ModelError
from pipeline.kernels.threshold import CopyPrior, prior_from_bytes

NAME = "copy_prior.npz"


@lru_cache(maxsize=1)
def copy_prior() -> CopyPrior:
    """The shipped null tail and recall curve. Raises ModelError where the file is missing."""
    try:
        data = resources.files("pipeline.models").joinpath(NAME).read_bytes()
    except OSError as error:
        raise ModelError(
            f"{NAME} is missing from the installed package ({error}); install image-audit again"
        ) from error
    return prior_from_bytes(data)
