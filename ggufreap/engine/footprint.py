"""How much memory a model takes: measured in a process that does nothing else.

Run as `python -m ggufreap.engine.footprint` with a job as JSON on standard input; answers with a number of bytes.
"""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ggufreap import process
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.engine.machine import machine
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import GgufReapError
from ggufreap.options.engine import EngineSettings


def footprint(model: Path, settings: EngineSettings, n_tokens: int) -> int | None:
    """The peak of resident memory while `n_tokens` are read, weights included, less the program's own.

    None where the system does not tell, or the model does not run.
    """
    job = json.dumps({"model": str(model), "settings": asdict(settings), "n_tokens": n_tokens})
    machine()  # what it warns of would not be heard from a child
    done = process.run(__name__, given=job)
    return int(done.out) if done.ending.ok else None


def _peak() -> int:
    """Peak of resident memory; on Linux getrusage would also tell of the program that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])  # type: ignore[index]  # proc(5)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _main() -> None:
    job = json.load(sys.stdin)
    before = _peak()
    nodes = RoutingNodes((), 0, weighted_input=False, causal=True, headless=False)
    with LlamaSession(Path(job["model"]), nodes, EngineSettings(**job["settings"])) as engine:
        tokens = np.random.default_rng(0).integers(0, engine.n_vocab, job["n_tokens"]).astype(np.int32)
        engine.sequences().feed({0: tokens})
        sys.stdout.write(str(_peak() - before))


if __name__ == "__main__":
    try:
        _main()
    except (GgufReapError, ImportError):  # no module resource on Windows
        sys.exit(1)
