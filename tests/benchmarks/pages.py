"""Made-up web pages whose main text is known: prose of the standard library inside the furniture of web sites.

They are synthetic. Layouts follow what news sites, blogs, shops, forums and old table pages do (navigation, cookie
banner, byline, share buttons, related stories, sidebar, comments, footer), with and without telling class names, but
real pages are messier: use the figures to compare extractors with each other, not to predict F1 on a crawl.
"""

from __future__ import annotations

import html
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

MODULES = (
    "argparse", "asyncio", "ast", "base64", "calendar", "codecs", "collections", "concurrent.futures", "configparser",
    "contextlib", "csv", "ctypes", "datetime", "decimal", "difflib", "doctest", "email", "enum", "fractions", "ftplib",
    "functools", "gettext", "hashlib", "heapq", "html", "http.client", "http.cookiejar", "imaplib", "inspect", "io",
    "ipaddress", "json", "locale", "logging", "mailbox", "multiprocessing", "optparse", "os", "pathlib", "pdb",
    "pickle", "pickletools", "platform", "pprint", "random", "sched", "shelve", "smtplib", "socket", "socketserver",
    "sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "traceback", "turtle", "typing", "unittest", "unittest.mock", "urllib.parse", "urllib.request", "uuid",
    "warnings", "wave", "weakref", "xml.dom.minidom", "xml.etree.ElementTree", "xmlrpc.client", "zipfile",
)  # fmt: skip
NAV = ("Home", "World", "Business", "Technology", "Science", "Culture", "Opinion", "Sports", "Weather", "Podcasts",
       "Newsletters", "Jobs", "Archive", "About us", "Contact", "Subscribe", "Sign in", "Videos", "Live")  # fmt: skip
COOKIES = "We and our 843 partners store and access information on your device to give you the best experience. " \
          "By clicking accept you agree to the use of cookies as described in our privacy policy."
