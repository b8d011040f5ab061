"""Whether a text goes round in circles, as models do whose pruning went too far."""

import re
import zlib
from collections import Counter
from itertools import groupby

N_GRAM, MIN_UNIQUE, MIN_GRAMS = 4, 0.55, 20
LINE_CHARS, MAX_LINES = 15, 3
MAX_WORDS = 4
TAIL_BYTES, MIN_BYTES, MIN_ZLIB = 4000, 256, 0.12
# Words as spaces part them; Chinese and Japanese have none, so their characters stand for words.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def signs_of_looping(text: str) -> tuple[str, ...]:
    """What is repeated: none in ordinary text.

    `4-grams`: under 55 % of the 4-grams of words are unique (of 20 or more); `line`: one of over 15 characters comes 4
    times or more; `word`: one comes 5 times or more in a row; `zlib`: the text packs to under 12 %, see `zlib_ratio`.
    """
    words = WORD.findall(text)
    grams = [tuple(words[start : start + N_GRAM]) for start in range(len(words) - N_GRAM + 1)]
    lines = Counter(line.strip() for line in text.splitlines() if len(line.strip()) > LINE_CHARS)
    runs = [len(list(run)) for word, run in groupby(words) if any(map(str.isalpha, word))]
    signs = {
        "4-grams": len(grams) >= MIN_GRAMS and len(set(grams)) < MIN_UNIQUE * len(grams),
        "line": max(lines.values(), default=0) > MAX_LINES,
        "word": max(runs, default=0) > MAX_WORDS,
        "zlib": zlib_ratio(text) < MIN_ZLIB,
    }
    return tuple(sign for sign, is_there in signs.items() if is_there)


def zlib_ratio(text: str) -> float:
    """Packed bytes per byte of the last 4,000 bytes, about 1,000 tokens; 1 for under 256 bytes, which say little."""
    data = text.encode(errors="replace")[-TAIL_BYTES:]
    return len(zlib.compress(data, 9)) / len(data) if len(data) >= MIN_BYTES else 1.0
