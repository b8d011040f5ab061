"""The probes of what a model writes: detectors on made-up texts, and the whole on the embedded model."""

from dataclasses import replace
from pathlib import Path

import asked
import pytest

from ggufreap import verbs
from ggufreap.architecture.layout import bind
from ggufreap.container import open_gguf
from ggufreap.corpus.samples import Conversation
from ggufreap.corpus.standard_library import held_out_text
from ggufreap.demonstration import MODEL
from ggufreap.errors import InputError, MismatchError
from ggufreap.evaluation.generation import Answer
from ggufreap.evaluation.loops import signs_of_looping, zlib_ratio
from ggufreap.evaluation.probes import Probes, judge, texts_of
from ggufreap.evaluation.prompts import Prompt, load_prompts
from ggufreap.evaluation.proportions import Share, mcnemar
from ggufreap.evaluation.scripts import drift, scripts_of
from ggufreap.options.engine import EngineSettings

ENGLISH = "The heater has been cold for two weeks now, and the landlord does not answer any of our letters about it."
GERMAN = "Die Heizung ist schon seit zwei Wochen kalt, und für größere Schäden müssten wir wohl täglich Öl nachfüllen."
RUSSIAN = "Холодильник забирает тепло изнутри и отдаёт его наружу, поэтому сзади он всегда тёплый."  # noqa: RUF001
CHINESE = "地球绕着太阳转动，地轴是倾斜的，所以一年里太阳照射的角度不同，就有了春夏秋冬四个季节的变化。"  # noqa: RUF001


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("and the cat sat on the mat " * 8, "4-grams"),
        ("因为太阳很大" * 10, "4-grams"),
        ("\n".join(f"{n}\nThe answer is therefore {n // 9}." for n in range(4)), "line"),
        ("this is very very very very very good", "word"),
        ("x=1;" * 100, "zlib"),
    ],
)
def test_every_sign_of_looping_is_found(text: str, sign: str) -> None:
    assert sign in signs_of_looping(text)


def test_ordinary_text_does_not_loop() -> None:
    once = "this is very very very very good\n" + "The answer is 4.\n" * 3 + "1 1 1 1 1 1 1 1"
    for text in (ENGLISH, GERMAN, RUSSIAN, CHINESE, once, ""):
        assert signs_of_looping(text) == ()
    prose = held_out_text(60_000)
    pieces = [prose[start : start + 1500] for start in range(0, len(prose), 1500)]
    assert sum(bool(signs_of_looping(piece)) for piece in pieces) <= len(pieces) // 20
    assert min(map(zlib_ratio, pieces)) > 0.12


def test_the_ratio_is_that_of_the_end() -> None:
    assert zlib_ratio(held_out_text(8000) + "and so on " * 400) < 0.05 < 0.2 < zlib_ratio(held_out_text(8000))


@pytest.mark.parametrize(
    ("text", "control", "found"),
    [
        (RUSSIAN, GERMAN, "LATIN became CYRILLIC"),
        (ENGLISH, CHINESE, "CJK became LATIN"),
        (ENGLISH * 3, GERMAN, "no more MARKED LATIN"),
        (GERMAN * 2, ENGLISH * 2, "new MARKED LATIN"),
        (GERMAN, GERMAN[::-1], None),
        (ENGLISH, "def f(x):\n    return x + 1\n" + ENGLISH, None),
        (RUSSIAN[:12], ENGLISH, None),
    ],
)
def test_a_change_of_language_shows_in_the_letters(text: str, control: str, found: str | None) -> None:
    assert drift(text, control) == found


def test_letters_are_counted_by_script() -> None:
    assert scripts_of("aé я 日本 ひ 7!") == {"LATIN": 1, "MARKED LATIN": 1, "CYRILLIC": 1, "CJK": 2, "HIRAGANA": 1}


def test_shares_have_wilson_intervals() -> None:
    low, high = Share(8, 10).interval  # 0.4902, 0.9433: Wilson's interval by the textbook formula
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert Share(0, 10).interval[0] == 0
    assert Share(10, 10).interval[1] == pytest.approx(1)
    assert Share(0, 0).interval == (0, 1)


def test_mcnemar_is_the_two_sided_binomial() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1
    assert mcnemar(3000, 2000) < 1e-40


def answer(text: str, ended: bool = True) -> Answer:
    return Answer(text, tuple(range(len(text))), ended)


