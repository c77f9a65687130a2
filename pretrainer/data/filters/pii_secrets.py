"""API keys, tokens and passwords: formats that providers publish, and values that are assigned to a name such as
`api_key` and look random.

The approach is that of detect-secrets, as BigCode used it for The Stack (Allal et al. 2023, arXiv:2301.03988, section
4.3): known formats, an entropy test and filters of what stands for no secret. Only the value is replaced, so code
stays code.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import Counter
from collections.abc import Callable

from pretrainer.data.filters.pii_patterns import Detector, Span
from pretrainer.data.filters.pii_scan import ANYWHERE, URL_AT, VALUE, Phrase

# ------------------------------------------------------------------------------------------------ what is no secret

_PLACEHOLDER = re.compile(
    rb"example|sample|dummy|fake|placeholder|redacted|change.?me|replace|insert|your|xxxx|\*\*\*|\.\.\.|000000|"
    rb"1234567|abcdefg|qwerty|\$\{|\{\{|%\(|<|^\$[A-Za-z_(]|^%[A-Za-z_]+%$|todo|^\d{4}-\d\d-\d\d",
    re.IGNORECASE,
)
_TRIVIAL = frozenset(
    b"password passwd passw0rd pass pwd secret token user username admin root test testing guest postgres mysql "
    b"default none null true false undefined string hunter2".split()
)


def is_placeholder(value: bytes) -> bool:
    """Says itself that it is none (EXAMPLE, xxxx, changeme, your-key), is a variable, or a word that anybody uses."""
    return bool(_PLACEHOLDER.search(value)) or value.lower() in _TRIVIAL or len(set(value)) <= 3


def entropy_bits(value: bytes) -> float:
    """Shannon entropy per byte."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def change_share(value: bytes) -> float:
    """Share of neighbours that change between lower case, upper case and digit; a capital before a small letter, as
    words begin, is no change. About 0.45 in random text, below 0.2 in identifiers and paths."""
    alphanumeric = [byte for byte in value if chr(byte).isalnum()]
    kinds = [0 if 0x30 <= byte <= 0x39 else 1 if byte < 0x61 else 2 for byte in alphanumeric]
    changes = sum(a != b and (a, b) != (1, 2) for a, b in zip(kinds, kinds[1:], strict=False))
    return changes / max(len(kinds) - 1, 1)


def is_random(value: bytes) -> bool:
    """Letters and digits (or enough of both cases) mixed as no name or path mixes them, and no placeholder."""
    letters, digits = len(re.findall(rb"[A-Za-z]", value)), len(re.findall(rb"\d", value))
    mixed = letters >= 2 and (digits >= 2 or (len(value) >= 24 and value.lower() != value != value.upper()))
    longest = max(re.split(rb"[-_./:]", value), key=len)
    part = longest if len(longest) >= 12 else value
    return mixed and entropy_bits(value) >= 3 and change_share(part) >= 0.2 and not is_placeholder(value)


def is_password(value: bytes) -> bool:
    """Letters with digits or marks that names do not hold, and no placeholder."""
    marks = re.search(rb"[A-Za-z]", value) and re.search(rb"[\d!@#$%^&*+=?~]", value)
    return bool(marks) and entropy_bits(value) >= 2.5 and not is_placeholder(value)


# -------------------------------------------------------------------------------------------- formats with a prefix

