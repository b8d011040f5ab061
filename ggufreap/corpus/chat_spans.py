"""What the assistant said in a rendered conversation, as spans of characters.

A chat template tells nobody where its messages lie, so it is asked about parts of the conversation. The first way that
holds: the first n messages rendered alone are how the whole begins; the template itself marks what the assistant says
(`{% generation %}`); the conversation is rendered once more with marks around what is said; what is said is looked up.
Past reasoning is what the first way stumbles on: many templates leave it out once the user has answered.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from ggufreap.corpus.samples import Unusable

Spans = tuple[tuple[int, int], ...]
Messages = Sequence[Mapping[str, Any]]
View = tuple[int, bool, bool]  # the first n messages; with the generation prompt; marked where {% generation %} is
Render = Callable[[Messages, Sequence[View]], Sequence[str | None]]
Parts = Mapping[tuple[int, bool], str | None]  # (n, with the generation prompt) -> text

GENERATION = "\ufdd0", "\ufdd1"  # noncharacters, which no text has
_MARK = re.compile("\ufdd2(\\d+)\ufdd3")
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_SAID = ("content", "reasoning_content", "thinking", "tool_calls")
_LABELS = ("id", "type", "name")  # templates compare these, and repeat them in other messages
_MOST_CUTS = 32  # places where a prompt may end that are tried
_MOST_SOUGHT = 1_000_000_000  # characters that are looked through in vain for what was said
_MOST = 4_000_000  # characters of a conversation, times the assistant's turns: about what rendering its parts takes


def find_spans(messages: Messages, render: Render, marks: bool) -> tuple[str, Spans]:
    """The whole text and the assistant's spans in it, in order and apart; none where no way holds.

    `marks`: whether the template has `{% generation %}`. `render` raises Unusable when the template refuses the first
    view, and gives None for any other.
    """
    n = len(messages)
    turns = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    quick = len(turns) * sum(len(str(message)) for message in messages) < _MOST
    wanted = {view for turn in turns for view in ((turn, False), (turn, True), (turn + 1, False)) if turn}
    views = sorted(wanted) if quick else []
    wholes = [(n, False, False), (n, False, True)] if marks else [(n, False, False)]
    text, *others = render(messages, [*wholes, *((*view, False) for view in views)])
    assert text is not None
    if not turns or _NONCHARACTERS.search(text):
        return text, ()
    parts = dict(zip(views, others[len(wholes) - 1 :], strict=True))
    spans = _by_prefixes(text, turns, parts) or (_by_generation(text, others[0]) if marks else ())
    return text, spans or _by_marks(text, messages, turns, parts, render) or _by_search(text, messages)


def _by_prefixes(text: str, turns: Sequence[int], parts: Parts) -> Spans:
    """From the generation prompt before a message to the end of what is rendered with it; all turns or none."""
    spans = []
    for turn in turns:
        before, prompted, after = parts.get((turn, False)), parts.get((turn, True)), parts.get((turn + 1, False))
        if before is None or prompted is None or after is None:
            return ()
        opening = prompted.removeprefix(before)
        start = len(before) + next((end for end in _cuts(opening) if text.startswith(opening[:end], len(before))), 0)
        end = len(after)
        if not (text.startswith(after) and after.startswith(before) and prompted.startswith(before) and start < end):
            return ()
        spans.append((start, end))
    return tuple(spans)


def _by_generation(text: str, marked: str | None) -> Spans:
    """Where the template's own marks are."""
    opening, closing = GENERATION
    if marked is None or marked.replace(opening, "").replace(closing, "") != text:
        return ()
    spans, place, start = [], 0, None
    for part in re.split(f"([{opening}{closing}])", marked):
        if part == opening:
            start = place
        elif part == closing:
            if start is not None and start < place:
                spans.append((start, place))
            start = None
        else:
            place += len(part)
    return tuple(spans)


