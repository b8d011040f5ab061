"""In which script a text is written, so that a model that slips into another language is noticed."""

import unicodedata
from collections import Counter

MIN_LETTERS, MAX_DISTANCE, MIN_EXPECTED = 20, 0.5, 8
MARKED = "MARKED LATIN"  # ä, é, ñ ...: what tells many languages of the Latin script from English


def scripts_of(text: str) -> Counter[str]:
    """Letters by script: the first word of their Unicode names, Latin ones with marks apart."""
    counts = Counter[str]()
    for letter, count in Counter(filter(str.isalpha, text)).items():
        script = unicodedata.name(letter, "UNKNOWN").split()[0]
        counts[MARKED if script == "LATIN" and not letter.isascii() else script] += count
    return counts


def drift(text: str, control: str) -> str | None:
    """How the letters of `text` differ from those of the control's answer to the same prompt, or None.

    Either half of the letters or more are of other scripts (total variation distance over 0.5), or marked Latin letters
    that the other answer's rate lets expect 8 times or more are missing. Of under 20 letters nothing is said.
    """
    actual, expected = scripts_of(text), scripts_of(control)
    n_actual, n_expected = actual.total(), expected.total()
    if min(n_actual, n_expected) < MIN_LETTERS:
        return None
    gains = {script: actual[script] / n_actual - expected[script] / n_expected for script in {*actual, *expected}}
    if sum(gain for gain in gains.values() if gain > 0) > MAX_DISTANCE:
        return f"{min(gains, key=lambda script: gains[script])} became {max(gains, key=lambda script: gains[script])}"
    rate_actual, rate_expected = actual[MARKED] / n_actual, expected[MARKED] / n_expected
    if not actual[MARKED] and rate_expected * n_actual >= MIN_EXPECTED:
        return f"no more {MARKED}"
    if not expected[MARKED] and rate_actual * n_expected >= MIN_EXPECTED:
        return f"new {MARKED}"
    return None
