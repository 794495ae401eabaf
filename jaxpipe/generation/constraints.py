"""Constraints on what a beam search puts out: phrases that have to come, and the state of several of them.

Names and methods are those of Transformers 4.49's ``generation/beam_constraints.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from jaxpipe.generation.layers import as_int

# Steps after which a constraint that is still not fulfilled is taken for one that never will be.
_MOST_STEPS = 10_000

Trie = dict[int, "Trie"]


class Constraint(ABC):
    """Something that the answer of a beam search has to fulfil, token by token.

    A subclass sets ``seqlen``, the number of steps that it takes at most, before it calls ``super().__init__()``,
    which tries out that the tokens of `advance` lead to the end.

    Attributes:
        seqlen: steps from the start to fulfilment, at most.
    """

    seqlen: int

    def __init__(self) -> None:
        self.test()

    def test(self) -> None:
        """Follows the constraint's own tokens from a reset to the end, and sets it back to the start.

        Raises:
            ValueError: they do not lead there.
        """
        completed = False
        for step in range(_MOST_STEPS):
            if step == 1:
                self.reset()
            advance = self.advance()
            token = next(iter(advance), None) if isinstance(advance, (list, tuple)) else advance
            if token is None or not self.does_advance(token):
                raise ValueError(
                    f"{type(self).__name__} is not defined correctly: advance() gives {advance!r}, and does_advance() "
                    "denies that this advances it."
                )
            _, completed, _ = self.update(token)
            if completed and step:
                break
        if not completed:
            raise ValueError(
                f"{type(self).__name__} is not defined correctly: its own tokens do not fulfil it in {_MOST_STEPS} "
                "steps of update()."
            )
        if self.remaining() != 0:
            raise ValueError(
                f"{type(self).__name__} is not defined correctly: remaining() is {self.remaining()!r} once it is "
                "fulfilled; expected 0."
            )
        self.reset()

    @abstractmethod
    def advance(self) -> int | list[int] | None:
        """Returns the token or tokens that bring the constraint a step further; None where there is none."""

    @abstractmethod
    def does_advance(self, token_id: int) -> bool:
        """Returns whether a token brings the constraint a step further."""

    @abstractmethod
    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Takes in a token that was generated.

        Returns:
            Whether it brought the constraint further, whether it fulfilled it, and whether it set it back to its start.
        """

    @abstractmethod
    def reset(self) -> None:
        """Sets the constraint back to its start."""

    @abstractmethod
    def remaining(self) -> int:
        """Returns the number of steps to fulfilment."""

    @abstractmethod
    def copy(self, stateful: bool = False) -> "Constraint":
        """Returns a new object of the same constraint, at its start or, if `stateful`, where this one is."""


class PhrasalConstraint(Constraint):
    """The tokens of a phrase come one after another.

    Args:
        token_ids: non-empty list of ints of at least 0.

    Raises:
        ValueError: it is something else.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = _phrase(token_ids, "token_ids")
        self.seqlen = len(self.token_ids)
        self.fulfilled_idx = -1
        self.completed = False

    def advance(self) -> int | None:
        """Returns the next token of the phrase, None after its last."""
        return None if self.completed else self.token_ids[self.fulfilled_idx + 1]

    def does_advance(self, token_id: int) -> bool:
        """Returns whether the token is the next of the phrase."""
        return not self.completed and _token(token_id) == self.token_ids[self.fulfilled_idx + 1]

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Takes in a token; one that is not the next of the phrase sets it back to its start."""
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.fulfilled_idx += 1
        self.completed = self.fulfilled_idx == self.seqlen - 1
        return True, self.completed, False

    def reset(self) -> None:
        """Sets the phrase back to its start."""
        self.completed = False
        self.fulfilled_idx = -1

    def remaining(self) -> int:
        """Returns the number of tokens that are still to come."""
        return self.seqlen - (self.fulfilled_idx + 1)

    def copy(self, stateful: bool = False) -> "PhrasalConstraint":
        """Returns a new object of the same phrase, at its start or, if `stateful`, where this one is."""
        new = PhrasalConstraint(self.token_ids)
        if stateful:
            new.fulfilled_idx, new.completed = self.fulfilled_idx, self.completed
        return new


