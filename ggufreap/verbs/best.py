"""The method `best`: candidates judged on the model itself, with what calibration kept beside its statistics."""

import json
import math
from dataclasses import replace
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import threads
from ggufreap.model import Model
from ggufreap.observation import DomainStatistics, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.selection.choosing import Choice
from ggufreap.selection.judging import Ledger, judge, usable
from ggufreap.selection.portfolio import Sets, Verdict


def best_method(
    model: Model,
    stored: Stored,
    statistics: DomainStatistics,
    n_keep: int,
    *,
    budget: int,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> tuple[Verdict, Choice]:
    """The method that loses least on held-back chunks of the calibration text, and what stays by it.

    They are judged for `budget` minutes at most, 0: until all chunks are. What was judged is kept in a file beside the
    statistics, so that a run that was stopped goes on. Raises InputError where these hold no such chunks, or fewer than
    two of a domain.
    """
    nodes = model.layout.nodes
    if nodes.headless:
        raise InputError(f"{model.path}: this model ends in hidden states, so methods cannot be judged; name a method")
    held_back = usable(stored.held_back().chunks)
    missing = [domain for domain in statistics.domains if domain not in held_back]
    if missing:
        raise InputError(
            f"{stored.path} holds no chunks of {missing[0]} to judge methods by; calibrate again with more of it"
        )
    sets = Sets.of(statistics, n_keep, model.layout.n_group)
    keeps = {name: dict(zip(statistics.blocks, rows, strict=True)) for name, rows in sets.rows.items()}
    longest = max(len(tokens) for chunks in held_back.values() for tokens in chunks)
    settings = replace(settings or EngineSettings(), n_ctx=longest)
    how = json.dumps([model.file.fingerprint, *map(str, settings.attention), settings.graph_tokens])
    path = ledger_beside(stored.path)
    with (
        LlamaSession(model.path, nodes, settings) as engine,
        threads(settings.cpu_threads) as run,
        doing("judging methods on", model.path, kept=path),
    ):
        losses = judge(
            engine,
            held_back,
            keeps,
            Ledger(path, how),
            budget=60 * budget or math.inf,
            run=run,
            progress=progress,
        )
    return sets.decide(losses)


def ledger_beside(stats: Path) -> Path:
    """Where it is kept what was judged: S.judged.json beside S.npz."""
    return stats.with_name(f"{stats.name.removesuffix('.npz')}.judged.json")
