"""What may be left out on the command line, the verb or all of it; and llama.cpp's way of naming a model."""

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

from ggufreap.errors import InputError
from ggufreap.showing import excerpt

LIST, ADVISE = "models", "advise"
_HUB_FLAGS = ("-hf", "-hfr", "--hf-repo")  # llama.cpp, common/arg.cpp
_ABOUT = ("-h", "--help", "--version")


def spelled_out(arguments: Sequence[str], verbs: Collection[str]) -> list[str]:
    """The arguments with a verb in front, and `-hf user/repo` as the model `hf:user/repo`.

    Raises InputError where the first of them is neither a verb nor a model.
    """
    given = list(_with_models(arguments))
    if nothing := next((word for word in given if word.endswith("=--")), None):  # argparse takes that for no value
        raise InputError(f"{nothing.removesuffix('=--')} was given -- in place of a value; write one")
    if not given or (given[0].startswith("-") and given[0] not in _ABOUT):
        return [LIST, *given]
    if given[0] in verbs or given[0] in _ABOUT:
        return given
    from ggufreap.finding import names_model

    if names_model(given[0]):
        return [ADVISE, *given]
    close = get_close_matches(given[0], verbs, 1)
    guess = f"did you mean {close[0]}?" if close else "ggufreap --help lists the verbs"
    raise InputError(f"{excerpt(given[0])} is no verb, nor a model that is here; {guess}")


def _with_models(arguments: Sequence[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        flag, equals, name = word.partition("=")
        if flag not in _HUB_FLAGS:
            yield word
            continue
        name = name if equals else next(words, "")
        if not name:
            raise InputError(f"{flag} names no model; write {flag} user/repo or {flag} user/repo:Q4_K_M")
        yield f"hf:{name}"