_BORDER = rb"(?![A-Za-z0-9_-])"
# Prefix -> what follows it. All random parts are longer than any word.
_FORMATS: dict[str, bytes] = {
    "AKIA": rb"[A-Z0-9]{16}",  # AWS access key
    "ASIA": rb"[A-Z0-9]{16}",  # AWS, temporary
    "ghp_": rb"[A-Za-z0-9]{36,255}",  # GitHub: personal, OAuth, user, server, refresh
    "gho_": rb"[A-Za-z0-9]{36,255}",
    "ghu_": rb"[A-Za-z0-9]{36,255}",
    "ghs_": rb"[A-Za-z0-9]{36,255}",
    "ghr_": rb"[A-Za-z0-9]{36,255}",
    "github_pat_": rb"[A-Za-z0-9_]{50,255}",
    "glpat-": rb"[A-Za-z0-9_-]{20,64}",  # GitLab
    "xox": rb"[abeoprs]-[A-Za-z0-9-]{10,250}",  # Slack
    "hooks.slack.com/services/": rb"T[A-Z0-9]{7,12}/B[A-Z0-9]{7,12}/[A-Za-z0-9]{20,30}",
    "AIza": rb"[A-Za-z0-9_-]{35}",  # Google API
    "GOCSPX-": rb"[A-Za-z0-9_-]{28}",  # Google OAuth client
    "ya29.": rb"[A-Za-z0-9_-]{20,500}",  # Google OAuth access
    "sk_live_": rb"[A-Za-z0-9]{16,255}",  # Stripe; its pk_ keys are public
    "sk_test_": rb"[A-Za-z0-9]{16,255}",
    "rk_live_": rb"[A-Za-z0-9]{16,255}",
    "whsec_": rb"[A-Za-z0-9+/=]{24,80}",
    "sk-": rb"[A-Za-z0-9_-]{20,255}",  # OpenAI, Anthropic (sk-ant-), OpenRouter and others
    "hf_": rb"[A-Za-z0-9]{30,40}",  # Hugging Face
    "npm_": rb"[A-Za-z0-9]{36}",
    "pypi-": rb"[A-Za-z0-9_-]{50,250}",
    "SG.": rb"[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}",  # SendGrid
    "dop_v1_": rb"[a-f0-9]{64}",  # DigitalOcean
    "shpat_": rb"[a-fA-F0-9]{32}",  # Shopify
    "dapi": rb"[a-f0-9]{32}",  # Databricks
}


def _prefixed(prefix: str) -> Callable[[bytes, int], Span | None]:
    whole = re.compile(re.escape(prefix.encode()) + rb"(%b)%b" % (_FORMATS[prefix], _BORDER))

    def find(doc: bytes, behind: int) -> Span | None:
        found = whole.match(doc, behind - len(prefix))
        if not found or is_placeholder(found[1]):
            return None
        return found.span() if prefix == "AKIA" or _has_random_part(found[1]) else None

    return find


def _has_random_part(body: bytes) -> bool:
    """The longest part between separators (the whole where it is short) mixes kinds: no CSS class, no file name."""
    longest = max(re.split(rb"[-_./]", body), key=len)
    part = longest if len(longest) >= 12 else body
    return entropy_bits(part) >= 2.5 and change_share(part) >= (0.12 if part is longest else 0.25)


# ----------------------------------------------------------------------------------------------------- JWT, PEM, URL

_JWT = re.compile(rb"(eyJ[A-Za-z0-9_-]{8,2048})\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{16,2048}" + _BORDER)
# {"sub":"1234567890", of the example that every manual prints.
_EXAMPLE_JWT = b".eyJzdWIiOiIxMjM0NTY3ODkw"
_URL_PASSWORD = re.compile(rb"[^\s\"'`<>{}()\[\]|\\\x80-\xff]{5,128}")
_LINE_ENDS = rb"(?:[\s\"',]|\\[nr])"
_PEM = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:\s{1,2}(?:[A-Za-z-]{1,20}: [^\n]{1,80}\n){1,4})?"
    rb"%b{0,16}([A-Za-z0-9+/]{24,8192}={0,2})(?:%b{1,16}[A-Za-z0-9+/]{24,8192}={0,2}){0,400}"
    rb"(?:(?:%b{1,16}[A-Za-z0-9+/]{1,23}={0,2})?%b{0,16}-----END [A-Z0-9 ]{1,48}-----)?" % ((_LINE_ENDS,) * 4)
)
_PEM_PREFIX = "-----BEGIN "


