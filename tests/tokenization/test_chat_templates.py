"""Chat templates: rendering, encoding, tools, refusals, and the same against Transformers."""

import dataclasses
import enum
import threading
from typing import Any, Literal, Optional

import numpy as np
import pytest

from jaxpipe.tokenization import AutoTokenizer
from jaxpipe.tokenization.tools import function_schema

LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}<|eot_id|>"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
TOOL_USE = (
    "{{ tools | tojson }}{{ documents | tojson(indent=2) }}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
MASKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} end{% endgeneration %}"
    "{% else %}<{{ m.content }}>{% endif %}\n{% endfor %}"
)
BUSY = """
{%- set ns = namespace(seen=0, text='') -%}
{%- for message in messages recursive -%}
  {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
  {%- set ns.seen = ns.seen + 1 -%}
  {%- set ns.text = ns.text ~ loop.index ~ '/' ~ loop.length ~ message.content[:3] -%}
  {%- if loop.last -%}{{ ns.text }} {{ '%s-%02d' % ('n', ns.seen) }} {{ message | tojson }}{%- endif -%}
{%- endfor -%}
{%- macro twice(text) -%}{{ text * 2 }}{%- endmacro -%}
{%- for i in range(3) -%}{{ twice(i | string) }}{%- if i == 1 -%}{%- break -%}{%- endif -%}{%- endfor -%}
{{ dict(a=1, b='<&>').items() | list }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ name is defined }} {{ bos_token }}
"""
MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "  Hi <there> & 日本 🙂\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def tokenizer(gpt2_v5):
    return AutoTokenizer.from_pretrained(gpt2_v5)


def multiply(x: float, y: int = 2, unit: Literal["m", "s"] = "m", rest: Optional[list[str]] = None) -> float:  # noqa: UP045
    """
    Multiplies two numbers.

    Args:
        x: The first number,
            which may be large.
        y: The second number
        unit: The unit
        rest: More (choices: ["a", "b"])

    Returns:
        The product.
    """
    return x * y


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def paint(
    color: Color, size: int | str, where: dict[str, int], pair: tuple[int, str], anything: Any, many: list[int] | int
):
    """Paints.

    Args:
        color: which
        size: how big
        where: place
        pair: two
        anything: else
        many: numbers
    """


