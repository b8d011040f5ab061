"""Short runs of a model in a process of its own: llama.cpp aborts on a bad file, and must not take the user's with it.

Run as `python -m ggufreap.engine.subprocess_probe REQUEST.npz FOLDER`; the request holds all that `run` needs.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ggufreap import process
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.block_tap import Recorded
from ggufreap.engine.machine import machine
from ggufreap.engine.neuron_mask import Fewer
from ggufreap.engine.neuron_tap import FewerNeurons
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, GgufReapError
from ggufreap.options.engine import EngineSettings


@dataclass(frozen=True)
class Pass:
    """One run of the chunk, experts outside `keep` masked (None: all stay), with `fewer` neurons in the others where
    that folder, written by `save_fewer`, says so.

    `n_step`: as many tokens at once, all of them at 0; `nudge`: a last bit changed (see NudgeTap). `record`: what the
    blocks computed is written down. `given`: the record of another pass, whose residual streams are put in place of the
    computed ones.
    """

    keep: Keep | None = None
    fewer: Path | None = None
    n_step: int = 0
    nudge: bool = False
    record: bool = False
    given: Path | None = None


@dataclass(frozen=True)
class Ran:
    """The logits `[n_tokens, n_vocab]` of a pass, and the .npz with what the blocks computed (see BlockTap)."""

    logits: npt.NDArray[np.float32]
    record: Path | None


def save_fewer(folder: Path, neurons: Mapping[int, npt.NDArray[np.int32]], downs: Mapping[int, Any]) -> Path:
    """Leave in `folder`, by block, which neurons of the kept experts stay, `[n_keep, width]`, and their columns."""
    for what, arrays in (("neurons", neurons), ("downs", downs)):
        for block, array in arrays.items():
            np.save(folder / f"{what}-{block}.npy", array)
    return folder


def run(model: Path, tokens: Tokens, settings: EngineSettings, passes: Sequence[Pass], folder: Path) -> list[Ran]:
    """Run `tokens` through `model`, loaded once, pass by pass; records are left in `folder`, which exists.

    Raises EngineError when llama.cpp refuses the file or dies on it.
    """
    machine()  # what it warns of would not be heard from a child
    job = {"model": str(model), "settings": vars(settings), "passes": [asdict(each) for each in passes]}
    request = folder / "request.npz"
    np.savez(request, job=np.array(json.dumps(job, default=_plain)), tokens=tokens)
    done = process.run(__name__, str(request), str(folder))
    if not done.ending.ok:
        raise EngineError(_last_words(model, done))
    return [
        Ran(np.load(_logits(folder, index)), _record(folder, index) if each.record else None)
        for index, each in enumerate(passes)
    ]


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else list(value)  # type: ignore[call-overload]  # a range or an array


def _logits(folder: Path, index: int) -> Path:
    return folder / f"logits-{index}.npy"


def _record(folder: Path, index: int) -> Path:
    return folder / f"blocks-{index}.npz"


def _last_words(model: Path, done: process.Done) -> str:
    lines = done.err.splitlines()
    told = next((line for line in reversed(lines) if str(model) in line), None)
    return told or f"llama.cpp died on {model}: it {process.last_words(done.ending, lines)}"


def _main(request: Path, folder: Path) -> None:
    with np.load(request) as archive:
        job, tokens = json.loads(str(archive["job"])), archive["tokens"]
    file = open_gguf(job["model"])
    with LlamaSession(file.path, bind(file).nodes, EngineSettings(**job["settings"])) as session:
        for index, each in enumerate(job["passes"]):
            keep = each["keep"] and {int(block): experts for block, experts in each["keep"].items()}
            fewer = _fewer(each["fewer"], keep)
            if each["record"]:
                logits, recorded = _recorded(session, tokens, keep, each["given"], fewer)
                arrays: dict[str, Any] = dict(recorded)
                np.savez(_record(folder, index), **arrays)
            elif each["nudge"]:
                logits = session.nudged(tokens, keep, fewer)
            elif each["n_step"]:
                logits = _stepwise(session, tokens, keep, each["n_step"], fewer)
            else:
                logits = session.logits(tokens, keep, fewer=fewer)
            np.save(_logits(folder, index), logits)


def _recorded(
    session: LlamaSession, tokens: Tokens, keep: Keep | None, given: str | None, fewer: Fewer | None
) -> tuple[npt.NDArray[np.float32], Recorded]:
    if given is None:
        return session.blocks(tokens, keep, fewer=fewer)
    with np.load(given) as archive:
        return session.blocks(tokens, keep, archive, fewer)


def _fewer(folder: str | None, keep: Keep | None) -> Fewer | None:
    if folder is None or keep is None:
        return None
    found: dict[int, FewerNeurons] = {}
    for block, experts in keep.items():
        downs = Path(folder, f"downs-{block}.npy")
        columns = np.load(downs, mmap_mode="r") if downs.exists() else None
        found[block] = FewerNeurons(experts, np.load(Path(folder, f"neurons-{block}.npy")), columns)
    return found


def _stepwise(
    session: LlamaSession, tokens: Tokens, keep: Keep | None, n_step: int, fewer: Fewer | None
) -> npt.NDArray[np.float32]:
    memory = session.sequences(keep, fewer)
    parts = (tokens[start : start + n_step] for start in range(0, len(tokens), n_step))
    return np.concatenate([memory.feed({0: part}, every=True)[0] for part in parts])


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]), Path(sys.argv[2]))
    except GgufReapError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
