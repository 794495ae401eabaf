"""JSON schemas of Python functions, which chat templates show to a model as its tools."""

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union

_BASIC: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
_SECTION = re.compile(r"^(Args|Returns|Raises):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\s*)(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the JSON schema of a function, from its type hints and its Google-style docstring.

    Args:
        function: every argument needs a type hint and a line under "Args:".

    Raises:
        ValueError: a hint, the docstring or a description is missing, or a type has no JSON form.
    """
    name = function.__name__
    description, arguments, returned = _read_docstring(name, inspect.getdoc(function))
    hints = typing.get_type_hints(function)
    properties: dict[str, Any] = {}
    required = []
    for index, (key, parameter) in enumerate(inspect.signature(function).parameters.items()):
        untyped = parameter.annotation is inspect.Parameter.empty
        if index == 0 and key in ("self", "cls") and untyped:
            continue
        if untyped:
            raise ValueError(f"The tool {name!r}: its argument {key!r} has no type hint.")
        if key not in arguments:
            raise ValueError(f"The tool {name!r}: its docstring does not describe the argument {key!r} under 'Args:'.")
        schema = dict(_type_schema(name, key, hints[key]))
        text = arguments[key]
        if choices := _CHOICES.search(text):
            try:
                schema["enum"] = json.loads(choices.group(1))
            except json.JSONDecodeError as error:
                raise ValueError(f"The tool {name!r}: the choices of {key!r} are not a JSON list: {error}") from error
            text = text[: choices.start()].strip()
        properties[key] = schema | {"description": text}
        if parameter.default is inspect.Parameter.empty:
            required.append(key)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    schema = {"name": name, "description": description, "parameters": parameters}
    if "return" in hints:
        try:
            result = dict(_type_schema(name, "return", hints["return"]))
        except ValueError:  # The model never writes the result, so that its type may be anything.
            result = None
        if result is not None:
            schema["return"] = result | ({"description": returned} if returned else {})
    return {"type": "function", "function": schema}


def _read_docstring(name: str, docstring: str | None) -> tuple[str, dict[str, str], str]:
    """The description, the arguments' descriptions, and that of the result."""
    if not docstring:
        raise ValueError(f"The tool {name!r} has no docstring, which the model needs to know what it does.")
    parts = _SECTION.split(docstring.strip())
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    arguments: dict[str, str] = {}
    indent, current = None, None
    for line in sections.get("Args", "").splitlines():
        found = _ARGUMENT.match(line)
        if found and (indent is None or len(found.group(1)) <= indent):
            indent, current = len(found.group(1)), found.group(2)
            arguments[current] = found.group(3).strip()
        elif line.strip() and current is not None:
            arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return parts[0].strip(), arguments, inspect.cleandoc(sections.get("Returns", "")).strip()


def _type_schema(name: str, key: str, hint: Any) -> dict[str, Any]:
    """The JSON schema of a type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _BASIC:
        return _BASIC[hint]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_schema(name, key, [member.value for member in hint])
    if origin is Literal:
        return _enum_schema(name, key, list(args))
    if origin in (Union, types.UnionType):
        return _union_schema(name, key, args)
    if origin is list and len(args) == 1:
        return {"type": "array", "items": _type_schema(name, key, args[0])}
    if origin is tuple and ... not in args and len(args) > 1:
        return {"type": "array", "prefixItems": [_type_schema(name, key, arg) for arg in args]}
    if origin is dict and len(args) == 2:
        return {"type": "object", "additionalProperties": _type_schema(name, key, args[1])}
    raise ValueError(
        f"The tool {name!r}: the type {hint!r} of {key!r} has no JSON form; use int, float, str, bool, list, tuple, "
        "dict, Literal, Enum or unions of them, or pass a JSON schema in place of the function."
    )


def _union_schema(name: str, key: str, args: tuple[Any, ...]) -> dict[str, Any]:
    schemas = [_type_schema(name, key, arg) for arg in args if arg is not type(None)]
    if len(schemas) == 1:
        schema = dict(schemas[0])
    elif all(list(one) == ["type"] and isinstance(one["type"], str) for one in schemas):
        kinds = sorted({one["type"] for one in schemas})
        schema = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        schema = {"anyOf": schemas}
    return schema | ({"nullable": True} if type(None) in args else {})


def _enum_schema(name: str, key: str, values: list[Any]) -> dict[str, Any]:
    scalars = (int, float, str, bool, type(None))
    if not values or any(type(value) not in scalars for value in values):
        raise ValueError(f"The tool {name!r}: the choices of {key!r} must be JSON scalars, not {values!r}.")
    kinds = list(dict.fromkeys(_BASIC[type(value)]["type"] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}
