"""The model cache: a folder that holds the files of named models, downloaded once or put there by hand."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ModelError, NotFound, StorageError, StorageUnavailable
from pipeline.kernels.embed import MAX_MODEL_BYTES
from pipeline.kernels.graph_output import with_output
from pipeline.models import Model, open_model
from pipeline.models.download import Patience, downloaded
from pipeline.models.named import HIGH_ACCURACY, NamedModel, named_model
from pipeline.storage import StorageConfig, Store, is_remote, open_store, remove_leftovers

CACHE_VARIABLE = "IMAGE_AUDIT_MODEL_CACHE"
HIGH_ACCURACY_FILE = "efficientnet_lite1_224_int8.onnx"
_PATIENT = Patience()
_DEFAULT_STORAGE = StorageConfig()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedModel:
    """A named model, ready to embed, and the line on its licence, which a process logs once."""

    model: Model
    note: str


def cache_folder(given: str = "") -> str:
    """Where the model cache is: `given`, else $IMAGE_AUDIT_MODEL_CACHE, else image-audit/models in the user's cache."""
    if chosen := given or os.environ.get(CACHE_VARIABLE, ""):
        return chosen
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # noqa: PTH117 - the XDG rule: a relative one counts as none
        base = "~/.cache"
    return f"{base.rstrip('/')}/image-audit/models"


def resolve_model(
    name: str, cache: str = "", storage: StorageConfig = _DEFAULT_STORAGE, patience: Patience = _PATIENT
) -> ResolvedModel:
    """The model of a name, from the cache (a folder or a uri; "" = the default one) or, once, from its provider.

    ModelError where the file is another one, cannot be had or does not give the embedding; the message says what to
    download and where to put it. UsageError for an unknown name, StorageError for a cache that cannot be used.
    """
    store = open_store(cache_folder(cache), storage)
    found = _built(store) if name == HIGH_ACCURACY else _opened(named_model(name), store, patience)
    say_once(found.note)
    return found


@functools.cache
def say_once(note: str) -> None:
    """Logs the note of a model in use."""
    _log.info("%s", note)


def _opened(named: NamedModel, store: Store, patience: Patience) -> ResolvedModel:
    data = _checked(named, store)
    if data is None:
        _download(named, store, patience)
        data = _checked(named, store)
    if data is None:
        raise ModelError(f"{store.uri}/{named.file} went away as soon as it was there: give {named.name} another cache")
    if named.tensor:
        data = with_output(data, named.tensor, named.token)
    model = open_model(data, named.name, named.input)
    if model.dimension != named.dimension:
        raise ModelError(
            f"{named.name}: its embedding has {model.dimension} numbers, wanted {named.dimension}: this version of "
            "image-audit knows another file of that name; tell its makers"
        )
    return ResolvedModel(model, named.note)


def _checked(named: NamedModel, store: Store) -> bytes | None:
    """The file in the cache, None where there is none. ModelError for another file of that name."""
    try:
        data = store.read(named.file)
    except NotFound:
        return None
    found = hashlib.sha256(data).hexdigest()
    if found != named.sha256:
        raise ModelError(
            f"{store.uri}/{named.file}: {len(data)} bytes with sha256 {found}, wanted sha256 {named.sha256}: it is cut "
            f"off, damaged or another file. Delete it and run again, or put the file of {named.urls[0]} in its place"
        )
    return data


def _download(named: NamedModel, store: Store, patience: Patience) -> None:
    """Into the cache under a temporary name, in place once its sha256 is right; two runs at once do no harm.

    Each address is taken from its start: what another one gave before it failed may be of another file.
    """
    place = f"{store.uri}/{named.file}"
    _log.info("downloading %s to %s", named.urls[0], place)
    _remove_leftovers(store)
    failures: list[StorageError] = []
    for url in named.urls:
        try:
            store.put_pieces(named.file, _verified(named, url, downloaded(url, named.size, patience)))
            return
        except StorageError as error:
            failures.append(error)
        if not isinstance(failures[-1], StorageUnavailable):
            break  # it is the cache that fails
    size, said = f"{named.size} bytes, " if named.size else "", "; ".join(map(str, failures))
    raise ModelError(
        f"the model {named.name} is not in the model cache and could not be put there ({said})."
        f" Without a network, download {named.urls[0]} elsewhere and put it here as {place} ({size}sha256 "
        f"{named.sha256}); --model-cache or {CACHE_VARIABLE} name another folder"
    ) from failures[-1]


def _verified(named: NamedModel, url: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces; ModelError after the last one, before anything is in place, where they are not the file."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
        if size > (named.size or MAX_MODEL_BYTES):
            break
        yield piece
    if digest.hexdigest() != named.sha256:
        raise ModelError(
            f"the model {named.name}: what {url} gives has sha256 {digest.hexdigest()} ({size} bytes read), wanted "
            f"{named.sha256}{f' ({named.size} bytes)' if named.size else ''}: nothing was kept. A proxy or a "
            "sign-in page may answer in its place; try again from another network, or download it by hand"
        )


def _remove_leftovers(store: Store) -> None:
    parent, _, last = store.uri.rpartition("/")
    if parent and not is_remote(store.uri):
        remove_leftovers(open_store(parent), (last,))


def _built(store: Store) -> ResolvedModel:
    """The larger variant of the default model, which no package carries: one's own build of it."""
    place = f"{store.uri}/{HIGH_ACCURACY_FILE}"
    how = (
        "Build it from any 10,000 photos, with a subfolder for each kind: pip install 'image-audit[model-build]' "
        f"and python -m jobs.build_default_model --variant {HIGH_ACCURACY} --photos FOLDER --out {store.uri}"
    )
    try:
        model = open_model(store.read(HIGH_ACCURACY_FILE), HIGH_ACCURACY_FILE, None)
    except NotFound:
        raise ModelError(
            f"the model {HIGH_ACCURACY} is built, not downloaded, and {place} is not there. {how}"
        ) from None
    except ModelError as error:
        raise ModelError(f"{place} is not what the build makes ({error}). {how}") from error
    if model.embedding_moments is None:
        raise ModelError(f"{place} is not what the build makes: it holds no moments of photos. {how}")
    note = f"model {HIGH_ACCURACY}: EfficientNet-Lite1 of Google, built here; Apache-2.0, trained on ImageNet-1k"
    return ResolvedModel(model, note)
