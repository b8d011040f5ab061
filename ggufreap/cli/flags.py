"""Groups of flags that verbs share, named as llama.cpp names them."""

import argparse
from collections.abc import Callable
from typing import Any

from ggufreap.errors import InputError
from ggufreap.options.flag import Parse, whole

AddFlags = Callable[[argparse.ArgumentParser], None]


def general(command: argparse.ArgumentParser) -> None:
    """What every verb takes."""
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("-v", "--verbose", action="count", default=0, help="show what llama.cpp says")
    command.add_argument("--traceback", action="store_true", help="show where a failure comes from")


def model(command: argparse.ArgumentParser) -> None:
    """The model, always first."""
    command.add_argument("model", metavar="MODEL", help="a GGUF file, or any shard of a split one")


def source(command: argparse.ArgumentParser) -> None:
    """The data that is calibrated on, and how it is read."""
    group = command.add_argument_group("calibration data")
    add, either = group.add_argument, group.add_mutually_exclusive_group().add_argument
    either("-f", "--file", action="append", default=[], metavar="FILE", help=_FILE_HELP)
    either("--tokens", metavar="IDS.npy", help="token ids, [n] or [n_chunks, n_ctx], instead of text")
    add("--dataset", action="append", default=[], metavar="SPEC", help=_DATASET_HELP)
    add("--domain", action="append", default=[], metavar="NAME=SPEC", help="a data set or file of the domain NAME")
    add("--chunks", type=at_least(1), metavar="N", help="run at most this many chunks")
    add("--count", choices=("all", "assistant"), default="all", help="which tokens count for the statistics (all)")
    add("--text-field", metavar="NAME", help="the column of rows that holds the text (found by its usual names)")
    add("--no-chat-template", action="store_true", help="join messages as plain text")
    add("--parse-special", action="store_true", help="read special tokens in plain text too")
    add("--no-packing", action="store_true", help="a chunk per sample, cut there, instead of full chunks")
    add("--offline-default", action="store_true", help="try out with the text that every Python has")


_FILE_HELP = (
    "text (.txt .md), rows (.jsonl .json .csv .parquet), also .gz and .zst, a folder or a glob; repeatable; "
    "- is standard input"
)
_DATASET_HELP = "NAME[subset](split):N, N samples of a data set on the hub or in a file; repeatable, or comma list"


def imatrix(command: argparse.ArgumentParser) -> None:
    """Where the importance matrix goes."""
    group = command.add_argument_group("importance matrix").add_mutually_exclusive_group()
    group.add_argument(
        "--imatrix-out",
        metavar="FILE",
        help="where it goes (S.imatrix.gguf beside the statistics); .dat for the legacy format",
    )
    group.add_argument("--no-imatrix", action="store_true", help="do not collect it")


def output_head(command: argparse.ArgumentParser) -> None:
    """How much of the importance matrix is collected."""
    help = "importance matrix: also of output.weight, which takes longer"
    command.add_argument("--process-output", action="store_true", help=help)


def target(command: argparse.ArgumentParser) -> None:
    """How many experts go, and which."""
    group = command.add_argument_group("target")
    size = group.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--ratio",
        metavar="R",
        help="fraction of the experts to remove from every block, such as 0.2; auto: see --max-kld",
    )
    size.add_argument("--keep", type=int, metavar="N", help="experts to keep in every block")
    group.add_argument(
        "--method",
        default="reap",
        metavar="NAME",
        help="reap (default), rank_average, gram, ...; best judges several on held-out text (see README)",
    )
    group.add_argument(
        "--budget",
        type=at_least(0),
        metavar="MINUTES",
        help="for judging methods, with --method best (30; 0: all that calibration held out)",
    )
    group.add_argument(
        "--from-imatrix",
        metavar="FILE",
        help="choose by a GGUF importance matrix of the model, without calibration: a weaker choice",
    )
    group.add_argument(
        "--blend",
        metavar="HOW",
        help="domains of the text: uniform (default for several), tokens, maxmin, or NAME=WEIGHT,NAME=WEIGHT",
    )
    group.add_argument(
        "--mtp", choices=("mirror", "drop"), default="mirror", help="MTP blocks: as the last block (default), or out"
    )


