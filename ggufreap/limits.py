"""What counts as small, as stable and as equal: one table, which every verdict quotes."""

# Mean KLD below which a loss is called so. Rules of thumb: published quantisations of Qwen3.5-35B-A3B cost 0.010 with
# 4.9 bits per weight, 0.033 with 3.7 and 0.11 with 2.6; from 1 on little is left of what the model used to say.
SCALE = (("very small", 0.02), ("small", 0.1), ("clear", 0.3), ("large", 1.0), ("severe", None))
FIT, UNFIT = ("very small", "small"), ("large", "severe")
# The KLD of the worst domain that nobody has to defend: where a preview stops, and what the ratio auto may cost.
SMALL = 0.1
# Halves of the text that agree on this share of the removed experts: the rest are experts of nearly equal score.
STABLE = 0.95
# Standard errors within which two models count as equal.
TIE = 2.0


def level_of(kld: float) -> str:
    """The word for a mean KLD."""
    return next(level for level, below in SCALE if below is None or kld < below)
