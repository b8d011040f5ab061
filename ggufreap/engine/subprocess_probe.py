"""Logits from a process of its own: llama.cpp aborts on a bad file, and must not take the user's run with it.

Run as `python -m ggufreap.engine.subprocess_probe REQUEST.npz ANSWER.npy`; the request holds all that `logits` needs.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.engine.protocol import Keep, Tokens
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import EngineError, GgufReapError
from ggufreap.options.engine import EngineSettings


def logits(
    model: Path, tokens: Tokens, settings: EngineSettings, keeps: Sequence[Keep | None]
) -> list[npt.NDArray[np.float32]]:
    """Logits `[n_tokens, n_vocab]` of `model`, once per keep-set, the experts outside of it masked (None: all stay).

    Raises EngineError when llama.cpp refuses the file or dies on it.
    """
    with tempfile.TemporaryDirectory(prefix="ggufreap-") as folder:
        request, answer = Path(folder) / "request.npz", Path(folder) / "answer.npy"
        job = {"model": str(model), "settings": vars(settings), "keeps": [keep and _plain(keep) for keep in keeps]}
        np.savez(request, job=np.array(json.dumps(job)), tokens=tokens)
        command = [sys.executable, "-m", __name__, str(request), str(answer)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if result.returncode != 0:
            raise EngineError(_last_words(model, result))
        return list(np.load(answer))


def _plain(keep: Keep) -> dict[int, list[int]]:
    return {block: list(experts) for block, experts in keep.items()}


def _last_words(model: Path, result: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    said = lines[-1].removeprefix("ggufreap: ") if lines else "it said nothing"
    return said if str(model) in said else f"llama.cpp died on {model} (exit {result.returncode}): {said}"


def _main(request: Path, answer: Path) -> None:
    with np.load(request) as archive:
        job, tokens = json.loads(str(archive["job"])), archive["tokens"]
    keeps = [keep and {int(block): experts for block, experts in keep.items()} for keep in job["keeps"]]
    file = open_gguf(job["model"])
    with LlamaSession(file.path, bind(file).nodes, EngineSettings(**job["settings"])) as session:
        np.save(answer, np.stack([session.logits(tokens, keep) for keep in keeps]))


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]), Path(sys.argv[2]))
    except GgufReapError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
