"""Text with labelled personal data and secrets between hard negatives: what test_pii measures precision and recall on.

Templates and a seed, with code of its own: checksums are computed here and not looked up in the product. All of it is
invented; where a number could be somebody's it is so by chance. In a template {d4} is four digits, {h8} eight
hexadecimal ones, {x24} letters and digits, {u4} capitals, {n1-9} a number, {host} and the like a word of a list.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import random
import re
import string
import uuid
from typing import NamedTuple

Label = tuple[int, int, str]
"""(first byte, end, kind)."""

ALPHABETS = {
    "d": string.digits,
    "h": string.hexdigits[:16],
    "x": string.ascii_letters + string.digits,
    "l": string.ascii_letters,
    "u": string.ascii_uppercase,
    "b": string.ascii_letters + string.digits + "+/",
    "k": string.ascii_letters + string.digits + "_-",
    "a": string.ascii_uppercase + "234567",
    "p": string.ascii_letters + string.digits + "!^*+",
    "m": string.ascii_uppercase + string.digits,
}
WORDS = {
    "first": "anna john maria wei fatima olu jürgen priya carlos emma noah yuki sven lucía tom ines".split(),
    "last": "smith müller garcia chen okafor novak rossi kim patel jensen brown silva dubois ito".split(),
    "host": "acme globex initech umbrella contoso fabrikam northwind stark wayne hooli vandelay".split(),
    "area": [f"{a}{b}{c}" for a in "23456789" for b in "02345678" for c in "0234567"],
    "exch": [f"{a}{b}" for a in "2346789" for b in range(20, 99)],
    "line": "the report of a long day in which every reader finds some lines about work and little else".split(),
}


class Document(NamedTuple):
    text: str
    labels: list[Label]


def fill(r: random.Random, template: str) -> str:
    """The template with every {...} drawn anew."""

    def draw(found: re.Match[str]) -> str:
        name, least, most = found[1], found[2], found[3]
        if most:
            return str(r.randint(int(least), int(most)))
        return "".join(r.choices(ALPHABETS[name], k=int(least))) if least else special(r, name)

    return re.sub(r"\{([a-z]+)(?:(\d+)(?:-(\d+))?)?\}", draw, template)


def special(r: random.Random, name: str) -> str:
    if name in WORDS:
        return r.choice(WORDS[name])
    made = {"uuid": str(uuid.UUID(int=r.getrandbits(128))), "sha": hashlib.sha1(r.randbytes(8)).hexdigest(),
            "float": repr(r.uniform(-1e4, 1e4)), "wrongcard": wrong_card(r)}  # fmt: skip
    return made[name]


# --------------------------------------------------------------------------------------------------------- positives

EMAILS = """
{first}.{last}@{host}.com|{first}{n1-99}@{host}.org|{first}_{last}@{host}.co.uk|{last}-{first}@{host}.de
{first}@mail.{host}.io|{first}+{host}@{host}-{host}.net|{last}@cs.{host}.edu|info@{host}.com.br|{first}{last}@gmail.com
{first}.{d3}@web.de|hr@{host}{d2}.fr
""".split()
NORTH_AMERICAN = """
({area}) {exch}-{d4}|{area}-{exch}-{d4}|{area}.{exch}.{d4}|1-{area}-{exch}-{d4}|+1 {area} {exch} {d4}
+1 ({area}) {exch}-{d4}|{area} {exch} {d4}|+1{area}{exch}{d4}|({area}){exch}-{d4}
""".strip().splitlines()
INTERNATIONAL = """
+44 20 {n2-9}{d3} {d4}|+44 (0)161 {n2-9}{d2} {d4}|+447{d9}|+49 30 {n2-9}{d5}|+49 (0)89 {n2-9}{d3}-{d3}
+49-171-{n2-9}{d6}|+33 1 {d2} {d2} {d2} {d2}|+91 9{d4} {d5}|+81-3-{n2-9}{d3}-{d4}|+86 138 {d4} {d4}
+34 6{d2} {d3} {d3}|+61 2 {n2-9}{d3} {d4}|+55 11 9{d4}-{d4}|+353 87 {d3} {d4}
+39 06 {n2-9}{d3} {d4}|+41 44 {n2-9}{d2} {d2} {d2}|+971 50 {n2-9}{d2} {d4}
""".strip().splitlines()
NATIONAL = (
    """