FOOTER = "Terms of service", "Privacy policy", "Cookie settings", "Advertise with us", "Accessibility", "RSS", "Imprint"
NAMES = "Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Margaret", "Dennis", "Frances", "Ken"
OPINIONS = ("This is wrong in so many ways, has the author ever used it in practice?", "Great article, thanks a lot!",
            "I have been saying this for years and nobody would listen to me.", "First!", "Source please.",
            "My neighbour does this all day long and earns more than you would believe.")  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A page and what a reader would call its text."""

    html: str
    text: str


def paragraphs() -> list[str]:
    """Prose of at least 80 characters from docstrings of the standard library, each once."""
    found: dict[str, None] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        members = [module, *(value for _, value in sorted(vars(module).items()) if inspect.isclass(value))]
        functions = [value for member in members for value in vars(member).values() if inspect.isfunction(value)]
        for member in [*members, *functions]:
            for block in re.split(r"\n\s*\n", inspect.getdoc(member) or ""):
                words = " ".join(block.split())
                is_prose = len(words) >= 80 and words[0].isupper() and words[-1] in ".:" and ">>>" not in words
                if is_prose and words.count("(") < 4:
                    found[words] = None
    return list(found)


def page(number: int, prose: list[str]) -> Page:
    """Page `number`: its layout, length and furniture are functions of the number."""
    random = Random(number)
    layout = LAYOUTS[number % len(LAYOUTS)]
    title, blocks = _title(random, prose), _article(random, prose)
    text = "\n".join([title, *(text for _, text in blocks)])
    return Page(layout(random, prose, title, "\n".join(markup for markup, _ in blocks)), text)


def _title(random: Random, prose: list[str]) -> str:
    return " ".join(random.choice(prose).split()[: random.randint(5, 10)]).rstrip(".,:")


def _article(random: Random, prose: list[str]) -> list[tuple[str, str]]:
    """(markup, text) of the blocks of an article."""
    blocks = [_paragraph(random, prose)]
    for _ in range(random.choice((2, 3, 5, 8, 12, 20))):
        kind = random.random()
        if kind < 0.1:
            heading = _title(random, prose)
            blocks.append((f"<h2>{html.escape(heading)}</h2>", heading))
        elif kind < 0.16:
            items = [_title(random, prose) for _ in range(random.randint(2, 5))]
            blocks.append((f"<ul>{_items(items)}</ul>", "\n".join(items)))
        elif kind < 0.22:
            blocks.append((f"<blockquote><p>{html.escape(quote := random.choice(prose))}</p></blockquote>", quote))
        blocks.append(_paragraph(random, prose))
    return blocks


def _items(texts: list[str]) -> str:
    return "".join(f"<li>{html.escape(text)}</li>" for text in texts)


def _paragraph(random: Random, prose: list[str]) -> tuple[str, str]:
    words = " ".join(random.sample(prose, random.randint(1, 3))).split()
    marked = [html.escape(word) for word in words]
    for _ in range(random.choice((0, 0, 1, 2))):
        at = random.randrange(len(words))
        tag = random.choice(('a href="/topic/{}"', "b", "em", "code"))
        marked[at] = f"<{tag.format(at)}>{marked[at]}</{tag.split()[0]}>"
    return f"<p>{' '.join(marked)}</p>", " ".join(words)


def _links(random: Random, texts: list[str] | tuple[str, ...], tag: str = "li") -> str:
    return "".join(f'<{tag}><a href="/{random.randrange(10**6)}">{html.escape(text)}</a></{tag}>' for text in texts)


def _teasers(random: Random, prose: list[str], count: int, tag: str, name: str) -> str:
    """Related stories: a linked title, a date and the beginning of a text."""
    cards = []
    for _ in range(count):
        title, date = _title(random, prose), f"{random.randint(1, 28)} May 2024"
        teaser = " ".join(random.choice(prose).split()[:18]) + " ..."
        cards.append(f'<{tag} class="{name}"><h3><a href="/s/{random.randrange(10**6)}">{html.escape(title)}</a></h3>'
                     f"<span>{date}</span><p>{html.escape(teaser)}</p><a href='#'>Read more</a></{tag}>")
    return "".join(cards)


def _head(title: str) -> str:
    script = "var dataLayer=[];function track(a,b){if(a<b){dataLayer.push({'x':a})}}" * 8
    style = ".nav{margin:0;padding:0}.a>b{color:#fff}" * 30
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)} | The Daily Page'
            f'</title><meta name="viewport" content="width=device-width"><style>{style}</style>'
            f"<script>{script}</script></head>")  # fmt: skip


def _byline(random: Random) -> str:
    name = random.choice(NAMES)
    return f'<div class="byline">By <a href="/author/{name}">{name} Page</a> | Published 3 May 2024, 10:03</div>'


def _share() -> str:
    places = "".join(f"<li><a href='#'>Share on {name}</a></li>" for name in ("X", "Mail", "Chat"))
    return f'<ul class="share">{places}</ul>'


def _comments(random: Random, tag: str = "div", name: str = "comments") -> str:
    entries = "".join(f'<{tag} class="comment"><b>{random.choice(NAMES)}</b><p>{random.choice(OPINIONS)}</p>'
                      f"<a href='#'>Reply</a></{tag}>" for _ in range(random.randint(2, 12)))  # fmt: skip
    return f'<div id="{name}"><h3>Comments</h3>{entries}</div>'


def _semantic(random: Random, prose: list[str], title: str, body: str) -> str:
    """HTML5 elements that say what they are."""
    return (f"{_head(title)}<body><div class='cookie-banner'><p>{COOKIES}</p><button>Accept</button></div>"
            f"<header><nav><ul>{_links(random, NAV)}</ul></nav></header><main><article><h1>{html.escape(title)}</h1>"
            f"{_byline(random)}{_share()}<figure><img src='a.jpg'><figcaption>A photo of a page. Credit: Agency"
            f"</figcaption></figure>{body}</article><aside><h2>Most read</h2>"
            f"{_teasers(random, prose, 5, 'div', 'card')}</aside>{_comments(random, 'section')}</main><footer><ul>"
            f"{_links(random, FOOTER)}</ul><p>(c) 2024 The Daily Page. All rights reserved.</p></footer>"
            f"</body></html>")  # fmt: skip


def _named(random: Random, prose: list[str], title: str, body: str) -> str:
    """div elements with telling class names."""
    return (f"{_head(title)}<body><div id='header'><div class='menu'>{_links(random, NAV, 'span')}</div></div>"
            f"<div class='wrapper'><div class='sidebar'><h4>Newsletter</h4><p>Get the best stories every morning in"
            f" your inbox. You can leave at any time.</p><form><input type='email'><button>Sign up</button></form>"
            f"{_teasers(random, prose, 4, 'div', 'widget')}</div><div class='content'><div class='post-title'><h1>"
            f"{html.escape(title)}</h1></div>{_byline(random)}<div class='entry-content'>{body}</div><div class='tags'>"
            f"Tags: {_links(random, NAV[3:8], 'span')}</div><div class='related-posts'><h3>You may also like</h3>"
            f"{_teasers(random, prose, 3, 'div', 'related')}</div>{_comments(random)}</div></div><div class='footer'>"
            f"{_links(random, FOOTER, 'span')}</div></body></html>")  # fmt: skip


def _nameless(random: Random, prose: list[str], title: str, body: str) -> str:
    """Class names of a bundler, which say nothing."""
    return (f"{_head(title)}<body><div class='x1a'><div class='q7'>{_links(random, NAV, 'div')}</div></div>"
            f"<div class='x1b'><div class='k2'><h1>{html.escape(title)}</h1><div class='k3'>By {random.choice(NAMES)}, "
            f"5 min read</div><div class='k4'>{body}</div><div class='k5'>"
            f"{_teasers(random, prose, 4, 'div', 'k6')}</div></div><div class='x1c'>"
            f"<div class='k8'>Popular now</div>{_teasers(random, prose, 6, 'div', 'k9')}</div>"
            f"</div><div class='x1d'>{_links(random, FOOTER, 'div')}<div>All rights reserved. The Daily Page is not "
            f"responsible for the content of external sites.</div></div><div class='z9'>{COOKIES}<button>OK</button>"
            f"</div></body></html>")  # fmt: skip


def _table(random: Random, prose: list[str], title: str, body: str) -> str:
    """A layout of tables, as around 2000."""
    return (f"{_head(title)}<body><table width='100%'><tr><td colspan=2>{_links(random, NAV, 'font')}</td></tr><tr>"
            f"<td width=150 valign=top><font size=2>{'<br>'.join(NAV)}<br><br>Visitors: 12345</font></td><td><font"
            f" size=5>{html.escape(title)}</font><br>{body}<hr><font size=1>Last changed in May 2001. Best viewed with"
            f" 800x600. Webmaster: <a href='mailto:w@example.com'>mail</a></font></td></tr></table></body></html>")


def _index(random: Random, prose: list[str], title: str, body: str) -> str:
    """An article between long lists of links."""
    return (f"{_head(title)}<body><nav>{_links(random, NAV, 'div')}</nav><ul class='topics'>"
            f"{_links(random, [_title(random, prose) for _ in range(40)])}</ul><div role='main'><h1>"
            f"{html.escape(title)}</h1>{body}</div>"
            f"<ul class='more'>{_links(random, [_title(random, prose) for _ in range(60)])}</ul>"
            f"<footer>{_links(random, FOOTER, 'span')}</footer></body></html>")  # fmt: skip


def _plain(random: Random, prose: list[str], title: str, body: str) -> str:
    """A personal page with nothing but its text."""
    shown = html.escape(title)
    return f"<html><head><title>{shown}</title></head><body><h1>{shown}</h1>{body}</body></html>"


def _app(random: Random, prose: list[str], title: str, body: str) -> str:
    """A single-page application as its server renders it: deep div elements around everything."""
    return (f"{_head(title)}<body><div id='__next'>{'<div>' * 12}<div>{_links(random, NAV[:8], 'span')}</div>"
            f"<div><div><div><h1>{html.escape(title)}</h1></div></div><div><div>{body}</div></div></div>"
            f"<div><div>{_teasers(random, prose, 3, 'div', '')}</div></div>{'</div>' * 12}<div>{COOKIES}</div></div>"
            f"<script id='__DATA__' type='application/json'>{html.escape(body)}</script></body></html>")  # fmt: skip


LAYOUTS: tuple[Callable[[Random, list[str], str, str], str], ...] = (
    _semantic, _named, _nameless, _table, _index, _plain, _app,
)  # fmt: skip
