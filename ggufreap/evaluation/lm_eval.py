"""lm-evaluation-harness on a GGUF file, through llama.cpp in this process.

    pip install 'ggufreap[lm-eval]'
    python -m ggufreap.evaluation.lm_eval run --model ggufreap --model_args model=model.gguf,ctx=4096 --tasks arc_easy

All of lm_eval's own command line stays as it is. Text becomes tokens as in llama.cpp, BOS where the vocabulary adds
one; control tokens in a text count as such, as Hugging Face's tokenizers take them.
"""

import atexit
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from ggufreap.corpus.samples import Conversation
from ggufreap.engine.generator import Sampling, generate
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.sequences import Sequences
from ggufreap.errors import InputError
from ggufreap.evaluation.generation import TextEngine, prompt_tokens
from ggufreap.evaluation.likelihood import Branches, Likelihood, likelihoods
from ggufreap.progress import Progress, silent

_LOG = logging.getLogger(__name__)
NAME = "ggufreap"
MAX_GEN_TOKS = 256
# What llama.cpp's greedy or temperature sampling has no part in, and is refused once tokens are drawn at random.
ARGUMENTS = ("model", "ctx", "parallel", "threads", "ngl", "seed")
OF_LM_EVAL = ("batch_size", "max_batch_size", "device")  # which it gives to every model
SETTINGS = ("until", "max_gen_toks", "max_new_tokens", "temperature", "do_sample")
OTHER_SAMPLERS = ("top_p", "top_k", "min_p", "repetition_penalty")
RenderChat = Callable[[Conversation, bool], str]  # and whether the assistant's turn is opened


class Request(Protocol):
    """lm_eval.api.instance.Instance, as far as it is used."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What is asked."""


class HarnessEngine(TextEngine, Protocol):
    """A loaded model, as the harness uses it."""

    n_batch: int
    opening: int

    def sequences(self, keep: Any = None) -> Sequences:
        """An empty memory."""