030/{n2-9}{d6}|020 {n2-9}{d3} {d4}|(030) {n2-9}{d3}-{d3}|089 {n2-9}{d6}|0171-{n2-9}{d6}
01 {n2-9}{d} {d2} {d2} {d2}
0{n2-9}{d8}|{n2-4}{d2}-{d4}|0{n2-9}{d2} {d3} {d3}
""".replace("{d}", "{n0-9}")
    .strip()
    .splitlines()
)
TOKENS = """
AKIA{a16}|ghp_{x36}|github_pat_{x22}_{x59}|glpat-{x20}|xoxb-{d12}-{d13}-{x24}|AIza{k35}|sk_live_{x24}
sk-{x48}|sk-proj-{k74}A|sk-ant-api03-{k93}AA|hf_{l34}|npm_{x36}|SG.{x22}.{x43}|shpat_{h32}|dop_v1_{h64}|JWT|JWT
""".split()
VALUES, PASSWORDS = "{h32}|{h40}|{x24}|{x32}|{b40}", "{p9}7a|{host}{d3}!x|Tr0ub4dor{d2}*z"
CONTEXTS = {
    name: text.strip().splitlines()
    for name, text in {
        "email": """
Write to [].
Contact: [], or come by
Author: Jo Doe <[]>
<a href="mailto:[]">
([]), "email": "[]", user = '[]', Cc: []; the list
|[]|
Questions? []!
[]""",
        "ip": """
Connection from [] closed
host=[]
"ip": "[]"
ping []
mx ([]) deny [];
[] - - [10/Oct/2023:13:55:36] "GET /"
2024-01-02 03:04:05 [] 443 200""",
        "credit_card": """
Card number: [], exp. 09/27
paid with [].
pan=[]&cvv=123
VISA [] 12/26
"card": "[]\"""",
        "iban": """
IBAN: []
Please transfer to [] by Friday.
account [], BIC COBADEFFXXX
IBAN [] BIC
"iban":"[]\"""",
        "us_ssn": """
SSN: [-]
his number is [-]
SSN [ ].
social security number is []
ssn=[]
([-]), "ssn": "[-]\"""",
        "american": """
Call [] today.
Office: []
or [], ext. 12
Tel [] (days)
[] is my number
"phone": "[]\"""",
        "international": """
Call [] today.
WhatsApp: []
reach me at [], please
[]
href='tel:[]', ([])""",
        "national": """
Tel.: []
Phone: [].
phone number: [] (daily)
Fax [], or write
Telefon: []
Téléphone : []
Mobile: []
Telephone no. []
Hotline []""",
        "missed": "ring us on [] after six",
        "token": """
export TOKEN=[]
key: '[]'
Authorization: Bearer []
use [] here or ["[]"]""",
        "value": """
api_key = "[]"
API_KEY=[]
client_secret: '[]', "accessToken": "[]",
aws_secret_access_key = []
const apiKey = "[]";
auth_token: str = "[]"
?api_key=[]&page=2
<add key="ApiKey" value="[]"/>""",
        "password": """
password = "[]"
'passwd': '[]', "db_password": "[]", PASSWORD='[]'
postgres://tom:[]@db.{host}.com:5432/app""",
        "pem": """
KEY = '''[]'''
[]""",
    }.items()
}


def choose(r: random.Random, forms: list[str] | str) -> str:
    """One of the forms, which stand between bars, filled."""
    return fill(r, r.choice("|".join([forms] if isinstance(forms, str) else forms).split("|")))


def find_of(r: random.Random, kind: str) -> tuple[str, str]:
    """(the find, name of the contexts that it can stand in)."""
    if kind == "email":
        local, _, domain = choose(r, EMAILS).partition("@")
        return f"{local.title() if r.random() < 0.2 else local}@{domain.replace('ü', 'u').replace('í', 'i')}", kind
    if kind == "phone":
        forms = {"american": NORTH_AMERICAN, "international": INTERNATIONAL, "national": NATIONAL}
        forms["missed"] = ["020 7{d3} {d4}"]
        context = r.choices(list(forms), [40, 35, 22, 3])[0]
        return choose(r, forms[context]), context
    if kind == "us_ssn":
        context = r.choice(CONTEXTS[kind])
        return ssn(r, re.findall(r"\[(.?)\]", context)[0]), re.sub(r"\[.?\]", "[]", context)
    if kind == "secret":
        context = r.choices(["token", "value", "password", "pem"], [45, 30, 20, 5])[0]
        forms = {"token": TOKENS, "value": [VALUES], "password": [PASSWORDS], "pem": ["PEM"]}
        found = choose(r, forms[context])
        return {"JWT": jwt, "PEM": pem}.get(found, lambda _r: found)(r), context
    return {"ip": ip, "credit_card": card, "iban": iban}[kind](r), kind