def test_chatml_text_and_ids(tokenizer) -> None:
    text = tokenizer.apply_chat_template(MESSAGES[1:], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\n  Hi <there> & 日本 🙂\n<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    encoded = tokenizer.apply_chat_template(MESSAGES[1:], add_generation_prompt=True)
    assert encoded["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer.apply_chat_template([MESSAGES, MESSAGES[1:]], padding=True, return_tensors="np", return_dict=False)
    assert ids.shape[0] == 2 and ids.dtype == np.int64


def test_final_message_left_open(tokenizer) -> None:
    chat = [MESSAGES[1], {"role": "assistant", "content": "The answer is "}]
    text = tokenizer.apply_chat_template(chat, continue_final_message=True, tokenize=False)
    assert text.endswith("assistant\nThe answer is ")
    trimmed = tokenizer.apply_chat_template(chat, chat_template=LLAMA3, continue_final_message=True, tokenize=False)
    assert trimmed.endswith("The answer is")
    assert chat[-1]["content"] == "The answer is "
    for chat, words in (
        ([{"role": "assistant"}], "has no 'content'"),
        ([{"role": "assistant", "content": []}], "no text"),
        ([{"role": "assistant", "content": 3}], "not text"),
    ):
        with pytest.raises(ValueError, match=words):
            tokenizer.apply_chat_template(chat, continue_final_message=True)
    with pytest.raises(ValueError, match="changes or drops"):
        tokenizer.apply_chat_template(MESSAGES, chat_template="content", continue_final_message=True)
    with pytest.raises(ValueError, match="exclude each other"):
        tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(ValueError, match="does not read 'thinking'"):
        message = {"role": "assistant", "content": "x", "thinking": "y"}
        tokenizer.apply_chat_template([message], chat_template="{{ messages }}", continue_final_message="thinking")


def test_templates_by_name(tokenizer, gpt2_v5) -> None:
    named = AutoTokenizer.from_pretrained(
        gpt2_v5, chat_template={"default": "D", "tool_use": "T", "rag": "{{ documents[0].text }}"}
    )
    assert named.apply_chat_template(MESSAGES, tokenize=False) == "D"
    assert named.apply_chat_template(MESSAGES, tools=[{"a": 1}], tokenize=False) == "T"
    documents = [{"title": "t", "text": "doc"}]
    assert named.apply_chat_template(MESSAGES, documents=documents, chat_template="rag", tokenize=False) == "doc"
    with pytest.raises(ValueError, match=r"no chat template 'rga'.*Did you mean 'rag'"):
        named.get_chat_template("rga")
    listed = AutoTokenizer.from_pretrained(gpt2_v5, chat_template=[{"name": "a", "template": "A"}])
    with pytest.raises(ValueError, match="name one of a"):
        listed.apply_chat_template(MESSAGES)
    with pytest.raises(ValueError, match="'name' and 'template'"):
        AutoTokenizer.from_pretrained(gpt2_v5, chat_template=["x"])
    tokenizer_without = AutoTokenizer.from_pretrained(gpt2_v5, chat_template=None)
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer_without.apply_chat_template(MESSAGES)


def test_messages_of_other_types(tokenizer) -> None:
    @dataclasses.dataclass
    class Message:
        role: str
        content: str

    expected = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert tokenizer.apply_chat_template([Message("user", "x")], tokenize=False) == expected
    given = [{"role": "user", "content": "x", "tool_calls": None}]
    assert tokenizer.apply_chat_template(given, tokenize=False) == expected
    assert tokenizer.apply_chat_template([given, given], tokenize=False) == [expected, expected]
    image = [{"role": "user", "content": [{"type": "image", "image": np.zeros(2)}, {"n": np.float32(2)}]}]
    seen = tokenizer.apply_chat_template(image, chat_template="{{ messages[0].content }}", tokenize=False)
    assert seen == "[{'type': 'image', 'image': '<ndarray>'}, {'n': 2.0}]"


@pytest.mark.parametrize(
    ("conversation", "error", "words"),
    [
        ([], ValueError, "is empty"),
        ("Hi", TypeError, "list of messages"),
        ({"role": "user", "content": "x"}, TypeError, "list of messages"),
        (["Hi"], TypeError, r"conversation\[0\] must be a dict"),
        ([{"role": "user", "content": "a"}, None], TypeError, r"conversation\[1\] must be a dict"),
        ([{"content": "x"}], ValueError, r"conversation\[0\] needs a 'role'"),
        ([{"role": 3, "content": "x"}], ValueError, "needs a 'role'"),
        ([[{"role": "user", "content": "a"}], [{"rol": "user"}]], ValueError, r"conversation\[1\]\[0\] needs a 'role'"),
        ([{"role": "user"}], ValueError, "chat template 'default' fails on these messages"),
        ([{"role": "user", "content": ["x"]}], ValueError, "check that each has the keys and types"),
    ],
)
def test_malformed_messages(tokenizer, conversation, error, words) -> None:
    with pytest.raises(error, match=words):
        tokenizer.apply_chat_template(conversation)


HOSTILE = {
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__') }}{{ (''|attr('__class__')).mro() }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "init": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}",
    "append": "{{ messages.append(1) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "update": "{% do messages[0].update({}) %}",
    "clear": "{{ messages[0].clear() }}",
    "range": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
    "range itself": "{{ range(100000000000)|list|length }}",
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "strings": "{% for a in 'x' * 5000 %}{% for b in 'x' * 5000 %}{% endfor %}{% endfor %}",
    "product": "{{ 'x' * 10**10 }}",
    "list product": "{{ [0] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "doubling": "{% set ns = namespace(s='xxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "joining": "{% set ns = namespace(s='xxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "width": "{{ '%99999999999d' % 1 }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(tokenizer, name: str) -> None:
    chat = [{"role": "user", "content": "x"}]
    before = [dict(message) for message in chat]
    try:
        text = tokenizer.apply_chat_template(chat, chat_template=HOSTILE[name], tokenize=False)
    except ValueError as error:
        assert "chat template 'given'" in str(error)
    else:
        assert name == "attr filter" and text == "", text
    assert chat == before


def test_refusal_names_the_template(gpt2_v5) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_v5, chat_template={"default": "D", "bad": HOSTILE["attribute"]})
    with pytest.raises(ValueError, match="chat template 'bad' was refused"):
        tokenizer.apply_chat_template(MESSAGES, chat_template="bad")
    with pytest.raises(ValueError, match="'given' is not valid Jinja, line 2"):
        tokenizer.apply_chat_template(MESSAGES, chat_template="x\n{% for %}")
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        tokenizer.apply_chat_template(MESSAGES, chat_template="{{ raise_exception('roles must alternate') }}")


def test_control_tokens_are_not_sanitized_silently(tokenizer) -> None:
    with pytest.raises(ValueError, match="sanitize_control_tokens is not supported"):
        tokenizer.apply_chat_template(MESSAGES, sanitize_control_tokens=True)


def test_long_conversations_fit_the_bounds(tokenizer) -> None:
    chat = [{"role": "user", "content": "word " * 50}] * 3000
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text.count("<|im_start|>") == 3000


def test_assistant_mask(tokenizer) -> None:
    chat = [*MESSAGES, {"role": "assistant", "content": "Good bye"}]
    encoded = tokenizer.apply_chat_template(chat, chat_template=MASKED, return_assistant_tokens_mask=True)
    said = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == "Hello. endGood bye end"
    plain = tokenizer.apply_chat_template(chat, chat_template=MASKED)
    assert plain["input_ids"] == encoded["input_ids"]
    with pytest.raises(ValueError, match="needs tokenize=True"):
        tokenizer.apply_chat_template(chat, return_dict=False, return_assistant_tokens_mask=True)


def test_threads_do_not_mix_masks(tokenizer) -> None:
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        chat = [{"role": "user", "content": "x" * number}, {"role": "assistant", "content": "y"}]
        for _ in range(20):
            encoded = tokenizer.apply_chat_template(chat, chat_template=MASKED, return_assistant_tokens_mask=True)
            results[number] = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 9, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tokenizer.decode(results[number]) for number in (1, 9, 40)] == ["y end"] * 3


def test_schema_of_a_function() -> None:
    schema = function_schema(multiply)["function"]
    assert (schema["name"], schema["description"]) == ("multiply", "Multiplies two numbers.")
    assert schema["parameters"] == {
        "type": "object",
        "properties": {
            "x": {"type": "number", "description": "The first number, which may be large."},
            "y": {"type": "integer", "description": "The second number"},
            "unit": {"type": "string", "enum": ["m", "s"], "description": "The unit"},
            "rest": {
                "type": "array", "items": {"type": "string"}, "nullable": True, "enum": ["a", "b"],
                "description": "More",
            },
        },
        "required": ["x"],
    }  # fmt: skip
    assert schema["return"] == {"type": "number", "description": "The product."}


def test_functions_that_cannot_be_tools(tokenizer) -> None:
    def no_docstring(x: int): ...

    def no_hint(x):
        """A. \n\nArgs:\n    x: y"""

    def no_description(x: int):
        """A."""

    def strange(x: np.ndarray):
        """A.\n\nArgs:\n    x: y"""

    for function, words in (
        (no_docstring, "no docstring"), (no_hint, "no type hint"), (no_description, "does not describe"),
        (strange, "has no JSON form"), (3, r"tools\[0\]"), (dict, r"tools\[0\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            tokenizer.apply_chat_template(MESSAGES, tools=[function])
    with pytest.raises(ValueError, match="tools must be a list"):
        tokenizer.apply_chat_template(MESSAGES, tools={"a": 1})
    with pytest.raises(TypeError, match=r"documents\[0\]"):
        tokenizer.apply_chat_template(MESSAGES, documents=["text"])


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_equal_to_the_oracle(tokenizer, gpt2_v5, chatml) -> None:
    from transformers import AutoTokenizer as Oracle

    theirs = Oracle.from_pretrained(gpt2_v5)
    ours = tokenizer
    weather = {"type": "function", "function": {"name": "weather", "parameters": {"q": "<&>'é"}}}
    thought = [*MESSAGES[1:2], {"role": "assistant", "content": "x", "reasoning": "because"}]
    read = "{% for m in messages %}{{ m.content }}|{{ m.reasoning_content }}{% endfor %}"
    cases: list[tuple[Any, dict[str, Any]]] = [
        (MESSAGES, {}),
        (MESSAGES, {"add_generation_prompt": True}),
        (MESSAGES[:3], {"continue_final_message": True}),
        (MESSAGES, {"chat_template": LLAMA3, "add_generation_prompt": True}),
        (MESSAGES[:3], {"chat_template": LLAMA3, "continue_final_message": True}),
        (MESSAGES, {"chat_template": BUSY, "name": "x"}),
        (MESSAGES, {"chat_template": BUSY, "bos_token": "other"}),
        (MESSAGES, {"chat_template": TOOL_USE, "tools": [weather], "documents": [{"title": "é", "text": "<x>"}]}),
        (MESSAGES, {"chat_template": TOOL_USE, "tools": [multiply, paint, weather]}),
        (thought, {"chat_template": read}),
        (thought, {"chat_template": read, "continue_final_message": "reasoning"}),
        ([MESSAGES, MESSAGES[1:]], {"padding": True}),
        ([MESSAGES, MESSAGES[1:]], {"padding": "max_length", "max_length": 90, "return_tensors": "np"}),
        (MESSAGES, {"truncation": True, "max_length": 7}),
        (MESSAGES, {"return_dict": False}),
        (MESSAGES, {"tokenizer_kwargs": {"return_offsets_mapping": True}}),
        (MESSAGES, {"chat_template": MASKED, "return_assistant_tokens_mask": True}),
        ([MESSAGES, MESSAGES[1:]], {"chat_template": MASKED, "return_assistant_tokens_mask": True, "padding": True}),
    ]  # fmt: skip
    for chat, args in cases:
        got, expected = ours.apply_chat_template(chat, **args), theirs.apply_chat_template(chat, **args)
        if args.get("return_dict", True):
            assert sorted(got) == sorted(expected)
            assert all(np.array_equal(got[name], expected[name]) for name in expected), args
        else:
            assert got == expected
        if "return_assistant_tokens_mask" not in args:
            args = {**args, "tokenize": False}
            assert ours.apply_chat_template(chat, **args) == theirs.apply_chat_template(chat, **args), args


@pytest.mark.oracle
def test_schemas_equal_the_oracle() -> None:
    from transformers.utils import get_json_schema

    for function in (multiply, paint):
        assert function_schema(function) == get_json_schema(function)
