"""Conversations are rendered as transformers renders them, by templates that nobody trusts."""

import datetime
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest
import tiny_gguf
from chat_templates import CHATML, CONVERSATIONS, TEMPLATES, TOKENS, WEATHER, say, talk

from ggufreap.container import open_gguf
from ggufreap.corpus import chat_worker
from ggufreap.corpus.chat import ChatTemplate, Rendered, Renderer, plain
from ggufreap.corpus.samples import Conversation, Unusable
from ggufreap.errors import InputError

WORKER = Path(chat_worker.__file__)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_AS")
DATE = datetime.datetime(2025, 1, 1)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, source, TOKENS)


# --- as transformers renders ------------------------------------------------------------------------------------------


class Date(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "Date":
        return cls(DATE.year, DATE.month, DATE.day)


def by_transformers(source: str, conversation: Conversation) -> str:
    from transformers.utils import chat_template_utils as utils

    utils.datetime = Date
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in conversation.messages
    ]
    tools = list(conversation.tools) or None
    return str(utils.render_jinja_template([messages], tools=tools, chat_template=source, **TOKENS)[0][0])


def by_jinja(source: str, conversation: Conversation) -> str:
    """What transformers does (utils/chat_template_utils.py), in short."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    messages = []
    for message in conversation.messages:
        known = {key: value for key, value in message.items() if value is not None}
        for name in ("reasoning_content", "thinking", "reasoning"):
            if name in known:
                known["thinking"] = known["reasoning_content"] = known[name]
                break
        messages.append(known)
    return environment.from_string(
        source.replace("{% generation %}", "{% if 1 %}").replace("{% endgeneration %}", "{% endif %}")
    ).render(
        messages=messages,
        tools=list(conversation.tools) or None,
        raise_exception=refuse,
        strftime_now=DATE.strftime,
        add_generation_prompt=False,
        **TOKENS,
    )


REFERENCE = by_transformers if importlib.util.find_spec("transformers") else by_jinja


@pytest.fixture(scope="module", params=list(TEMPLATES))
def style(request: pytest.FixtureRequest) -> Iterator[tuple[str, Renderer]]:
    with template(TEMPLATES[request.param]).renderer() as render:
        yield request.param, render


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_text_is_what_transformers_makes(style: tuple[str, Renderer], name: str) -> None:
    (key, render), conversation = style, CONVERSATIONS[name]
    try:
        expected = REFERENCE(TEMPLATES[key], conversation)
    except jinja2.TemplateError as error:
        with pytest.raises(Unusable, match=f"^chat template refused: {error}$"):
            render(conversation)
    else:
        assert render(conversation).text == expected


def test_the_styles_refuse_what_they_should() -> None:
    refused = set()
    for key, source in TEMPLATES.items():
        for name, conversation in CONVERSATIONS.items():
            with suppress(jinja2.TemplateError):
                REFERENCE(source, conversation)
                continue
            refused.add((key, name))
    assert refused == {("mistral", "tools")}


# What the assistant says: in "chatml" and "harmony" past reasoning is left out, so that beginnings do not agree.
SAID = {
    ("chatml", "short"): ["yes<|im_end|>\n"],
    ("chatml", "turns"): ["user<|im_end|>\n", "</s> <|im_end|><|im_end|>\n"],
    ("chatml", "reasoning"): ["51<|im_end|>\n", "<think>\n51 + 4\n</think>\n\n55<|im_end|>\n"],
    ("chatml", "tools"): [
        '\n<tool_call>\n{"name": "weather", "arguments": {"city": ["São <b>"], "n": 2}}\n</tool_call><|im_end|>\n',
        "Yes, it's wet.<|im_end|>\n",
    ],
    ("llama-3", "system"): ["4<|eot_id|>"],
    ("mistral", "system"): [" 4</s>"],
    ("mistral", "turns"): ["  user\n</s>", " </s> <|im_end|></s>"],
    ("harmony", "short"): ["<|channel|>final<|message|>yes<|return|>"],
    ("harmony", "turns"): [
        "<|channel|>final<|message|> user\n<|end|>",
        "<|channel|>final<|message|></s> <|im_end|><|return|>",
    ],
    ("harmony", "reasoning"): [
        "<|channel|>final<|message|>51<|end|>",
        "<|channel|>analysis<|message|>51 + 4<|end|><|start|>assistant<|channel|>final<|message|>55<|return|>",
    ],
}


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_spans_hold_what_the_assistant_says(style: tuple[str, Renderer], name: str) -> None:
    (key, render), conversation = style, CONVERSATIONS[name]
    if (key, name) == ("mistral", "tools"):
        pytest.skip("refused")
    rendered = render(conversation)
    said = [rendered.text[start:end] for start, end in rendered.assistant]
    assert said == SAID.get((key, name), said)
    answers = [message["content"].strip() for message in conversation.messages if message["role"] == "assistant"]
    assert len(said) == len(answers)
    assert all(answer in text for answer, text in zip(answers, said, strict=True))


def test_spans_are_optional() -> None:
    with template(CHATML).renderer(spans=False) as render:
        assert render(CONVERSATIONS["short"]) == Rendered(
            "<|im_start|>user\nyes<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n", ()
        )


def test_tools_have_a_template_of_their_own() -> None:
    with ChatTemplate("{{ messages|length }}", "{{ tools[0].function.name }}", {}).renderer() as render:
        assert render(talk(say("user", "q"))).text == "1"
        assert render(talk(say("user", "q"), tools=(WEATHER,))).text == "weather"


def test_a_refusal_is_one_short_line() -> None:
    source = "{{ raise_exception('\x1b[2Jbad\\n' ~ 'role ' * 99) }}{{ messages }}"
    with template(source).renderer() as render, pytest.raises(Unusable) as caught:
        render(CONVERSATIONS["short"])
    assert str(caught.value).startswith("chat template refused: [2Jbad role role")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 130


def test_half_a_character_is_no_text() -> None:
    with template(CHATML).renderer() as render, pytest.raises(Unusable, match="surrogate"):
        render(talk(say("user", "\ud83e")))


def test_what_json_cannot_hold_is_unusable() -> None:
    with template(CHATML).renderer() as render, pytest.raises(Unusable, match="JSON"):
        render(talk(say("user", "q", when=DATE)))


# --- out of the GGUF --------------------------------------------------------------------------------------------------


def model(folder: Path, **metadata: Any) -> ChatTemplate | None:
    entries = {f"tokenizer.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tiny_gguf.write(folder / "model.gguf", "qwen3moe", entries, {})
    return ChatTemplate.of(open_gguf(folder / "model.gguf"))


def test_the_model_brings_template_and_tokens(tmp_path: Path) -> None:
    found = model(
        tmp_path,
        chat_template="{{ bos_token }}{{ messages }}{{ pad_token }}{{ unk_token }}",
        chat_template__tool_use="{{ eos_token }}{{ messages }}",
        ggml__tokens=["<unk>", "<s>", "ü", "</s>"],
        ggml__bos_token_id=1,
        ggml__eos_token_id=3,
        ggml__padding_token_id=4,  # beyond the vocabulary
        ggml__seperator_token_id=2,  # which no template names
    )
    assert found == ChatTemplate(
        "{{ bos_token }}{{ messages }}{{ pad_token }}{{ unk_token }}",
        "{{ eos_token }}{{ messages }}",
        {"bos_token": "<s>", "eos_token": "</s>"},
    )


@pytest.mark.parametrize("key", ["chat_template", "chat_template__tool_use"])
def test_one_template_serves_both(tmp_path: Path, key: str) -> None:
    assert model(tmp_path, **{key: "{{ messages }}"}) == ChatTemplate("{{ messages }}", "{{ messages }}", {})


@pytest.mark.parametrize("metadata", [{}, {"chat_template": "chatml"}, {"chat_template": 7}])
def test_a_model_without_a_template_has_none(tmp_path: Path, metadata: Mapping[str, Any]) -> None:
    assert model(tmp_path, **metadata) is None


# --- hostile templates ------------------------------------------------------------------------------------------------

ATTACKS = (
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ messages | map('attr', '__class__') | list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ ('{0.__class__}' | attr('format'))('') }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ '%s' | format(messages.__class__) }}",
    "{{ cycler.__init__.__globals__.os.__class__ }}",
    "{{ lipsum.__globals__.os.__class__ }}",
    "{{ namespace.__init__.__class__ }}",
    "{{ dict.__class__ }}",
    "{{ raise_exception.__globals__.__class__ }}",
    "{{ strftime_now.__self__.__class__ }}",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_sandbox_holds(attack: str) -> None:
    bare = jinja2.Environment()
    names = {"messages": [{}], "strftime_now": DATE.strftime, "raise_exception": chat_worker._raise_exception}
    assert "class" in bare.from_string(attack).render(names), "an attack that cannot succeed proves nothing"
    text = ""
    with suppress(jinja2.exceptions.SecurityError):
        text = chat_worker.Environment().from_string(attack).render(messages=[{}])
    assert text in ("", "[Undefined]")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role=1) }}",
        "{% set ns = namespace() %}{% set ns.__html__ = cycler %}",
        "{{ namespace(__html__=cycler) }}",
        "{% include '/etc/hosts' %}",
    ],
)
def test_the_sandbox_refuses(source: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        chat_worker.Environment().from_string(source).render(messages=[{}])


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROW = "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}"


BAD, GOOD = talk(say("user", "bad"), say("assistant", "12345678")), talk(say("user", "good"))


def on_request(hostile: str) -> ChatTemplate:
    return template("{% if messages[0].content == 'bad' %}" + hostile + "{% endif %}ok")


def outcome(render: Renderer, conversation: Conversation) -> str:
    try:
        return render(conversation).text
    except Unusable as reason:
        return str(reason)


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        pytest.param(LOOP, "chat template takes more than 0.4 s", id="endless"),
        pytest.param("{{ 9 ** (9 ** messages[1].content|length) }}", "chat template takes more than 0.4 s", id="in C"),
        pytest.param(GROW, "chat template takes more than 128 MiB", id="greedy", marks=LINUX),
    ],
)
def test_a_hostile_template_costs_its_conversation(hostile: str, reason: str) -> None:
    with on_request(hostile).renderer(seconds=0.4, nbytes=128 << 20) as render:
        assert [outcome(render, talk) for talk in (BAD, GOOD)] == [reason, "ok"]


def test_three_in_a_row_are_enough() -> None:
    with on_request(LOOP).renderer(seconds=0.4) as render:
        late = "chat template takes more than 0.4 s"
        assert [outcome(render, talk) for talk in (BAD, GOOD, BAD, BAD)] == [late, "ok", late, late]
        with pytest.raises(InputError, match="on 3 conversations in a row; use --no-chat-template"):
            render(BAD)


@LINUX
def test_a_text_too_long_for_its_reader_is_stopped() -> None:
    with on_request("{{ 'a' * (40000000 * messages|length) }}").renderer(nbytes=256 << 20) as render:
        assert outcome(render, talk(say("user", "bad"))) == "chat template takes more than 256 MiB"


@pytest.mark.parametrize(
    ("source", "reason"),
    [("{% if %}", "does not parse: Expected an expression"), ("{{ 9 ** (9 ** 9) }}", "takes more than 0.4 s before")],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(source: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason), template(source).renderer(seconds=0.4):
        pass


def test_the_worker_ends_with_its_input() -> None:
    result = subprocess.run([sys.executable, "-P", str(WORKER)], input="", capture_output=True, timeout=60, check=True)
    assert result.stdout == b""


def test_the_worker_imports_little() -> None:
    code = f"import runpy, sys; runpy.run_path({str(WORKER)!r}); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split()
    assert "jinja2" in modules
    assert not {"numpy", "gguf", "ggufreap", "asyncio"} & set(modules)


# --- without a template -----------------------------------------------------------------------------------------------


def test_plain_text_is_what_was_said() -> None:
    assert plain(CONVERSATIONS["turns"]) == "assistant\n\n user\n\n\nuser\n\n</s> <|im_end|>"
    assert plain(CONVERSATIONS["reasoning"]) == "17*3?\n\n3*17\n\n51\n\n+4?\n\n51 + 4\n\n55"
    call = '{"name": "weather", "arguments": {"city": ["São <b>"], "n": 2}}'
    assert plain(CONVERSATIONS["tools"]) == f'Rain?\n\nask\n\n{call}\n\n{{"wet": true}}\n\nYes, it\'s wet.'
    parts = [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "this?"}]
    assert plain(talk({"role": "user", "content": parts}, say("assistant", None))) == "What is this?"


def test_chance_has_no_place_in_a_template() -> None:
    """The same model and text give the same tokens, whichever run it is."""
    draws = "{{ ['a', 'b', 'c', 'd'] | random }}{{ range(1000) | random }}{{ messages|length }}"
    said = Conversation(({"role": "user", "content": "hello"},))
    with template(draws).renderer(spans=False) as render:
        assert {render(said).text for _ in range(8)} == {"a01"}
    with template("{{ messages|length }}{{ lipsum() }}").renderer() as render, pytest.raises(Unusable, match="chance"):
        render(said)
