"""Runs held-out text through an original and its candidates, chunk by chunk.

Never more is held than the original's logits of one chunk and those of one candidate; of an engine that runs several
texts at once, of as many as that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ggufreap.corpus import Corpus
from ggufreap.engine.protocol import Engine, Keep, Tokens
from ggufreap.evaluation.base_file import BaseFile
from ggufreap.evaluation.meters import Comparison, Meters
from ggufreap.evaluation.perplexity import ignore
from ggufreap.evaluation.scores import (
    Logits,
    Map,
    Reference,
    TokenScores,
    compare,
    first_scored,
    targets_of,
)
from ggufreap.progress import Progress, silent

# The original's logits of a chunk, then each candidate's. The first last as long as the others, these until the next.
Passes = Callable[[Tokens], Iterator[Logits]]
Forward = Callable[[Tokens], Logits]  # the scored rows' logits [n_scored, n_vocab] of one chunk


def of_engine(engine: Engine, keep: Keep | None = None) -> Forward:
    """What an engine gives, experts outside `keep` masked."""
    return lambda chunk: engine.logits(chunk, keep, first_scored(len(chunk)))[:-1]


def together(engine: Engine, keeps: Sequence[Keep | None]) -> Passes:
    """What an engine gives with each of the keep-sets, as many at once as it takes."""
    at_once = engine.n_together
    if at_once == 1:
        return in_turn([of_engine(engine, keep) for keep in keeps])

    def run(chunk: Tokens) -> Iterator[Logits]:
        for start in range(0, len(keeps), at_once):
            part = engine.logits_together(chunk, keeps[start : start + at_once], first_scored(len(chunk)))
            for number, logits in enumerate(part, start):  # what all others are compared with has to last
                yield logits[:-1].copy() if number == 0 and len(keeps) > at_once else logits[:-1]

    return run


def in_turn(forwards: Sequence[Forward]) -> Passes:
    """What each of them gives."""
    return lambda chunk: (forward(chunk) for forward in forwards)


@contextmanager
def threads(count: int) -> Iterator[Map]:
    """What the meters are computed with."""
    with ThreadPoolExecutor(count) as pool:
        yield pool.map


def compare_with(
    original: Forward,
    candidates: Sequence[Forward],
    domains: Mapping[str, Corpus],
    run: Map = map,
    progress: Progress = silent,
    also: Callable[[Logits], object] = ignore,
) -> list[Comparison]:
    """Every candidate against the original, over domains of text: one pass of each; `also` as in compare_passes."""
    return compare_passes(in_turn([original, *candidates]), len(candidates), domains, run, progress, also)


def compare_passes(
    passes: Passes,
    n_candidates: int,
    domains: Mapping[str, Corpus],
    run: Map = map,
    progress: Progress = silent,
    also: Callable[[Logits], object] = ignore,
) -> list[Comparison]:
    """Every candidate against the original, over domains of text.

    `also` is handed the original's scored rows `[n_scored, n_vocab]` of every chunk.
    """
    all_meters: list[dict[str, Meters]] = [{} for _ in range(n_candidates)]
    n_tokens = sum(corpus.n_tokens for corpus in domains.values())
    with progress("evaluate", n_tokens * (n_candidates + 1), "tokens") as bar:
        for domain, corpus in domains.items():
            parts: list[list[TokenScores]] = [[] for _ in range(n_candidates)]
            for chunk in corpus.chunks:
                told = passes(chunk)
                logits = next(told)
                also(logits)
                reference = Reference.of(logits, run)
                bar.update(len(chunk))
                for scores in parts:
                    scores.append(compare(reference, next(told), targets_of(chunk), run))
                    bar.update(len(chunk))
            for meters, scores in zip(all_meters, parts, strict=True):
                meters[domain] = Meters.of(TokenScores.join(scores))
    return [Comparison(meters) for meters in all_meters]


def compare_with_base(
    base: BaseFile,
    engine: Engine,
    domain: str,
    n_chunks: int | None = None,
    run: Map = map,
    progress: Progress = silent,
) -> Comparison:
    """A model against the log-probabilities in a file, over the tokens that it holds."""
    chunks = base.chunks[:n_chunks].copy()
    if engine.bos is not None:
        chunks[:, 0] = engine.bos
    candidate, parts = of_engine(engine), []
    with progress("evaluate", chunks.size, "tokens") as bar:
        for index, chunk in enumerate(chunks):
            parts.append(compare(base.reference(index), candidate(chunk), targets_of(chunk), run))
            bar.update(len(chunk))
    return Comparison({domain: Meters.of(TokenScores.join(parts))})
