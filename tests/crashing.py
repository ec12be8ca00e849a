"""Tasks that crash, hang and fail: a spec is (folder, lo, hi), and a task that ends well leaves a file per range.

A module of its own, so that Ray's workers can import it.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import BadCredentials, StorageUnavailable, UsageError
from pipeline.layout.snapshots import catalog_rows, read_snapshot
from pipeline.pulse import at_image
from pipeline.runner import Counters, Task
from pipeline.stages import extract, join, merge, verify
from pipeline.stages.extract import ExtractSpec
from pipeline.stages.join import JoinSpec
from pipeline.stages.merge import SemanticMergeSpec
from pipeline.stages.verify import VerifySpec

Spec = tuple[str, int, int]
POISON = 7
real_extract, real_verify = extract.extract, verify.verify
real_join, real_merge = join.join, merge.merge_semantic


def commit(spec: Spec) -> Counters:
    """Ends well."""
    folder, lo, hi = spec
    Path(folder, f"done-{lo}-{hi}").write_text(str(os.getpid()))
    return {"items": hi - lo}


def is_first(spec: Spec, what: str = "tried") -> bool:
    """Whether no attempt came here before."""
    try:
        Path(spec[0], f"{what}-{spec[1]}-{spec[2]}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    """Ends this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def hold(spec: Spec) -> Counters:
    """Holds as many megabytes as the range begins at."""
    held = b"1" * (spec[1] * 1_000_000)
    return {"held": len(held)}


def waits_at_two(spec: Spec) -> Counters:
    """Item 2 waits for ever."""
    _, lo, hi = spec
    if lo <= 2 < hi:
        wait_for_ever(spec)
    return commit(spec)


def dies_once(spec: tuple[str, str, Task]) -> Counters:
    """A task of a stage whose first process dies right before it or, once it has committed, right after it."""
    folder, when, task = spec
    is_to_die = is_first((folder, 0, 0), "died-" + task.name.replace("/", "-"))
    if is_to_die and when == "before":
        die()
    counters = task.function(task.spec)
    if is_to_die:
        die()
    return counters


def gated(spec: Spec) -> Counters:
    """Ends well once nobody holds the gate."""
    with Path(spec[0], "gate").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_SH)
    return commit(spec)


def die_once(spec: Spec) -> Counters:
    """The first attempt's process dies."""
    if is_first(spec):
        die()
    return commit(spec)


def poisoned(spec: Spec) -> Counters:
    """Every process that has the poison in its range dies."""
    if spec[1] <= POISON < spec[2]:
        with Path(spec[0], "deaths").open("a") as log:
            log.write(f"{spec[1]}-{spec[2]}\n")
        die()
    return commit(spec)


def hung(spec: Spec) -> Counters:
    """Every process that has the poison in its range waits for ever."""
    if spec[1] <= POISON < spec[2]:
        wait_for_ever(spec)
    return commit(spec)


def hung_at_image(spec: Spec) -> Counters:
    """The image that is the poison is looked at for ever."""
    if spec[1] <= POISON < spec[2]:
        with at_image():
            wait_for_ever(spec)
    return commit(spec)


def first_hangs(spec: Spec) -> Counters:
    """The first attempt waits for ever."""
    if is_first(spec):
        wait_for_ever(spec)
    return commit(spec)


def wait_for_ever(spec: Spec) -> None:
    """Opens a pipe that nobody writes to."""
    folder, lo, hi = spec
    Path(folder, f"waiting-{os.getpid()}-{lo}-{hi}").touch()
    Path(folder, "pipe").read_bytes()


def halves(spec: Spec) -> list[Spec]:
    """The range cut in two."""
    folder, lo, hi = spec
    middle = (lo + hi) // 2
    return [(folder, *cut) for cut in ((lo, middle), (middle, hi)) if cut[0] < cut[1]]


def quarantine(spec: Spec, cause: str) -> Counters:
    """Notes the cause."""
    Path(spec[0], f"{cause}-{spec[1]}-{spec[2]}").touch()
    return {"quarantined": spec[2] - spec[1]}


