"""Jinja's immutable sandbox, in which chat templates also have bounded loops, calls and products.

Importing it imports Jinja; ``sandbox.render`` does so at the first template.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# Loop steps and calls that one rendering may take; a conversation of a thousand messages takes some ten thousand.
MOST_STEPS = 1_000_000
MOST_RANGE = 100_000
MOST_LENGTH = 10_000_000
MOST_POWER = 64
WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")

# Of the rendering that runs: its steps so far, and the marks to put around generation blocks.
steps: ContextVar[list[int] | None] = ContextVar("steps", default=None)
marks: ContextVar[tuple[str, str] | None] = ContextVar("marks", default=None)


class TooMuchWork(Exception):
    """A template asks for more work than any conversation needs."""


def _count() -> None:
    counter = steps.get()
    if counter is not None:
        counter[0] += 1
        if counter[0] > MOST_STEPS:
            raise TooMuchWork(f"more than {MOST_STEPS} loop steps and calls.")


def _check_length(length: int) -> None:
    if length > MOST_LENGTH:
        raise TooMuchWork(f"a text or list of {length} items; at most {MOST_LENGTH} are allowed.")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, each counted as one step."""
    for item in items:
        _count()
        yield item


def _joined(*parts: Any) -> str:
    """The operator ~."""
    texts = [str(part) for part in parts]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MOST_RANGE:
        raise TooMuchWork(f"range{args} has {len(numbers)} numbers; at most {MOST_RANGE} are allowed.")
    return numbers


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    # A function, as the class itself would bring its attributes along.
    return dict(*args, **kwargs)


class GenerationBlock(Extension):
    """``{% generation %}...{% endgeneration %}``, around what the assistant says."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Any) -> Any:
        """Turns the block into a call around its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        said, around = caller(), marks.get()
        return f"{around[0]}{said}{around[1]}" if around else said


class PlainNamespace(Namespace):
    """Jinja's namespace, without names that could reach Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}.")


class BoundLoops(NodeTransformer):
    """Sends every loop and every ~ through a function that counts; a template cannot replace these."""

    def visit_For(self, node: Any) -> Any:
        """``for x in y`` becomes ``for x in counted(y)``."""
        node = self.generic_visit(node)
        node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None)
        return node

    def visit_Concat(self, node: Any) -> Any:
        """``x ~ y`` becomes ``joined(x, y)``."""
        node = self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of every chat template."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))
    counted = staticmethod(_counted)
    joined = staticmethod(_joined)

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        template = BoundLoops().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Counts the call, checks that it is safe, and makes it."""
        _count()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Checks that an operation's result is of bearable size, and makes it."""
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_length(len(left) + len(right))
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                    _check_length(len(many) * times)
        elif operator == "**" and isinstance(right, (int, float)) and abs(right) > MOST_POWER:
            raise TooMuchWork(f"a power of {right}; at most {MOST_POWER} is allowed.")
        elif operator == "%" and isinstance(left, str) and WIDE_FORMAT.search(left):
            raise TooMuchWork(f"a format with a field as wide as in {left!r}.")
        return super().call_binop(context, operator, left, right)


@functools.lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
    sandbox.filters["tojson"] = _tojson
    del sandbox.globals["lipsum"]
    sandbox.globals.update(
        range=_range,
        dict=_dict,
        namespace=PlainNamespace,
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
    )
    return sandbox


@functools.lru_cache(maxsize=64)
def compiled(text: str) -> Template:
    """Returns a template of a Jinja source; the last ones are kept."""
    return _sandbox().from_string(text)
