"""Built-in lists of words for the toxicity filter, by language. DATA: offensive words follow, one per line.

Written for this package, from no other list. It has vulgar and sexual words and slurs with their common forms, and only
those that mean little else, so that a share of them says something: medical and anatomical words, words of identity,
mild swearing and words with a harmless meaning (cock, dick, ass, queer) are left out. It knows no spelling with digits
or asterisks, no irony and no hostility in plain words, and texts about abuse, law, health or in dialect score higher
than they should. A module and not a data file, so that a change of it is a change of the
run's code version.
"""

from __future__ import annotations

from collections.abc import Mapping


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


WORD_LISTS: Mapping[str, tuple[str, ...]] = {
    "en": _lines(
        """
        anal sex
        arsehole
        arseholes
        asshole
        assholes
        assfuck
        ass fuck
        bareback sex
        beaner
        beaners
        blow job
        blow jobs
        blowjob
        blowjobs
        bukkake
        bullshit
        bullshitting
        butt plug
        buttfuck
        camel toe
        cameltoe
        circle jerk
        circlejerk
        clusterfuck
        cocksucker
        cocksuckers
        cocksucking
        creampie porn
        cum shot
        cumshot
        cumshots
        cumslut
        cunt
        cunts
        darkies
        deepthroat
        dickhead
        dickheads
        dildo
        dildos
        dipshit
        dumbass
        dumbasses
        faggot
        faggots
        faggy
        fingerfuck
        fuck
        fucked
        fucker
        fuckers
        fuckface
        fuckhead
        fuckin
        fucking
        fucks
        fucktard
        fuckwit
        gang bang
        gangbang
        gangbanged
        gangbangs
        gloryhole
        golden shower
        gook
        gooks
        group sex
        hand job
        handjob
        handjobs
        hardcore porn
        hentai
        horseshit
        jackoff
        jerk off
        jerking off
        jigaboo
        jigaboos
        jizz
        kike
        kikes
        milf
        milfs
        motherfucker
        motherfuckers
        motherfucking
        muff diver
        nigga
        niggas
        nigger
        niggers
        nympho
        paki bastard
        pedo porn
        porn
        porno
        pornos
        porn star
        porn stars
        pussies
        pussy licking
        raghead
        ragheads
        retard
        retards
        rimjob
        sand nigger
        sex slave
        sex tape
        sex toys
        shemale
        shemales
        shit
        shithead
        shitheads
        shithole
        shits
        shitted
        shitting
        shitty
        slut
        sluts
        slutty
        son of a bitch
        spic
        spics
        strap on dildo
        threesome sex
        tit fuck
        titfuck
        titties
        titty
        towelhead
        towelheads
        tranny
        trannies
        twat
        twats
        upskirt
        wank
        wanker
        wankers
        wanking
        wetback
        wetbacks
        whore
        whores
        wigger
        xxx porn
        xxx videos
        """
    )
}
