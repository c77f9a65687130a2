"""URIs of `pretrainer.storage`: their parts, and their text without secrets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pretrainer.errors import UserError

S3_OPTIONS = ("endpoint_override", "region", "anonymous", "scheme")
_QUERY = re.compile(r"\?([A-Za-z_][\w.\-]*=.*)$")
_SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), "***"),
    (re.compile(rf"([?&](?!(?:{'|'.join(S3_OPTIONS)})=)[\w.\-]+=)[^&\s'\")]+"), r"\1***"),
)


def redact(text: str) -> str:
    """The text without access keys, user:password@ and values of URI parameters other than S3_OPTIONS."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True)
class Location:
    """A URI in parts; `path` is what the file system calls the object, `query` the options without '?'."""

    scheme: str
    path: str
    query: str = ""

    @property
    def uri(self) -> str:
        if self.scheme == "file":
            return self.path
        return f"{self.scheme}://{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def options(self) -> dict[str, str]:
        return dict(part.partition("=")[::2] for part in self.query.split("&") if part)


def parse(uri: str) -> Location:
    """Split a URI; local paths are made absolute with ~ expanded.

    A '?' begins options only in front of `name=`, because it is also a glob character.
    """
    if not uri:
        raise UserError("an empty string is no storage URI: give a path or a URI such as s3://bucket/folder")
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return Location("file", os.path.abspath(os.path.expanduser(rest if separator else uri)))
    match = _QUERY.search(rest) if scheme in ("s3", "http", "https") else None
    path, query = (rest[: match.start()], match[1]) if match else (rest, "")
    _refuse_bad_options(scheme, path, query)
    return Location(scheme, path.rstrip("/"), query)


def _refuse_bad_options(scheme: str, path: str, query: str) -> None:
    if scheme != "s3":
        return
    if "@" in path.partition("/")[0]:
        raise UserError("credentials do not belong in an s3:// URI, which is written to configs and logs: "
                        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE")
    for name in Location(scheme, path, query).options:
        if name not in S3_OPTIONS:
            raise UserError(f"an s3:// URI has no option {name!r}: use {', '.join(S3_OPTIONS)}")
    if not path.strip("/"):
        raise UserError("an s3:// URI needs a bucket: s3://bucket/folder")
