"""The methods that lm-evaluation-harness calls, with its kinds of requests; the package itself is not needed."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_gguf

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.demonstration import MODEL
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import lm_eval
from ggufreap.evaluation.lm_eval import Responses, adapter
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native

N_CTX = 128
SETTINGS = EngineSettings(N_CTX, 64, 1, 0, exact=True, n_parallel=4)
PAIRS = [
    ("import os\nimport", " sys"),
    ("import os\nimport", " the end"),
    ("import os\nimport ", "sys"),
    ("", "def main():"),
    ("def read(path):", "\n    return path"),
    ("import os\nimport", " numbers"),
]
PROSE = "The file is opened before the data is read, and it is closed when it is no longer needed by anybody. " * 6


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=args) for args in arguments]


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaSession]:
    with LlamaSession(MODEL, bind(open_gguf(MODEL)).nodes, SETTINGS) as session:
        yield session


@pytest.fixture
def model(engine: LlamaSession) -> Responses:
    return Responses(engine, "demo")


def log_probabilities(engine: LlamaSession, tokens: Sequence[int]) -> np.ndarray:
    """ln p of every token but the first, on the whole text at once."""
    logits = engine.logits(np.asarray(tokens, np.int32)).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logs[np.arange(len(tokens) - 1), tokens[1:]]


def test_log_likelihoods_are_those_of_the_continuation(model: Responses, engine: LlamaSession) -> None:
    found = model.loglikelihood(requests(*PAIRS))
    for (context, continuation), (log_p, _) in zip(PAIRS, found, strict=True):
        bare = engine.tokenize(context + continuation, add_special=False).tolist()
        opened = [] if context and engine.bos is None else [engine.opening]
        start = len(engine.tokenize(context.rstrip(), add_special=False)) if context else 0
        expected = log_probabilities(engine, opened + bare)[len(opened) + start - 1 :]
        assert log_p == pytest.approx(expected.sum(), rel=2e-3)
    assert found[0][0] == pytest.approx(found[2][0], rel=2e-3), "spaces belong to the continuation"


def test_greedy_is_what_the_model_would_write(model: Responses) -> None:
    (written,) = model.generate_until(requests(("import os\nimport", {"until": ["\n"], "max_gen_toks": 3})))
    assert written.strip()
    pairs = (("import os\nimport", written), ("import os\nimport", written + " and so on"))
    assert [greedy for _, greedy in model.loglikelihood(requests(*pairs))] == [True, False]


def test_a_long_context_is_cut_on_the_left_and_counted(
    model: Responses, engine: LlamaSession, caplog: pytest.LogCaptureFixture
) -> None:
    ((log_p, _),) = model.loglikelihood(requests((PROSE, " It is closed.")))
    assert "1 contexts are longer than what fits" in caplog.text
    tokens = engine.tokenize(PROSE.rstrip() + "  It is closed.").tolist()
    n = len(tokens) - len(engine.tokenize(PROSE.rstrip()))
    assert len(tokens) > N_CTX + 1
    expected = log_probabilities(engine, tokens[-N_CTX:])[-n:].sum()  # one token of the left less, to fit the session
    assert log_p == pytest.approx(expected, rel=0.05)


def test_rolling_predicts_every_token_once(model: Responses, engine: LlamaSession) -> None:
    short = "The file is opened."
    found = model.loglikelihood_rolling(requests((short,), (PROSE,), ("",)))
    tokens = [engine.opening, *engine.tokenize(short, add_special=False).tolist()]
    assert found[0] == pytest.approx(log_probabilities(engine, tokens).sum(), rel=2e-3)
    windows = list(model._windows(PROSE))
    assert sum(end - start for window in windows for start, end in window.spans) == len(
        engine.tokenize(PROSE, add_special=False)
    )
    assert all(window.n_tokens <= N_CTX for window in windows)
    assert [window.n_tokens for window in windows[1:]] == [N_CTX] * (len(windows) - 1), "as much context as fits"
    assert found[1] < found[0]
    assert found[2] == 0


def test_writing_ends_before_the_stop_and_follows_its_settings(
    model: Responses, caplog: pytest.LogCaptureFixture
) -> None:
    greedy, prompt = {"max_gen_toks": 20, "do_sample": False}, "def read_header(path):\n"
    asked = [
        (prompt, greedy),
        (prompt, {**greedy, "until": "#"}),
        (prompt, {**greedy, "max_gen_toks": 5}),
        ("import os\n" * 60, greedy),
        (prompt, {**greedy, "temperature": 0.9, "do_sample": True}),
        (prompt, {"max_gen_toks": 20, "temperature": 0.9}),
        (prompt, {**greedy, "temperature": 0.9}),
    ]
    whole, stopped, short, long, drawn, drawn_too, still = model.generate_until(requests(*asked))
    assert "#" in whole
    assert stopped == whole[: whole.index("#")]
    assert whole.startswith(short)
    assert len(short) < len(whole)
    assert long
    assert still == whole != drawn == drawn_too
    for settings, message in (
        ({"temperature": 1, "top_p": 0.9, "max_gen_toks": 4}, "sampling with top_p is not supported"),
        ({"max_gen_toks": 40}, "max_gen_toks 40 leaves no room"),
        ({"do_sample": True, "temperature": 0.0, "max_gen_toks": 4}, "do_sample at temperature 0 draws nothing"),
    ):
        with pytest.raises(InputError, match=message):
            model.generate_until(requests((prompt, settings)))
    assert "1 contexts are longer" in caplog.text
    model.generate_until(requests((prompt, {**greedy, "max_gen_toks": 1, "num_beams": 5})))
    assert "generation settings without effect here: num_beams" in caplog.text


def test_chat_templates(engine: LlamaSession, model: Responses) -> None:
    with pytest.raises(InputError, match="demo has no chat template; leave out --apply_chat_template"):
        model.apply_chat_template([{"role": "user", "content": "hi"}])
    assert model.chat_template() == ""

    def render(conversation: Any, opened: bool) -> str:
        return "".join(message["content"] for message in conversation.messages) + "?" * opened

    chatting = Responses(engine, "demo", render=render, template="{{ messages }}")
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert chatting.apply_chat_template(history) == "hiho?"
    assert chatting.apply_chat_template(history, add_generation_prompt=False) == "hiho"
    assert chatting.chat_template(True) == "{{ messages }}"
    assert chatting.tokenizer_name == "demo"
    with pytest.raises(InputError, match="chat template 'rag' is not known"):
        chatting.chat_template("rag")


def test_the_class_for_lm_eval_opens_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Base:
        def __init__(self) -> None:
            self.ready = True

    for name, module in (("lm_eval", None), ("lm_eval.api", None), ("lm_eval.api.model", SimpleNamespace(LM=Base))):
        monkeypatch.setitem(sys.modules, name, module or SimpleNamespace())
    opened = adapter()(model=str(MODEL), ctx=64, parallel=2, threads=1, ngl=0, batch_size=1, device=None)
    with pytest.raises(InputError, match="--model_args flash_attn is not known; there are model, ctx"):
        adapter()(model=str(MODEL), flash_attn="on")
    assert isinstance(opened, Base)
    assert opened.ready
    assert opened.tokenizer_name == MODEL.name
    assert len(opened.loglikelihood(requests(("import", " os")))) == 1
    opened._engine.close()
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    chatting = tiny_gguf.qwen3moe(tmp_path / "m.gguf", metadata={"tokenizer.chat_template": template})
    opened = adapter()(model=str(chatting), ctx=64, parallel=2, threads=1, ngl=0)
    assert opened.apply_chat_template([{"role": "user", "content": "hi"}]) == "[hi]>"
    assert opened.apply_chat_template([{"role": "user", "content": "hi"}], False) == "[hi]"
    assert opened.chat_template(True) == template
    opened._engine.close()


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'ggufreap\[lm-eval\]'"):
        lm_eval.adapter()
