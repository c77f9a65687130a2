"""Errors of the product.

    PretrainerError
    ├── UserError          the person can mend it: one message with the remedy, exit code 2
    │   ├── ConfigError    a field of the config
    │   ├── SourceError    an input that is missing, empty or unreadable
    │   └── LeaseError     another driver holds the run, or has taken it over
    ├── StorageError       object storage failed after its retries, exit code 3
    │   └── DamagedError   the files of a checkpoint are not those that were saved
    ├── BadDataError       more dead letters than the config allows, exit code 4
    ├── TrackingError      MLflow cannot be reached for now; training goes on without it
    ├── StreamError        the stream broke a promise (gap, repeat, changed bytes), exit code 5
    ├── ReplicaError       workers of exact mode hold different weights, exit code 6
    └── UnstableError      training diverges, and the config says to stop then, exit code 7

All of them survive pickling (Ray carries them between processes) because the message is their only argument.
"""

import re


class PretrainerError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UserError(PretrainerError):
    """A mistake that the person can mend; the message says what happened, the value and the remedy."""

    exit_code = 2


class ConfigError(UserError):
    """A config field has a wrong name or value."""


class SourceError(UserError):
    """A source is missing, empty, unreadable or has not the columns that the config names."""


class LeaseError(UserError):
    """Another driver holds the run; the message names it."""


class StorageError(PretrainerError):
    """Storage failed for good (after retries), or a record exists with other bytes."""

    exit_code = 3


class DamagedError(StorageError):
    """A committed checkpoint lacks a file, or has one with other bytes; the one before it may be whole."""


class BadDataError(PretrainerError):
    """The share of dead letters passed `data.max_dead_letter_share`."""

    exit_code = 4


class TrackingError(PretrainerError):
    """The tracking server did not answer; what it should have got is kept and sent later."""


class StreamError(PretrainerError):
    """The token stream is not the one that the run is defined by; nothing of it is trained on."""

    exit_code = 5


class ReplicaError(PretrainerError):
    """Workers that must hold the same weights do not; what they computed since the last checkpoint is not kept."""

    exit_code = 6


class UnstableError(PretrainerError):
    """The run stops because of a spike, by its policy or after too many of them."""

    exit_code = 7


def require(ok: bool, field: str, value: object, remedy: str) -> None:
    """ConfigError about a field unless ok."""
    if not ok:
        raise ConfigError(f"{field}={value!r} is not possible: {remedy}")


def find_cause(error: BaseException) -> PretrainerError | None:
    """The error of ours under the wrappers that Ray puts around it, whose text is a traceback; None for another's."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None)  # of a RayTaskError, which is an instance of the cause's class too
        if isinstance(seen, PretrainerError) and not isinstance(inner, BaseException):
            return seen
        seen = inner or seen.__cause__ or seen.__context__
    return _told(str(error))


def _told(text: str) -> PretrainerError | None:
    """The last error of ours in a traceback. Ray Data wraps what a stage raises, and its wrapper arrives as text."""
    for name, message in reversed(re.findall(r"^pretrainer\.errors\.(\w+): (.+)$", text, re.MULTILINE)):
        kind = globals().get(name)
        if isinstance(kind, type) and issubclass(kind, PretrainerError):
            return kind(message)
    return None
