"""The method `best`: candidates judged on the model itself, with what calibration kept beside its statistics."""

import json
import math
from dataclasses import replace
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.evaluation import threads
from ggufreap.observation import DomainStatistics, Stored
from ggufreap.options.engine import EngineSettings
from ggufreap.progress import Progress, silent
from ggufreap.selection.choosing import Choice
from ggufreap.selection.judging import Ledger, judge, usable
from ggufreap.selection.portfolio import Sets, Verdict

MINUTES = 30.0  # for judging, where nobody says how long it may take


def best_method(
    source: GgufFile,
    layout: MoeLayout,
    stats: Path,
    statistics: DomainStatistics,
    n_keep: int,
    *,
    budget: float | None = None,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> tuple[Verdict, Choice]:
    """The method that loses least on held-out chunks of the calibration text, and what stays by it.

    They are judged for `budget` minutes (MINUTES) at most. What was judged is kept in a file beside `stats`, so that a
    run that was stopped goes on. Raises InputError where the statistics hold no such chunks, or fewer than two of a
    domain.
    """
    if layout.nodes.headless:
        raise InputError(f"{source.path}: this model ends in hidden states, so methods cannot be judged; name a method")
    held_out = usable(Stored.open(stats).held_out().chunks)
    missing = [domain for domain in statistics.domains if domain not in held_out]
    if missing:
        raise InputError(
            f"{stats} holds no chunks of {missing[0]} to judge methods by; calibrate again with more of it"
        )
    sets = Sets.of(statistics, n_keep, layout.n_group)
    keeps = {name: dict(zip(statistics.blocks, rows, strict=True)) for name, rows in sets.rows.items()}
    longest = max(len(tokens) for chunks in held_out.values() for tokens in chunks)
    settings = replace(settings or EngineSettings(), n_ctx=longest)
    how = json.dumps([source.fingerprint, *map(str, settings.attention), settings.graph_tokens])
    path = ledger_beside(stats)
    with (
        LlamaSession(source.path, layout.nodes, settings) as engine,
        threads(settings.cpu_threads) as run,
        doing("judging methods on", source.path, kept=path),
    ):
        found = judge(
            engine,
            held_out,
            keeps,
            Ledger(path, how),
            budget=math.inf if budget == 0 else 60 * (MINUTES if budget is None else budget),
            run=run,
            progress=progress,
        )
    return sets.decide(found)


def ledger_beside(stats: Path) -> Path:
    """Where it is kept what was judged: S.judged.json beside S.npz."""
    return stats.with_name(f"{stats.name.removesuffix('.npz')}.judged.json")
