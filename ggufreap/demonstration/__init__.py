"""The embedded demonstration: a small MoE model, and text that every Python installation has."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggufreap.evaluation import Perplexity

if TYPE_CHECKING:
    from ggufreap.verbs import Pruned

MODEL = Path(__file__).with_name("demo-moe-Q8_0.gguf")


@dataclass(frozen=True)
class Demonstration:
    """What `demo` shows: the files, held-out perplexity, and what the pruned model writes after `prompt`.

    `before` is of the original, `after` of the byte-exact pruned file, `quantized` of its variant.
    """

    pruned: "Pruned"
    before: Perplexity
    after: Perplexity
    quantized: Perplexity
    prompt: str
    sample: str