class DisjunctiveConstraint(Constraint):
    """One of several phrases comes.

    Args:
        nested_token_ids: non-empty list of phrases, lists of ints of at least 0, none of them the beginning of another.

    Raises:
        ValueError: it is something else.
    """

    def __init__(self, nested_token_ids: Sequence[Sequence[int]]) -> None:
        if not isinstance(nested_token_ids, (list, tuple)) or not nested_token_ids:
            raise ValueError(f"nested_token_ids={nested_token_ids!r}: expected a non-empty list of lists of token ids.")
        self.token_ids = [_phrase(ids, "nested_token_ids") for ids in nested_token_ids]
        self.trie = _trie(self.token_ids)
        self.seqlen = max(map(len, self.token_ids))
        self.current_seq: list[int] = []
        self.completed = False

    def _following(self) -> Trie:
        level = self.trie
        for token in self.current_seq:
            level = level[token]
        return level

    def advance(self) -> list[int] | None:
        """Returns the tokens that continue a phrase, None after the last token of one."""
        return list(self._following()) or None

    def does_advance(self, token_id: int) -> bool:
        """Returns whether the token continues a phrase."""
        return _token(token_id) in self._following()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Takes in a token; one that continues no phrase sets the constraint back to its start."""
        if not self.does_advance(token_id):
            self.reset()
            return False, False, True
        self.current_seq.append(_token(token_id))
        self.completed = not self._following()
        return True, self.completed, False

    def reset(self) -> None:
        """Sets the constraint back to its start."""
        self.completed = False
        self.current_seq = []

    def remaining(self) -> int:
        """Returns the number of tokens that the longest phrase lacks; 0 once one has come."""
        return 0 if self.completed else self.seqlen - len(self.current_seq)

    def copy(self, stateful: bool = False) -> "DisjunctiveConstraint":
        """Returns a new object of the same phrases, at its start or, if `stateful`, where this one is."""
        new = DisjunctiveConstraint(self.token_ids)
        if stateful:
            new.current_seq, new.completed = list(self.current_seq), self.completed
        return new


class ConstraintListState:
    """How far a sequence has come in fulfilling several constraints, one at a time and in any order.

    Args:
        constraints: at least one; they are copied.
    """

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self.constraints = list(constraints)
        self.max_seqlen = max(constraint.seqlen for constraint in self.constraints)
        self.n_constraints = len(self.constraints)
        self.init_state()

    def init_state(self) -> None:
        """Goes back to the start, where nothing is fulfilled."""
        self.completed = False
        self.complete_constraints: list[Constraint] = []
        self.inprogress_constraint: Constraint | None = None
        self.pending_constraints = [constraint.copy(stateful=False) for constraint in self.constraints]

    def get_bank(self) -> int:
        """Returns the number of the bank that the sequence competes in: the steps that it has made."""
        steps = len(self.complete_constraints) * self.max_seqlen
        if self.inprogress_constraint is not None:
            steps += self.max_seqlen - self.inprogress_constraint.remaining()
        return steps

    def advance(self) -> list[int] | None:
        """Returns the tokens that bring the sequence a step further, None where there is none.

        They are those of the constraint that was begun, or of all that are not fulfilled where none was.
        """
        begun = self.inprogress_constraint
        tokens: list[int] = []
        for constraint in self.pending_constraints if begun is None else [begun]:
            advance = constraint.advance()
            if advance is not None:
                tokens += map(_token, advance) if isinstance(advance, Iterable) else [_token(advance)]
        return tokens or None

    def reset(self, token_ids: Iterable[int] | None) -> None:
        """Goes to the state after a sequence of tokens, from the start."""
        self.init_state()
        for token in token_ids if token_ids is not None else ():
            self.add(token)
            if self.completed:
                break

    def add(self, token_id: int) -> tuple[bool, bool]:
        """Takes in the next token, which brings one constraint further at most.

        Returns:
            Whether it fulfilled a constraint, and whether it brought one further.
        """
        token_id = _token(token_id)
        if self.completed:
            return True, False
        stepped, complete = self._begin(token_id) if self.inprogress_constraint is None else self._continue(token_id)
        self.completed = not self.pending_constraints and self.inprogress_constraint is None
        return complete, stepped

    def _continue(self, token_id: int) -> tuple[bool, bool]:
        begun = self.inprogress_constraint
        assert begun is not None  # the caller looked
        stepped, complete, reset = begun.update(token_id)
        if complete:
            self.complete_constraints.append(begun)
        elif reset:
            self.pending_constraints.append(begun.copy(stateful=False))
        if complete or reset:
            self.inprogress_constraint = None
        return stepped, complete

    def _begin(self, token_id: int) -> tuple[bool, bool]:
        for i, constraint in enumerate(self.pending_constraints):
            if not constraint.does_advance(token_id):
                continue
            stepped, complete, _ = constraint.update(token_id)
            if not stepped:
                raise ValueError(
                    f"{constraint!r} is not defined correctly: does_advance({token_id}) is True, but update() of it "
                    "brings it no further."
                )
            del self.pending_constraints[i]
            if complete:
                self.complete_constraints.append(constraint)
            else:
                self.inprogress_constraint = constraint
            return stepped, complete
        return False, False

    def copy(self, stateful: bool = True) -> "ConstraintListState":
        """Returns a new state of the same constraints, at the start or, if `stateful`, where this one is."""
        new = ConstraintListState(self.constraints)
        if stateful:
            new.completed = self.completed
            new.complete_constraints = [constraint.copy(stateful=True) for constraint in self.complete_constraints]
            if self.inprogress_constraint is not None:
                new.inprogress_constraint = self.inprogress_constraint.copy(stateful=True)
            new.pending_constraints = [constraint.copy(stateful=False) for constraint in self.pending_constraints]
        return new


def _token(token_id: Any) -> int:
    number = as_int(token_id)
    if number is None:
        raise TypeError(f"token_id={token_id!r}: expected an int, not {type(token_id).__name__}.")
    return number


def _phrase(token_ids: Any, name: str) -> list[int]:
    ids = [as_int(i) for i in token_ids] if isinstance(token_ids, (list, tuple)) else []
    valid = [i for i in ids if i is not None and i >= 0]
    if not valid or len(valid) < len(ids):
        raise ValueError(f"{name} holds {token_ids!r}: expected a non-empty list of token ids of at least 0.")
    return valid


def _trie(phrases: Sequence[Sequence[int]]) -> Trie:
    """The phrases as nested mappings from a token to what follows it."""
    root: Trie = {}
    for phrase in phrases:
        level = root
        for token in phrase:
            level = level.setdefault(token, {})
    for phrase in phrases:
        level = root
        for token in phrase:
            level = level[token]
        if level or list(phrases).count(phrase) > 1:
            raise ValueError(
                f"nested_token_ids={[list(p) for p in phrases]}: {list(phrase)} is the beginning of another phrase, or "
                "comes twice; leave one of them out."
            )
    return root