def ip(r: random.Random) -> str:
    if r.random() < 0.4:
        v6 = "2001:4860:{h4}:1:2:3:4:{h4}|2a02:2f0:{h4}::{h3}|2606:4700::{h4}|2400:cb00:{h2}::1|2804:14c:1:{h4}::"
        return choose(r, v6)
    address = fill(r, "{n1-223}.{n0-255}.{n0-255}.{n1-254}")
    return address if ipaddress.ip_address(address).is_global and len(address) > 7 else ip(r)


def with_check_digit(body: str) -> str:
    """The body and its Luhn digit, by trying all ten."""
    for last in string.digits:
        doubled = [int(digit) * (1 + i % 2) for i, digit in enumerate(reversed(body + last))]
        if sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0:
            return body + last
    raise AssertionError


def card(r: random.Random) -> str:
    if r.random() < 0.15:
        number, sizes = with_check_digit(fill(r, r.choice(["34", "37"]) + "{d12}")), (4, 6, 5)
    else:
        prefix = r.choice("4 51 53 55 2230 2651 6011 65 3530 36 62".split())
        number, sizes = with_check_digit(fill(r, f"{prefix}{{d{15 - len(prefix)}}}")), (4, 4, 4, 4)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return r.choice(["", " ", " ", "-"]).join(number[end - size : end] for end, size in zip(ends, sizes, strict=True))


def wrong_card(r: random.Random) -> str:
    number = with_check_digit(fill(r, "4{d14}"))
    return number[:-1] + str((int(number[-1]) + r.randrange(1, 10)) % 10)


def iban(r: random.Random) -> str:
    body = choose(r, "DE{d18}|GB{u4}{d14}|FR{d10}{m11}{d2}|NL{u4}{d10}|NO{d11}|ES{d20}|CH{d17}|PL{d24}|MT{u4}{d23}")
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body[2:]}{body[:2]}00")) % 97
    compact = f"{body[:2]}{check:02d}{body[2:]}"
    return r.choice(["", " ", " "]).join(compact[i : i + 4] for i in range(0, len(compact), 4))


def ssn(r: random.Random, separator: str) -> str:
    area = r.choice([n for n in range(1, 900) if n != 666])
    return separator.join([f"{area:03d}", f"{r.randrange(1, 100):02d}", f"{r.randrange(1, 10000):04d}"])


def jwt(r: random.Random) -> str:
    parts = ['{"alg":"HS256","typ":"JWT"}', json.dumps({"sub": fill(r, "{d7}"), "exp": r.randrange(10**9)})]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + fill(r, ".{k42}x")


def pem(r: random.Random) -> str:
    kind = r.choice(["RSA ", "", "EC ", "OPENSSH "]) + "PRIVATE KEY"
    lines = "\n".join(fill(r, "{b64}") for _ in range(r.randrange(3, 9)))
    return f"-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----"


# --------------------------------------------------------------------------------------------------------- negatives

