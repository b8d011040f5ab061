"""Multiple-choice tasks: files as llama-perplexity reads them, and scores as it computes them."""

import struct
from pathlib import Path

import asked
import numpy as np
import pytest

from ggufreap import verbs
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.demonstration import MODEL
from ggufreap.engine.protocol import Keep
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError, NumericFailure
from ggufreap.evaluation.likelihood import Likelihood, likelihood
from ggufreap.evaluation.proportions import Share
from ggufreap.evaluation.tasks import FORMATS, Question, Scored, compare, sample_of, score
from ggufreap.options.engine import EngineSettings

SETTINGS = EngineSettings(n_ctx=256, n_ubatch=64, n_threads=1, n_gpu_layers=0, exact=True, n_parallel=8)


def written(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def binary(*questions: tuple[str, tuple[str, ...], tuple[int, ...]]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<I", len(value.encode())) + value.encode()

    def answers(choices: tuple[str, ...], labels: tuple[int, ...]) -> bytes:
        packed = b"".join(map(text, choices))
        return struct.pack("<I", len(choices)) + packed + struct.pack(f"<{len(labels)}i", *labels)

    tasks = [text(question) + answers(choices, labels) + answers((), ()) for question, choices, labels in questions]
    ends = np.cumsum([4 + 4 * len(tasks), *map(len, tasks)]).tolist()
    return struct.pack(f"<{1 + len(tasks)}I", len(tasks), *ends[:-1]) + b"".join(tasks)


def test_every_format_is_read(tmp_path: Path) -> None:
    assert FORMATS["hellaswag"](written(tmp_path / "h", "Sky: it is\n1\nred\nblue\ngreen\nold\n")) == [
        Question("Sky: it is", (" red", " blue", " green", " old"), frozenset({1}))
    ]
    rows = '0,Sarah called Ann because _ was ill.,Sarah,Ann,2\n1,"Ann, who knew, told _ that it rains.",Sarah,her,1\n'
    assert FORMATS["winogrande"](written(tmp_path / "w", rows)) == [
        Question("Sarah called Ann because ", ("Sarah", "Ann"), frozenset({1}), " was ill."),
        Question("Ann, who knew, told ", ("Sarah", "her"), frozenset({0}), " that it rains."),
    ]
    data = binary(("Zwölf", ("a", "b", "c"), (0, 0, 1)), ("q", ("x", "y"), (1, 0)))
    assert FORMATS["multiple-choice"](written(tmp_path / "m", data)) == [
        Question("Zwölf", (" a", " b", " c"), frozenset({2})),
        Question("q", (" x", " y"), frozenset({0})),
    ]
    lines = (
        '{"question": "1+1?", "choices": ["1", "2"], "answer": 1}\n\n'
        '{"context": "Two is", "choices": ["odd", "even"], "answer": "B"}\n'
        '{"question": "?", "choices": {"text": ["p", "q"], "label": ["1", "2"]}, "answerKey": "2"}\n'
    )
    assert FORMATS["jsonl"](written(tmp_path / "j", lines)) == [
        Question("Question: 1+1?\nAnswer:", (" 1", " 2"), frozenset({1})),
        Question("Two is", (" odd", " even"), frozenset({1})),
        Question("Question: ?\nAnswer:", (" p", " q"), frozenset({1})),
    ]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("hellaswag", "a\n1\nb\nc\nd\n", "the file has 5 lines; 6 make a question"),
        ("hellaswag", "a\n4\nb\nc\nd\ne\n", "question 1: its answer is none of its 4 choices"),
        ("hellaswag", "a\n0\nb\nc\nd\ne\na\nx\nb\nc\nd\ne\n", "question 2: its answer is 'x'; it must be a number"),
        ("winogrande", "0,a _ b,c,d\n", "the row has 4 columns"),
        ("winogrande", "0,a b,c,d,1\n", "needs a _"),
        ("winogrande", "0,a _ b,c,d,3\n", "none of its 2 choices"),
        ("multiple-choice", b"", "question 1: it takes 4 bytes, . are left"),
        ("multiple-choice", binary(("q", ("a", "b"), (1, 0)))[:-9], "question 1: it takes 8 bytes, 3 are left"),
        ("multiple-choice", binary(("q", ("a",) * 101, (0,) * 101)), "it has 101 choices"),
        ("multiple-choice", binary(("q", ("a", "b"), (0, 0))), "its answer is none"),
        ("jsonl", '{"question": "q", "choices": ["a", "b"]}', "it has no answer"),
        ("jsonl", '{"question": "q", "choices": ["a"], "answer": 0}', "it has 1 choices"),
        ("jsonl", "[", "Expected `object`, got `array`"),
        ("jsonl", "[]", "question 1: "),
        ("jsonl", '{"question": "q", "choices": ["a", "b"], "answer": "AB"}', "its answer 'AB' is none of its labels"),
        ("jsonl", '{"question": "q", "choices": ["a", "b"], "answer": true}', "got `bool`"),
        ("jsonl", '{"choices": ["a", "b"], "answer": 0}', "neither context nor question"),
        ("jsonl", '{"context": ' + "[" * 480, "it nests more than 64 deep"),
        ("multiple-choice", binary(("q", ("a", "b"), (1, 0))) + b"x", "goes on for 1 bytes after its 1 questions"),
        ("jsonl", "", "holds no questions"),
        ("jsonl", b"\xff", "is not UTF-8"),
    ],
)
def test_files_that_break_the_format_are_refused(tmp_path: Path, kind: str, data: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        FORMATS[kind](written(tmp_path / "f", data))
    assert str(tmp_path / "f") in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in FORMATS.values():
        with pytest.raises(InputError, match=r"cannot read .*gone: No such file"):
            read(tmp_path / "gone")


def test_a_sample_is_the_same_every_time() -> None:
    questions = [Question(str(n), (" a", " b"), frozenset({0})) for n in range(50)]
    assert sample_of(questions, 7) == sample_of(questions, 7) != questions[:7]
    assert len({each.context for each in sample_of(questions, 7)}) == 7
    assert sample_of(questions, None) == sample_of(questions, 99) == questions


QUESTIONS = [
    Question("import os\nimport", (" sys", " the", " thousands of things", " os.path"), frozenset({0})),
    Question(
        "def read(path):\n    with open(path) as file:\n       ", (" return file.read()", " pass"), frozenset({0})
    ),
    Question("for name in", (" names", " names:", " names: print(name)"), frozenset({1})),
    Question("The file is opened by ", ("Sarah", "os"), frozenset({1}), " before the data is read from it."),
    Question("The value is ", ("Sarah", "zero"), frozenset({1}), " now."),
]


def by_hand(engine: LlamaSession, question: Question, keep: Keep | None) -> list[tuple[float, int]]:
    """llama-perplexity's rules once more, on the logits of every text alone."""
    texts = [engine.tokenize(question.context + choice + question.tail) for choice in question.choices]
    prefix = 0
    while all(len(text) > prefix + 1 for text in texts) and len({int(text[prefix]) for text in texts}) == 1:
        prefix += 1
    skip = question.tail and min(map(len, texts)) - prefix > 3
    found = []
    for text, choice in zip(texts, question.choices, strict=True):
        start = len(engine.tokenize(question.context + choice)) if skip else prefix
        end = len(text) - 1 if question.tail and len(text) - start > 1 else len(text)
        logits = engine.logits(text, keep).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        found.append((sum(logs[at - 1, text[at]] for at in range(start, end)), end - start))
    return found


@pytest.mark.native
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_parallel", [4, 8])
def test_scores_are_those_of_every_text_alone(masked: bool, n_parallel: int) -> None:
    nodes = bind(open_gguf(MODEL)).nodes
    keep = {block.index: range(0, nodes.n_expert, 2) for block in nodes.blocks} if masked else None
    settings = EngineSettings(256, 64, 1, 0, exact=True, n_parallel=n_parallel)
    with LlamaSession(MODEL, nodes, settings) as engine:
        for scored, question in zip(score(engine, QUESTIONS, keep=keep), QUESTIONS, strict=True):
            expected = by_hand(engine, question, keep)
            assert [choice.n_tokens for choice in scored.choices] == [count for _, count in expected]
            # Products with quantised weights round their inputs, and now and then the other way in another batch.
            np.testing.assert_allclose(
                [choice.log_p for choice in scored.choices], [value for value, _ in expected], rtol=2e-3
            )


@pytest.mark.native
def test_a_question_that_does_not_fit_is_refused() -> None:
    with LlamaSession(MODEL, bind(open_gguf(MODEL)).nodes, SETTINGS) as engine:
        with pytest.raises(
            InputError, match=r"question 2 takes \d+ tokens and 2 sequences, there are -c 256 and -np 8"
        ):
            score(engine, [QUESTIONS[1], Question("word " * 300, (" a", " b"), frozenset({0}))])
        with pytest.raises(InputError, match=r"question 1 .* 9 sequences"):
            score(engine, [Question("a", tuple(" abcdefghi"[1:]), frozenset({0}))])


def test_log_likelihood_is_that_of_the_softmax() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 3
    found = likelihood(logits, np.array([1, 2], np.int32))
    assert found.log_p == pytest.approx(np.log(0.25 * 0.8))
    assert (found.n_tokens, found.greedy) == (2, False)
    assert likelihood(logits, np.array([0, 2], np.int32)).greedy
    with pytest.raises(NumericFailure, match="NaN"):
        likelihood(logits * np.nan, np.array([0, 2], np.int32))


def test_the_length_decides_where_it_should() -> None:
    scored = Scored((Likelihood(-2.0, 1, False), Likelihood(-3.0, 3, False)), answers=frozenset({1}))
    assert (scored.right, scored.right_normalised) == (False, True)


def test_a_comparison_counts_what_was_lost_and_won() -> None:
    def answered(*right: bool) -> list[Scored]:
        choices = Likelihood(0.0, 1, True), Likelihood(-1.0, 1, False)
        return [Scored(choices, frozenset({int(not each)})) for each in right]

    found = compare("t", "m", answered(True, False, False, True), "base", answered(False, True, True, True)).accuracy
    assert (found.share, found.reference, found.lost, found.won) == (Share(2, 4), Share(3, 4), 2, 1)
    assert found.p_value == 1.0
    alone = compare("t", "m", answered(True, False), None, ()).accuracy
    assert (alone.share, alone.reference, alone.p_value) == (Share(1, 2), None, None)


@pytest.mark.native
def test_the_verb_compares_a_plan_with_the_model(tmp_path: Path) -> None:
    lines = [
        f'{{"context": "import {name}\\nimport", "choices": ["os", "{name}"], "answer": 0}}' for name in "abcdefgh"
    ]
    file = written(tmp_path / "q.jsonl", "\n".join(lines))
    settings = EngineSettings(n_ctx=0, n_ubatch=64, n_threads=1, n_gpu_layers=0)
    plan = asked.plan(MODEL, keep=4, method="random", seed=2)
    report = verbs.tasks(MODEL, jsonl=file, plan=plan, settings=settings, n=6)
    assert report.task == "jsonl: q.jsonl"
    assert report.accuracy.share.n == report.accuracy.reference.n == 6
    whole = verbs.tasks(MODEL, jsonl=file, settings=settings, n=6)
    assert whole.normalised.share == report.normalised.reference
    assert whole.reference is None
    with pytest.raises(InputError, match="2 files of questions were given; give one of --hellaswag"):
        verbs.tasks(MODEL, jsonl=file, hellaswag=file)
