"""The parts of a SentencePiece model file that a tokenizer is made of, read from its protobuf bytes.

Fields: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from jaxpipe.common.errors import CheckpointError

UNIGRAM, BPE = 1, 2
CONTROL, USER_DEFINED = 3, 4
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclasses.dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; ``kind`` is 1 for normal ones, 2 for the unknown token, 3, 4, or 6 for bytes."""

    text: str
    score: float = 0.0
    kind: int = 1


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a ``.model`` or ``.spm`` file says; ids that are -1 are not in use.

    Attributes:
        path: the file.
        pieces: the vocabulary, by id.
        kind: `UNIGRAM` or `BPE`.
        charsmap: normalisation of characters, precompiled, or None.
        byte_fallback: unknown characters are spelled in bytes.
        special: "unk", "bos", "eos" and "pad" to id and token.
        collapses_spaces: spaces at both ends are cut, and runs of them made one.
        adds_space: a space is put before the text.
    """

    path: Path
    pieces: list[Piece]
    kind: int
    charsmap: bytes | None
    byte_fallback: bool
    special: dict[str, tuple[int, str]]
    collapses_spaces: bool
    adds_space: bool

    @property
    def scored(self) -> list[tuple[str, float]]:
        """The vocabulary as pairs of token and score."""
        return [(piece.text, piece.score) for piece in self.pieces]


def read_model(path: Path) -> SentencePieceModel:
    """Reads a SentencePiece model.

    Raises:
        CheckpointError: the file is no such model, or one of words or characters.
    """
    try:
        data = path.read_bytes()
        model = _parse(path, data)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{path}: not a SentencePiece model ({error}); download it again, or add a tokenizer.json."
        ) from error
    if not model.pieces:
        raise CheckpointError(f"{path}: not a SentencePiece model: it has no vocabulary.")
    if model.kind not in (UNIGRAM, BPE):
        raise CheckpointError(f"{path}: a SentencePiece model of type {model.kind}; unigram (1) and BPE (2) are read.")
    return model


def _parse(path: Path, data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 2:
            trainer.update(_fields(_bytes(value)))
        elif number == 3:
            normalizer.update(_fields(_bytes(value)))

    def special(name: str, id_field: int, default: int, piece_field: int, text: str) -> tuple[str, tuple[int, str]]:
        token = _bytes(trainer.get(piece_field, text.encode())).decode("utf-8")
        return name, (_signed(trainer.get(id_field, default)), token)

    charsmap = _bytes(normalizer.get(2, b"")) or None
    return SentencePieceModel(
        path=path,
        pieces=pieces,
        kind=_signed(trainer.get(3, UNIGRAM)),
        charsmap=charsmap,
        byte_fallback=bool(trainer.get(35, 0)),
        special=dict(
            (
                special("unk", 40, 0, 45, "<unk>"),
                special("bos", 41, 1, 46, "<s>"),
                special("eos", 42, 2, 47, "</s>"),
                special("pad", 43, -1, 48, "<pad>"),
            )
        ),
        collapses_spaces=bool(normalizer.get(4, 1)),
        adds_space=bool(normalizer.get(3, 1)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = struct.unpack("<f", _bytes(fields[2]))[0] if 2 in fields else 0.0
    return Piece(_bytes(fields.get(1, b"")).decode("utf-8"), score, _signed(fields.get(3, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a message; fixed ones as their bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == BYTES:
            length, position = _varint(data, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"field {number} has the wire type {wire}")
        if position + length > len(data):
            raise ValueError(f"field {number} reaches beyond its message's end")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has no end")


def _signed(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a number was expected")
    return value - 2**64 if value >= 2**63 else value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("bytes were expected")
    return value
