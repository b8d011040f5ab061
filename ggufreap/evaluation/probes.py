"""Probes of what a pruned model writes, with the unpruned one as control on the same prompts.

Perplexity hides what people meet: answers that go round in circles, never end, or slip into another language. Greedy
sampling and low temperatures show it, high ones hide it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ggufreap.corpus.samples import Conversation, Unusable
from ggufreap.engine.generator import Sampling
from ggufreap.engine.protocol import Keep
from ggufreap.errors import InputError
from ggufreap.evaluation.generation import Answer, TextEngine, answers
from ggufreap.evaluation.loops import signs_of_looping
from ggufreap.evaluation.prompts import Prompt
from ggufreap.evaluation.proportions import Share
from ggufreap.evaluation.scripts import drift
from ggufreap.progress import Progress, silent

TEMPERATURES = (0.0, 0.2)
Render = Callable[[Conversation], str]  # a chat template, up to where the assistant begins to speak
Written = Mapping[float, Sequence[Answer]]  # temperature -> an answer per prompt


@dataclass(frozen=True)
class Probe:
    """One prompt at one temperature; `signs`: what is wrong with the answer, by sign; of the control the same."""

    prompt: Prompt
    temperature: float
    answer: Answer
    signs: Mapping[str, str]
    control: Answer | None = None
    control_signs: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Probes:
    """All probes of `model`, and of `control` where there was one."""

    model: str
    control: str | None
    n_predict: int
    probes: tuple[Probe, ...]

    @property
    def temperatures(self) -> tuple[float, ...]:
        """In the order of asking."""
        return tuple(dict.fromkeys(probe.temperature for probe in self.probes))

    def share(self, sign: str, temperature: float) -> Share:
        """Answers with `sign`."""
        return self._count(temperature, lambda probe: sign in probe.signs)

    def control_share(self, sign: str, temperature: float) -> Share | None:
        """The control's answers with `sign`; None without a control, or where the sign compares with it."""
        if self.control is None or sign == DRIFT:
            return None
        return self._count(temperature, lambda probe: sign in (probe.control_signs or {}))

    def new(self, sign: str, temperature: float) -> Share:
        """Answers with `sign` to prompts where the control shows none: what pruning added."""
        return self._count(temperature, lambda probe: sign in probe.signs and sign not in (probe.control_signs or {}))

    def _count(self, temperature: float, holds: Callable[[Probe], bool]) -> Share:
        chosen = [probe for probe in self.probes if probe.temperature == temperature]
        return Share(sum(map(holds, chosen)), len(chosen))


DRIFT = "drift"
# sign -> what it shows in an answer, or nothing
_OWN: Mapping[str, Callable[[Answer], str]] = {
    "loop": lambda answer: ", ".join(signs_of_looping(answer.text)),
    "endless": lambda answer: "" if answer.ended else f"no end in {len(answer.tokens)} tokens",
    "empty": lambda answer: "" if answer.text.strip() else "no text",
}
SIGNS = (*_OWN, DRIFT)


def texts_of(prompts: Sequence[Prompt], render: Render | None) -> list[str]:
    """What the model is given: a user's turn in its chat template, or the bare prompt where it has none.

    Raises InputError where the template refuses a prompt.
    """
    if render is None:
        return [prompt.text for prompt in prompts]
    try:
        return [render(Conversation(({"role": "user", "content": prompt.text},))) for prompt in prompts]
    except Unusable as reason:
        raise InputError(f"the prompts cannot be rendered: {reason}; use --no-chat-template") from reason


def write(
    engine: TextEngine,
    texts: Sequence[str],
    samplings: Sequence[Sampling],
    *,
    keep: Keep | None = None,
    templated: bool = False,
    progress: Progress = silent,
    which: str = "model",
) -> Written:
    """Answers to all `texts`, experts outside `keep` masked, once per sampling."""
    return {
        sampling.temperature: answers(
            engine,
            texts,
            sampling,
            keep=keep,
            special=templated,
            progress=progress,
            stage=f"{which} at temperature {sampling.temperature:g}",
        )
        for sampling in samplings
    }


def judge(prompts: Sequence[Prompt], written: Written, control: Written | None = None) -> tuple[Probe, ...]:
    """What is wrong with every answer, and with the control's."""
    return tuple(
        _probe(prompt, temperature, answer, control[temperature][place] if control else None)
        for temperature, texts in written.items()
        for place, (prompt, answer) in enumerate(zip(prompts, texts, strict=True))
    )


def _probe(prompt: Prompt, temperature: float, answer: Answer, control: Answer | None) -> Probe:
    signs = _signs(answer)
    if control is None:
        return Probe(prompt, temperature, answer, signs)
    if drifted := drift(answer.text, control.text):
        signs[DRIFT] = drifted
    return Probe(prompt, temperature, answer, signs, control, _signs(control))


def _signs(answer: Answer) -> dict[str, str]:
    return {sign: shown for sign, look in _OWN.items() if (shown := look(answer))}
