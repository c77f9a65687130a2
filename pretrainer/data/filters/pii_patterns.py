"""E-mail addresses, phone numbers, IP addresses, cards, IBANs and US social security numbers: from trigger to span.

A detector looks at a document's UTF-8 bytes from the trigger's byte on (a few bytes before it where it must) and gives
the span of the find or None. All quantifiers are bounded and no two neighbours match the same byte in many ways, so a
detector takes constant time and a document linear time.

`\\w`, `\\d` are ASCII. Numbers in other scripts, e-mail addresses written out ("name at host dot com") and names
outside Latin letters before the @ are not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pretrainer.data.filters import pii_scan
from pretrainer.data.filters.pii_checks import (
    IBAN_CHARS,
    is_card,
    is_iban,
    is_international,
    is_north_american,
    is_public_ip,
    is_somebodys,
    is_ssn,
    is_top_level_domain,
)
from pretrainer.data.filters.pii_scan import ANYWHERE, DIGITS, Phrase

Span = tuple[int, int]
"""(first byte, end) in the document."""
Detect = Callable[[bytes, int], Span | None]


class Detector(NamedTuple):
    """Called at each trigger of a shape, or behind each of its phrases."""

    kind: str
    detect: Detect
    shape: int | None = None
    phrases: tuple[Phrase, ...] = ()


def _digits(matched: bytes) -> str:
    return re.sub(rb"\D", b"", matched).decode()


# ------------------------------------------------------------------------------------------------------------ e-mail

_LATIN = rb"[\xc3-\xc9][\x80-\xbf]"  # U+00C0 to U+027F, two bytes each
_LOCAL_REVERSED = re.compile(rb"(?:[A-Za-z0-9._%+'-]|[\x80-\xbf][\xc3-\xc9]){1,65}")
_DOMAIN = re.compile(
    rb"(?:[A-Za-z0-9-]|%b){1,63}(?:\.(?:[A-Za-z0-9-]|%b){1,63}){1,8}" % (_LATIN, _LATIN)
)  # fmt: skip
_PATH_BEHIND = re.compile(rb"\(|:[A-Za-z0-9_.~-]{0,64}/")


def find_email(doc: bytes, at: int) -> Span | None:
    """The address around the @ at byte `at`: RFC 5321 without quoted local parts, at a top-level domain that exists.

    Not one: what stands in a URL before its host (ssh://git@host), user@host:path/ of scp and git, q@k.id(...) of code.
    """
    reversed_local = _LOCAL_REVERSED.match(doc[max(0, at - 66) : at][::-1])
    domain = _DOMAIN.match(doc, at + 1)
    if not reversed_local or not domain or len(reversed_local[0]) > 64:
        return None
    local = reversed_local[0][::-1].rpartition(b"..")[2].lstrip(b".'%-")
    host = _existing_domain(domain[0])
    start, end = at - len(local), at + 1 + len(host)
    if not local or not host or _PATH_BEHIND.match(doc, end) or _in_authority(doc, start):
        return None
    return (start, end) if is_somebodys(local.decode(errors="replace"), host.decode(errors="replace")) else None


def _existing_domain(domain: bytes) -> bytes:
    """Without last labels that are no top-level domain ("acme.com.Please" is acme.com and a new sentence)."""
    labels = domain.rstrip(b"-").split(b".")
    while len(labels) > 1 and not is_top_level_domain(labels[-1].decode(errors="replace")):
        labels.pop()
    valid = len(labels) > 1 and not any(label.startswith(b"-") or label.endswith(b"-") for label in labels)
    return b".".join(labels) if valid else b""


def _in_authority(doc: bytes, start: int) -> bool:
    """Whether byte `start` stands between the // of a URL and its host."""
    before = doc[max(0, start - 80) : start]
    return re.search(rb"//[^\s/@\"'<>]*$", before[before.rfind(b"//") :] if b"//" in before else b"") is not None


# ------------------------------------------------------------------------------------------------------------- phone

_NANP = re.compile(
    rb"(?<![\w.+/-])(?:\+?1[-. ])?(?:\(([2-9]\d\d)\)([-. ]?)|([2-9]\d\d)([-. ]))([2-9]\d\d)([-. ])(\d{4})"
    rb"(?!\w|[-./(+]\d)"
)
_INTERNATIONAL = re.compile(rb"(?<![\w+.])\+\(?\d(?:[ .\-/()]{0,2}\d){6,15}")
_DECIMAL = re.compile(rb"\+\d+\.\d+")
_IN_FORMULA_BEFORE, _IN_FORMULA_BEHIND = re.compile(rb"[)\]=*/^<>]\s?$"), re.compile(rb"\s?[*/=^#+]")
_TRUNK_ZERO = re.compile(rb"\(0\)")
_NATIONAL = re.compile(
    rb"(?:s|o)?(?:[ \t:.#*_|\])-]|(?:numbers?|no|nr|us|me|him|her|is|at|on|or|now|dial)\b){0,10}"
    rb"(\+?\(?\d(?:[ .\-/()]{0,2}\d){6,14})(?!\w)(?![ .,:/-]?\d)"
)
_IN_ROW_BEFORE = re.compile(rb"[=*/^+<>]\s?$|\d[ \t|]{1,4}$")
_IN_ROW_BEHIND = re.compile(rb"\s?[=*/^+]|[ \t|]{1,4}\d")
_NO_PHONE = re.compile(rb"(?:19|20)\d\d(?:[-/ .]{1,2}(?:19|20)?\d\d){1,2}|\d+\.\d+|(\d)\1+|\d{1,3}(?:\.\d{3}){2,}")
_SEQUENCES = ("1234567", "12345678", "123456789", "1234567890", "0123456789")


def find_north_american(doc: bytes, at: int) -> Span | None:
    """(NXX) NXX-XXXX, NXX-NXX-XXXX, NXX.NXX.XXXX, each with 1 or +1 before; NXX NXX XXXX where neither an operator nor
    another number stands beside it (tables, sums)."""
    found = _NANP.match(doc, at)
    if not found or not is_north_american(_digits(found[0])[-10:]):
        return None
    if found[4] == b" " and found[6] == b" " and _is_in_row(doc, found.start(), found.end()):
        return None
    before, behind = doc[max(0, at - 2) : at], doc[found.end() : found.end() + 2]
    in_formula = re.search(rb"[=*/^<>]\s?$", before) or re.match(rb"\s?[=*/^]", behind)
    return None if in_formula else found.span()


def _is_in_row(doc: bytes, start: int, end: int) -> bool:
    before, behind = doc[max(0, start - 5) : start], doc[end : end + 5]
    return bool(_IN_ROW_BEFORE.search(before) or _IN_ROW_BEHIND.match(behind))


def find_international(doc: bytes, at: int) -> Span | None:
    """E.164 with a + and an assigned country code; as many groups of digits as its numbering plan allows.

    One without separators that stands between operators is a number of a formula.
    """
    found = _INTERNATIONAL.match(doc, at)
    if not found:
        return None
    for end in range(found.end(), at + 7, -1):
        number, behind = doc[at:end], doc[end : end + 2]
        whole = number[-2:].isdigit() and not re.match(rb"\w|[.,+(]\d", behind) and not _DECIMAL.fullmatch(number)
        if whole and is_international(_digits(_TRUNK_ZERO.sub(b"", number))):
            before = doc[max(0, at - 2) : at]
            in_formula = _IN_FORMULA_BEFORE.search(before) or _IN_FORMULA_BEHIND.match(behind)
            return None if number[1:].isdigit() and in_formula else (at, end)
    return None


def find_national(doc: bytes, behind: int, least_digits: int) -> Span | None:
    """A number of `least_digits` to 15 digits behind a word such as "tel"; not a date, a span of years or a decimal."""
    found = _NATIONAL.match(doc, behind)
    if not found:
        return None
    number, digits = found[1], _digits(found[1])
    if not least_digits <= len(digits) <= 15 or _NO_PHONE.fullmatch(number) or digits in _SEQUENCES:
        return None
    fictional = len(digits) in (7, 10, 11) and digits[-7:-2] == "55501"
    return None if fictional else found.span(1)


def _phone_words(words: str) -> tuple[Phrase, ...]:
    return tuple(Phrase(word, DIGITS, True) for word in words.split(","))


# ------------------------------------------------------------------------------------------------------ IP addresses

_IPV4 = re.compile(rb"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(rb"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:.]{2,41}(?!\w)")
_VERSION_BEFORE = re.compile(
    rb"(?:\b(?:v|ver|vers|version|versions|release|build|revision|rev|oid|sections?|sec|chapter|clause|firmware|driver|"
    rb"software|assembly|update|patch|kernel)\b[.:]?[ \t:=\"'(,]{0,4}|==|>=|<=|~=|!=|~>|\^|~|[a-z0-9_]/|[a-z_]-)\s?$",
    re.IGNORECASE,
)  # fmt: skip
_VERSION_BEHIND = re.compile(rb"[-+~][A-Za-z]|-\d{1,3}(?![\d.])|\.[a-z\d]")
# Path data of SVG writes 1.5.75.75 for 1.5 .75 .75: among decimals and single digits.
_PATH_BEFORE = re.compile(rb"(?:(?<![\d.])\d{0,3}\.\d{1,4}|[A-Za-z, ]\d)[ ,-]$")
_PATH_DATA_BEHIND = re.compile(rb"[ ,](?:\d{0,3}\.\d{1,4}(?![\d.])|\d[ ,-])|[ ,]?-\.?\d")


def find_ipv4(doc: bytes, at: int) -> Span | None:
    """A public address that does not stand where versions do (v1.20.30.40, name/1.20.30.40, name-1.20.30.40.zip)."""
    found, before = _IPV4.match(doc, at), doc[max(0, at - 16) : at]
    if not found or _VERSION_BEHIND.match(doc, found.end()) or _VERSION_BEFORE.search(before):
        return None
    if _PATH_BEFORE.search(before) and _PATH_DATA_BEHIND.match(doc, found.end()):
        return None
    return found.span() if is_public_ip(found[0].decode()) else None


def find_ipv6(doc: bytes, at: int) -> Span | None:
    """A public address of 2000::/3, in full or with ::."""
    found = _IPV6.match(doc, at)
    if not found:
        return None
    text = found[0].rstrip(b".")
    text = text[:-1] if text.endswith(b":") and not text.endswith(b"::") else text
    return (at, at + len(text)) if is_public_ip(text.decode()) else None


# ---------------------------------------------------------------------------------------------- cards, accounts, SSN

_CARD_GROUPS = (
    rb"\d{4}([ -])\d{4}\1\d{4}\1\d{4}\1\d{3}",
    rb"\d{4}([ -])\d{4}\1\d{4}\1\d{4}",
    rb"\d{4}([ -])\d{6}\1\d{4,5}",
    rb"\d{14,19}",
)
_CARDS = [
    re.compile(rb"(?<![\w.])(?<!\w-)(?<!\D\d{4} )" + groups + rb"(?!\w|[.-]\d| \d{4}(?!\d))") for groups in _CARD_GROUPS
]
_IBAN = re.compile(rb"(?<![A-Za-z0-9_])[A-Z]{2}\d\d(?:[ -]?[A-Z0-9]){11,30}")
_SSN = re.compile(rb"(?<![\w.])(?<!\w[-/])\d{3}([- ])\d{2}\1\d{4}(?!\w|[-./]\d)")
_SSN_BEHIND_WORD = re.compile(rb"(?!\w)[A-Za-z()#.:='\" ]{0,24}(\d{3}([- ]?)\d{2}\2\d{4})(?!\w|[-.]\d)")


def find_card(doc: bytes, at: int) -> Span | None:
    """14 to 19 digits of an issuer with a right check digit, together or in the groups that cards show."""
    matches = (card.match(doc, at) for card in _CARDS)
    return next((found.span() for found in matches if found and is_card(_digits(found[0]))), None)


def find_iban(doc: bytes, at: int) -> Span | None:
    """Upper-case letters and digits, together or in groups of four; as long as the country's are."""
    found = _IBAN.match(doc, at)
    if not found:
        return None
    size = IBAN_CHARS.get(found[0][:2].decode(), 0)
    separator = found[0][4:5] if found[0][4:5] in (b" ", b"-") else b""
    compact = re.sub(rb"[ -]", b"", found[0])[:size]
    printed = separator.join(compact[i : i + 4] for i in range(0, size, 4))
    end = at + len(printed)
    if not size or doc[at:end] != printed or re.match(rb"\w", doc[end : end + 1]):
        return None
    return (at, end) if is_iban(compact.decode()) else None


def find_ssn(doc: bytes, at: int) -> Span | None:
    """AAA-GG-SSSS; with blanks instead of hyphens only behind a word (`find_ssn_behind_word`)."""
    found = _SSN.match(doc, at)
    return found.span() if found and found[1] == b"-" and is_ssn(_digits(found[0])) else None


def find_ssn_behind_word(doc: bytes, behind: int) -> Span | None:
    """Nine digits with hyphens, blanks or none, behind "SSN" or "social security"."""
    found = _SSN_BEHIND_WORD.match(doc, behind)
    return found.span(1) if found and is_ssn(_digits(found[1])) else None


DETECTORS: tuple[Detector, ...] = (
    Detector("email", find_email, pii_scan.AT),
    Detector("phone", find_north_american, pii_scan.PHONE),
    Detector("phone", find_international, pii_scan.PLUS),
    Detector(
        "phone",
        lambda doc, behind: find_national(doc, behind, 7),
        phrases=_phone_words("phone,telephone,tel,fax,telefax,telefon,telefono,teléfono,mobile,whatsapp,hotline"),
    ),
    Detector(
        "phone",
        lambda doc, behind: find_national(doc, behind, 10),
        phrases=_phone_words("cell,call,text,sms,contact,mob,ph"),
    ),
    Detector("ip", find_ipv4, pii_scan.IPV4),
    Detector("ip", find_ipv6, pii_scan.IPV6),
    Detector("credit_card", find_card, pii_scan.CARD),
    Detector("iban", find_iban, pii_scan.IBAN),
    Detector("us_ssn", find_ssn, pii_scan.SSN),
    Detector(
        "us_ssn",
        find_ssn_behind_word,
        phrases=(Phrase("ssn", DIGITS, True), Phrase("social security", ANYWHERE, True)),
    ),
)
PLACEHOLDERS: Mapping[str, str] = {
    kind: f"<{kind.upper()}>" for kind in ("email", "phone", "ip", "credit_card", "iban", "us_ssn", "secret")
}