def seed(command: argparse.ArgumentParser) -> None:
    """What draws by chance."""
    help = "draws the samples, and the experts of --method random (0)"
    command.add_argument("--seed", type=at_least(0), default=0, metavar="N", help=help)


def shard(command: argparse.ArgumentParser) -> None:
    """A part of the work."""
    help = "only the I-th of N parts of the chunks, for `merge`"
    command.add_argument("--shard", default="1/1", metavar="I/N", help=help)


def files(command: argparse.ArgumentParser) -> None:
    """How the result is cut into files."""
    group = command.add_argument_group("output")
    split = group.add_mutually_exclusive_group()
    split.add_argument("--split-max-size", metavar="N(M|G)", help="shards of at most this size")
    split.add_argument("--keep-split", action="store_true", help="as many shards as the model has")
    group.add_argument("--dry-run", action="store_true", help="print what would be written, to the byte")


def quantiser(command: argparse.ArgumentParser) -> None:
    """What llama-quantize takes."""
    add = command.add_argument_group("llama-quantize").add_argument
    what = command.add_mutually_exclusive_group(required=True).add_argument
    what("--type", metavar="TYPE", help="Q4_K_M, IQ4_XS, Q8_0, ...")
    what("--recipe", metavar="RECIPE", help="make the variants of a recipe instead: a name, or a .toml file")
    add("--imatrix", metavar="FILE", help="importance matrix of this model, GGUF or .dat")
    add("--tensor-type", action="append", default=[], metavar="REGEX=TYPE", help="type of some tensors; repeatable")
    add("--token-embedding-type", metavar="TYPE", help="type of the token embedding")
    add("--output-tensor-type", metavar="TYPE", help="type of the output tensor")
    add("--pure", action="store_true", help="the same type for all tensors")
    add("--allow-requantize", action="store_true", help="also from tensors that are quantised already")
    add("--keep-split", action="store_true", help="as many shards as the model has")
    add("--dry-run", action="store_true", help="print types and the exact size, write nothing")
    add("-t", "--threads", type=at_least(1), default=0, metavar="N", help="CPU threads (all cores)")


def variants(command: argparse.ArgumentParser) -> None:
    """What to make of the pruned file."""
    add = command.add_argument_group("quantisation").add_argument
    add(
        "--quant",
        action="append",
        metavar="WHAT",
        help="auto (default: Q4_K_M and IQ4_XS, or keep below 8 bits), keep, a type, or a recipe; repeatable",
    )
    add("--imatrix", metavar="FILE", help="importance matrix of the whole model, instead of collecting it")
    add("--keep-intermediate", action="store_true", help="do not remove the byte-exact file that was quantised")
    add("--allow-requantize", action="store_true", help="also from tensors that are quantised already")


def judgement(command: argparse.ArgumentParser) -> None:
    """How the result is judged."""
    add = command.add_argument_group("judgement").add_argument
    add(
        "--eval-file",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="held-out text, a domain each; repeatable",
    )
    add("--eval-chunks", type=at_least(1), metavar="N", help="at most this many chunks of each held-out text")
    add("--eval-ctx-size", type=at_least(4), metavar="N", help="tokens per chunk of held-out text (as -c, else 512)")
    add("--max-kld", type=float, default=0.1, metavar="X", help="with --ratio auto: mean KLD of the worst domain (0.1)")
    add("--compare", action="store_true", help="also measure the unpruned model, quantised to the same size")
    add(
        "--fail-if", action="append", default=[], metavar="GATE", help="exit with 4 if so, such as worst_domain.kld>0.2"
    )
    add("--report", metavar="DIR", help="write report.json, report.html and README.md there")


def out(meaning: str, required: bool = True) -> AddFlags:
    """The output."""

    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument("-o", "--output", required=required, metavar="OUT", help=meaning)

    return add


def argument(*names: str, **settings: Any) -> AddFlags:
    """A flag of one verb alone."""

    def add(command: argparse.ArgumentParser) -> None:
        command.add_argument(*names, **settings)

    return add


def at_least(minimum: int) -> Callable[[str], int]:
    """A whole number that fits llama.cpp."""
    return typed(whole(minimum))


def typed(parse: Parse) -> Parse:
    """The same for argparse: what cannot be read is wrong usage."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
