"""How llama.cpp runs, as one value; a flag more is a field more."""

import os
from dataclasses import dataclass

from ggufreap.errors import InputError
from ggufreap.options.flag import (
    Flag,
    Options,
    check,
    endpoints,
    flagged,
    flags_of,
    names,
    one_of,
    overrides,
    proportions,
    whole,
)

AUTO_LAYERS, ALL_LAYERS = -1, -2  # common/arg.cpp, --n-gpu-layers
# What -ctk and -ctv know, with ggml's numbers (common/arg.cpp, kv_cache_types; ggml/include/ggml.h, enum ggml_type).
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q4_0": 2,
    "q4_1": 3,
    "iq4_nl": 20,
    "q5_0": 6,
    "q5_1": 7,
}
# enum llama_split_mode and enum llama_flash_attn_type, include/llama.h
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

CONTEXT, BATCH, SEQUENCES, TOGETHER = "context", "batch", "sequences", "together"
THREADS, PLACEMENT, ATTENTION, BLOCKS = "threads", "placement", "attention", "blocks"
# Blocks of the model computed at a time, when it is not a number of them.
AUTO_BLOCKS, ALL_BLOCKS, FITTING_BLOCKS = 0, -1, -2
FITTING_TEXTS = 0  # chunks run at once: as many as there is memory for
MOST_SEQUENCES = 256  # of llama.cpp (src/llama-cparams.h, LLAMA_MAX_SEQ)


