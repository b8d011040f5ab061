"""What is asked for, beside how llama.cpp runs: groups of flags made of options, and the options made of them."""

import argparse
from dataclasses import replace

from ggufreap.cli.flags import AddFlags
from ggufreap.cli.generated import flags, titled, value
from ggufreap.options import data, fit, judgement, output, quantisation, target
from ggufreap.options.data import Reading, Request
from ggufreap.options.fit import Fit
from ggufreap.options.flag import flags_of, refuse_unused
from ggufreap.options.judgement import HeldOut, Judgement
from ggufreap.options.output import Output
from ggufreap.options.quantisation import Quantisation, Quantiser
from ggufreap.options.target import Target


def _offline(command: argparse.ArgumentParser) -> None:
    help = "try out with the text that every Python has"
    titled(command, _DATA).add_argument("--offline-default", action="store_true", help=help)


_DATA = "calibration data"
SOURCE: tuple[AddFlags, ...] = (
    flags(Request(), data.SOURCES, data.READING, title=_DATA, one_of=("file", "tokens")),
    flags(Reading(), data.READING, title=_DATA),
    _offline,
)
DRAWING = flags(Request(), data.DRAWING)
TARGET = flags(
    Target(),
    *(target.SIZE, target.ROUNDING, target.CHOICE, target.WEIGHING, target.MTP, target.SEED),
    title="target",
    one_of=("ratio", "keep"),
    required=True,
)
CUT = flags(
    Target(),
    *(target.SIZE, target.SHARE, target.FIT_SIZE, target.NEURONS, target.ORDER, target.ROUNDING),
    *(target.CHOICE, target.WEIGHING, target.MTP, target.SEED),
    title="target",
    one_of=("ratio", "keep", "shrink", "fit"),
    required=True,
)
INSTEAD = flags(  # of what a recipe says
    Target(),
    *(target.SIZE, target.SHARE, target.NEURONS, target.ORDER, target.ROUNDING),
    *(target.CHOICE, target.WEIGHING, target.MTP, target.SEED),
    title="target",
    one_of=("ratio", "keep", "shrink"),
)
NARROWER = flags(Target(), target.SHARE, target.NEURONS, title="narrower experts", one_of=("shrink", "width_ratio"))
METHOD = flags(Target(), target.CHOICE)
FIT_SIZE = flags(Target(), target.FIT_SIZE, target.ROUNDING, title="memory")
MEMORY = flags(Fit(), fit.MEMORY, fit.NEURONS, title="memory")
EFFORT = flags(Fit(), fit.EFFORT, title="memory")
SEARCH = flags(Target(), target.SEARCH, title="target")
WEIGHING = flags(Target(), target.WEIGHING, target.MTP, title="target")
DRAWN = flags(Target(), target.SEED, title="target")
OUTPUT_HEAD = flags(Quantisation(), quantisation.IMPORTANCE)
VARIANTS = flags(Quantisation(), quantisation.VARIANTS, title="quantisation")
QUANTISER = flags(Quantiser(), quantisation.QUANTISER, quantisation.TYPES, title="llama-quantize")
SPLIT = flags(Output(), output.SPLIT, output.DRY_RUN, title="output", one_of=("split_max_size", "keep_split"))
DRY_RUN = flags(Output(), output.DRY_RUN)
PLACE = flags(Output(), output.PLACE)
PROOF = flags(Output(), output.PROOF)
FORCE = flags(Output(), output.FORCE)
JUDGEMENT = flags(
    Judgement(),
    *(judgement.HELD_OUT, judgement.SPLIT, judgement.LENGTH, judgement.RIVAL, judgement.GATES, judgement.REPORT),
    title="judgement",
)
_FITTED = "text that the neurons that stay would make up for the others on, as -f of calibrate; repeatable"
FITTED_ON = flags(
    Request(),
    data.SOURCES,
    title="narrower experts",
    instead={"file": replace(flags_of(Request)["file"], names=("--calibration-file",), help=_FITTED)},
    one_of=("file", "tokens"),
)
# Where judging is all that the verb does, its flags are shorter.
_SHORT = (
    (
        "files",
        ("-f", "--file"),
        "text (or rows, as for calibrate) that was not calibrated on, a domain each; repeatable, - is standard input",
    ),
    ("chunks", ("--chunks",), "run at most this many chunks of each"),
    (
        "fail_if",
        ("--fail-if",),
        "exit with 4 if so: worst_domain.kld>0.2, top1<0.9, domain.NAME.ppl_ratio>1.05; repeatable",
    ),
)
_INSTEAD = {name: replace(flags_of(HeldOut)[name], names=names, help=help) for name, names, help in _SHORT}
_HELD_OUT = (judgement.HELD_OUT, judgement.GATES)
HELD_OUT = flags(HeldOut(), *_HELD_OUT, title="held-out text", instead=_INSTEAD)
MEASURED_ON = flags(HeldOut(), judgement.HELD_OUT, title="held-out text", instead=_INSTEAD)
JUDGED = flags(Judgement(), *_HELD_OUT, judgement.RIVAL, title="held-out text", instead=_INSTEAD)


def check_unused_fit(options: argparse.Namespace, *needed: str) -> None:
    """Raise InputError where flags of these groups of Fit were given that mean nothing without a size."""
    groups = {name: "--fit SIZE, and none was given" for name, flag in flags_of(Fit).items() if flag.group in needed}
    refuse_unused(value(options, Fit), groups)


def request(options: argparse.Namespace) -> Request:
    """What shall be calibrated on, and how it is read."""
    from ggufreap.verbs.data import offline_default

    asked = replace(value(options, Request), reading=value(options, Reading))
    if hasattr(options, Target.__name__):  # one flag draws samples and experts
        asked = replace(asked, seed=value(options, Target).seed)
    return offline_default(asked) if options.offline_default else asked