NEGATIVES = r"""
released in version {n1-19}.{n0-19}.{n0-19}.{n10-98}; pip install tool=={n0-9}.{n0-29}.{n0-29}.{n10-29}
Mozilla/5.0 (X11) Chrome/{n80-120}.0.{n0-9999}.{n0-250} Safari/537.36, Chrome/{n80-120}.{n1-9}.{n0-99}.{n0-250}
lib-{n10-98}.{n0-9}.2.10.tar.gz v{n0-9}.{n0-99}.{n0-99}.7, section {n1-9}.{n0-9}.{n0-9}.{n0-9}
see sections {n10-99}.2.4.{n10-99}
ISBN 978-{d1}-{d3}-{d5}-{d1}, ISBN-10 {d1}-{d3}-{d5}-{d1}, ISSN {d4}-{d4}
ISBN 978{d10} or {d10}, EAN 40{d11}
commit {sha} sha256:{h64} md5 {h32}
"id": "{uuid}", "request_token": "{uuid}"
{n1990-2030}-{n10-12}-{n10-28} {n10-23}:{n10-59}:{n10-59}.{d6}+0100
{n10-28}.{n10-12}.{n1950-2030} to {n1950-2030}/{n10-12}/{n10-28}
{n1-9999} {n1-99} {n1-9999} {n1-999} {n1-99999} {n1-9} {n1-999} {n1-9999} {n1-9999} {n1-9999}
{float}	{float}	{float}	{float}	{float}
| {d3} | {n200-999} {n200-999} {d4} {d3} | {d7} |
{n200-999} - {n200-999} - {d4} = {n0-9}; x = {n200-999}-{n200-999}-{n2000-9999} * 2
order 11{d1}-{d7}-{d7}, PO 45{d8}, item {d5}-{d4}
tracking number {d16} and {d12}, invoice no. {d8}
pi is 3.{d20}, e = {float}, +{n1000000-99999999}.{d2}, 0.{d16}
mac {h2}:{h2}:{h2}:{h2}:{h2}:{h2}, {h2}-{h2}-{h2}-{h2}-{h2}-{h2}
class A: @property def x(self): return self.a@self.b.T @functools.wraps(f)
git clone git@github.com:{host}/repo.git; scp bob@{host}.com:backup/a.tar .
npm i @{host}/core react@{n0-19}.2.0 lodash@4.17.21; import x from '@babel/plugin'
ssh://git@{host}.com/x.git and https://medium.com/@{first}.{last}/post
192.168.{n0-255}.{n0-255} 10.{n0-255}.3.4 127.0.0.1 0.0.0.0 203.0.113.{n0-255} 198.51.100.7 255.255.255.0
see 2001:db8::1, fe80::1, ::1 and std::vector, at 12:34:56, ab::cd 8.8.8.8
{first}@example.com, noreply@{host}.com, x@test.invalid, me@localhost, root@{host}.de
icon@2x.png icon@3x.jpg w = q@k.transpose(1) + v@w.weight, @{first}.{last} posted
CAS {n50-9999}-{d2}-{d1}, ZIP {d5}-{d4}, PMID {d8}
at 16{d11} ms, 16{d8} s; lat {n0-89}.{d7}, -{n0-179}.{d7}
<div class="sk-folding-cube sk-cube-parent-wrapper"></div> <i class="hf_left"> task-management-board-item-list-view-2
API_KEY = "your-api-key-here"; api_key="xxxxxxxxxxxxxxxx"; AWS_KEY="AKIAIOSFODNN7EXAMPLE"; password = "changeme123"
token = request.headers.get("X-Token"); csrf_token = "{{ csrf_token() }}"; secret = os.environ["SECRET_KEY_BASE_1"]
cache_key = "user-profile-settings-v2"; api_key: process.env.API_KEY_2; password: ${DB_PASSWORD_1}; passwd="$2"
<img src='data:image/png;base64,{b80}=='>
public_key = 'ssh-rsa {b80}' -----BEGIN PUBLIC KEY-----{b64}-----END PUBLIC KEY-----
card {wrongcard} declined; IBAN DE{d2} {d4} {d4} {d4} {d4} {d4} 0
000-{d2}-{d4}, 666-{d2}-{d4}, 9{d2}-{d2}-{d4} or 078-05-1120 or {d3}-00-{d4}
call 555-01{d2} in the film, (212) 555-01{d2}; a phone with 12345678 pixels in 2019-2020
he sold {n1-99} 000 000 shares, +{n2-99} 000 000 more, score 101-99-87, odds 3-2-4
@@ -{n1-999},7 +{n1-999},9 @@ x = +4294967296; y = (a)+{n1000000000-4294967296}*b; 1e+10000000
doi:10.{d4}/j.{d4}-{d4}.{d4}.{d5}.x arXiv:{d4}.{d5}
M{n0-9}.{d2} {n0-9}.{d2}c0 1.5.75.75 0 0 1-.22.53l{n0-9}.{d2} 12.4.84.32 0-1.2
part no. A-{d3}-{d2}-{d4}, EU VAT DE{d9}, plate B-XY {d4}, ICD F10.{d1}
""".strip().splitlines()


def corpus(seed: int, per_kind: int, kinds: tuple[str, ...]) -> list[Document]:
    """`per_kind` labelled finds of each kind and as many lines of hard negatives in all, shuffled, words between."""
    r = random.Random(seed)
    pieces = [piece for kind in kinds for _ in range(per_kind) for piece in [positive(r, kind)]]
    pieces += [(fill(r, r.choice(NEGATIVES)), "", "") for _ in range(per_kind * len(kinds))]
    r.shuffle(pieces)
    return [document(r, pieces[i : i + 8]) for i in range(0, len(pieces), 8)]


def positive(r: random.Random, kind: str) -> tuple[str, str, str]:
    """(a context with [] where the find goes, the find, its kind)."""
    found, context = find_of(r, kind)
    return fill(r, r.choice(CONTEXTS.get(context, [context]))), found, kind


def document(r: random.Random, pieces: list[tuple[str, str, str]]) -> Document:
    text, labels = "", []
    for context, found, kind in pieces:
        parts = context.split("[]") if kind else [context]
        text += parts[0]
        for part in parts[1:]:
            start = len(text.encode())
            text += found
            labels.append((start, len(text.encode()), kind))
            text += part
        filler = " ".join(r.choices(WORDS["line"], k=r.randrange(3, 25)))
        text += r.choice(["\n", "\n\n", ". ", " - "]) + filler + r.choice(["\n", ": ", ", "])
    return Document(text, labels)
