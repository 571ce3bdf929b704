"""How right a text is, given the accepted ones: exact match, character error rate, ANLS and CIDEr-D.

Text is compared in Unicode's composed form (NFC), each run of blanks as one space, none at the ends: `tidy`. Whether
case counts is the metric's own affair. Light: the plan imports it for the names.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

METRICS = ("exact", "cer", "anls", "cider")
ANLS_THRESHOLD = 0.5
ORDERS, SIGMA, SCALE = 4, 6.0, 10.0  # of CIDEr-D: words in the longest n-gram, width of the penalty, best score
_CLOSING = ".,;:!?"

Vector = Mapping[tuple[str, ...], float]


def tidy(text: str) -> str:
    """NFC, blanks as single spaces; case and marks as they are."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def folded(text: str) -> str:
    """As `tidy`, without case."""
    return tidy(tidy(text).casefold())


def short_answer(text: str) -> str:
    """As `folded`, without closing marks ("Yes." is "yes"), unless the text is nothing else."""
    return folded(text).rstrip(_CLOSING + " ") or folded(text)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: the least number of characters inserted, deleted or replaced to make one text of the other.

    A column of the usual table is two integers of as many bits as `first` has characters, where it rises and where it
    falls (Hyyrö 2003, after Myers 1999): one step a character of `second`, not one a pair of characters.
    """
    if first == second:
        return 0
    if not first or not second:
        return len(first) + len(second)
    whole = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    places: dict[str, int] = {}
    for index, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << index
    rises, falls, distance = whole, 0, len(first)
    for character in second:
        equal = places.get(character, 0)
        diagonal = ((((equal & rises) + rises) ^ rises) | equal) & whole
        up = falls | (whole & ~(diagonal | rises))
        down = rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & whole, down << 1 & whole
        rises, falls = down | (whole & ~(equal | falls | up)), up & (equal | falls)
    return distance


def character_errors(answer: str, accepted: Iterable[str]) -> tuple[int, int]:
    """(edits, characters) against the accepted text with the lowest rate; case and marks count.

    Characters are of the accepted text, after `tidy`, and 1 at least. The rate of many answers is all edits divided by
    all characters, as usual for OCR; it is 0 where all are equal and has no upper bound.
    """
    said = tidy(answer)
    found = []
    for text in map(tidy, accepted):
        found.append((edit_distance(said, text), max(len(text), 1)))
    return min(found, key=lambda each: each[0] / each[1])


def character_error_rate(answer: str, accepted: Iterable[str]) -> float:
    """Edits divided by characters (see character_errors): 0 where equal."""
    edits, characters = character_errors(answer, accepted)
    return edits / characters


def anls(answer: str, accepted: Iterable[str]) -> float:
    """A question's share of the average normalised Levenshtein similarity, from 0 to 1, without case.

    1 - d / max(lengths) with the accepted answer that is nearest, and 0 where d / max(lengths) is not below 0.5: a slip
    of the pen costs a little, another answer all (Biten et al. 2019, arXiv:1907.00490; as in DocVQA).
    """
    said = folded(answer)
    distances = (edit_distance(said, text) / max(len(said), len(text), 1) for text in map(folded, accepted))
    nearest = min(distances)
    return 1 - nearest if nearest < ANLS_THRESHOLD else 0.0


def words_of(caption: str) -> list[str]:
    """A caption's words without case; marks and symbols part words, but for an apostrophe inside one. Where a script
    writes no blanks (Han, kana), each character is a word."""
    words, word = [], ""
    text = folded(caption)
    for index, character in enumerate(text):
        inside = character in "'’" and word and text[index + 1 : index + 2].isalnum()
        if _alone(character) or (not inside and unicodedata.category(character)[0] not in "LMN"):
            words += [word, character if _alone(character) else ""]
            word = ""
        else:
            word += "'" if inside else character
    return [each for each in [*words, word] if each]


class Cider:
    """CIDEr-D of captions: how much of what people say of this image, and not of every image, a caption says.

    Vedantam et al. 2015, arXiv:1411.5726, section 4: for n-grams of 1 to 4 words the cosine of tf-idf vectors, counts
    clipped to the reference's, with a Gaussian penalty (sigma 6) on the difference in words; the mean over n, over the
    references, times 10. Words are parted by `words_of`, not by the Penn Treebank's rules.
    """

    def __init__(self, corpus: Sequence[Sequence[str]]):
        """corpus: of each image, the captions written by people. How rare an n-gram is, is counted in images."""
        self._total = math.log(len(corpus)) if corpus else 0.0
        self._images: Counter[tuple[str, ...]] = Counter()
        for captions in corpus:
            self._images.update({gram for caption in captions for gram in _grams(words_of(caption))})

    def score(self, answer: str, references: Sequence[str]) -> float:
        """From 0 to 10. A caption of fewer than four words has no long n-grams, and reaches less."""
        said, length = self._vectors(answer)
        total = 0.0
        for reference in references:
            true, wanted = self._vectors(reference)
            penalty = math.exp(-((length - wanted) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(map(_similarity, said, true)) / ORDERS
        return SCALE * total / len(references)

    def _vectors(self, caption: str) -> tuple[list[Vector], int]:
        """By n the weight of each n-gram, its count times log(images / images with it); and the number of words."""
        words = words_of(caption)
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for gram, count in Counter(_grams(words)).items():
            vectors[len(gram) - 1][gram] = count * (self._total - math.log(max(1, self._images[gram])))
        return list(vectors), len(words)


def _grams(words: list[str]) -> Iterable[tuple[str, ...]]:
    for order in range(1, ORDERS + 1):
        yield from zip(*(words[start:] for start in range(order)), strict=False)


def _similarity(said: Vector, true: Vector) -> float:
    """The cosine of two vectors, the first clipped to the second; 0 where either has no weight."""
    lengths = math.hypot(*said.values()) * math.hypot(*true.values())
    if not lengths:
        return 0.0
    return min(
        sum(min(weight, true.get(gram, 0.0)) * true.get(gram, 0.0) for gram, weight in said.items()) / lengths, 1.0
    )


def _alone(character: str) -> bool:
    """Whether the character is a word: Han, hiragana or katakana."""
    return (
        "\u3040" <= character <= "\u30ff"
        or "\u3400" <= character <= "\u9fff"
        or "\U00020000" <= character <= "\U0003ffff"
    )
