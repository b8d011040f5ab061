"""Samples that came before are known, and the built-in mix has none."""

import re

from hypothesis import given
from hypothesis import strategies as st

from ggufreap.corpus.default import DEFAULT_SOURCES
from ggufreap.corpus.duplicates import Seen

SPEC = re.compile(
    r"(?P<domain>[a-z]+)=(?P<name>[\w.-]+/[\w.-]+)(?P<subset>\[[\w.]+\])?\((?P<split>\w+)\):(?P<n>[1-9]\d*)"
)


@given(st.lists(st.text(), max_size=20))
def test_a_text_is_new_once(texts: list[str]) -> None:
    seen = Seen()
    folded = [" ".join(text.split()) for text in texts]
    assert [seen.add(text) for text in texts] == [text not in folded[:index] for index, text in enumerate(folded)]


def test_only_white_space_is_folded() -> None:
    seen = Seen()
    assert seen.add("a b\n")
    assert not seen.add("\ta  b")
    assert seen.add("ab")
    assert seen.add("A b")


def test_the_built_in_mix_follows_the_grammar() -> None:
    parts = [SPEC.fullmatch(spec) for spec in DEFAULT_SOURCES]
    assert all(parts)
    assert len({(part["name"], part["subset"], part["split"]) for part in parts if part}) == len(DEFAULT_SOURCES)
