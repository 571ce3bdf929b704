"""Words to read: pronounceable ones and random letters, split by hash, so that no test word is ever trained on."""

import random
import zlib

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ONSETS = ("B", "C", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "QU", "R", "S", "T", "V", "W", "X", "Y", "Z")
ONSETS += ("BR", "CH", "CL", "DR", "FL", "GR", "PL", "PR", "SH", "SP", "ST", "TH", "TR", "")
VOWELS = ("A", "E", "I", "O", "U", "AI", "EA", "EE", "OO", "OU", "Y")
CODAS = ("", "", "", "N", "R", "S", "T", "L", "M", "CK", "ND", "NG", "RD", "ST", "X", "Z", "B", "G")


def draw_word(rng: random.Random, held_out: bool) -> str:
    """A word of 3 to 8 capital letters. One word in eight, by its CRC-32, is held out from training."""
    while True:
        length = rng.randint(3, 8)
        word = "".join(rng.choices(LETTERS, k=length)) if rng.random() < 0.5 else _pronounceable(rng, length)
        if is_held_out(word) == held_out:
            return word


def is_held_out(word: str) -> bool:
    return zlib.crc32(word.encode()) % 8 == 0


def _pronounceable(rng: random.Random, length: int) -> str:
    word = ""
    while len(word) < length:
        word += rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    return word[:length]