def find_jwt(doc: bytes, behind: int) -> Span | None:
    """A signed JSON Web Token (RFC 7519): its header is a JSON object that names an algorithm."""
    found = _JWT.match(doc, behind - len("eyJ"))
    if not found or _EXAMPLE_JWT in found[0]:
        return None
    header = found[1]
    try:
        names = json.loads(base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return found.span() if isinstance(names, dict) and "alg" in names else None


def find_private_key(doc: bytes, behind: int) -> Span | None:
    """A PEM block (RFC 7468) of a private key, its line ends real or written as \\n; where its end is missing up to the
    last full line."""
    found = _PEM.match(doc, behind - len(_PEM_PREFIX))
    return found.span() if found and not is_placeholder(found[1][:64]) else None


def find_url_password(doc: bytes, at: int) -> Span | None:
    """The password of scheme://user:password@host, `at` the @."""
    before = doc[max(0, at - 256) : at]
    authority = before[before.rfind(b"//") + 2 :]
    user, colon, password = authority.partition(b":")
    if not colon or user == password or not is_password(password):
        return None
    return (at - len(password), at) if _URL_PASSWORD.fullmatch(password) else None


# ------------------------------------------------------------------------------------------------------- assignments

_OPERATOR = (
    # The rest of the name, and a type.
    rb"[A-Za-z0-9_-]{0,24}[\"'\])]{0,2}[ \t]{0,4}(?::[ \t]?(?:str|String|string)[ \t]?)?"
    rb"(=>|:=|={1,3}|:|,|(?<=[\"'][ \t])value=)[ \t]{0,4}"
)
_QUOTED = re.compile(_OPERATOR + rb"[bfr]?([\"'`])([^\s\"'`<>\\]{8,512})\2")
# Without quotes a value ends before the full stop of a sentence.
_BARE = re.compile(
    rb"[A-Za-z0-9_-]{0,24}[ \t]{0,4}(?:=|:)[ \t]{0,4}([A-Za-z0-9+/_.~-]{14,512}(?<!\.)={0,2})(?!\.?[^\s;,&#\"'`)\]}.])"
)
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NOT_BARE = re.compile(rb"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|" + _UUID.pattern)  # names of code without quotes
_BEARER = re.compile(rb"([A-Za-z0-9_.~+/=-]{20,1024}(?<!\.))(?!\.?[^\s;,\"'`)\]}\\.])")


def find_assigned_key(doc: bytes, behind: int) -> Span | None:
    """A random value of 16 characters or more that is assigned to the name whose key word ends before `behind`."""
    return _assigned(doc, behind, lambda value: len(value) >= 16 and is_random(value))


def find_assigned_token(doc: bytes, behind: int) -> Span | None:
    """The same for tokens, which are no UUID: those number requests and pages."""
    return _assigned(doc, behind, lambda value: len(value) >= 16 and is_random(value) and not _UUID.fullmatch(value))


def find_assigned_password(doc: bytes, behind: int) -> Span | None:
    """The same for passwords, which may be short: in quotes from 8 characters."""
    return _assigned(doc, behind, is_password)


def _assigned(doc: bytes, behind: int, is_secret: Callable[[bytes], bool]) -> Span | None:
    quoted = _QUOTED.match(doc, behind)
    if quoted:
        sure = is_secret(quoted[3]) and (quoted[1] != b"," or is_random(quoted[3]))
        return quoted.span(3) if sure else None
    bare = _BARE.match(doc, behind)
    sure = bare and len(bare[1]) >= 16 and is_random(bare[1]) and not _NOT_BARE.fullmatch(bare[1])
    return bare.span(1) if bare and sure else None


def find_bearer(doc: bytes, behind: int) -> Span | None:
    """The token of "Authorization: Bearer ..."."""
    found = _BEARER.match(doc, behind)
    return found.span(1) if found and is_random(found[1]) else None


def _names(words: str) -> tuple[Phrase, ...]:
    return tuple(Phrase(word, VALUE, False) for word in words.split())


DETECTORS: tuple[Detector, ...] = (
    *(
        Detector("secret", _prefixed(prefix), phrases=(Phrase(prefix.lower(), ANYWHERE, prefix[0].isalpha()),))
        for prefix in _FORMATS
    ),
    Detector("secret", find_jwt, phrases=(Phrase("eyj", ANYWHERE, True),)),
    Detector("secret", find_private_key, phrases=(Phrase(_PEM_PREFIX.lower(), ANYWHERE, False),)),
    Detector("secret", find_url_password, URL_AT),
    Detector(
        "secret",
        find_assigned_key,
        phrases=_names("api_key apikey api-key access_key accesskey secret auth_key account_key accountkey "
                       "encryption_key signing_key private_key credential"),
    ),
    Detector("secret", find_assigned_token, phrases=_names("token")),
    Detector("secret", find_assigned_password, phrases=_names("passwd password passphrase pwd")),
    Detector("secret", find_bearer, phrases=(Phrase("bearer ", ANYWHERE, True),)),
)  # fmt: skip
