"""What the benchmarks share: large models of random weights, trained ones and their texts, and measuring side by side.

Machines differ and drift, so only ratios within one run mean anything: the contestants take turns, and the medians of
their times are compared.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from ggufreap import corpus
from ggufreap.engine.session import LlamaSession
from ggufreap.model import Model
from ggufreap.options.engine import EngineSettings
from ggufreap.selection.judging import Difference, mean_loss, worst_loss

sys.path.append(str(Path(__file__).parents[1]))  # the builders of the tests
import tiny_gguf

# Offset in a block -> scale, which makes random bytes finite weights of a deviation near 0.02 (block_q8_0, block_q4_K
# in ggml/src/ggml-common.h).
_SCALES = {Kind.Q8_0: {0: 3e-4}, Kind.Q4_K: {0: 1e-4, 2: 7.5e-4}}


@dataclass(frozen=True)
class Sizes:
    """A qwen3moe as wide as Qwen3-30B-A3B; what differs between the benchmarks has no default."""

    n_block: int
    n_expert: int
    n_ff: int
    n_embd: int = 2048
    n_used: int = 8
    n_vocab: int = 32_768
    n_head: int = 32
    n_head_kv: int = 4
    head: int = 128


def write_moe(path: Path, sizes: Sizes, kinds: tuple[Kind, Kind], tokenizer: bool = False) -> None:
    """Stream a model to `path`; `kinds` are the types of gate and up, and of all other matrices."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(sizes.n_block)
    writer.add_context_length(4096)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_feed_forward_length(sizes.n_ff)
    writer.add_head_count(sizes.n_head)
    writer.add_head_count_kv(sizes.n_head_kv)
    writer.add_key_length(sizes.head)
    writer.add_value_length(sizes.head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(sizes.n_expert)
    writer.add_expert_used_count(sizes.n_used)
    writer.add_expert_feed_forward_length(sizes.n_ff)
    writer.add_vocab_size(sizes.n_vocab)
    if tokenizer:
        words = tiny_gguf.vocabulary(sizes.n_vocab)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(words["tokenizer.ggml.tokens"])
        writer.add_token_types(words["tokenizer.ggml.token_type"])
        writer.add_token_merges(words["tokenizer.ggml.merges"])
    else:
        writer.add_tokenizer_model("none")
    tensors = _tensors(sizes, *kinds)
    for name, (shape, kind) in tensors.items():
        stored = gguf.quant_shape_to_byte_shape(shape, kind) if kind in _SCALES else shape
        dtype = np.dtype(np.uint8 if kind in _SCALES else np.float32)
        writer.add_tensor_info(name, stored, dtype, prod(stored) * dtype.itemsize, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(0)
    for shape, kind in tensors.values():
        writer.write_tensor_data(_content(shape, kind, rng))
    writer.close()


def _tensors(sizes: Sizes, gate_up: Kind, other: Kind) -> dict[str, tuple[tuple[int, ...], Kind]]:
    n_embd, n_expert, n_ff, head = sizes.n_embd, sizes.n_expert, sizes.n_ff, sizes.head
    embeddings = (sizes.n_vocab, n_embd)
    tensors: dict[str, tuple[tuple[int, ...], Kind]] = {"token_embd": (embeddings, other)}
    for index in range(sizes.n_block):
        block = {
            "attn_norm": ((n_embd,), Kind.F32),
            "attn_q": ((sizes.n_head * head, n_embd), other),
            "attn_k": ((sizes.n_head_kv * head, n_embd), other),
            "attn_v": ((sizes.n_head_kv * head, n_embd), other),
            "attn_output": ((n_embd, sizes.n_head * head), other),
            "attn_q_norm": ((head,), Kind.F32),
            "attn_k_norm": ((head,), Kind.F32),
            "ffn_norm": ((n_embd,), Kind.F32),
            "ffn_gate_inp": ((n_expert, n_embd), Kind.F32),
            "ffn_gate_exps": ((n_expert, n_ff, n_embd), gate_up),
            "ffn_up_exps": ((n_expert, n_ff, n_embd), gate_up),
            "ffn_down_exps": ((n_expert, n_embd, n_ff), other),
        }
        tensors |= {f"blk.{index}.{name}": tensor for name, tensor in block.items()}
    tensors |= {"output_norm": ((n_embd,), Kind.F32), "output": (embeddings, other)}
    return {f"{name}.weight": tensor for name, tensor in tensors.items()}


def _content(shape: tuple[int, ...], kind: Kind, rng: np.random.Generator) -> np.ndarray:
    if kind not in _SCALES:
        return np.ones(shape, np.float32) if len(shape) == 1 else 0.05 * rng.standard_normal(shape, np.float32)
    stored = gguf.quant_shape_to_byte_shape(shape, kind)
    data = rng.integers(0, 2**64, prod(stored) // 8, np.uint64).view(np.uint8)
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    for offset, scale in _SCALES[kind].items():
        blocks[:, offset : offset + 2] = np.array([scale], "<f2").view(np.uint8)
    return data.reshape(stored)


def take_turns(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round: A B C A B C ..."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            seconds[name].append(run())
    return seconds


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def processor_timed(run: Callable[[], object]) -> float:
    """Seconds of processor time that a call takes, of all threads: what other programs do counts least in it."""
    start = time.process_time()
    run()
    return time.process_time() - start


def child(command: Sequence[str | Path]) -> tuple[float, float]:
    """Run a command; seconds of wall clock and its peak resident memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed: {message}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"measurements of each contestant ({rounds})")
    parser.add_argument("--dir", type=Path, help="where the large files go while it runs (the system's temp folder)")
    return parser


def trained_arguments(description: str | None, cache: str) -> argparse.ArgumentParser:
    """The options of those that judge on held-out text what a trained model loses."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, help="<domain>.calib.txt and <domain>.eval.txt")
    parser.add_argument("--chunks", type=int, default=16, help="held-out chunks per domain")
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path(cache), help="folder")
    return parser


@dataclass(frozen=True)
class Trained:
    """A loaded model and its texts in chunks `[n_chunks, n_ctx]` by domain, to calibrate on and held out."""

    engine: LlamaSession
    model: Model
    text: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Trained]:
    """What was asked for by `trained_arguments`; says at the end how much memory it took."""
    options.cache.mkdir(exist_ok=True)
    model = Model.open(options.model)
    settings = EngineSettings(options.ctx_size, options.ctx_size, options.threads)
    names = sorted(path.name.removesuffix(".eval.txt") for path in options.folder.glob("*.eval.txt"))
    with LlamaSession(model.path, model.layout.nodes, settings) as engine:

        def chunks(kind: str) -> dict[str, np.ndarray]:
            texts = {name: corpus.read_text(str(options.folder / f"{name}.{kind}.txt")) for name in names}
            return {name: corpus.from_text(engine, text, options.ctx_size, name).chunks for name, text in texts.items()}

        held_out = {name: each[: options.chunks] for name, each in chunks("eval").items()}
        yield Trained(engine, model, chunks("calib"), held_out)
    print(f"\npeak memory {peak():,.0f} MB")


def peak() -> float:
    """MB of resident memory, weights that are mapped included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


AGAINST = "mean | x | worst | x | difference to REAP"


def against(found: Mapping[str, np.ndarray], reap: Mapping[str, np.ndarray]) -> str:
    """The cells of AGAINST, of losses by domain and chunk: in nats, and by those of REAP."""
    mean, worst, difference = mean_loss(found), worst_loss(found), Difference.of(found, reap)
    return (
        f"{mean:.4f} | {mean / mean_loss(reap):.2f} | {worst:.4f} | {worst / worst_loss(reap):.2f} "
        f"| {difference.mean:+.4f} ± {difference.stderr:.4f}"
    )


def report(seconds: dict[str, list[float]], figures: dict[str, float]) -> None:
    """A table of the times, and one JSON line with everything."""
    width = max(map(len, seconds))
    print(f"{'':{width}}  median s    min s    max s")
    for name, values in seconds.items():
        print(f"{name:{width}}  {median(values):8.3f} {min(values):8.3f} {max(values):8.3f}")
    rounded = {name: round(value, 3) for name, value in figures.items()}
    times = {name: [round(value, 4) for value in values] for name, values in seconds.items()}
    print(json.dumps({**rounded, "seconds": times}))
