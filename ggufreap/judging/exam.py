"""What is asked of a model: held-out texts as they were read, gates, and how llama.cpp runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from ggufreap import corpus as corpora
from ggufreap.architecture.layout import bind
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.container import GgufFile
from ggufreap.corpus import Corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InfeasiblePlan, InputError, UnsupportedModel
from ggufreap.evaluation import METRICS, Comparison, Gate, Outcome, parse_gate
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import LEAST_CTX, HeldOut, split_name

HEADLESS = "this model ends in hidden states: it predicts no text that could be scored"


@dataclass(frozen=True)
class Exam:
    """Domain -> text, of which at most `chunks` chunks are run; all of it is known to be good."""

    texts: Mapping[str, str]
    chunks: int | None
    gates: tuple[Gate, ...]
    settings: EngineSettings

    @classmethod
    def of(
        cls,
        held_out: HeldOut,
        settings: EngineSettings | None,
        metrics: Iterable[str] = METRICS,
        gates: Sequence[str] = (),
    ) -> Self:
        """Read the texts; raises InputError for what cannot be read or asked. `gates`: where none are given."""
        settings = settings or EngineSettings()
        found = tuple(map(parse_gate, held_out.fail_if or gates))
        exam = cls({}, held_out.chunks, found, replace(settings, n_ctx=held_out.ctx_size or settings.n_ctx))
        check_ctx(exam.settings)
        texts = named_texts(held_out.files)
        for gate in found:
            gate.require(texts, metrics)
        return replace(exam, texts=texts)

    def tokenised(self, engine: LlamaSession) -> dict[str, Corpus]:
        """Domain -> its chunks, as this model reads it."""
        n_ctx = self.settings.n_ctx
        return {
            name: corpora.from_text(engine, text, n_ctx, name).head(self.chunks) for name, text in self.texts.items()
        }

    def outcomes(self, comparison: Comparison) -> tuple[Outcome, ...]:
        """What the gates find."""
        return check_gates(self.gates, comparison)


def check_gates(gates: Iterable[Gate], comparison: Comparison) -> tuple[Outcome, ...]:
    """What gates find."""
    figures = {name: meters.figures for name, meters in comparison.domains.items()}
    return tuple(gate.check(figures, comparison.mean.figures) for gate in gates)


def check_ctx(settings: EngineSettings) -> None:
    """Raise InputError unless some token of a chunk is scored."""
    if settings.n_ctx < LEAST_CTX:
        raise InputError(f"-c {settings.n_ctx}: only chunks of {LEAST_CTX} tokens or more can be scored; raise -c")


def named_texts(files: Sequence[str]) -> dict[str, str]:
    """Domain -> text, of `NAME=FILE` or `FILE`; the name is else the file's, without extension."""
    texts: dict[str, str] = {}
    for name, path in map(split_name, files):
        if name in texts:
            raise InputError(f"two texts are called {name!r}; name them with -f NAME=FILE")
        texts[name] = corpora.read_text(path)
    if not texts:
        raise InputError("no held-out text was given; give some with -f, text that calibration has not seen")
    return texts


def open_engine(source: GgufFile, settings: EngineSettings) -> LlamaSession:
    """Any model that llama.cpp runs, dense ones and those that cannot be pruned included, as long as it has a head."""
    try:
        nodes = bind(source).nodes
    except (UnsupportedModel, InfeasiblePlan):
        architecture = source.get("general.architecture")
        causal = bool(source.get(f"{architecture}.attention.causal", True))
        nodes = RoutingNodes((), 0, weighted_input=False, causal=causal, headless=False)
    if nodes.headless:
        raise InputError(f"{source.path}: {HEADLESS}")
    return LlamaSession(source.path, nodes, settings)
