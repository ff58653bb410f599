"""Tool calls are found in every form that models write, and never spoken."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.models.qwen3_5_template import function_text
from omni.models.tool_calls import FunctionCall, ToolCallParser
from omni.types import CallPart, ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "detailed": {"type": "boolean"},
            "where": {"type": "object"},
            "unit": {"type": ["string", "null"]},
        },
    },
)
PARIS = FunctionCall("get_weather", '{"city": "Paris"}')
ROME = FunctionCall("get_weather", '{"city": "Rome"}')
OBJECT = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
OTHER = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
TAGGED = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
TAGGED_ROME = TAGGED.replace("Paris", "Rome")
PRETTY = '{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}'


def parse(answer: str, cuts: list[int] | None = None) -> tuple[str, list[FunctionCall], list[str]]:
    parser = ToolCallParser([WEATHER])
    edges = [0, *sorted(cut % (len(answer) + 1) for cut in cuts or []), len(answer)]
    said, called = "", []
    for start, end in itertools.pairwise(edges):
        visible, calls = parser.push(answer[start:end])
        said += visible
        called += calls
    visible, calls = parser.flush()
    return said + visible, called + calls, parser.refused


CASES = [
    (f"<tool_call>\n{OBJECT}\n</tool_call>", "", [PARIS]),
    (f"<tool_call>{OBJECT}</tool_call>\n<tool_call>{OTHER}</tool_call>", "", [PARIS, ROME]),
    (OBJECT, "", [PARIS]),
    (f"  {PRETTY}\n", "  ", [PARIS]),
    (f"```json\n{PRETTY}\n```", "", [PARIS]),
    (f"```\n{OBJECT}\n```\n", "", [PARIS]),
    (f"```xml\n<tool_call>\n{OBJECT}\n</tool_call>\n```", "", [PARIS]),
    (f"<tools>\n{OBJECT}\n</tools>", "", [PARIS]),
    (f"[{OBJECT}, {OTHER}]", "", [PARIS, ROME]),
    (f"{OBJECT}\n{OTHER}", "", [PARIS, ROME]),
    (f"Let me look. <tool_call>{OBJECT}</tool_call>", "Let me look. ", [PARIS]),
    (f'{{"type": "function", "function": {OBJECT}}}', "", [PARIS]),
    (OBJECT.replace('{"city": "Paris"}', json.dumps('{"city": "Paris"}')), "", [PARIS]),
    (OBJECT.replace("arguments", "parameters"), "", [PARIS]),
    (f"<tool_call>\n{OBJECT[:-1]}\n</tool_call>", "", [PARIS]),  # one brace short
    (OBJECT[:-1], "", [PARIS]),
    (OBJECT + '\n{"temperature_c": 21}', "", [PARIS]),  # an invented result is not spoken
    (OBJECT + " It is sunny.", "It is sunny.", [PARIS]),
    (f"<tool_call>\n{TAGGED}\n</tool_call>", "", [PARIS]),
    (f"Let me look.\n\n<tool_call>\n{TAGGED}\n</tool_call>", "Let me look.\n\n", [PARIS]),
    (
        f"<tool_call>\n{TAGGED}\n</tool_call>\n<tool_call>\n{TAGGED_ROME}\n</tool_call>",
        "",
        [PARIS, ROME],
    ),
    (TAGGED, "", [PARIS]),  # without the outer tag
    (f"{TAGGED}\n</tool_call> It is sunny.", "It is sunny.", [PARIS]),
    (f"<tool_call>\n{TAGGED}"[: -len("\n</function>")], "", [PARIS]),  # closing tags short
    (f"<tool_call>\n{TAGGED}"[: -len("ction>")], "", [PARIS]),
    (f"<tool_call>{TAGGED.replace(chr(10), '')}</tool_call>", "", [PARIS]),
    (f"<tool_call>\n{TAGGED.replace('</function>', '')}</tool_call>", "", [PARIS]),
    (
        "<tool_call>\n<function=get_weather>\n</function>\n</tool_call>",
        "",
        [FunctionCall("get_weather", "{}")],
    ),
]


@pytest.mark.parametrize(("answer", "said", "called"), CASES)
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_calls_are_found_however_the_text_arrives(
    answer: str, said: str, called: list[FunctionCall], cuts: list[int]
) -> None:
    assert parse(answer, cuts)[:2] == (said, called)


@pytest.mark.parametrize(
    "answer",
    [
        "The capital of France is Paris.",
        "a < b and b <c; a <tool is not a tag, <tools> neither",
        "```python\ndef f(x):\n    return {x: [1]}\n```\nThat is all.",
        '```json\n{"age": 3, "pets": []}\n```',
        'Send {"name": "Bob", "age": 3} to the server.',
        "Use `code` and ``more`` and [1] and {curly} and {",
        "```",
        "<tool_",
        '{"na',
        "",
    ],
)
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_all_other_text_is_visible_unchanged(answer: str, cuts: list[int]) -> None:
    assert parse(answer, cuts) == (answer, [], [])


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "turn_on_light", "arguments": {"room": "kitchen"}}',  # not on offer
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": }}\n</tool_call>',
        '```json\n<tool_call>{"name": "get_weather", nonsense}</tool_call>\n```',
        '<tool_call>\n{"name": "get_weather", "argu',
        '{"name": "get_weather", "arguments": {"city": "Par',
        f"<tool_call>\n{TAGGED.replace('get_weather', 'turn_on_light')}\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar",
        "<tool_call>\n<function=get_weather>\n<parameter=ci",
        "<tool_call>\n<function=get_wea",
        "<tool_call>\n<function=get_weather>\nnonsense\n</function>\n</tool_call>",
        "<tool_call>\n<func",
        "<tool_call>\n",
    ],
)
@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_what_was_meant_as_a_call_but_is_none_is_refused_and_silent(
    answer: str, cuts: list[int]
) -> None:
    said, called, refused = parse(answer, cuts)
    assert (said, called) == ("", [])
    assert len(refused) == 1


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("city", "Paris", "Paris"),
        ("city", "1", "1"),
        ("city", "true", "true"),
        ("city", "two\nlines\n", "two\nlines\n"),
        ("city", "a </parameter> b </function> c", "a </parameter> b </function> c"),
        ("city", '"quoted"', '"quoted"'),
        ("city", "", ""),
        ("days", "3", 3),
        ("days", "three", "three"),
        ("days", "NaN", "NaN"),
        ("detailed", "true", True),
        ("detailed", "True", True),
        ("where", '{"lat": 1.5, "names": ["x"]}', {"lat": 1.5, "names": ["x"]}),
        ("unit", "None", None),
        ("unit", "20", "20"),
        ("unheard", "[1, 2]", [1, 2]),
        ("unheard", "plain words", "plain words"),
    ],
)
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=8))
def test_a_parameter_means_what_its_schema_says(
    name: str, text: str, meant: object, cuts: list[int]
) -> None:
    answer = (
        f"<tool_call>\n<function=get_weather>\n<parameter={name}>\n{text}\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    said, (call,), refused = parse(answer, cuts)
    assert (said, refused) == ("", [])
    assert json.loads(call.arguments) == {name: meant}


def test_what_the_template_writes_is_read_back() -> None:
    arguments = {"city": "Köln", "days": 2, "detailed": False, "where": {"lat": 1.5}, "unit": None}
    part = CallPart("c", "get_weather", json.dumps(arguments))
    said, (call,), refused = parse(f"<tool_call>{function_text(part)}</tool_call>")
    assert (said, refused) == ("", [])
    assert json.loads(call.arguments) == arguments


def test_text_is_shown_as_soon_as_it_cannot_become_a_call() -> None:
    parser = ToolCallParser([WEATHER])
    assert parser.push("It is 3 <")[0] == "It is 3 "
    assert parser.push(" 4, and")[0] == "< 4, and"
    assert parser.push(" `") == (" ", [])
    assert parser.push("x`")[0] == "`x"
    assert parser.flush()[0] == "`"


def test_a_call_is_reported_at_its_last_brace() -> None:
    parser = ToolCallParser([WEATHER])
    assert parser.push(OBJECT[:-1]) == ("", [])
    assert parser.push("}") == ("", [PARIS])


def test_without_tools_everything_is_visible() -> None:
    parser = ToolCallParser([])
    assert parser.push(OBJECT) == (OBJECT, [])


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "```", "json\n", "{", "}", '"name"', ":", '"', "[",
             "]", ",", "\n", " ", "word", '"arguments"', "<", "\\", OBJECT, TAGGED,
             "<function=", "get_weather>", "<parameter=", "city>", "</parameter>", "</function>"]
        ),
        max_size=14,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)  # fmt: skip
def test_any_text_gives_the_same_whatever_the_cuts(pieces: list[str], cuts: list[int]) -> None:
    answer = "".join(pieces)
    assert parse(answer, cuts) == parse(answer)
