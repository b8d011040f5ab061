"""Models by name on the command line: found, and told to the verb as the path of a file."""

import argparse
import logging
import shlex

from ggufreap.cli.common import progress
from ggufreap.errors import InputError
from ggufreap.options.output import Output

_MODELS = ("model", "reference")  # what verbs call their arguments that are models
_HUB = "hf:"
_LOG = logging.getLogger("ggufreap.cli")


def locate(options: argparse.Namespace) -> None:
    """Put the paths of files where models were named, and the model's name for a shell as `named`; raises InputError.

    What lies in the cache of Hugging Face or Ollama leaves its results in the current one, unless -o says where.
    """
    named = [text for name in _MODELS if (text := getattr(options, name, None)) is not None]
    if getattr(options, "download", False) and not any(text.startswith(_HUB) for text in named):
        raise InputError("--download fetches what -hf names, and no model is named so; leave it out")
    for name in _MODELS:
        text = getattr(options, name, None)
        if text is None:
            continue
        from ggufreap.finding import located

        if name == "model":
            options.named = f"-hf {text.removeprefix(_HUB)}" if text.startswith(_HUB) else shlex.quote(text)
        place = located(text, getattr(options, "download", False), progress())
        setattr(options, name, str(place.path))
        if place.foreign and name == "model" and "out" in (getattr(options, "offered", None) or ()):
            _stay_here(options)


def _stay_here(options: argparse.Namespace) -> None:
    out = f"{Output.__name__}.out"
    if not hasattr(options, out):
        setattr(options, out, ".")
        _LOG.info("the results go to the current folder (-o takes another)")
