"""Function words: those of English, and telling ones of languages that a teacher may slip into."""

from __future__ import annotations

_ENGLISH_TEXT = """
a about above across after again against all along also although am among an and another any
are around as at away be because been before behind being below beneath beside between beyond
both but by can cannot cant could did do does doing done down during each either else enough
even every few for from had has have having he her here hers herself him himself his how
however i if in inside instead into is isnt it its itself just less like may me might more
most much must my near neither no nor not now of off on once one only onto or other others
our ours out over own per rather same shall she should since so some something still such
than that thats the their theirs them themselves then there therefore these they this those
though through thus to together too toward towards under unless until up upon us very was we
were what when where whether which while who whom whose why will with within without would
yet you your yours
"""
ENGLISH = frozenset(_ENGLISH_TEXT.split())
"""Articles, pronouns, prepositions, conjunctions, auxiliaries and adverbs that carry no content,
as `normalize_text` writes them."""

_FOREIGN_TEXT = """
auch auf aus das dem ein eine einem einen einer eines ich ist keine mit nicht sich sind über
und wird zum zur
aux avec cette dans elle est et mais pas pour que qui ses sont sur un une
como con está esta muy para por sin su sus una
alla anche che della delle gli nel nella questo sono è
em não mais seu sua são uma
aan bij deze een het maar naar niet ook voor wordt zijn
av det ett ikke inte och og på som är
jest nie oraz się który która
bir için olan ve
adalah dengan untuk yang
của là một và
"""
FOREIGN = frozenset(_FOREIGN_TEXT.split())
"""German, French, Spanish, Italian, Portuguese, Dutch, Scandinavian, Polish, Turkish, Indonesian
and Vietnamese, a line each. Left out is what English has too (`in`, `was`, `per`) and what names of
people and places carry (`de`, `la`, `van`, `von`, `el`)."""
