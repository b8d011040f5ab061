"""Text becomes the chunks that llama-imatrix would make of it, and those have an identity."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from fake_engine import FakeEngine
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from ggufreap import corpus
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.corpus import Corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.options.engine import EngineSettings


def as_imatrix_does(tokens: list[int], n_ctx: int, bos: int | None) -> list[list[int]]:
    """compute_imatrix in tools/imatrix/imatrix.cpp, loop by loop."""
    batches = []
    n_chunk = len(tokens) // n_ctx
    for i in range(n_chunk):
        start = i * n_ctx
        original = tokens[start]
        if bos is not None:
            tokens[start] = bos
        batches.append([tokens[start + k] for k in range(n_ctx)])
        tokens[start] = original
    return batches


@given(st.text("ab c\n", min_size=1, max_size=60), st.integers(1, 9), st.sampled_from([None, 0, 5]))
def test_text_is_cut_as_imatrix_cuts_it(text: str, n_ctx: int, bos: int | None) -> None:
    engine = FakeEngine(bos=bos)
    text = f"at least {text}"
    found = corpus.from_text(engine, text, n_ctx, "test")
    read = text[:-1] if text.endswith("\n") else text  # what -f of llama.cpp makes of a file, common/arg.cpp
    assert found.chunks.tolist() == as_imatrix_does(engine.tokenize(read).tolist(), n_ctx, bos)
    assert found.n_tokens == found.chunks.size
    assert found.chunks.dtype == np.int32


def test_bos_takes_the_place_of_a_token_and_pushes_none_away() -> None:
    text = "abcdefgh"
    plain = corpus.from_text(FakeEngine(), text, 4, "test").chunks
    opened = corpus.from_text(FakeEngine(bos=1), text, 4, "test").chunks
    assert opened[:, 0].tolist() == [1, 1]
    assert np.array_equal(opened[:, 1:], plain[:, 1:])


@pytest.mark.parametrize("text", ["", "\n", " \t\r\n\u2003"])
def test_no_text_is_no_corpus(text: str) -> None:
    with pytest.raises(InputError, match=r"notes\.txt has no text"):
        corpus.from_text(FakeEngine(), text, 4, "notes.txt")


def test_text_must_fill_one_chunk() -> None:
    assert len(corpus.from_text(FakeEngine(), "abcd\n", 4, "test").chunks) == 1
    with pytest.raises(InputError, match=r"test has 3 tokens, one chunk of -c 4 needs 4"):
        corpus.from_text(FakeEngine(), "abc\n", 4, "test")


def test_text_is_read_as_it_stands(tmp_path: Path) -> None:
    text = "\ufeffzwölf Boxkämpfer\r\n\tжщы\x00 \u2028 und \U0001f9ca\n\n"
    (tmp_path / "text").write_bytes(text.encode())
    assert corpus.read_text(str(tmp_path / "text")) == text


# Identity.


def test_the_identity_is_that_of_ids_and_chunks() -> None:
    ids = np.arange(6, dtype=np.int32)
    whole = Corpus(ids.reshape(2, 3), "here")
    assert whole.sha256 == hashlib.sha256(b"(2, 3)" + ids.astype("<i4").tobytes()).hexdigest()
    assert whole.sha256 == Corpus(ids.reshape(2, 3).copy(order="F"), "elsewhere").sha256
    others = [ids.reshape(3, 2), ids.reshape(1, 6), ids[:3].reshape(1, 3), ids[::-1].reshape(2, 3)]
    assert len({whole.sha256, *(Corpus(other, "here").sha256 for other in others)}) == 5


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, ">i4"])
def test_the_type_of_the_ids_does_not_matter(tmp_path: Path, dtype: str) -> None:
    ids = np.arange(100) % 50
    np.save(tmp_path / "ids.npy", ids.astype(dtype))
    found = corpus.from_tokens(corpus.read_tokens(tmp_path / "ids.npy"), 10, 50, "ids")
    assert found.sha256 == Corpus(ids.astype(np.int32).reshape(10, 10), "other").sha256


def test_chunks_of_their_own_length_stay_as_they_are() -> None:
    ids = np.arange(21).reshape(3, 7)
    assert np.array_equal(corpus.from_tokens(ids, 512, 21, "ids").chunks, ids)


# In llama.cpp.


@pytest.mark.native
@pytest.mark.parametrize("add_bos", [True, False])
def test_the_model_decides_on_bos(tmp_path: Path, add_bos: bool) -> None:
    bos = {"tokenizer.ggml.bos_token_id": 318, "tokenizer.ggml.add_bos_token": add_bos}
    path = tiny_gguf.qwen3moe(tmp_path / "m.gguf", n_embd=64, n_ff=32, types=Kind.Q8_0, metadata=bos)
    file = open_gguf(path)
    with LlamaSession(file.path, bind(file).nodes, EngineSettings(n_ctx=16, n_threads=1)) as engine:
        text = "every good boy deserves fudge\n" * 9
        tokens = engine.tokenize(text.removesuffix("\n"))
        assert (tokens[0] == 318) is np.bool_(add_bos)
        assert 318 not in tokens[1:]
        found = corpus.from_text(engine, text, 16, "test").chunks
    assert found.tolist() == as_imatrix_does(tokens.tolist(), 16, 318 if add_bos else None)
