"""Limits written as text: similarity>=0.28, for documents of one language similarity[zh]>=0.26; and language tags."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pretrainer.errors import ConfigError

_LIMIT = re.compile(r"([\w.-]+)(?:\[([\w-]+)\])?\s*(>=|<=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)")

# ISO 639-2 codes of three letters (both sets) with the two-letter code of ISO 639-1 behind, then what FineWeb-2, HPLT
# and NLLB write for the chief member of a macro-language, then codes that were withdrawn.
_CODES = """
aaraa abkab afraf akaak albsq amham araar argan armhy asmas avaav aveae aymay azeaz bakba bambm baqeu belbe
benbn bihbh bisbi bodbo bosbs brebr bulbg burmy catca cescs chach chece chizh chucu chvcv corkw cosco crecr
cymcy czecs danda deude divdv dutnl dzodz ellel engen epoeo estet euseu eweee faofo fasfa fijfj finfi frafr
frefr fryfy fulff geoka gerde glagd glega glggl glvgv greel grngn gujgu hatht hauha hebhe herhz hinhi hmoho
hrvhr hunhu hyehy iboig iceis idoio iiiii ikuiu ileie inaia indid ipkik islis itait javjv jpnja kalkl kankn
kasks katka kaukr kazkk khmkm kikki kinrw kirky komkv konkg korko kuakj kurku laolo latla lavlv limli linln
litlt ltzlb lublu luglg macmk mahmh malml maomi marmr mayms mkdmk mlgmg mltmt monmn mrimi msams myamy nauna
navnv nblnr ndend ndong nepne nldnl nnonn nobno norno nyany ocioc ojioj orior ormom ossos panpa perfa plipi
polpl porpt pusps quequ rohrm ronro rumro runrn rusru sagsg sansa sinsi slksk slosk slvsl smese smosm snasn
sndsd somso sotst spaes sqisq srdsc srpsr sswss sunsu swasw swesv tahty tamta tattt telte tgktg tgltl thath
tibbo tirti tonto tsntn tsots tuktk turtr twitw uigug ukruk urdur uzbuz venve vievi volvo welcy wlnwa wolwo
xhoxh yidyi yoryo zhaza zhozh zulzu
cmnzh arbar ekket lvslv zsmms pesfa swhsw npine oryor azjaz khkmn uznuz pltmg kmrku yddyi filtl
""".split()
_TAGS = {code[:3]: code[3:] for code in _CODES} | {"iw": "he", "in": "id", "ji": "yi", "nb": "no"}


class Limit(NamedTuple):
    """A value passes that is at least (or at most) `limit`; `language` None stands for every other language."""

    name: str
    language: str | None
    is_least: bool
    limit: float


def parse_limit(text: str, field: str) -> Limit:
    """ConfigError about a field where the text is no limit."""
    found = _LIMIT.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError
        language = language_tag(found[2]) if found[2] else None
        return Limit(found[1], language, found[3] == ">=", float(found[4]))
    except ValueError:
        raise ConfigError(
            f"{field}={text!r} is not possible: write a name, >= or <=, and a number, for example similarity>=0.28 or, "
            "for one language, similarity[zh]>=0.26"
        ) from None


def parse_limits(texts: Iterable[str], field: str) -> tuple[Limit, ...]:
    """Limits that go together. ConfigError also where two of them are for the same values."""
    limits: dict[tuple[str, str | None, bool], Limit] = {}
    for text in texts:
        limit = parse_limit(text, field)
        if limit[:3] in limits:
            raise ConfigError(f"{field}={text!r} is not possible: there is another such limit, so remove one")
        limits[limit[:3]] = limit
    return tuple(limits.values())


def language_tag(text: str) -> str:
    """A source's word for a language as the two-letter code where there is one: zh-CN, zho, cmn_Hani and ZH are zh.

    Regions and scripts do not count, and of a list the first language does. Other words come back in lower case.
    """
    first = re.split(r"[-_,;\s]", text.strip().lower(), maxsplit=1)[0]
    return _TAGS.get(first, first)