class Responses:
    """The methods of lm_eval.api.model.LM over a loaded model; `adapter` makes the class that lm_eval takes."""

    def __init__(
        self,
        engine: HarnessEngine,
        name: str,
        *,
        render: RenderChat | None = None,
        template: str = "",
        seed: int = 0,
        progress: Progress = silent,
    ) -> None:
        self._engine, self._name, self._render, self._template = engine, name, render, template
        self._seed, self._progress = seed, progress
        self._cut = 0

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Per `(context, continuation)`: ln p of the continuation, and whether greedy sampling writes it."""
        branches = []
        for _, asked in groupby((request.args for request in requests), key=lambda args: args[0]):
            branches += list(self._shared([self._pair(context, continuation) for context, continuation in asked]))
        self._tell_of_cut()
        groups = likelihoods(self._engine, branches, progress=self._progress, stage="log-likelihoods")
        return [(each.log_p, each.greedy) for group in groups for each in group]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Per `(text,)`: ln p of all of it, in windows of the whole context where it is longer."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        groups = likelihoods(
            self._engine, [window for text in windows for window in text], progress=self._progress, stage="rolling"
        )
        values: Iterator[Likelihood] = (each for group in groups for each in group)
        return [sum(next(values).log_p for _ in text) for text in windows]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Per `(context, settings)`: what the model writes before one of `until`, its end, or `max_gen_toks`."""
        asked = [(request.args[0], json.dumps(request.args[1], sort_keys=True)) for request in requests]
        texts: dict[int, str] = {}
        for settings in dict.fromkeys(settings for _, settings in asked):
            places = [place for place, (_, same) in enumerate(asked) if same == settings]
            texts |= zip(
                places, self._written([asked[place][0] for place in places], json.loads(settings)), strict=True
            )
        return [texts[place] for place in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm_eval's cache of requests."""
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source, for lm_eval's report; a GGUF has one by default, and no others by name."""
        if isinstance(chat_template, str) and chat_template not in ("", "default"):
            raise InputError(f"chat template {chat_template!r} is not known; a GGUF is used with its own, the default")
        return self._template

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's own template writes it."""
        if self._render is None:
            raise InputError(f"{self._name} has no chat template; leave out --apply_chat_template")
        return self._render(Conversation(tuple(chat_history)), add_generation_prompt)

    def _pair(self, context: str, continuation: str) -> tuple[Tokens, int]:
        """Tokens of both, cut on the left to what fits, and where the continuation starts.

        Spaces between them belong to the continuation (lm_eval.api.model.TemplateLM._encode_pair).
        """
        before = context.rstrip()
        if before:
            tokens, start = self._tokens(context + continuation), len(self._tokens(before))
        else:
            tokens, start = self._opened(context + continuation), 1
        excess = max(0, len(tokens) - 1 - self._engine.n_ctx)
        self._cut += excess > 0
        return tokens[excess:], max(1, start - excess)

    def _tell_of_cut(self) -> None:
        if self._cut:
            _LOG.warning("%d contexts are longer than what fits, and lost their beginning; raise ctx", self._cut)
        self._cut = 0

    def _tokens(self, text: str) -> Tokens:
        return prompt_tokens(self._engine, text, special=True)

    def _opened(self, text: str) -> Tokens:
        """With a token that nothing but the start of a text comes before, also where the vocabulary adds none."""
        tokens = self._engine.tokenize(text, add_special=False, parse_special=True)
        return np.append(np.int32(self._engine.opening), tokens).astype(np.int32)

    def _shared(self, pairs: Sequence[tuple[Tokens, int]]) -> Iterator[Branches]:
        """Continuations of one context, in as few passes as they fit."""
        group: list[tuple[Tokens, int]] = []
        for pair in pairs:
            together = _branches([*group, pair])
            fits = together.n_tokens <= self._engine.n_ctx and len(together.texts) <= self._engine.n_parallel
            if group and not fits:
                yield _branches(group)
                group = []
            group.append(pair)
        yield _branches(group)

    def _windows(self, text: str) -> Iterator[Branches]:
        """Every token predicted once, after as many others as fit (lm_eval.utils.get_rolling_token_windows)."""
        tokens, size = self._opened(text), self._engine.n_ctx
        for start in range(1, len(tokens), size):
            end = min(start + size, len(tokens))
            window = tokens[max(0, end - size - 1) : end]
            yield Branches.of([window], [(len(window) - (end - start), len(window))])

    def _written(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> Iterator[str]:
        engine, until = self._engine, settings.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        n_predict = int(settings.get("max_gen_toks", settings.get("max_new_tokens", MAX_GEN_TOKS)))
        room = engine.n_ctx // engine.n_parallel - n_predict
        if room < 1:
            raise InputError(
                f"max_gen_toks {n_predict} leaves no room for a prompt: each of {engine.n_parallel} texts has "
                f"{engine.n_ctx // engine.n_parallel} tokens of ctx {engine.n_ctx}; raise ctx or lower parallel"
            )
        # A stop string of n bytes is completed by the last token within the last n tokens.
        tail = max((len(stop.encode()) for stop in stops), default=0)

        def stopped(tokens: Sequence[int]) -> bool:
            end = engine.detokenize(tokens[-tail - 1 :]) if stops else ""
            return any(stop in end for stop in stops)

        if ignored := [name for name in settings if name not in (*SETTINGS, *OTHER_SAMPLERS)]:
            _LOG.warning("generation settings without effect here: %s", ", ".join(ignored))
        prompts = [self._tokens(context) for context in contexts]
        self._cut += sum(len(prompt) > room for prompt in prompts)
        self._tell_of_cut()
        written = generate(
            engine,
            [prompt[-room:] for prompt in prompts],
            Sampling(n_predict, _temperature(settings), self._seed),
            stop=stopped,
            progress=self._progress,
        )
        for each in written:
            text = engine.detokenize(each.tokens.tolist())
            yield text[: min([len(text), *(text.find(stop) for stop in stops if stop in text)])]


def _branches(pairs: Sequence[tuple[Tokens, int]]) -> Branches:
    return Branches.of([tokens for tokens, _ in pairs], [(start, len(tokens)) for tokens, start in pairs])


def _temperature(settings: Mapping[str, Any]) -> float:
    temperature = float(settings.get("temperature") or 0)
    if not settings.get("do_sample", temperature > 0):
        return 0.0
    if settings.get("temperature") is not None and not temperature:
        raise InputError("do_sample at temperature 0 draws nothing; leave one of them out")
    if refused := [name for name in OTHER_SAMPLERS if settings.get(name) is not None]:
        raise InputError(f"sampling with {refused[0]} is not supported; use temperature alone, or do_sample: false")
    return temperature or 1.0


def _check_arguments(others: Mapping[str, Any]) -> None:
    """Raise InputError for what was given as --model_args and is none; lm_eval adds some of its own."""
    if unknown := [name for name in others if name not in OF_LM_EVAL]:
        raise InputError(f"--model_args {unknown[0]} is not known; there are {', '.join(ARGUMENTS)}")


def adapter() -> Any:
    """The class that lm_eval makes models of: `model=FILE,ctx=4096,parallel=8,threads=0,ngl=-1,seed=0`.

    Raises InputError when lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise InputError("lm_eval is not installed; pip install 'ggufreap[lm-eval]'") from None

    class GgufReapLM(Responses, LM):  # type: ignore[misc]  # lm_eval has no types
        """A GGUF file in lm_eval."""

        def __init__(
            self,
            model: str,
            ctx: int = 4096,
            parallel: int = 8,
            threads: int = 0,
            ngl: int = -1,
            seed: int = 0,
            **others: Any,
        ) -> None:
            _check_arguments(others)
            from ggufreap.architecture.layout import bind
            from ggufreap.container import open_gguf
            from ggufreap.corpus.chat import ChatTemplate
            from ggufreap.engine.session import LlamaSession
            from ggufreap.options.engine import EngineSettings

            file = open_gguf(model)
            settings = EngineSettings(ctx, 512, threads, ngl, n_parallel=parallel, watched=False)
            engine, render, source = LlamaSession(file.path, bind(file).nodes, settings), None, ""
            if template := ChatTemplate.of(file):
                held = ExitStack()  # lm_eval has no call for the end
                atexit.register(held.close)
                render, source = held.enter_context(template.renderer(spans=False)).prompt, template.default
            LM.__init__(self)
            Responses.__init__(self, engine, file.path.name, render=render, template=source, seed=seed)

    return GgufReapLM


def main() -> None:
    """lm_eval's command line, with the model `ggufreap`."""
    try:
        model = adapter()
    except InputError as error:
        sys.exit(f"ggufreap: {error}")
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model(NAME)(model)
    cli_evaluate()


if __name__ == "__main__":
    main()
