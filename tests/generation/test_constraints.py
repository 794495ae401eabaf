"""Constraints and their states, token by token."""

import re

import numpy as np
import pytest

from jaxpipe import Constraint, ConstraintListState, DisjunctiveConstraint, PhrasalConstraint


class AnyOrder(Constraint):
    """All of some tokens, in any order: a user's own."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens, self.seqlen, self.left = tokens, len(tokens), set(tokens)
        super().__init__()

    def advance(self) -> list[int] | None:
        return sorted(self.left) or None

    def does_advance(self, token_id: int) -> bool:
        return token_id in self.left

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        if token_id not in self.left:
            self.reset()
            return False, False, True
        self.left.remove(token_id)
        return True, not self.left, False

    def reset(self) -> None:
        self.left = set(self.tokens)

    def remaining(self) -> int:
        return len(self.left)

    def copy(self, stateful: bool = False) -> "AnyOrder":
        new = type(self)(self.tokens)
        if stateful:
            new.left = set(self.left)
        return new


def test_a_phrase() -> None:
    phrase = PhrasalConstraint([3, 4, 3, 5])
    assert (phrase.seqlen, phrase.remaining(), phrase.advance()) == (4, 4, 3)
    assert phrase.update(3) == (True, False, False) and phrase.advance() == 4
    assert not phrase.does_advance(5) and phrase.update(9) == (False, False, True)
    assert phrase.remaining() == 4 and phrase.advance() == 3  # from its start again
    for token in (3, 4, np.int32(3)):
        assert phrase.update(token) == (True, False, False)
    half = phrase.copy(stateful=True)
    assert phrase.copy().remaining() == 4 and half.remaining() == 1
    assert half.update(5) == (True, True, False) and half.completed and half.remaining() == 0
    assert half.advance() is None and not half.does_advance(5) and not phrase.completed


def test_one_of_several_phrases() -> None:
    either = DisjunctiveConstraint([[1, 2, 3], [1, 4], [5]])
    assert either.advance() == [1, 5] and either.remaining() == either.seqlen == 3
    assert either.update(1) == (True, False, False) and either.advance() == [2, 4]
    other = either.copy(stateful=True)
    assert either.update(4) == (True, True, False) and either.advance() is None and either.remaining() == 0
    assert other.current_seq == [1] and other.update(2) == (True, False, False)  # its state is its own
    assert other.update(7) == (False, False, True) and other.advance() == [1, 5]
    assert other.update(5) == (True, True, False)
    other.reset()
    assert not other.completed and other.remaining() == 3


def test_the_state_of_several() -> None:
    state = ConstraintListState([PhrasalConstraint([1, 2]), DisjunctiveConstraint([[3, 4, 5], [3, 6]])])
    assert state.advance() == [1, 3] and state.get_bank() == 0 and (state.max_seqlen, state.n_constraints) == (3, 2)
    assert state.add(9) == (False, False)
    assert state.add(3) == (False, True) and state.get_bank() == 1 and state.advance() == [4, 6]
    copied = state.copy()
    assert copied.add(1) == (False, False) and copied.get_bank() == 0  # it lost what it had begun
    assert copied.advance() == [1, 3]
    assert state.advance() == [4, 6]
    assert state.add(6) == (True, True) and state.get_bank() == 3 and state.advance() == [1]
    assert state.add(1) == (False, True) and state.get_bank() == 3 + 3 - 1
    assert state.add(2) == (True, True) and state.completed and state.get_bank() == 6 and state.advance() is None
    assert state.add(1) == (True, False)
    assert state.copy().completed and not state.copy(stateful=False).completed
    state.reset([3, 6, 1, 7])
    assert not state.completed and state.get_bank() == 3
    state.reset([8, 1, 2, 3, 6, 8, 8])
    assert state.completed
    state.reset(None)
    assert not state.completed and state.get_bank() == 0


def test_phrases_that_are_alike_are_fulfilled_one_by_one() -> None:
    state = ConstraintListState([PhrasalConstraint([1]), PhrasalConstraint([1])])
    assert state.add(1) == (True, True) and not state.completed
    assert state.add(1) == (True, True) and state.completed


def test_a_constraint_of_the_users() -> None:
    own = AnyOrder((4, 7))
    assert own.remaining() == 2  # as new, although it was tried out
    state = ConstraintListState([own, PhrasalConstraint([1])])
    state.reset([7, 4, 2])
    assert not state.completed and state.advance() == [1]
    assert own.remaining() == 2


class Never(AnyOrder):
    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        return True, False, False


class Contradicts(AnyOrder):
    def does_advance(self, token_id: int) -> bool:
        return False


class Remains(AnyOrder):
    def remaining(self) -> int:
        return 1


class Stays(AnyOrder):
    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens, self.seqlen, self.left = tokens, len(tokens), set(tokens)

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        return False, False, False


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Never, "Never is not defined correctly: its own tokens do not fulfil it in 10000 steps"),
        (Contradicts, r"Contradicts is not defined correctly: advance\(\) gives \[4, 7\]"),
        (Remains, r"Remains is not defined correctly: remaining\(\) is 1"),
    ],
)
def test_a_constraint_that_is_wrong_is_found_when_it_is_made(kind: type[AnyOrder], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind((4, 7))


def test_a_constraint_that_does_not_move() -> None:
    with pytest.raises(ValueError, match=r"does_advance\(4\) is True, but update\(\) of it brings it no further"):
        ConstraintListState([Stays((4, 7))]).add(4)


@pytest.mark.parametrize("ids", [[], [1, -2], [1.5], "12", None, [True], [[1]], np.array([1])], ids=repr)
def test_bad_phrases(ids: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"token_ids holds {ids!r}")):
        PhrasalConstraint(ids)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(f"nested_token_ids holds {ids!r}")):
        DisjunctiveConstraint([[1], ids])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"nested_token_ids=\[\]: expected a non-empty list"),
        (3, "nested_token_ids=3: expected a non-empty list"),
        ([[1, 2], [1, 2, 3]], r"\[1, 2\] is the beginning of another phrase"),
        ([[1], [1]], r"\[1\] is the beginning of another phrase, or comes twice"),
    ],
)
def test_bad_disjunctions(ids: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DisjunctiveConstraint(ids)


@pytest.mark.parametrize("token", [1.0, "1", None, True])
def test_tokens_are_ints(token: object) -> None:
    for use in (
        PhrasalConstraint([1]).update,
        PhrasalConstraint([1]).does_advance,
        DisjunctiveConstraint([[1]]).update,
        ConstraintListState([PhrasalConstraint([1])]).add,
    ):
        with pytest.raises(TypeError, match="expected an int"):
            use(token)  # type: ignore[arg-type]
