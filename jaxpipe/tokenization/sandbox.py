"""Rendering of chat templates: plain inputs in, text out, and an error that names the template."""

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any


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

    from jaxpipe.tokenization import environment

    # Random marks cannot be forged by what a message says.
    marks = (f"<{secrets.token_hex(12)}>", f"</{secrets.token_hex(12)}>") if track else None
    counting, marking = environment.steps.set([0]), environment.marks.set(marks)
    try:
        rendered = environment.compiled(text).render(**variables)
    except SecurityError as error:
        raise ValueError(f"The chat template {name!r} was refused, as it leaves the sandbox: {error}") from error
    except (environment.TooMuchWork, OverflowError, MemoryError, RecursionError) as error:
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
        environment.steps.reset(counting)
        environment.marks.reset(marking)
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
