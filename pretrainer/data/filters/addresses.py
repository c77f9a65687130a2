"""One form for every way to write an address, for URL dedup and for the URL filter.

    http://www.Example.com:80/a/./b/?utm_source=x&b=2&a=1#top    ->    https://example.com/a/b?a=1&b=2

RFC 3986 section 6.2 (case, default ports, percent-encoding, dot segments), and rules of crawlers beyond it:
- http is https, and the ports 80 and 443 are left out; an address that begins with // or www. is https.
- User and password, the fragment and "www." before two labels or more are left out; www2. and m. stay.
- Hosts are ASCII by IDNA 2003 (Python's own codec, whose Unicode 3.2 no Python version changes).
- A slash at the end of a path is left out; alone it stays. Double slashes inside stay.
- Parameters that only track the visitor or hold his session are left out, the others sorted by name, in their order
  where a name comes twice. Names and values keep their case; "amp;" of a badly escaped & goes.
Anything else (ftp:, mailto:, a path, an id, an IPv6 address, a host that cannot be one) comes back as it is, without
blanks around and line ends inside.
"""

from __future__ import annotations

import re

import pyarrow as pa

from pretrainer.data.filters.normalise import as_large_string

_CONTROLS = "".join(map(chr, range(33)))
_LINE_ENDS = re.compile(r"[\t\r\n]")
_ADDRESS = re.compile(r"(?:https?:)?//([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?:.*@)?([^:@]+)(?::([0-9]{0,5}))?", re.DOTALL)
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_MAX_HOST_CHARS = 253
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})|(%|[^A-Za-z0-9._~!$&'()*+,;=:@/?%-]+)")
_DOT_SEGMENT = re.compile(r"/\.\.?(?=/|$)")
_SESSION = re.compile(r";(?:jsessionid|phpsessid)=[^/;]*", re.IGNORECASE)
_ESCAPED_AMPERSAND = re.compile(r"(?:amp;)+", re.IGNORECASE)
# Of Google, Microsoft, Meta, TikTok, X, Yandex, Matomo, HubSpot, Marketo, Mailchimp and AT Internet; session names of
# PHP, Java, ASP and ColdFusion. Names that often choose the content (id, sid, ref, source, s) are not among them.
_TRACKING = re.compile(
    r"utm_.*|(?:g|d|fb|ms|y|ys|tw|tt|rb_)clid|gclsrc|li_fat_id|[gw]braid|srsltid|_ga|_gl|_openstat|igsh(?:id)?"
    r"|fb_(?:action_ids|action_types|source|ref)|(?:mtm|pk|piwik|hsa|at)_(?:campaign|medium|source|kwd|keyword|cid)"
    r"|mc_[ce]id|mkt_tok|_hs(?:enc|mi)|__hs(?:tc|sc|fp)|hsctatracking|vero_(?:id|conv)|oly_(?:anon|enc)_id|xtor|s_cid"
    r"|(?:php|j|asp)?sess(?:ion)?_?id|aspsessionid.*|cf(?:id|token)",
    re.IGNORECASE,
)


def canonical_urls(urls: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """`canonical_url` of every entry."""
    return pa.array([canonical_url(url) for url in as_large_string(urls).to_pylist()], pa.large_string())


def canonical_url(url: str) -> str:
    """The one form of an address; idempotent, and no text makes it fail."""
    text = _LINE_ENDS.sub("", url).strip(_CONTROLS)
    parts = _ADDRESS.fullmatch("//" + text if text[:4].lower() == "www." else text)
    host = _host(parts[1]) if parts else None
    if parts is None or host is None:
        return text
    query = _query(parts[3]) if parts[3] else ""
    return f"https://{host}{_path(parts[2])}{'?' if query else ''}{query}"


def _host(authority: str) -> str | None:
    """Host and port; None where there is no host."""
    found = _AUTHORITY.fullmatch(authority)
    host = canonical_host(found[1]) if found else None
    if found is None or host is None:
        return None
    port = int(found[2] or 443)
    return host if port in (80, 443) else f"{host}:{port}"


def canonical_host(host: str) -> str | None:
    """A host in lower case and ASCII, without "www." and without a dot at the end; None where it can be none."""
    host = _encode(host) if "%" in host else host
    if len(host) > _MAX_HOST_CHARS + 1:
        return None
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    host = host.lower().rstrip(".")
    while host.startswith("www.") and "." in host[4:]:
        host = host[4:]
    return host if _HOST.fullmatch(host) else None


def _path(path: str) -> str:
    path = _SESSION.sub("", _encode(path))
    if _DOT_SEGMENT.search(path):
        path = _without_dots(path)
    return path.rstrip("/") or "/"


def _without_dots(path: str) -> str:
    """RFC 3986 section 5.2.4."""
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def _query(query: str) -> str:
    parts = [_ESCAPED_AMPERSAND.sub("", part, count=1) if part[:4].lower() == "amp;" else part
             for part in _encode(query).split("&")]  # fmt: skip
    named = [(part.partition("=")[0], part) for part in parts if part]
    kept = [(name, part) for name, part in named if not _TRACKING.fullmatch(name)]
    return "&".join(part for _name, part in sorted(kept, key=lambda pair: pair[0]))


def _encode(text: str) -> str:
    """Percent-encoding where it is needed and nowhere else, with upper-case digits."""
    return _ENCODED.sub(_encoded, text)


def _encoded(found: re.Match[str]) -> str:
    if found[1]:
        character = chr(int(found[1], 16))
        return character if _UNRESERVED.fullmatch(character) else found[0].upper()
    return "".join(f"%{byte:02X}" for byte in found[2].encode("utf-8", "surrogatepass"))
