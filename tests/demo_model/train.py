"""Train the demo model on the running Python's standard library and write it as GGUF; see README.md."""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from export import write_gguf
from model import Model, Shape
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

from ggufreap.corpus.standard_library import held_out_text, training_text

END = "<|endoftext|>"
# Chance of each domain per training window: small domains are seen more often than their size.
SHARES = {"code": 0.5, "prose": 0.32, "arithmetic": 0.18}
BATCH = 16
LEARNING_RATE = 2.5e-3
WARM_UP_STEPS = 60
BALANCE = 0.004
HELD_OUT_CHUNKS = 20


def train_tokenizer(domains: dict[str, list[str]], vocabulary: int) -> Tokenizer:
    """Byte-level BPE; ByteLevel's own regex is what llama.cpp runs for pre-tokenizer "gpt-2"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t for texts in domains.values() for t in texts), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Return the documents as one stream, an end token after each."""
    end = tokenizer.token_to_id(END)
    ids = [i for e in tokenizer.encode_batch(texts) for i in (*e.ids, end)]
    return torch.tensor(ids)


def learning_rate(step: int, progress: float) -> float:
    """Warm up, stay, and fall linearly to zero over the second half of the time."""
    return LEARNING_RATE * min((step + 1) / WARM_UP_STEPS, 2 * (1 - progress), 1)


@torch.no_grad()
def held_out_loss(model: Model, tokenizer: Tokenizer) -> float:
    """Mean negative log-likelihood over fixed chunks, each without what came before it."""
    size = model.s.context
    ids = torch.tensor(tokenizer.encode(held_out_text(60_000)).ids)
    chunks = ids[: HELD_OUT_CHUNKS * size].view(HELD_OUT_CHUNKS, size)
    logits = model(chunks)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), chunks[:, 1:].flatten()).item()


def train(model: Model, streams: dict[str, torch.Tensor], minutes: float) -> tuple[float, int]:
    """Train for the given time; return the smoothed loss and the number of tokens."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    random = np.random.default_rng(1)
    names = list(streams)
    size = model.s.context
    start, step, smooth = time.monotonic(), 0, math.log(model.s.vocabulary)
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        windows = []
        for name in random.choice(names, BATCH, p=[SHARES[name] for name in names]):
            offset = int(random.integers(len(streams[name]) - size))
            windows.append(streams[name][offset : offset + size + 1])
        batch = torch.stack(windows)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        (loss + BALANCE * model.balance()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth += (loss.item() - smooth) * max(0.02, 1 / (step + 1))
        step += 1
        if step % 50 == 0:
            speed = step * BATCH * size / (time.monotonic() - start)
            least = min(block.experts.usage.min().item() for block in model.blocks)
            print(
                f"{progress:4.0%} step {step} loss {smooth:.3f} balance {model.balance():.2f} "
                f"least used expert {least:.1%} {speed:.0f} tokens/s",
                flush=True,
            )
    return smooth, step * BATCH * size


def main() -> None:
    """Run the training from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(2)

    domains: dict[str, list[str]] = {}
    for domain, document in training_text():
        domains.setdefault(domain, []).append(document)
    shape = Shape()
    tokenizer = train_tokenizer(domains, shape.vocabulary)
    streams = {domain: encode(tokenizer, texts) for domain, texts in domains.items()}
    print("tokens:", {domain: len(stream) for domain, stream in streams.items()})
    model = Model(shape)
    print("parameters:", sum(p.numel() for p in model.parameters()), flush=True)
    loss, tokens = train(model, streams, arguments.minutes)
    print(f"trained on {tokens} tokens, loss {loss:.3f}")
    print(f"held-out loss {held_out_loss(model, tokenizer):.3f}")
    write_gguf(arguments.out, model, tokenizer, END)
    # The same numbers that the file holds, for comparison with llama.cpp.
    print(f"held-out loss with the file's rounding {held_out_loss(model, tokenizer):.3f}")


if __name__ == "__main__":
    main()
