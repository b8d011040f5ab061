"""What a plan leaves of each domain of the text."""

from pathlib import Path

from ggufreap import blending
from ggufreap.coverage import Coverage, measure
from ggufreap.errors import MismatchError
from ggufreap.observation import AnyStatistics, Stored
from ggufreap.options.target import REAP
from ggufreap.planning import PruningPlan, load_plan
from ggufreap.selection.methods import calibrates


def coverage(stats: AnyStatistics, plan: PruningPlan | str | Path) -> Coverage:
    """What a plan leaves of each domain of the text, and whether there was enough of it to plan by."""
    chosen = plan if isinstance(plan, PruningPlan) else load_plan(Path(plan))
    stored = Stored.of(stats)
    provenance = stored.provenance
    known = provenance.model, provenance.structure, provenance.types
    told = f"{stored.path} was calibrated on model {provenance.model[:12]}"
    chosen.model.require(told, "give what belongs together", *known)
    statistics = stored.domain_statistics()
    if statistics.n_expert != chosen.n_expert:
        raise MismatchError(
            f"{stored.path} has {statistics.n_expert} experts in each block, the plan chooses among {chosen.n_expert}; "
            "give what belongs together"
        )
    method = chosen.scored_by if calibrates(chosen.scored_by) else REAP
    return measure(statistics, chosen.keep, method, chosen.blend or blending.TOKENS, chosen.n_group)
