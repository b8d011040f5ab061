"""An architecture that no table knows, qwen9moe, and a llama.cpp that has learned it.

It is qwen3moe by another name. Of llama.cpp only the loading is replaced: it is handed a copy of the file in which the
name is the old one. LAW in the environment makes the architecture one that cannot be pruned by its looks.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiny_gguf
from gguf import GGMLQuantizationType as Kind

from ggufreap.container import GgufFile, open_gguf

NAME = "qwen9moe"
LAW = "TINY_UNKNOWN_LAW"
N_EXPERT = 16
HIDDEN = "blk.{block}.attn_q_norm.weight"  # of N_EXPERT entries, as it happens


def write(path: Path) -> Path:
    """Write a model of it."""

    def rename(model: tiny_gguf.Model) -> None:
        model.metadata = {key.replace("qwen3moe.", f"{NAME}."): value for key, value in model.metadata.items()}
        model.arch = NAME

    sizes = {"n_embd": 64, "n_ff": 32, "head": N_EXPERT, "n_expert": N_EXPERT, "types": Kind.Q8_0}
    return tiny_gguf.qwen3moe(path, **sizes, changes=[rename])


def learned(load: Callable[[bytes, Any], Any]) -> Callable[[bytes, Any], Any]:
    """llama_model_load_from_file for this architecture too."""

    def load_any(path: bytes, parameters: Any) -> Any:
        if open_gguf(os.fsdecode(path)).get("general.architecture") != NAME:
            return load(path, parameters)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy.gguf"
            copy.write_bytes(Path(os.fsdecode(path)).read_bytes().replace(NAME.encode(), b"qwen3moe"))
            LAWS[os.environ.get(LAW, "")](open_gguf(copy))
            return load(os.fsencode(copy), parameters)

    return load_any


def _values(file: GgufFile, name: str) -> np.ndarray:
    record = file.by_name[name]
    return np.memmap(file.path, np.float32, "r+", record.offset, record.shape)


def _router_by_another_order(file: GgufFile) -> None:
    """Row i of the router is about expert i - 1."""
    rows = _values(file, "blk.0.ffn_gate_inp.weight")
    rows[:] = np.roll(rows, 1, axis=0)


def _hidden_scale(file: GgufFile) -> None:
    """A tensor that looks like one of the attention has an entry per expert."""
    for block in range(file.get("qwen3moe.block_count")):
        rows = _values(file, f"blk.{block}.ffn_gate_inp.weight")
        rows *= 1 + 10 * np.abs(_values(file, HIDDEN.format(block=block))[: len(rows), None] - 1)


LAWS: dict[str, Callable[[GgufFile], None]] = {
    "": lambda _: None,
    "router by another order": _router_by_another_order,
    "hidden scale": _hidden_scale,
}
