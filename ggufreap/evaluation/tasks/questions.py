"""Files of multiple-choice questions: the three formats of llama-perplexity, and plain JSON lines."""

import csv
import re
import string
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct

from ggufreap.corpus import read_text
from ggufreap.decoding import parse_json
from ggufreap.errors import InputError
from ggufreap.showing import EXCERPT, excerpt, shown

HELLASWAG_LINES, WINOGRANDE_COLUMNS = 6, 5
_DIGITS = re.compile(r"[0-9]{1,4}")
MAX_CHOICES = 100


@dataclass(frozen=True)
class Question:
    """`context` + one of `choices` + `tail`, of which those numbered in `answers` are right.

    With a tail, what is scored is how well it follows the choice (Winogrande); without, the choice itself.
    """

    context: str
    choices: tuple[str, ...]
    answers: frozenset[int]
    tail: str = ""

    def __post_init__(self) -> None:
        n = len(self.choices)
        if not 2 <= n <= MAX_CHOICES or not all(choice.strip() for choice in self.choices):
            raise ValueError(f"it has {n} choices; there must be 2 to {MAX_CHOICES}, none of them empty")
        if not self.answers or not self.answers <= set(range(n)):
            raise ValueError(f"its answer is none of its {n} choices")


def sample_of(questions: Sequence[Question], n: int | None) -> list[Question]:
    """`n` of them at random, always the same ones, or all."""
    if n is None or n >= len(questions):
        return list(questions)
    return [questions[index] for index in sorted(np.random.default_rng(1).permutation(len(questions))[:n])]


def _hellaswag(path: Path) -> Iterator[Question]:
    """Six lines per question: context, number of the right ending, four endings."""
    lines = read_text(str(path)).removesuffix("\n").split("\n")
    if len(lines) % HELLASWAG_LINES:
        raise ValueError(f"the file has {len(lines)} lines; 6 make a question: context, answer, four endings")
    for start in range(0, len(lines), HELLASWAG_LINES):
        context, answer, *endings = lines[start : start + HELLASWAG_LINES]
        yield Question(context, tuple(f" {ending}" for ending in endings), frozenset({_number(answer)}))


def _winogrande(path: Path) -> Iterator[Question]:
    """Rows of `index,sentence,choice1,choice2,answer`; the sentence has a `_` for the choice, the answer is 1 or 2."""
    for row in csv.reader(read_text(str(path)).splitlines()):
        if len(row) != WINOGRANDE_COLUMNS:
            raise ValueError(f"the row has {len(row)} columns, not index, sentence, choice 1, choice 2, answer")
        _, sentence, *choices, answer = row
        context, gap, tail = sentence.partition("_")
        if not gap or not tail.strip():
            raise ValueError("its sentence needs a _ for the choice, and some text behind it")
        yield Question(context, tuple(choices), frozenset({_number(answer) - 1}), tail)


def _multiple_choice(path: Path) -> Iterator[Question]:
    """llama-perplexity's binary: u32 count, u32 offsets; per question a string and two sets of answers with labels.

    The second set, of several right answers, is not used there either (tools/perplexity, multiple_choice_score).
    """
    size = path.stat().st_size
    with path.open("rb") as file:

        def taken(nbytes: int) -> bytes:
            if nbytes > size - file.tell():
                raise ValueError(f"it takes {nbytes:,} bytes, {size - file.tell():,} are left; the file is damaged")
            return file.read(nbytes)

        def numbers(n: int, kind: str = "I") -> tuple[int, ...]:
            return struct.unpack(f"<{n}{kind}", taken(4 * n))

        def text() -> str:
            (length,) = numbers(1)
            return taken(length).decode()

        def answers() -> tuple[tuple[str, ...], tuple[int, ...]]:
            (n,) = numbers(1)
            if n > MAX_CHOICES:
                raise ValueError(f"it has {n} choices; {MAX_CHOICES} at most are read")
            return tuple(text() for _ in range(n)), numbers(n, "i")

        (n_questions,) = numbers(1)
        taken(4 * n_questions)
        for _ in range(n_questions):
            question, (choices, labels), _ = text(), answers(), answers()
            right = frozenset(index for index, label in enumerate(labels) if label == 1)
            yield Question(question, tuple(f" {choice}" for choice in choices), right)
        if file.tell() < size:
            raise ValueError(f"the file goes on for {size - file.tell():,} bytes after its {n_questions} questions")


class _Labelled(Struct):
    """The choices in ARC's own rows."""

    text: list[str]
    label: list[str]


class _Row(Struct):
    """A line; data sets have more in it."""

    choices: list[str] | _Labelled
    context: str | None = None
    question: str | None = None
    answer: int | str | None = None
    answerKey: int | str | None = None


def _jsonl(path: Path) -> Iterator[Question]:
    """Objects with `context`, taken as it is, or `question`, framed as `Question: … Answer:`; `choices`; `answer`.

    The answer is a number from 0 or a letter. What ARC's own rows look like (`choices.text`, `answerKey`) is read too.
    """
    for line in read_text(str(path)).split("\n"):
        if line.strip():
            row = parse_json(line.encode(), _Row)
            if row.context is None and row.question is None:
                raise ValueError("it has neither context nor question")
            context = f"Question: {row.question}\nAnswer:" if row.context is None else row.context
            choices, labels = _labelled(row.choices)
            right = _index(row.answer if row.answerKey is None else row.answerKey, labels)
            yield Question(context, tuple(f" {choice}" for choice in choices), frozenset({right}))


def _labelled(choices: list[str] | _Labelled) -> tuple[list[str], list[str]]:
    if isinstance(choices, list):
        return choices, list(string.ascii_uppercase)
    if len(choices.label) != len(choices.text):
        raise ValueError(f"it has {len(choices.text)} choices and {len(choices.label)} labels")
    return choices.text, choices.label


def _index(answer: int | str | None, labels: Sequence[str]) -> int:
    if answer is None:
        raise ValueError("it has no answer")
    if isinstance(answer, int):
        return answer
    if answer.strip() not in labels:
        raise ValueError(f"its answer {excerpt(answer)} is none of its labels")
    return labels.index(answer.strip())


def _number(text: str) -> int:
    if not _DIGITS.fullmatch(text.strip()):
        raise ValueError(f"its answer is {excerpt(text)}; it must be a number")
    return int(text)


def _reader(parse: Callable[[Path], Iterator[Question]]) -> Callable[[Path], list[Question]]:
    def read(path: Path) -> list[Question]:
        questions: list[Question] = []
        try:
            questions.extend(parse(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, csv.Error) as error:
            reason = shown(error, 2 * EXCERPT)
            raise InputError(
                f"{path}, question {len(questions) + 1}: {reason}; `ggufreap tasks --help` tells the format"
            ) from error
        if not questions:
            raise InputError(f"{path} holds no questions")
        return questions

    return read


# format -> its reader; all raise InputError
FORMATS: Mapping[str, Callable[[Path], list[Question]]] = {
    "hellaswag": _reader(_hellaswag),
    "winogrande": _reader(_winogrande),
    "multiple-choice": _reader(_multiple_choice),
    "jsonl": _reader(_jsonl),
}