def _by_marks(text: str, messages: Messages, turns: Sequence[int], parts: Parts, render: Render) -> Spans:
    """From the first to the last mark of a message, with the prompt and the end of turn on either side where known."""
    marked = [_marked(message, index) for index, message in enumerate(messages)]
    views = sorted({view for turn in turns for view in ((turn, False), (turn + 1, False), (turn + 1, True)) if turn})
    if not parts:
        views = []
    try:
        whole, *others = render(marked, [(len(messages), False, False), *((*view, False) for view in views)])
    except Unusable:
        return ()
    if whole is None or _MARK.sub("", whole) != text:
        return ()
    endings = dict(zip(views, others, strict=True))
    others_prompt = next((known for turn in turns if (known := _prompt(parts, turn)) is not None), "")
    runs = [(owner, [place for _, place in run]) for owner, run in groupby(_marks(whole), lambda mark: mark[0])]
    spans, spoken = [], set(turns)
    for index, (owner, places) in enumerate(runs):
        if owner not in spoken:
            continue
        floor = runs[index - 1][1][-1] if index else 0
        ceiling = runs[index + 1][1][0] if index + 1 < len(runs) else len(text)
        own = _prompt(parts, owner)
        prompt = others_prompt if own is None else own
        opening = prompt or _last(endings, owner, False)
        start = places[0] - _tail_after(opening, text[floor : places[0]])
        spans.append((start, places[-1] + _ending(endings, owner, prompt, text[places[-1] : ceiling])))
    return tuple(spans)


def _marked(message: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    mark = f"\ufdd2{index}\ufdd3"

    def wrap(value: Any) -> Any:
        if isinstance(value, str):  # templates strip: the marks lie inside of the blanks
            core = value.strip()
            return value.replace(core, f"{mark}{core}{mark}", 1) if core else value
        if isinstance(value, Mapping):
            return {key: item if key in _LABELS else wrap(item) for key, item in value.items()}
        return [wrap(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: wrap(value) if key in _SAID else value for key, value in message.items()}


def _marks(marked: str) -> Iterator[tuple[int, int]]:
    """(message, place in the text without marks) of every mark."""
    removed = 0
    for match in _MARK.finditer(marked):
        yield int(match[1]), match.start() - removed
        removed += len(match[0])


def _cuts(prompt: str) -> Iterator[int]:
    """Where a prompt may end, the last first: it may open a thought that the message has not, but tags are whole."""
    yield len(prompt)
    ends = (end for end in range(len(prompt) - 1, 0, -1) if prompt[end - 1] in ">\n")
    yield from islice(ends, _MOST_CUTS)


def _prompt(parts: Parts, turn: int) -> str | None:
    """The generation prompt in front of a message, where it can be told."""
    before, prompted = parts.get((turn, False)), parts.get((turn, True))
    return prompted[len(before) :] if before is not None and prompted and prompted.startswith(before) else None


def _tail_after(prompt: str, zone: str) -> int:
    """How much of the zone comes after the prompt, or after as much of it as stands there."""
    for end in _cuts(prompt):
        if (place := zone.rfind(prompt[:end])) >= 0:
            return len(zone) - place - end
    return 0


def _last(marked: Parts, n: int, prompted: bool) -> str:
    """What follows the last of n messages."""
    return _MARK.split(marked.get((n, prompted)) or "")[-1]


def _ending(endings: Parts, turn: int, prompt: str, zone: str) -> int:
    """How much of the zone closes the turn: what comes after it when it is the last, and before the next prompt."""
    candidates = []
    for prompted in (False, True):
        tail = _last(endings, turn + 1, prompted)
        candidates.append(tail.removesuffix(prompt) if prompted else tail)
    return max((len(tail) for tail in candidates if zone.startswith(tail)), default=0)


def _by_search(text: str, messages: Messages) -> Spans:
    """What was said as content, message by message."""
    spans, position, sought = [], 0, 0
    for message in messages:
        said = content.strip() if isinstance(content := message.get("content"), str) else ""
        start = text.find(said, position) if said else -1
        if said and start < 0 and (sought := sought + len(text) - position) > _MOST_SOUGHT:
            return ()
        if start >= 0:
            position = start + len(said)
            if message.get("role") == "assistant":
                spans.append((start, position))
    return tuple(spans)
