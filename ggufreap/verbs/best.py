"""The method `best`: contenders judged on the model itself, with what calibration kept beside its statistics."""

import json
import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import threads
from ggufreap.model import Model
from ggufreap.observation import DomainStatistics, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.selection.judging import Ledger, judge, usable
from ggufreap.selection.portfolio import CONTENDERS, Verdict, compete

_LOG = logging.getLogger(__name__)


def best_method(
    model: Model,
    stored: Stored,
    statistics: DomainStatistics,
    n_keep: int,
    *,
    budget: int,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Verdict:
    """The method that loses least on held-back chunks of the calibration text.

    They are judged for about `budget` minutes, 0: until all chunks are. What was judged is kept in a file beside the
    statistics, so that a run that was stopped goes on. Raises InputError where these hold no such chunks, or fewer than
    two of a domain.
    """
    nodes = model.layout.nodes
    if nodes.headless:
        raise InputError(f"{model.path}: this model ends in hidden states, so methods cannot be judged; name a method")
    held_back = usable(stored.held_back().chunks)
    for domain, halves in statistics.halves.items():
        if not held_back.get(domain) or not all(half.n_tokens for half in halves):
            raise InputError(
                f"{stored.path} does not hold two halves of {domain} and chunks of them to judge methods by; calibrate "
                "again with more of it, or name a method"
            )
    longest = max(len(one.tokens) for chunks in held_back.values() for one in chunks)
    settings = replace(settings or EngineSettings(), n_ctx=longest)
    how = json.dumps([model.file.fingerprint, *map(str, settings.attention), settings.graph_tokens])
    path = ledger_beside(stored.path)
    with (
        LlamaSession(model.path, nodes, settings, together=1 + len(CONTENDERS)) as engine,
        threads(settings.cpu_threads) as run,
        doing("judging methods on", model.path, kept=path),
    ):
        judging = partial(judge, engine, held_back, ledger=Ledger(path, how), run=run, progress=progress)
        verdict = compete(statistics, n_keep, model.layout.n_group, judging, 60 * budget or math.inf)
    kept = sum(map(len, held_back.values()))
    for what, count in (("methods", verdict.n_chunks), ("what the better ones keep", verdict.n_own)):
        if 0 < count < kept:
            _LOG.info("judged %s on %d of %d held-back chunks: --budget %d was up", what, count, kept, budget)
    if verdict.dropped:
        _LOG.info("%s", verdict.dropped)
    return verdict


def ledger_beside(stats: Path) -> Path:
    """Where it is kept what was judged: S.judged.json beside S.npz."""
    return stats.with_name(f"{stats.name.removesuffix('.npz')}.judged.json")
