"""Captions to words as the COCO caption evaluation has them: Penn Treebank tokens, lower case, without punctuation."""
import re

_DROPPED = {"''", "'", "``", "`", "\"", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
# Brackets stay: the official list of punctuation has their names in capitals, after the text was made small.
_NAMES = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-"}
_SPLIT = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "lemme": "lem me", "gimme": "gim me"}
_TOKEN = re.compile(r"""
    \d+(?:[.,:/-]\d+)+(?:th|st|nd|rd|s)?(?:-\w+)*            # 1,000  3.5  10:30  1/2  3.5-ton
  | '\d\ds? | '[a-z]'                                        # '80s  'n'
  | (?:[a-z]\.){2,}                                          # u.s.
  | \b(?:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|ave)\. | \bno\.(?=\s*\d)
  | \w+(?:[-/.@&'’]\w+)*                                     # words, also with marks inside
  | \.{2,} | -{2,} | \S
    """, re.VERBOSE)
_CLITIC = re.compile(r"^(.+?)(n['’]t|['’](?:s|re|ve|ll|d|m))$")


def tokenize(caption):
    """list of words of a caption.

    Agrees with Stanford's tokenizer, which the official evaluation runs in Java, on all captions of the test's list.
    """
    words = []
    for token in _TOKEN.findall(caption.lower()):
        match = _CLITIC.match(token)
        words += [match[1], match[2]] if match else _SPLIT.get(token, token).split()
    return [_NAMES.get(word, word) for word in words if word not in _DROPPED]
