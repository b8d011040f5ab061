"""What can go wrong, as one tree; each message is one line: what was found, which rule it breaks, what to do.

GgufReapError
├── InputError            a file or text that cannot be used
│   ├── FormatError       not a GGUF, or a damaged one
│   ├── OutOfReach        data on the hub, without a network
│   └── MismatchError     two inputs that do not belong together (plan, statistics, model)
├── UnsupportedModel      a model that no table row covers, or that a row refuses
├── InfeasiblePlan        a keep-set that the router could not work with
├── EngineError           llama.cpp does not load, decode or match
│   └── NumericFailure    NaN or infinity in the activations
├── OutputError           the result cannot be written
└── VerificationFailed    the result is not what the plan promised
"""

from ggufreap.showing import message


class GgufReapError(Exception):
    """A foreseeable failure; the command line shows it as one line and exits with `exit_code`.

    Whatever names and values its text holds, it is one line of bounded length that no terminal takes for commands.
    """

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        super().__init__(message(text))


class InputError(GgufReapError):
    """A file, text or parameter that cannot be used."""


class FormatError(InputError):
    """The file is not a GGUF, or its header contradicts itself."""


class OutOfReach(InputError):
    """Data on the hub cannot be had, since there is no network and no cache holds it."""


class MismatchError(InputError):
    """Two inputs that do not belong together, such as the plan of another model."""


class UnsupportedModel(GgufReapError):
    """The tables do not know this model, or know why it cannot be pruned."""


class InfeasiblePlan(GgufReapError):
    """The keep-set leaves a router that llama.cpp could not run."""


class EngineError(GgufReapError):
    """llama.cpp is missing, of another version, or refused the model."""


class NumericFailure(EngineError):
    """An activation is NaN or infinite."""


class OutputError(GgufReapError):
    """The result cannot be written where it should go."""


class VerificationFailed(GgufReapError):
    """The pruned file does not hold what the plan promised."""

    exit_code = 3
