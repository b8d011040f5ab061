"""The embedded demonstration: the whole job on a small MoE model that comes with the package."""

from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap import corpus as corpora
from ggufreap.corpus.standard_library import calibration_text, held_out_text
from ggufreap.engine.generator import Sampling
from ggufreap.engine.session import LlamaSession
from ggufreap.evaluation import Perplexity, answers, perplexity
from ggufreap.files import make_folder, replacing
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.options.output import Output
from ggufreap.options.quantisation import KEEP, Quantisation
from ggufreap.options.target import Target
from ggufreap.progress import Progress, silent
from ggufreap.verbs import Pruned, prune

MODEL = Path(__file__).with_name("demo-moe-Q8_0.gguf")
CALIBRATION_BYTES, HELD_OUT_BYTES = 150_000, 60_000
QUANT = (KEEP, "Q4_K_M")
N_CTX = 256
PROMPT = "def read_header(path):\n"
SAMPLING = Sampling(n_predict=60, temperature=0.7, seed=1)


@dataclass(frozen=True)
class Demonstration:
    """What `demo` shows: the files, held-out perplexity, and what the pruned model writes after `prompt`.

    `before` is of the original, `after` of the byte-exact pruned file, `quantized` of its variant.
    """

    pruned: Pruned
    before: Perplexity
    after: Perplexity
    quantized: Perplexity
    prompt: str
    sample: str


def demo(
    out: str | Path = "ggufreap-demo",
    *,
    ratio: str | float = "0.25",
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Demonstration:
    """The whole job on the embedded model, in the folder `out`: what it saves, what is lost, what it still writes."""
    folder = Path(out)
    make_folder(folder, parents=True)
    text = folder / "calibration.txt"
    with replacing(text) as handle:
        handle.write(calibration_text(CALIBRATION_BYTES).encode())
    settings = replace(settings or EngineSettings(), n_ctx=N_CTX, n_ubatch=N_CTX)
    pruned = prune(
        MODEL,
        text,
        target=Target(ratio=ratio),
        quantisation=Quantisation(QUANT),
        output=Output(folder),
        settings=settings,
        progress=progress,
    )
    held_out = held_out_text(HELD_OUT_BYTES)
    exact, variant = pruned.script.files[0].path, pruned.quantized[0].paths[0]
    measured, sample = [], ""
    for which, path in (("original", MODEL), ("pruned", exact), ("quantised", variant)):
        model = Model.open(path)
        with LlamaSession(model.path, model.layout.nodes, settings) as engine:
            corpus = corpora.from_text(engine, held_out, settings.n_ctx, "held-out text")
            measured.append(perplexity(engine, corpus, progress, f"perplexity, {which}"))
            if path == exact:
                sample = answers(engine, [PROMPT], SAMPLING)[0].text
    before, after, quantised = measured
    return Demonstration(pruned, before, after, quantised, PROMPT, sample)
