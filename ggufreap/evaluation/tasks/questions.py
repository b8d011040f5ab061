"""Files of multiple-choice questions: the three formats of llama-perplexity, and plain JSON lines."""

import csv
import json
import string
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufreap.corpus import read_text
from ggufreap.errors import InputError

HELLASWAG_LINES, WINOGRANDE_COLUMNS = 6, 5
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
        yield Question(context, tuple(f" {ending}" for ending in endings), frozenset({int(answer)}))


def _winogrande(path: Path) -> Iterator[Question]:
    """Rows of `index,sentence,choice1,choice2,answer`; the sentence has a `_` for the choice, the answer is 1 or 2."""
    for row in csv.reader(read_text(str(path)).splitlines()):
        if len(row) != WINOGRANDE_COLUMNS:
            raise ValueError(f"the row has {len(row)} columns, not index, sentence, choice 1, choice 2, answer")
        _, sentence, *choices, answer = row
        context, gap, tail = sentence.partition("_")
        if not gap or not tail.strip():
            raise ValueError("its sentence needs a _ for the choice, and some text behind it")
        yield Question(context, tuple(choices), frozenset({int(answer) - 1}), tail)


def _multiple_choice(path: Path) -> Iterator[Question]:
    """llama-perplexity's binary: u32 count, u32 offsets; per question a string and two sets of answers with labels.

    The second set, of several right answers, is not used there either (tools/perplexity, multiple_choice_score).
    """
    with path.open("rb") as file:

        def numbers(n: int, kind: str = "I") -> tuple[int, ...]:
            return struct.unpack(f"<{n}{kind}", file.read(4 * n))

        def text() -> str:
            (length,) = numbers(1)
            return file.read(length).decode()

        def answers() -> tuple[tuple[str, ...], tuple[int, ...]]:
            (n,) = numbers(1)
            if n > MAX_CHOICES:
                raise ValueError(f"it has {n} choices; {MAX_CHOICES} at most are read")
            return tuple(text() for _ in range(n)), numbers(n, "i")

        (n_questions,) = numbers(1)
        numbers(n_questions)
        for _ in range(n_questions):
            question, (choices, labels), _ = text(), answers(), answers()
            right = frozenset(index for index, label in enumerate(labels) if label == 1)
            yield Question(question, tuple(f" {choice}" for choice in choices), right)


def _jsonl(path: Path) -> Iterator[Question]:
    """Objects with `context`, taken as it is, or `question`, framed as `Question: … Answer:`; `choices`; `answer`.

    The answer is a number from 0 or a letter. What ARC's own rows look like (`choices.text`, `answerKey`) is read too.
    """
    for line in read_text(str(path)).split("\n"):
        if line.strip():
            row: dict[str, Any] = json.loads(line)
            choices, answer = row["choices"], row["answerKey"] if "answerKey" in row else row["answer"]
            labels: Sequence[str] = string.ascii_uppercase
            if isinstance(choices, Mapping):
                choices, labels = choices["text"], choices["label"]
            index = answer if isinstance(answer, int) else labels.index(str(answer).strip())
            context = row["context"] if "context" in row else f"Question: {row['question']}\nAnswer:"
            yield Question(str(context), tuple(f" {choice}" for choice in choices), frozenset({index}))


def _reader(parse: Callable[[Path], Iterator[Question]]) -> Callable[[Path], list[Question]]:
    def read(path: Path) -> list[Question]:
        questions: list[Question] = []
        try:
            questions.extend(parse(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, csv.Error) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise InputError(
                f"{path}, question {len(questions) + 1}: {reason}; see the README for the format"
            ) from None
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
