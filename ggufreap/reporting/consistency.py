"""Whether facts fit each other."""

from collections.abc import Collection

from ggufreap.errors import InputError


def check_block(block: int, keep: Collection[int], n_scores: int, before: int, after: int) -> None:
    """Raise InputError unless a planned block keeps `after` of `before` experts, and has scores for all or none."""
    if len(set(keep)) != after or len(keep) != after or not set(keep) <= set(range(before)):
        raise InputError(
            f"block {block} keeps {len(set(keep))} of {before} experts, the model has {after}; "
            "give the plan that it was pruned with"
        )
    if n_scores not in (0, before):
        raise InputError(f"block {block} has {n_scores} scores for {before} experts; give all")
