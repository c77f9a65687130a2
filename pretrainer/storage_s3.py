"""S3 and compatible stores of `pretrainer.storage`."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from pretrainer.errors import UserError
from pretrainer.storage_backend import Entry, Handle, TransientError, check_then_put

TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
_ARROW_CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_S3_MISSING = frozenset({"404", "NotFound", "NoSuchKey", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND"})
_S3_REMEDIES: dict[str, tuple[str, ...]] = {
    "the bucket does not exist: create it, or mend the name":
        ("NoSuchBucket", "NO_SUCH_BUCKET", "InvalidBucketName", "ParamValidationError"),
    "access denied: give these credentials the permission, or use others": (
        "AccessDenied", "ACCESS_DENIED", "Forbidden", "403", "AllAccessDisabled", "AccountProblem"),
    "the credentials are missing, wrong or expired: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE": (
        "InvalidAccessKeyId", "INVALID_ACCESS_KEY_ID", "SignatureDoesNotMatch", "SIGNATURE_DOES_NOT_MATCH",
        "ExpiredToken", "InvalidToken", "INVALID_CLIENT_TOKEN_ID", "INVALID_SIGNATURE", "TokenRefreshRequired",
        "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "UnauthorizedSSOTokenError",
        "SSOTokenLoadError", "401"),
    "the bucket is in another region: add ?region=… or set AWS_REGION": (
        "PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    "the bucket refuses plain PUT or the request is not valid for it": ("InvalidRequest", "MethodNotAllowed", "405"),
}
_S3_REMEDY = {code: remedy for remedy, codes in _S3_REMEDIES.items() for code in codes}


class S3Backend:
    """One bucket: pyarrow's S3FileSystem reads; boto3 lists (for etags), puts (for `If-None-Match: *`) and deletes."""

    def __init__(self, bucket: str, options: dict[str, str]) -> None:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        self.errors: tuple[type[Exception], ...] = (OSError, BotoCoreError, ClientError)
        self.bucket = bucket
        self.anonymous = options.get("anonymous", "false").lower() in ("true", "1")
        variables = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        endpoint = next(filter(None, (options.get("endpoint_override"), *variables)), None)
        default_scheme = options.get("scheme", "https")
        self.endpoint = endpoint if not endpoint or "://" in endpoint else f"{default_scheme}://{endpoint}"
        try:
            self.session = boto3.session.Session()
            self.region = options.get("region") or os.environ.get("AWS_REGION") or self.session.region_name
            self.credentials = None if self.anonymous else self.session.get_credentials()
        except BotoCoreError as error:
            raise UserError(f"{_S3_REMEDY['NoCredentialsError']} ({error})") from None
        if not self.anonymous and self.credentials is None:
            raise UserError(f"no AWS credentials found for bucket {bucket!r}: set AWS_ACCESS_KEY_ID and "
                            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or add ?anonymous=true for a public bucket")
        self._client: Any = None
        self._arrow: pafs.S3FileSystem | None = None

    @property
    def client(self) -> Any:
        if self._client is None:
            from botocore import UNSIGNED
            from botocore.config import Config

            # Other implementations of S3 lack the newer default checksums and virtual-hosted buckets.
            plain = {"s3": {"addressing_style": "path"}, "request_checksum_calculation": "when_required"}
            config = Config(
                retries={"max_attempts": 3, "mode": "standard"},
                read_timeout=TIMEOUT_S,
                connect_timeout=CONNECT_TIMEOUT_S,
                signature_version=UNSIGNED if self.anonymous else None,
                **(plain if self.endpoint else {}),
            )
            self._client = self.session.client("s3", endpoint_url=self.endpoint, config=config,
                                               region_name=self.region or "us-east-1")
        return self._client

    def arrow(self) -> pafs.S3FileSystem:
        if self._arrow is None:
            scheme, _, host = (self.endpoint or "").rpartition("://")
            region = self.region or ("us-east-1" if self.endpoint else pafs.resolve_s3_region(self.bucket))
            self._arrow = pafs.S3FileSystem(
                anonymous=self.anonymous,
                region=region,
                endpoint_override=host.rstrip("/") or None,
                scheme=scheme or None,
                request_timeout=TIMEOUT_S,
                connect_timeout=CONNECT_TIMEOUT_S,
                **self._static_keys(),
            )
        return self._arrow

    def _static_keys(self) -> dict[str, str]:
        """Keys that never expire on their own; others are left to pyarrow's chain, which refreshes them."""
        from botocore.credentials import Credentials

        if self.credentials is None or type(self.credentials) is not Credentials:
            return {}
        keys = self.credentials.get_frozen_credentials()
        named = {"access_key": keys.access_key, "secret_key": keys.secret_key, "session_token": keys.token}
        return {name: value for name, value in named.items() if value}

    def arrow_path(self, path: str) -> str:
        return path

    def _key(self, path: str) -> str:
        return path.partition("/")[2]

    def stat(self, path: str) -> Entry:
        if not self._key(path):
            raise FileNotFoundError(errno.ENOENT, "a bucket is no object", path)
        head = self.client.head_object(Bucket=self.bucket, Key=self._key(path))
        return Entry(path, head["ContentLength"], head["ETag"].strip('"'))

    def entries(self, folder: str, recursive: bool, after: str = "") -> Iterator[Entry]:
        lead = f"{self._key(folder)}/" if self._key(folder) else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=lead, **({} if recursive else {"Delimiter": "/"}),
            **({"StartAfter": lead + after} if after else {}))
        for page in pages:
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    yield Entry(item["Key"][len(lead):], item["Size"], item["ETag"].strip('"'))

    def open(self, path: str) -> Handle:
        return self.arrow().open_input_file(path)

    def put(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data)

    def put_new(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, IfNoneMatch="*")
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("PreconditionFailed", "412"):
                return False
            if code not in ("NotImplemented", "501"):
                raise
            return check_then_put(self, path, data)
        return True

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self._key(path))

    def translate(self, error: Exception, path: str) -> Exception:
        code = _s3_code(error)
        if isinstance(error, FileNotFoundError) or code in _S3_MISSING:
            return FileNotFoundError(errno.ENOENT, "no such object", f"s3://{path}")
        remedy = _S3_REMEDY.get(code)
        return UserError(f"{remedy} ({code})") if remedy else TransientError(str(error))


def _s3_code(error: Exception) -> str:
    """The S3 error code in a botocore or pyarrow error, or the class name."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    match = _ARROW_CODE.search(str(error))
    if match:
        return match[2] if match[1] == "UNKNOWN" and match[2] else match[1]
    return type(error).__name__
