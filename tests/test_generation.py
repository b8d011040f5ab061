"""Generation and what memory holds: token by token and many at once, it is what running the whole text gives."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_native

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.demonstration import MODEL
from ggufreap.engine.generator import Sampling, generate, sample
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, InputError
from ggufreap.evaluation import answers
from ggufreap.evaluation.generation import prompt_tokens
from ggufreap.options.engine import EngineSettings

SETTINGS = EngineSettings(n_ctx=256, n_ubatch=16, n_threads=1, n_gpu_layers=0, exact=True, n_parallel=3)
PROMPTS = [np.random.default_rng(n).integers(0, 128, n).astype(np.int32) for n in (5, 23, 9, 1, 14)]
# Attention of several kinds, windows, states of recurrent blocks.
ARCHITECTURES = ("qwen3moe", "gpt-oss", "qwen35moe", "lfm2moe", "deepseek2", "kimi-linear", "llama4", "gemma4", "jamba")


def session(path: Path, settings: EngineSettings = SETTINGS) -> LlamaSession:
    return LlamaSession(path, bind(open_gguf(path)).nodes, settings)


def half(engine: LlamaSession) -> Keep:
    nodes = engine._nodes
    return {block.index: range(0, nodes.n_expert, 2) for block in nodes.blocks}


@pytest.mark.native
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_memory_gives_the_logits_of_the_whole_text(tmp_path: Path, name: str) -> None:
    with session(tiny_native.build(name, tmp_path / "m.gguf")) as engine:
        texts = {sequence: np.tile(PROMPTS[1], 2)[: 40 - sequence] for sequence in range(3)}
        for keep in (None, half(engine)):
            memory = engine.sequences(keep)
            memory.feed({0: texts[0][:20]})
            memory.fork(0, [1])
            found = memory.feed({0: texts[0][20:], 1: texts[1][20:], 2: texts[2]}, every=True)
            for sequence, text in texts.items():
                start = 0 if sequence == 2 else 20
                expected = engine.logits(text, keep)[start:]
                assert np.abs(found[sequence] - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.native
def test_greedy_generation_is_the_likeliest_token_of_the_whole_text(tmp_path: Path) -> None:
    with session(tiny_native.build("qwen3moe", tmp_path / "m.gguf")) as engine:
        for keep in (None, half(engine)):
            written = generate(engine, PROMPTS, Sampling(n_predict=12), keep=keep)
            for prompt, each in zip(PROMPTS, written, strict=True):
                text = prompt
                for token in each.tokens:
                    assert token == engine.logits(text, keep)[-1].argmax()
                    text = np.append(text, token).astype(np.int32)
            assert [len(each.tokens) for each in written] == [12] * len(PROMPTS)
            assert not any(each.ended for each in written)


@pytest.mark.native
def test_sampling_depends_on_the_seed_and_not_on_the_batch() -> None:
    prompts, sampling = ["import os\n", "def main(", "class Reader"], Sampling(20, temperature=0.7, seed=3)
    written = []
    for settings in (SETTINGS, SETTINGS, replace(SETTINGS, n_parallel=1, watched=False)):
        with session(MODEL, settings) as engine:
            written.append(answers(engine, prompts, sampling))
            other = answers(engine, prompts, replace(sampling, seed=4))
            assert engine.detokenize(written[0][0].tokens) == written[0][0].text
    assert written[0] == written[1] == written[2] != other
    assert all(answer.text.strip() for answer in written[0])


@pytest.mark.native
def test_what_memory_cannot_do_is_refused(tmp_path: Path) -> None:
    path = tiny_native.build("qwen3moe", tmp_path / "m.gguf")
    with session(path) as engine:
        with pytest.raises(InputError, match=r"prompt 2 has 23 tokens, with -n 70 .* the 85 of -c 256"):
            generate(engine, PROMPTS, Sampling(n_predict=70))
        with pytest.raises(InputError, match="prompt 1 has no tokens"):
            generate(engine, [PROMPTS[0][:0]], Sampling(n_predict=4))
        memory = engine.sequences()
        with pytest.raises(EngineError, match="do not fit -c 256 together; raise -c or lower -np"):
            memory.feed(dict.fromkeys(range(3), np.zeros(100, np.int32)))
        memory.drop(0)
        assert len(engine.logits(PROMPTS[1])) == 23, "the session is as good as before"
    with session(path, replace(SETTINGS, watched=False)) as engine, pytest.raises(EngineError, match="unwatched"):
        generate(engine, PROMPTS, Sampling(n_predict=4), keep=half(engine))
    with (
        session(tiny_native.build("nomic-bert-moe", tmp_path / "b.gguf"), replace(SETTINGS, n_parallel=1)) as engine,
        pytest.raises(EngineError, match="writes none"),
    ):
        engine.sequences()


class Counting:
    """Remembers all tokens of a sequence; the next token is the last one plus one, and 9 is the end."""

    n_ctx, n_parallel, bos = 100, 2, 1

    def __init__(self) -> None:
        self.memory: dict[int, list[int]] = {}
        self.batches: list[int] = []

    def sequences(self, keep: Keep | None = None) -> "Counting":
        return self

    def is_end(self, token: int) -> bool:
        return token == 9

    def feed(self, parts: Mapping[int, Tokens], every: bool = False) -> dict[int, np.ndarray]:
        self.batches.append(len(parts))
        for sequence, part in parts.items():
            self.memory.setdefault(sequence, []).extend(part.tolist())
        return {sequence: np.eye(16)[[self.memory[sequence][-1] + 1]] for sequence in parts}

    def drop(self, sequence: int) -> None:
        del self.memory[sequence]

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        return np.array([self.bos, *([self.bos] if parse_special else []), len(text)], np.int32)


def test_runs_end_at_the_end_token_the_limit_or_the_stop_and_make_room_for_the_next() -> None:
    engine = Counting()
    prompts = [np.array(ids, np.int32) for ids in ([3], [1, 7], [0], [8])]
    written = generate(engine, prompts, Sampling(n_predict=4), stop=lambda tokens: tokens[-1] == 3)
    assert [each.tokens.tolist() for each in written] == [[4, 5, 6, 7], [8], [1, 2, 3], []]
    assert [each.ended for each in written] == [False, True, False, True]
    assert engine.batches == [2, 2, 2, 2, 2], "a place that is free is taken at once"
    assert not engine.memory


def test_a_template_and_the_vocabulary_give_one_bos_together() -> None:
    assert prompt_tokens(Counting(), "four", special=True).tolist() == [1, 4]
    assert prompt_tokens(Counting(), "four").tolist() == [1, 4]


def test_sampling_follows_the_softmax() -> None:
    logits, random = np.array([0.0, 1.0, 2.0, -np.inf], np.float32), np.random.default_rng(0)
    found = np.bincount([sample(logits, 0.5, random) for _ in range(4000)], minlength=4) / 4000
    expected = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum()
    assert np.abs(found - expected).max() < 0.03
    assert found[3] == 0
    assert sample(np.array([1.0, 3.0, 3.0], np.float32), 0, random) == 1


@pytest.mark.native
@pytest.mark.parametrize("scored_from", [0, 5, 16, 22])
def test_rows_that_are_not_scored_are_left_out(tmp_path: Path, scored_from: int) -> None:
    with session(tiny_native.build("qwen3moe", tmp_path / "m.gguf")) as engine:
        for keep in (None, half(engine)):
            found = engine.logits(PROMPTS[1], keep, scored_from=scored_from)
            np.testing.assert_allclose(found, engine.logits(PROMPTS[1], keep)[scored_from:], rtol=1e-4, atol=1e-5)
