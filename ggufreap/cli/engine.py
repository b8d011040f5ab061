"""How llama.cpp runs: flags made of the fields of EngineSettings, and the settings made of the flags."""

import argparse
from collections.abc import Mapping
from dataclasses import replace

from ggufreap.cli.flags import AddFlags
from ggufreap.cli.generated import flags, value
from ggufreap.options.engine import (
    ANSWERING,
    ATTENTION,
    BATCH,
    BLOCKS,
    CALIBRATING,
    CONTEXT,
    PLACEMENT,
    SEQUENCES,
    THREADS,
    TOGETHER,
    WRITING,
    EngineSettings,
)
from ggufreap.options.flag import Flag, flags_of, whole

_TITLES = {PLACEMENT: "llama.cpp: where the weights go"}  # the other groups share one


def settings(options: argparse.Namespace) -> EngineSettings:
    """How llama.cpp shall run: what was given, and the verb's defaults."""
    return value(options, EngineSettings)


def _flags(base: EngineSettings, *groups: str, instead: Mapping[str, Flag] | None = None) -> AddFlags:
    return flags(base, *groups, title="llama.cpp", titles=_TITLES, instead=instead)


_CONTEXT_FLAG = flags_of(EngineSettings)["n_ctx"]
_OF_DATA = replace(_CONTEXT_FLAG, parse=whole(1), help="tokens per chunk (512 for text, 2048 for data sets and rows)")
_OF_TEXT = replace(_CONTEXT_FLAG, parse=whole(1), help="tokens per chunk ({})")
_OF_TEXTS = replace(_CONTEXT_FLAG, names=("-c", "--ctx-size"), help="tokens of all texts together (what fits)")
_OF_CANDIDATES = replace(
    flags_of(EngineSettings)["n_together"],
    help="of the original and the candidates, so many share one reading of the weights: a number or fit (fit)",
)
_EVERYWHERE = (THREADS, PLACEMENT, ATTENTION)

# Where the data decide on the length of a chunk, where only text is read, and where texts are written.
engine_of_data = _flags(CALIBRATING, CONTEXT, BATCH, TOGETHER, BLOCKS, *_EVERYWHERE, instead={"n_ctx": _OF_DATA})
engine_of_text = _flags(EngineSettings(), CONTEXT, BATCH, *_EVERYWHERE, instead={"n_ctx": _OF_TEXT})
engine_that_masks = _flags(
    EngineSettings(),
    CONTEXT,
    BATCH,
    TOGETHER,
    *_EVERYWHERE,
    instead={"n_ctx": _OF_TEXT, "n_together": _OF_CANDIDATES},
)
engine_that_writes = _flags(WRITING, CONTEXT, BATCH, SEQUENCES, *_EVERYWHERE, instead={"n_ctx": _OF_TEXTS})
engine_that_answers = _flags(ANSWERING, CONTEXT, BATCH, SEQUENCES, *_EVERYWHERE, instead={"n_ctx": _OF_TEXTS})
# Where the length is not the user's to choose, and where neither it nor the batch nor the precision is.
engine_of_fixed_length = _flags(EngineSettings(), BATCH, *_EVERYWHERE)
engine_of_fixed_batch = _flags(EngineSettings(), *_EVERYWHERE)
engine_that_is_exact = _flags(EngineSettings(), THREADS, PLACEMENT)
