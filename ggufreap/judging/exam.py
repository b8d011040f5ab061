"""What is asked of a model: held-out texts as they were read, gates, and how llama.cpp runs."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ggufreap.architecture.layout import bind
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.container import GgufFile
from ggufreap.corpus import Corpus, overlap
from ggufreap.corpus import held_out as held_out_data
from ggufreap.corpus.held_out import Texts
from ggufreap.corpus.request import Opened, check_nbytes
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InfeasiblePlan, InputError, UnsupportedModel
from ggufreap.evaluation import METRICS, Comparison, Gate, Outcome, parse_gate
from ggufreap.model import warn_of_context
from ggufreap.observation import Provenance
from ggufreap.options.engine import EngineSettings
from ggufreap.options.judgement import LEAST_CTX, HeldOut, given_name

HEADLESS = "this model ends in hidden states: it predicts no text that could be scored"
MUCH = 0.1  # of its lines: licences and imports stand in any two texts of code
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exam:
    """Domain -> text or other data, of which at most `chunks` chunks are run; all of it is known to be good.

    `paths`: the files that it was read from.
    """

    texts: Texts
    chunks: int | None
    gates: tuple[Gate, ...]
    settings: EngineSettings
    paths: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls,
        held_out: HeldOut,
        settings: EngineSettings | None,
        metrics: Iterable[str] = METRICS,
        gates: Sequence[str] = (),
        more: Sequence[Opened] = (),
    ) -> Self:
        """Read the texts, and `more`; raises InputError for what cannot be read or asked.

        `gates`: where none are given.
        """
        settings = settings or EngineSettings()
        parsed = tuple(map(parse_gate, held_out.fail_if or gates))
        exam = cls({}, held_out.chunks, parsed, replace(settings, n_ctx=held_out.ctx_size or settings.n_ctx))
        check_ctx(exam.settings)
        texts = held_out_data.named((*held_out.files, *more))
        for gate in parsed:
            gate.require(texts, metrics)
        for name, text in texts.items():
            if isinstance(text, str):
                check_nbytes(name, len(text.encode()), exam.settings.n_ctx)
        opened = (path for each in texts.values() if isinstance(each, Opened) for path in each.paths)
        plain = (Path(given_name(file)[1]) for file in held_out.files if isinstance(file, str))
        return replace(exam, texts=texts, paths=(*opened, *plain))

    def tokenised(self, engine: LlamaSession, model: GgufFile) -> dict[str, Corpus]:
        """Domain -> its chunks, as `model`, which `engine` has loaded, reads it; what was left out is said."""
        warn_of_context(model, self.settings.n_ctx)
        corpora, notes = held_out_data.tokenised(engine, model, self.texts, self.settings.n_ctx, self.chunks)
        for note in notes:
            _LOG.info("%s", note)
        return corpora

    def warn_of_seen(self, calibration: Opened) -> None:
        """Say which of the texts stand in the calibration data, whatever their files are called."""
        for name, share in overlap.seen(self.texts, calibration).items():
            if share >= MUCH:
                _LOG.warning(
                    "%.0f %% of the lines of %s stand in the calibration data too: "
                    "what it tells of the loss is too good",
                    100 * share,
                    name,
                )

    def warn_of_source(self, engine: LlamaSession, model: GgufFile, provenance: Provenance) -> None:
        """Say which of the texts statistics were made of, by the hashes in them."""
        for name, given in self.texts.items():
            if overlap.is_source(engine, model, given, provenance.n_ctx, provenance.sources):
                _LOG.warning("%s was calibrated on too: what it tells of the loss is too good", name)

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


def open_engine(source: GgufFile, settings: EngineSettings, together: int = 1) -> LlamaSession:
    """Any model that llama.cpp runs, dense ones and those that cannot be pruned included, as long as it has a head.

    `together` as of LlamaSession.
    """
    try:
        nodes = bind(source).nodes
    except (UnsupportedModel, InfeasiblePlan):
        architecture = source.get("general.architecture")
        causal = bool(source.get(f"{architecture}.attention.causal", True))
        nodes = RoutingNodes((), 0, weighted_input=False, causal=causal, headless=False)
    if nodes.headless:
        raise InputError(f"{source.path}: {HEADLESS}")
    return LlamaSession(source.path, nodes, settings, together=together)
