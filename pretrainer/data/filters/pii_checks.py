"""What makes a find of personal data likely to be real: checksums, issuer ranges, numbering plans, reserved values.

Every function takes what a pattern of `pii_patterns` matched, without separators where it says digits.
"""

from __future__ import annotations

import ipaddress

# ------------------------------------------------------------------------------------------------------------- cards

# (first and last prefix, lengths): ISO/IEC 7812 ranges as the networks publish them. Visa's 13 digits are out of use
# and look like an EAN barcode; of Maestro only the ranges that its own pages name.
_ISSUERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4, 4, (16, 19)),  # Visa
    (51, 55, (16,)),  # Mastercard
    (2221, 2720, (16,)),  # Mastercard
    (34, 34, (15,)),  # American Express
    (37, 37, (15,)),
    (6011, 6011, (16, 19)),  # Discover
    (644, 659, (16, 19)),
    (300, 305, (14, 16)),  # Diners Club
    (36, 36, (14, 16)),
    (38, 39, (14, 16)),
    (3528, 3589, (16, 19)),  # JCB
    (62, 62, (16, 17, 18, 19)),  # UnionPay
    *((prefix, prefix, (16, 18, 19)) for prefix in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763)),  # Maestro
)
# Numbers that payment providers print in their documentation for tests.
_TEST_CARDS = frozenset(
    "4111111111111111 4242424242424242 4012888888881881 4000056655665556 4000000000000002 5555555555554444 "
    "5105105105105100 5200828282828210 2223003122003222 378282246310005 371449635398431 6011111111111117 "
    "6011000990139424 30569309025904 38520000023237 3530111333300000 3566002020360505 6200000000000005".split()
)


def is_card(digits: str) -> bool:
    """A known issuer's prefix and length, a right check digit, and no test number."""
    issued = any(
        len(digits) in lengths and first <= int(digits[: len(str(first))]) <= last for first, last, lengths in _ISSUERS
    )
    return issued and luhn_sum(digits) % 10 == 0 and digits not in _TEST_CARDS and len(set(digits)) > 2


def luhn_sum(digits: str) -> int:
    """Sum of Luhn (ISO/IEC 7812-1): every second digit from the right but one is doubled, its digits added."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return doubled + sum(int(digit) for digit in digits[-1::-2])


# -------------------------------------------------------------------------------------------------------------- IBAN

# Country -> length, from SWIFT's IBAN registry.
IBAN_CHARS: dict[str, int] = {
    pair[:2]: int(pair[2:])
    for pair in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
        "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 "
        "LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 "
        "QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
    ).split()
}
_EXAMPLE_IBANS = frozenset(
    ("DE89370400440532013000", "GB82WEST12345698765432", "GB29NWBK60161331926819", "FR1420041010050500013M02606")
)


def is_iban(compact: str) -> bool:
    """Right length for its country and check digits (ISO 13616, modulo 97), and no example of the registry."""
    if IBAN_CHARS.get(compact[:2]) != len(compact) or compact in _EXAMPLE_IBANS:
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


# --------------------------------------------------------------------------------------------------------------- SSN

# Printed in advertisements and used in every other form as the example.
_EXAMPLE_SSNS = frozenset(("078051120", "219099999", "123456789", "111111111", "222222222", "333333333", "444444444",
                           "555555555", "777777777", "888888888"))  # fmt: skip


def is_ssn(digits: str) -> bool:
    """Nine digits in a range that the Social Security Administration assigns: area not 000, 666 or 9xx, group not 00,
    serial not 0000."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    assigned = area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"
    return len(digits) == 9 and assigned and digits not in _EXAMPLE_SSNS


# ------------------------------------------------------------------------------------------------------------ phones

# ITU E.164 country code -> digits of a national number, where the plan is tighter than the general 7 to 12.
_NATIONAL_DIGITS: dict[str, tuple[int, int]] = {
    "1": (10, 10), "7": (10, 10), "20": (8, 10), "27": (9, 9), "30": (10, 10), "31": (9, 9), "32": (8, 9),
    "33": (9, 9), "34": (9, 9), "36": (8, 9), "39": (6, 11), "40": (9, 9), "41": (9, 9), "43": (7, 13), "44": (9, 10),
    "45": (8, 8), "46": (7, 10), "47": (8, 8), "48": (9, 9), "49": (7, 11), "52": (10, 11), "54": (10, 11),
    "55": (10, 11), "60": (8, 10), "61": (9, 9), "62": (8, 12), "63": (8, 10), "64": (8, 10), "65": (8, 8),
    "66": (8, 9), "81": (9, 10), "82": (8, 10), "84": (9, 10), "86": (10, 11), "90": (10, 10), "91": (10, 10),
    "92": (9, 10), "234": (8, 10), "254": (9, 9), "351": (9, 9), "352": (6, 9), "353": (7, 9), "354": (7, 7),
    "358": (6, 10), "370": (8, 8), "371": (8, 8), "372": (7, 8), "380": (9, 9), "385": (8, 9), "386": (8, 8),
    "420": (9, 9), "421": (9, 9), "852": (8, 8), "886": (8, 9), "971": (8, 9), "972": (8, 9),
}  # fmt: skip
_TWO_DIGIT_CODES = frozenset(
    "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90 "
    "91 92 93 94 95 98".split()
)
_THREE_DIGIT_CODES = frozenset(
    "211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239 240 241 242 "
    "243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 "
    "297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 "
    "387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 "
    "674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 850 852 853 855 856 880 886 960 961 962 "
    "963 964 965 966 967 968 970 971 972 973 974 975 976 977 992 993 994 995 996 998".split()
)