def fails(spec: tuple[str, int, str]) -> Counters:
    """Raises the named error in the first `times` attempts."""
    folder, times, kind = spec
    tried = len(list(Path(folder).glob(f"{kind}-*")))
    if tried < times:
        Path(folder, f"{kind}-{tried}").touch()
        errors: dict[str, Any] = {
            "away": StorageUnavailable("the store is away"),
            "usage": UsageError("a wrong call"),
            "secret": BadCredentials("no such key"),
            "bug": ZeroDivisionError("a bug"),
            "memory": MemoryError(),
            "files": OSError(24, "too many open files"),
        }
        raise errors[kind]
    return {"tried": tried + 1}


def away(spec: tuple[str, str, int]) -> Counters:
    """A store that has no answer for the first `times` attempts of a part."""
    folder, part, times = spec
    tried = len(list(Path(folder).glob(f"{part}-*")))
    Path(folder, f"{part}-{tried}").touch()
    if tried < times:
        raise StorageUnavailable("read a/photo.jpg: connection refused")
    return {"tried": tried + 1}


def no_pickle(spec: Spec) -> Counters:
    """Gives what cannot be sent back."""
    return {"items": lambda: 1}  # type: ignore[dict-item]


def poisoned_extract(spec: ExtractSpec) -> Counters:
    """Extract, but the image with the id of the poison kills its process."""
    ids = range(spec.lo, spec.hi) if spec.only is None else spec.only
    if POISON in ids:
        die()
    return real_extract(spec)


def poisoned_verify(spec: VerifySpec) -> Counters:
    """Verify, but the pair in the row of the poison kills its process."""
    if spec.lo <= POISON < spec.hi:
        die()
    return real_verify(spec)


def twice_poisoned_extract(spec: ExtractSpec) -> Counters:
    """Extract, but the image with the id of the poison and the next one kill their process."""
    ids = range(spec.lo, spec.hi) if spec.only is None else spec.only
    if {POISON, POISON + 1} & {*ids}:
        die()
    return real_extract(spec)


def extract_dying_once(spec: ExtractSpec) -> Counters:
    """Extract, but the first process that has the poison in its range dies after it committed a half of it."""
    folder = str(Path(spec.root.uri).parent)
    if spec.lo <= POISON < spec.hi and is_first((folder, spec.lo, spec.hi)):
        real_extract(replace(spec, hi=POISON))
        die()
    return real_extract(spec)


def buggy_extract(spec: ExtractSpec) -> Counters:
    """Extract with a bug that one image meets."""
    if spec.lo <= POISON < spec.hi:
        raise ValueError("operands could not be broadcast")
    return real_extract(spec)


def full_extract(spec: ExtractSpec) -> Counters:
    """Extract on a disk that takes no file over 5,000 bytes from the shard with the poison on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000 if spec.hi > POISON else soft, hard))
    try:
        return real_extract(spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def held_extract(spec: ExtractSpec) -> Counters:
    """Extract, but the shard with one offset waits while somebody holds the pipe beside the root open."""
    pipe = Path(spec.root.uri).parent / "pipe"
    if spec.lo <= int(os.environ.get("HELD_OFFSET", POISON)) < spec.hi and pipe.exists():
        pipe.read_bytes()
    return real_extract(spec)


def poisoned_join(spec: JoinSpec) -> Counters:
    """Join, but the first slice of queries at partition 1 kills its process."""
    if (spec.column, spec.first) == (1, 0):
        die()
    return real_join(spec)


def poisoned_merge(spec: SemanticMergeSpec) -> Counters:
    """Merge of the semantic space, but range 1 kills its process."""
    if spec.number == 1:
        die()
    return real_merge(spec)


def video_poisoned_extract(spec: ExtractSpec) -> Counters:
    """Extract, but a frame of a video that is called bad kills its process, which is noted beside the root."""
    store = spec.root.open()
    uris = catalog_rows(store, read_snapshot(store, spec.snapshot), spec.lo, spec.hi, ["uri"])["uri"].to_pylist()
    if any("bad" in uri for uri in uris):
        with Path(spec.root.uri).with_name("deaths").open("a") as log:
            log.write(f"{spec.lo}-{spec.hi}\n")
        die()
    return real_extract(spec)
