"""Chat templates in the styles that models bring, written for these tests, and conversations to render with them."""

from typing import Any

from ggufreap.corpus.samples import Conversation

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content and loop.last %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content | trim }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n' }}{{ call.function | tojson }}{{ '\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system, messages = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Date: {{ strftime_now('%d %b %Y') }}

{% if tools is not none %}
    {% for tool in tools %}
{{ tool | tojson(indent=4) }}

    {% endfor %}
{% endif %}
{{ system }}<|eot_id|>
{%- for message in messages %}
    {%- if message.role == 'tool' %}{% set role = 'ipython' %}{% else %}{% set role = message.role %}{% endif %}
<|start_header_id|>{{ role }}<|end_header_id|>

{% generation %}{{ message.content }}<|eot_id|>{% endgeneration %}
{%- endfor %}
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}
"""

MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user and assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (system if loop.last else '') + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('no role but user and assistant') }}
    {%- endif %}
{%- endfor %}
"""

HARMONY = """\
{%- macro kind(schema) -%}
    {%- if schema.type == 'array' -%}
        {{- kind(schema['items']) }}[]
    {%- elif schema.enum -%}
        {%- for value in schema.enum -%}{{ value | tojson }}{{ ' | ' if not loop.last }}{%- endfor -%}
    {%- else -%}
        {{- schema.type or 'any' }}
    {%- endif -%}
{%- endmacro -%}
{%- macro declaration(tool) -%}
    {{- '// ' + tool.description + '\\ntype ' + tool.name + ' = (_: {\\n' }}
    {%- for name, schema in tool.parameters.properties.items() %}
        {{- name + ('' if name in tool.parameters.required else '?') + ': ' + kind(schema) + ',\\n' }}
    {%- endfor %}
    {{- '}) => any;\\n' }}
{%- endmacro -%}
<|start|>system<|message|>Today: {{ strftime_now('%Y-%m-%d') }}
{%- for tool in tools or [] %}
    {{- '\\n\\n' + declaration(tool.function) }}
{%- endfor %}<|end|>
{%- set state = namespace(caller=none, past=true, last_user=0) %}
{%- for message in messages if message.role == 'user' %}
    {%- set state.last_user = state.last_user + 1 %}
{%- endfor %}
{%- set seen = namespace(users=0) %}
{%- for message in messages -%}
    {%- if message.role == 'user' %}{% set seen.users = seen.users + 1 %}{% endif %}
    {%- if message.role == 'system' %}
        {{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '<|end|>' }}
        {%- continue %}
    {%- elif message.role == 'tool' %}
        {%- if not state.caller %}{{ raise_exception('a tool answers nobody: ' + message.content) }}{% endif %}
        {{- '<|start|>functions.' + state.caller + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson + '<|end|>' }}
    {%- elif message.role == 'assistant' %}
        {%- if message.thinking and seen.users == state.last_user %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- set call = message.tool_calls[0].function %}
            {%- set state.caller = call.name %}
            {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
            {{- call.arguments | tojson + '<|call|>' }}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
            {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
        {%- endif %}
    {%- else %}
        {{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}
"""

TEMPLATES = {"chatml": CHATML, "llama-3": LLAMA3, "mistral": MISTRAL, "harmony": HARMONY}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says if it's <wet> & where",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "array", "items": {"type": "string"}}, "unit": {"enum": ["°C", "°F"]}},
            "required": ["city"],
        },
    },
}


def say(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def talk(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation(messages, tools)


_CALL = [{"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"city": ["São <b>"], "n": 2}}}]

CONVERSATIONS = {
    "short": talk(say("user", "yes"), say("assistant", "yes")),
    "system": talk(say("system", "Be terse."), say("user", "2+2?"), say("assistant", "4")),
    "turns": talk(
        say("user", "assistant"), say("assistant", " user\n"), say("user", "user"), say("assistant", "</s> <|im_end|>")
    ),
    "reasoning": talk(
        say("user", "17*3?"),
        say("assistant", "51", reasoning_content="3*17"),
        say("user", "+4?"),
        say("assistant", "55", reasoning="51 + 4"),
    ),
    "tools": talk(
        say("user", "Rain?"),
        say("assistant", "", tool_calls=_CALL, thinking="ask"),
        say("tool", '{"wet": true}', tool_call_id="1"),
        say("assistant", "Yes, it's wet."),
        tools=(WEATHER,),
    ),
    "unicode": talk(say("user", "日本 \x00 \u2028 🦜"), say("assistant", "«ß» {{ 7 * 7 }} {% raw %}\n")),
    "empty fields": talk(say("user", "q", tool_calls=None), say("assistant", "a", reasoning_content=None, name=None)),
}
