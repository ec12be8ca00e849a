"""The one error tree. Every message says what, where, the value seen, the value wanted and the next step.

AuditError
├── UsageError            wrong call or config                                   exit 2
├── StorageError          bytes at rest: cause in the subclass                   exit 3
│   ├── NotFound, AccessDenied, BadCredentials, ObjectChanged,
│   └── CorruptObject, StorageFull, StorageUnavailable
├── ArtifactError         a committed part is not what its name says             exit 3
├── ModelError            a model cannot be used                                 exit 3
├── ClusterError          no Ray cluster could be joined                         exit 3
├── IncompleteError       parts failed; the message holds the resuming command   exit 4
├── TaskBug               a part met a bug; the message holds the traceback      exit 70
└── Stopped               interrupted by a signal                                exit 130
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of every error that a user can act on; `exit_code` is what the command line returns."""

    exit_code = 70


class UsageError(AuditError):
    """A wrong argument, config key or combination; raised before any work."""

    exit_code = 2


class StorageError(AuditError):
    """Bytes at rest could not be listed, read or written."""

    exit_code = 3


class NotFound(StorageError):
    """No object, bucket or path of that name."""


class AccessDenied(StorageError):
    """The store knows who asks and refuses."""


class BadCredentials(StorageError):
    """Credentials are missing, wrong or expired."""


class ObjectChanged(StorageError):
    """The object is not the one that was listed (other size or etag)."""


class CorruptObject(StorageError):
    """Length or checksum differ after every retry."""


class StorageFull(StorageError):
    """No space or quota left."""


class StorageUnavailable(StorageError):
    """Throttled, timed out or unreachable after every retry."""


class ArtifactError(AuditError):
    """A committed part cannot be read or contradicts its name."""

    exit_code = 3


class ModelError(AuditError):
    """A model cannot be loaded, described or trusted."""

    exit_code = 3


class ClusterError(AuditError):
    """No Ray cluster could be joined or started."""

    exit_code = 3


class IncompleteError(AuditError):
    """Some parts failed; everything else is kept. The message ends with the command that resumes."""

    exit_code = 4


class TaskBug(AuditError):
    """A part raised what no class of this tree names: another attempt and another run would meet it as well."""


class Stopped(AuditError):
    """The run was interrupted; committed parts are kept."""

    exit_code = 130
