"""Walks the opcodes of a pickle of tensors: builds plain values and inert records, imports and runs nothing.

The opcodes: https://docs.python.org/3/library/pickletools.html
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

from jaxpipe.checkpoint.torch_names import FUNCTIONS, KNOWN, Name, OrderedItems, check_key, persistent
from jaxpipe.common.errors import CheckpointError

OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
# A tensor takes about 25 opcodes and 150 bytes; checkpoints of the Hub stay far below.
MAX_BYTES = 64 * 2**20
MAX_OPCODES = 5_000_000
MAX_MARKS = 1000
MAX_INTEGER = 2**127
# Refused opcodes whose argument, a name or a number, tells what they were for.
SHOWN = ("INST", "PERSID", "EXT1", "EXT2", "EXT4")
# Opcodes whose argument is lines of text; pickletools would warn of backslashes in them.
LINES = {"GLOBAL": 2, "INST": 2, "PERSID": 1}


class Refused(Exception):
    """What a pickle holds and must not; the caller names the file."""


def load(data: bytes, where: str, most: int = MAX_BYTES) -> tuple[Any, int]:
    """Returns the value of the pickle that the data begin with, and the bytes that it takes.

    Args:
        data: at least the pickle; of a longer stream ``most + 1`` bytes are enough.
        where: the file, for errors.
        most: the largest pickle to accept, in bytes.

    Raises:
        CheckpointError: the pickle is damaged, or asks for anything but plain values and tensors.
    """
    stream = io.BytesIO(data[: most + 1])
    machine = _Machine()
    try:
        value = machine.run(stream)
    except Refused as refusal:
        raise CheckpointError(
            f"{where}: refused: the pickle in it holds {refusal}, which weights do not need; nothing of it was run. "
            "Where the author is trusted, load and save the model with Transformers, which writes safetensors."
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        large = " (or larger than is accepted)" if len(data) > most else ""
        raise CheckpointError(
            f"{where}: the pickle in it is damaged{large}: {error}. Download the file again."
        ) from error
    return value, stream.tell()


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """Returns the value on the stack at the pickle's end."""
        for _ in range(MAX_OPCODES):
            code = stream.read(1)
            if not code:
                raise ValueError("it has no end")
            opcode = OPCODES.get(code)
            if opcode is None:
                raise ValueError(f"{code!r} at byte {stream.tell() - 1} is no opcode")
            if opcode.name == "STOP":
                if len(self.stack) != 1 or self.marks:
                    raise ValueError("values are left over at its end")
                return self.stack[0]
            step = STEPS.get(opcode.name)
            if step is None:
                argument = f" {_argument(opcode, stream)!r:.200}" if opcode.name in SHOWN else ""
                raise Refused(f"the opcode {opcode.name}{argument}")
            step(self, _argument(opcode, stream))
        raise Refused(f"more than {MAX_OPCODES} opcodes")

    def pop(self) -> Any:
        """Takes the topmost value above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is missing")
        return self.stack.pop()

    def top(self) -> Any:
        """Returns the topmost value."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("a value is missing")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Takes the values above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _argument(opcode: pickletools.OpcodeInfo, stream: io.BytesIO) -> Any:
    lines = [stream.readline() for _ in range(LINES.get(opcode.name, 0))]
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError(f"the line of {opcode.name} has no end")
    if lines:
        return " ".join(line[:-1].decode("utf-8") for line in lines)
    return opcode.arg.reader(stream) if opcode.arg else None


def _push(machine: _Machine, argument: Any) -> None:
    if type(argument) is int and abs(argument) >= MAX_INTEGER:
        raise Refused("an integer of more than 127 bits")
    machine.stack.append(argument)


def _constant(make: Callable[[], Any]) -> "Step":
    return lambda machine, _: machine.stack.append(make())


def _skip(machine: _Machine, _: Any) -> None:
    """PROTO and FRAME announce what follows, and change nothing."""


def _mark(machine: _Machine, _: Any) -> None:
    if len(machine.marks) >= MAX_MARKS:
        raise Refused(f"more than {MAX_MARKS} marks within each other")
    machine.marks.append(len(machine.stack))


def _tuple_of(count: int) -> "Step":
    return lambda machine, _: machine.stack.append(tuple([machine.pop() for _ in range(count)][::-1]))


def _tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _extend(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if not isinstance(target, list):
        raise Refused(f"items for a {type(target).__name__}")
    target.extend(values)


def _update(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if not isinstance(target, dict) or len(values) % 2:
        raise Refused(f"pairs for a {type(target).__name__}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        try:
            target[check_key(key)] = value
        except ValueError as error:
            raise Refused(str(error)) from None


def _append(machine: _Machine, _: Any) -> None:
    _extend(machine, [machine.pop()])


def _setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _update(machine, [key, value])


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.top()


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _name(machine: _Machine, text: str) -> None:
    if text not in KNOWN:
        raise Refused(f"the name {text!r:.200}")
    machine.stack.append(Name(text))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Refused("a name that is not text")
    _name(machine, f"{module}.{name}")


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    if not isinstance(function, Name) or function.text not in FUNCTIONS or not isinstance(arguments, tuple):
        called = repr(function.text) if isinstance(function, Name) else type(function).__name__
        raise Refused(f"a call of {called}")
    try:
        machine.stack.append(FUNCTIONS[function.text](*arguments))
    except ValueError as error:
        raise Refused(str(error)) from None
    except TypeError:
        raise Refused(f"a call of {function.text!r} with {len(arguments)} arguments") from None


def _build(machine: _Machine, _: Any) -> None:
    # A state_dict carries its modules' versions as an attribute, which is dropped.
    state, target = machine.pop(), machine.top()
    if not isinstance(target, OrderedItems) or not isinstance(state, dict):
        raise Refused(f"attributes (BUILD) for a {type(target).__name__}")


def _persistent(machine: _Machine, _: Any) -> None:
    try:
        machine.stack.append(persistent(machine.pop()))
    except ValueError as error:
        raise Refused(str(error)) from None


Step = Callable[[_Machine, Any], None]
# Every opcode that torch has ever written for tensors, in the protocols 2 to 5; the others are refused by name.
STEPS: dict[str, Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), _skip),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), _push),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": lambda machine, _: _extend(machine, machine.since_mark()),
    "SETITEM": _setitem,
    "SETITEMS": lambda machine, _: _update(machine, machine.since_mark()),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": lambda machine, argument: _name(machine, argument.replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