def country_code(digits: str) -> str:
    """The country code that an international number begins with, "" where none is assigned."""
    if digits[:1] in ("1", "7"):
        return digits[:1]
    if digits[:2] in _TWO_DIGIT_CODES:
        return digits[:2]
    return digits[:3] if digits[:3] in _THREE_DIGIT_CODES else ""


def is_international(digits: str) -> bool:
    """Country code and national number behind a "+"; (0) of the national form is left out already."""
    code = country_code(digits)
    national = digits[len(code) :]
    least, most = _NATIONAL_DIGITS.get(code, (7, 12))
    if not code or not least <= len(national) <= most or len(set(national)) < 3:
        return False
    if code == "1":
        return is_north_american(national)
    return national[0] != "0" or code == "39"  # Italy keeps the 0 of its area codes


def is_north_american(digits: str) -> bool:
    """Ten digits NXX NXX XXXX of the North American Numbering Plan, and not 555-0100 to 555-0199, kept for fiction."""
    area, exchange, line = digits[:3], digits[3:6], digits[6:]
    if len(digits) != 10 or area[0] in "01" or exchange[0] in "01" or area[1:] == "11" or exchange[1:] == "11":
        return False
    return not (exchange == "555" and line.startswith("01")) and digits not in ("2345678901",) and len(set(digits)) > 2


# --------------------------------------------------------------------------------------------------------- addresses


def is_public_ip(text: str) -> bool:
    """A public unicast address (`ipaddress.is_global`: not private, loopback, link-local, documentation, reserved).

    Not counted are IPv4 addresses of four single digits (section numbers and versions; the public resolvers 1.1.1.1,
    8.8.8.8 and 9.9.9.9), 8.8.4.4, and what ends in .0.0 (networks, browser versions); of IPv6 only 2000::/3 is
    assigned.
    """
    if ":" not in text and (len(text) <= len("8.8.8.8") or text == "8.8.4.4" or text.endswith(".0.0")):
        return False
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return address.version == 4 or 0x2000 <= int(address) >> 112 <= 0x3FFF


# All country codes of ISO 3166 that have a top-level domain, and the generic domains that mail is sent from; the other
# thousand generic ones are rare in text, and half of them are words that code writes behind a dot.
_TOP_LEVEL = frozenset(
    "ac ad ae af ag ai al am ao ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf "
    "cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge gf "
    "gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki "
    "km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx "
    "my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc "
    "sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us "
    "uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw "
    "com net org edu gov mil int info biz name pro aero coop museum mobi jobs travel tel cat asia arpa app dev xyz "
    "online site website tech cloud club shop store blog agency academy company consulting digital email group "
    "health legal global guru live media network news page services solutions studio systems team today tools "
    "university ventures vip work works world berlin hamburg koeln london nyc paris wien tokyo amsterdam bayern "
    "bank church community education engineering finance foundation hospital institute international law lgbt "
    "ngo ong science software space technology zone".split()
)
# RFC 2606 and 6761: nobody's mail goes there.
_RESERVED_DOMAINS = ("example.com", "example.net", "example.org", "example.edu")
_RESERVED_TOP_LEVEL = ("example", "invalid", "localhost", "test", "local", "internal", "localdomain")
_NOBODY = frozenset(("noreply", "no-reply", "no_reply", "donotreply", "do-not-reply", "do_not_reply", "mailer-daemon",
                     "git", "nobody", "root"))  # fmt: skip


def is_top_level_domain(label: str) -> bool:
    """Whether mail could be sent below this last label of a domain."""
    return label.lower() in _TOP_LEVEL or label.lower().startswith("xn--")


def is_somebodys(local: str, domain: str) -> bool:
    """False for mail to reserved domains and for the local parts of machines (noreply, mailer-daemon, git, ...)."""
    domain, local = domain.lower(), local.lower()
    reserved = any(domain == name or domain.endswith("." + name) for name in _RESERVED_DOMAINS)
    return not reserved and domain.rpartition(".")[2] not in _RESERVED_TOP_LEVEL and local not in _NOBODY