@dataclass(frozen=True)
class EngineSettings(Options):
    """How llama.cpp runs; the fields with a flag mean what it means in llama.cpp (common/arg.cpp).

    `n_ctx`: tokens per chunk, or of all sequences together; `n_ubatch`: tokens computed at once, in one graph;
    `n_batch`: tokens per llama_decode, 0: one graph's; `n_threads` 0: one per core this process may use;
    `n_threads_batch` 0: as `n_threads`; `n_gpu_layers` -1: as many as llama.cpp chooses, -2: all. None leaves the
    choice to llama.cpp, for `repack` to ggufreap. `blockwise`, which llama.cpp has not: how many blocks of the model a
    calibration computes at a time; 0: all or, of a model that does not fit into memory, what fits; -1: all; -2: what
    fits. `n_together`: how many chunks, of `n_ctx` tokens each, a calibration runs at once, `n_ubatch` tokens of each
    in one graph; 0: as many as fit.

    `exact`: no half precision in attention, for comparisons; it wins over `flash_attn`, `cache_type_k` and
    `cache_type_v`. `watched`: whether taps may look into the graph, which costs a call from C to Python per node.
    Raises InputError when a value could not have been given as its flag.
    """

    n_ctx: int = flagged(512, Flag(("-c", "--ctx-size", "--max-seq-len"), CONTEXT, "tokens", whole(0), "N", int))
    n_ubatch: int = flagged(512, Flag(("-ub", "--ubatch-size"), BATCH, "tokens at once ({})", whole(1), "N", int))
    n_threads: int = flagged(0, Flag(("-t", "--threads"), THREADS, "CPU threads (all cores)", whole(1), "N", int))
    n_gpu_layers: int = flagged(
        AUTO_LAYERS,
        Flag(
            ("-ngl", "--n-gpu-layers", "--gpu-layers"),
            PLACEMENT,
            "layers on the GPU: a number, auto or all (auto)",
            whole(ALL_LAYERS, auto=AUTO_LAYERS, all=ALL_LAYERS),
            "N",
            int | str,
        ),
    )
    exact: bool = False
    n_parallel: int = flagged(1, Flag(("-np", "--parallel"), SEQUENCES, "texts at once ({})", whole(1), "N", int))
    watched: bool = True
    n_batch: int = flagged(
        0, Flag(("-b", "--batch-size"), BATCH, "tokens per call of llama.cpp (as -ub)", whole(1), "N", int)
    )
    n_threads_batch: int = flagged(
        0, Flag(("-tb", "--threads-batch"), THREADS, "CPU threads to read a text (as -t)", whole(1), "N", int)
    )
    device: str | None = flagged(
        None,
        Flag(
            ("-dev", "--device"), PLACEMENT, "devices to use, with commas; none: the CPU alone", names, "DEV,DEV", str
        ),
    )
    rpc: str | None = flagged(
        None,
        Flag(
            ("--rpc",),
            PLACEMENT,
            "other machines to use, on which llama.cpp's ggml-rpc-server runs; repeatable, or with commas",
            endpoints,
            "HOST:PORT,HOST:PORT",
            str,
            repeatable=True,
        ),
    )
    split_mode: str | None = flagged(
        None,
        Flag(
            ("-sm", "--split-mode"),
            PLACEMENT,
            "how several GPUs share the model: none, layer, row or tensor (layer)",
            one_of(*SPLIT_MODES),
            "HOW",
            str,
        ),
    )
    tensor_split: str | None = flagged(
        None, Flag(("-ts", "--tensor-split"), PLACEMENT, "each GPU's share, such as 3,1", proportions, "N,N", str)
    )
    main_gpu: int | None = flagged(
        None, Flag(("-mg", "--main-gpu"), PLACEMENT, "the GPU to use with -sm none or row (0)", whole(0), "INDEX", int)
    )
    override_tensor: str | None = flagged(
        None,
        Flag(
            ("-ot", "--override-tensor"),
            PLACEMENT,
            "where tensors go whose names match, such as exps=CPU; repeatable, or with commas",
            overrides,
            "REGEX=BUFFER",
            str,
            repeatable=True,
        ),
    )
    cpu_moe: bool = flagged(False, Flag(("-cmoe", "--cpu-moe"), PLACEMENT, "all experts stay with the CPU"))
    n_cpu_moe: int = flagged(
        0,
        Flag(
            ("-ncmoe", "--n-cpu-moe"), PLACEMENT, "experts of the first N blocks stay with the CPU", whole(0), "N", int
        ),
    )
    mmap: bool | None = flagged(None, Flag(("--mmap",), PLACEMENT, "map the file instead of reading it (as fits)"))
    mlock: bool = flagged(False, Flag(("--mlock",), PLACEMENT, "keep the model in memory, never in swap"))
    repack: bool | None = flagged(
        None, Flag(("--repack",), PLACEMENT, "let the CPU reorder weights: faster, but a copy (ggufreap decides)")
    )
    flash_attn: str = flagged(
        "auto",
        Flag(
            ("-fa", "--flash-attn"),
            ATTENTION,
            "flash attention: on, off or auto ({})",
            one_of(*FLASH_ATTENTION),
            "HOW",
            str,
        ),
    )
    cache_type_k: str = flagged(
        "f16",
        Flag(("-ctk", "--cache-type-k"), ATTENTION, "type of the KV cache's K ({})", one_of(*CACHE_TYPES), "TYPE", str),
    )
    cache_type_v: str = flagged(
        "f16",
        Flag(("-ctv", "--cache-type-v"), ATTENTION, "type of the KV cache's V ({})", one_of(*CACHE_TYPES), "TYPE", str),
    )
    blockwise: int = flagged(
        AUTO_BLOCKS,
        Flag(
            ("--blockwise",),
            BLOCKS,
            "a model larger than memory: how many blocks are computed at a time: a number, fit, off or auto (auto)",
            whole(FITTING_BLOCKS, auto=AUTO_BLOCKS, off=ALL_BLOCKS, fit=FITTING_BLOCKS),
            "N",
            int | str,
        ),
    )
    n_together: int = flagged(
        FITTING_TEXTS,
        Flag(
            ("-np", "--parallel"),
            TOGETHER,
            "chunks that one reading of the weights serves, -ub tokens of each: a number or fit (fit)",
            whole(1, fit=FITTING_TEXTS),
            "N",
            int | str,
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        for flag, unused in (("-dev none", self.device == "none"), ("-ngl 0", self.n_gpu_layers == 0)):
            if self.rpc and unused:
                raise InputError(f"--rpc: with {flag} no other machine computes anything; leave out one of the two")
        if self.n_together > MOST_SEQUENCES:
            raise InputError(f"-np {self.n_together}: llama.cpp runs {MOST_SEQUENCES} texts at once at most")

    @property
    def cpu_threads(self) -> int:
        """The threads that were asked for, or one per core that this process may use."""
        affinity = getattr(os, "sched_getaffinity", None)
        return self.n_threads or (len(affinity(0)) if affinity else os.cpu_count() or 1)

    @property
    def attention(self) -> tuple[str, str, str]:
        """Types of the KV cache's K and V, and whether flash attention is used: keys of the tables above."""
        if self.exact:
            return "f32", "f32", "off"
        return self.cache_type_k, self.cache_type_v, self.flash_attn

    @property
    def graph_tokens(self) -> int:
        """Tokens of a text in one graph: the micro-batch, which statistics depend on in the last bit."""
        return min(self.n_ubatch, self.n_batch or self.n_ubatch, self.n_ctx)

    def batches(self, causal: bool) -> tuple[int, int]:
        """Tokens per llama_decode, and in one of its graphs; a model that looks ahead takes its chunk at once."""
        if causal:
            return min(self.n_batch or self.n_ubatch, self.n_ctx), self.graph_tokens
        if 0 < self.n_batch < self.n_ctx:
            raise InputError(
                f"-b {self.n_batch}: this model looks ahead and takes its {self.n_ctx} tokens at once; leave it out"
            )
        return self.n_ctx, self.n_ctx

    @property
    def wants_offload(self) -> str:
        """The flag that asks for a device in so many words, if one was given."""
        if self.n_gpu_layers > 0 or self.n_gpu_layers == ALL_LAYERS:
            return "-ngl"
        return "-dev" if self.device not in (None, "none") else "--rpc" if self.rpc else ""

    @property
    def of_gpus(self) -> list[str]:
        """What was asked for and only means something where there is a GPU, as flags."""
        asked = {
            "n_gpu_layers": self.wants_offload == "-ngl",
            "split_mode": self.split_mode is not None,
            "tensor_split": self.tensor_split is not None,
            "main_gpu": self.main_gpu is not None,
            "cpu_moe": self.cpu_moe,
            "n_cpu_moe": self.n_cpu_moe > 0,
        }
        return [flag.names[0] for name, flag in flags_of(self).items() if asked.get(name)]


# Where nobody says: chunks as the data decide, and as many tokens as the texts need, several at once.
CALIBRATING = EngineSettings(n_ctx=0)
WRITING = EngineSettings(n_ctx=0, n_parallel=4)
ANSWERING = EngineSettings(n_ctx=0, n_parallel=8)
