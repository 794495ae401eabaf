"""The Jinja sandbox in which chat templates run: no attribute escapes, no changes of inputs, bounded work."""

import dataclasses
import datetime
import functools
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

# Loop steps and calls that one rendering may take; a conversation of a thousand messages takes some ten thousand.
MOST_STEPS = 1_000_000
MOST_RANGE = 100_000
MOST_LENGTH = 10_000_000
WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")

_steps: ContextVar[list[int] | None] = ContextVar("chat template steps", default=None)
_marks: ContextVar[tuple[str, str] | None] = ContextVar("chat template marks", default=None)


class TooMuchWork(Exception):
    """A template asked for more work than any conversation needs."""


def plain(value: Any) -> Any:
    """Returns a copy made of JSON's types alone, so that a template gets no objects with methods of their own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else [*map(plain, value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, type):
        return f"<{value.__name__}>"
    if callable(dump := getattr(value, "model_dump", None)):
        return plain(dump())
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    return f"<{type(value).__name__}>"


def render(name: str, text: str, variables: dict[str, Any], track: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """Renders a chat template.

    Args:
        name: the template's name, for errors.
        text: its Jinja source.
        variables: plain data that it sees.
        track: whether to find what its generation blocks write.

    Returns:
        The text, and the (start, end) characters of each generation block where they are tracked.

    Raises:
        ValueError: the template is not valid, fails on these messages, or does what the sandbox forbids.
    """
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.exceptions import SecurityError, UndefinedError

    # Random marks cannot be forged by what a message says.
    marks = (f"<{secrets.token_hex(12)}>", f"</{secrets.token_hex(12)}>") if track else None
    steps, marking = _steps.set([0]), _marks.set(marks)
    try:
        rendered = _compile(text).render(**variables)
    except SecurityError as error:
        raise ValueError(f"The chat template {name!r} was refused, as it leaves the sandbox: {error}") from error
    except (TooMuchWork, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"The chat template {name!r} was stopped, as it asks for too much work: {error or type(error).__name__}"
        ) from error
    except TemplateSyntaxError as error:
        raise ValueError(f"The chat template {name!r} is not valid Jinja, line {error.lineno}: {error}") from error
    except (UndefinedError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"The chat template {name!r} fails on these messages ({type(error).__name__}: {error}); "
            "check that each has the keys and types that the template reads."
        ) from error
    except TemplateError as error:
        raise ValueError(f"The chat template {name!r} refuses these messages: {error}") from error
    finally:
        _steps.reset(steps)
        _marks.reset(marking)
    return _take_marks(rendered, marks) if marks else (rendered, [])


def _take_marks(rendered: str, marks: tuple[str, str]) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks, and the spans between them."""
    opening, closing = marks
    pieces, spans, place = [], [], 0
    for number, piece in enumerate(rendered.split(opening)):
        inside, found, after = piece.partition(closing)
        if number and found:
            spans.append((place, place + len(inside)))
        pieces += [inside, after]
        place += len(inside) + len(after)
    return "".join(pieces), spans


def _count(steps: int = 1) -> None:
    counter = _steps.get()
    if counter is not None:
        counter[0] += steps
        if counter[0] > MOST_STEPS:
            raise TooMuchWork(f"more than {MOST_STEPS} loop steps and calls.")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each counted as one step."""
    for item in items:
        _count()
        yield item


def _check_length(length: int) -> None:
    if length > MOST_LENGTH:
        raise TooMuchWork(f"a text or list of {length} items; at most {MOST_LENGTH} are allowed.")


def _joined(*parts: Any) -> str:
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
    from jinja2 import TemplateError

    raise TemplateError(message)


@functools.lru_cache(maxsize=64)
def _compile(text: str) -> Any:
    return _environment().from_string(text)


@functools.lru_cache(maxsize=1)
def _environment() -> Any:
    """The environment of every template; made late, as Jinja is imported where it is needed."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class GenerationBlock(Extension):
        """``{% generation %}...{% endgeneration %}``, around what the assistant says."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            said, marks = caller(), _marks.get()
            return f"{marks[0]}{said}{marks[1]}" if marks else said

    class PlainNamespace(Namespace):
        """Jinja's namespace, without names that could reach Python's own."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            for key in dict(*args[1:], **kwargs):
                _check_name(key)
            Namespace.__init__(*args, **kwargs)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}.")

    class Bound(NodeTransformer):
        """Sends every loop and every ~ through a function that counts; a template cannot replace these."""

        def visit_For(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [node.iter], [], None, None)
            return node

        def visit_Concat(self, node: Any) -> Any:
            node = self.generic_visit(node)
            return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's immutable sandbox, in which loops, calls and products are bounded."""

        intercepted_binops = frozenset(("*", "**", "+", "%"))

        counted = staticmethod(_counted)
        joined = staticmethod(_joined)

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            template = Bound().visit(super()._parse(source, name, filename))
            template.set_environment(self)
            return template

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            _count()
            return super().call(__context, __obj, *args, **kwargs)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
                _check_length(len(left) + len(right))
            elif operator == "*":
                for many, times in ((left, right), (right, left)):
                    if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                        _check_length(len(many) * times)
            elif operator == "**" and isinstance(right, (int, float)) and abs(right) > 64:
                raise TooMuchWork(f"a power of {right}.")
            elif operator == "%" and isinstance(left, str) and WIDE_FORMAT.search(left):
                raise TooMuchWork(f"a format with a field as wide as in {left!r}.")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _tojson
    del environment.globals["lipsum"]
    environment.globals.update(
        range=_range,
        dict=lambda *args, **kwargs: dict(*args, **kwargs),
        namespace=PlainNamespace,
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
    )
    return environment