def test_answers_are_judged_against_the_control() -> None:
    prompts = [Prompt("a", "code"), Prompt("b"), Prompt("c")]
    loop = "and the cat sat on the mat " * 8
    written = {0.0: [answer(loop, ended=False), answer(""), answer(RUSSIAN)]}
    control = {0.0: [answer(ENGLISH, ended=False), answer(ENGLISH), answer(GERMAN)]}
    found = Probes("pruned", "base", 8, judge(prompts, written, control))
    assert [set(probe.signs) for probe in found.probes] == [{"loop", "endless"}, {"empty"}, {"drift"}]
    assert [set(probe.control_signs or ()) for probe in found.probes] == [{"endless"}, set(), set()]
    assert found.share("endless", 0.0) == found.control_share("endless", 0.0) == Share(1, 3)
    assert [found.new(sign, 0.0).count for sign in ("loop", "endless", "empty", "drift")] == [1, 0, 1, 1]
    assert found.control_share("drift", 0.0) is None
    alone = Probes("pruned", None, 8, judge(prompts, written))
    assert alone.share("drift", 0.0).count == 0
    assert alone.control_share("loop", 0.0) is None


def test_the_built_in_prompts_are_of_many_kinds() -> None:
    prompts = load_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 24
    assert {"code", "math", "prose", "tools", "de", "fr", "es", "ru", "zh", "ja"} <= {each.domain for each in prompts}


def test_prompts_of_a_file(tmp_path: Path) -> None:
    lines, rows = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("one\n\ntwo words\n")
    rows.write_text('{"prompt": "a\\nb", "domain": "x"}\n{"prompt": "c", "domain": null, "id": 1}\n')
    assert load_prompts(lines) == (Prompt("one"), Prompt("two words"))
    assert load_prompts(rows) == (Prompt("a\nb", "x"), Prompt("c"))
    for content, message in (
        ("", "has no prompts"),
        ("{", "line 1 is no prompt: it is not JSON"),
        ('{"prompt": 3}', r"line 1 is no prompt: Expected `str`, got `int` - at `\$.prompt`"),
        ('{"prompt": " "}', "line 1 has no prompt"),
        ('{"prompt": ' + "[" * 480, "line 1 is no prompt: it nests more than 64 deep"),
    ):
        rows.write_text(content)
        with pytest.raises(InputError, match=message):
            load_prompts(rows)


def test_a_template_gets_a_turn_of_the_user() -> None:
    def render(conversation: Conversation) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in conversation.messages) + "<assistant>"

    assert texts_of([Prompt("hi")], render) == ["<user>hi<assistant>"]
    assert texts_of([Prompt("hi")], None) == ["hi"]


@pytest.mark.native
def test_probes_of_a_plan_against_the_model_itself(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("def read_header(path):\nimport os\nThe file format is\n")
    kept = asked.plan(MODEL, keep=4, method="random", seed=1)
    layout = bind(open_gguf(MODEL))
    settings = EngineSettings(n_ctx=0, n_ubatch=64, n_threads=1, n_gpu_layers=0, n_parallel=2)
    options = {"prompts": prompts, "n_predict": 24, "temperatures": [0.0, 0.5], "settings": settings}
    found = verbs.probe(MODEL, plan=kept, **options)
    assert found == verbs.probe(MODEL, plan=kept, **options), "the same model, prompts and seed give the same answers"
    assert len(found.probes) == 6
    assert found.temperatures == (0.0, 0.5)
    assert any(probe.control and probe.answer.tokens != probe.control.tokens for probe in found.probes)
    everything = asked.plan(MODEL, keep=layout.n_expert, method="random")
    same = verbs.probe(MODEL, plan=everything, **options)
    assert all(probe.answer == probe.control and probe.signs == probe.control_signs for probe in same.probes)
    against = verbs.probe(MODEL, reference=MODEL, **options)
    assert [probe.answer for probe in against.probes] == [probe.control for probe in same.probes]
    assert verbs.probe(MODEL, **options).control is None
    other = replace(kept, model=replace(kept.model, fingerprint="0" * 64))
    with pytest.raises(MismatchError, match="the plan is for"):
        verbs.probe(MODEL, plan=other, **options)
    with pytest.raises(InputError, match="both a reference and a plan"):
        verbs.probe(MODEL, plan=kept, reference=MODEL, **options)
