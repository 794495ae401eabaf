"""Special tokens of a tokenizer: named (``bos_token``, ...), extra, and their ids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import nearest

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")


def _split(key: str) -> tuple[str, bool]:
    """The token's attribute and whether its id is asked for: "eos_token_id" -> ("eos_token", True)."""
    if key.endswith("_tokens_ids"):
        return key.removesuffix("_ids"), True
    if key.endswith("_token_id"):
        return key.removesuffix("_id"), True
    return key, False


class SpecialTokens:
    """Attributes ``eos_token``, ``eos_token_id`` and kin over a backend's vocabulary; they can be read and set.

    A token that is set by name must be in the vocabulary, or be added by ``add_special_tokens``, to have an id.
    """

    _backend: "Backend"

    def __init__(
        self, backend: "Backend", named: "dict[str, str | AddedToken | None]", extra: "Sequence[str | AddedToken]"
    ):
        # Written to __dict__ because __setattr__ below looks names up in it.
        self.__dict__["_backend"] = backend
        self.__dict__["_named_tokens"] = dict.fromkeys(NAMED) | named
        self.__dict__["_extra_tokens"] = list(extra)

    def __getattr__(self, key: str) -> Any:
        name, wants_id = _split(key)
        if name in EXTRA:
            tokens = [str(token) for token in self.__dict__["_extra_tokens"]]
            return self.convert_tokens_to_ids(tokens) if wants_id else tokens
        named = self.__dict__.get("_named_tokens", {})
        if name in named:
            token = named[name]
            if token is None:
                return None
            return self.convert_tokens_to_ids(str(token)) if wants_id else str(token)
        raise AttributeError(f"{type(self).__name__} has no attribute {key!r}.{nearest(key, [*dir(self), *named])}")

    def __setattr__(self, key: str, value: Any) -> None:
        name, is_id = _split(key)
        if name in EXTRA:
            if is_id and value is not None:
                value = [self._token_of(key, index) for index in value]
            if value is not None and not isinstance(value, (list, tuple)):
                raise ValueError(f"{key} must be a list of tokens, not {type(value).__name__}.")
            self.__dict__["_extra_tokens"] = list(value or ())
        elif name in self.__dict__.get("_named_tokens", {}):
            if is_id and value is not None:
                value = self._token_of(key, value)
            self._named_tokens[name] = check_token(key, value)
        else:
            super().__setattr__(key, value)

    def _token_of(self, key: str, index: Any) -> str:
        token = self._backend.id_to_token(int(index)) if int(index) >= 0 else None
        if token is None:
            size = self._backend.get_vocab_size()
            raise ValueError(f"{key}={index} is not in the vocabulary of {size} tokens; give an id below {size}.")
        return token

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Returns the id of a token, or the ids of a list of tokens; an unknown token gets ``unk_token_id``."""
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._backend.token_to_id(tokens)
        if index is None:
            unknown = self._named_tokens["unk_token"]
            return None if unknown is None else self._backend.token_to_id(str(unknown))
        return index

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The named special tokens that are set, name to token."""
        return {name: str(token) for name, token in self._named_tokens.items() if token is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, named then extra, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *map(str, self._extra_tokens)]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(
        self, new_tokens: "str | AddedToken | Sequence[str | AddedToken]", special_tokens: bool = False
    ) -> int:
        """Adds tokens that the vocabulary lacks, after its last id, and keeps all of them whole in text.

        Args:
            new_tokens: a token or a list of them; ``tokenizers.AddedToken`` sets how a token matches.
            special_tokens: whether decoding with ``skip_special_tokens`` leaves them out.

        Returns:
            How many tokens were added or match in another way now; the model needs ``len(tokenizer)`` embeddings.
        """
        if not new_tokens:
            return 0
        tokens = list(new_tokens) if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        for token in tokens:
            check_token("add_tokens", token)
        return self._backend.add_special_tokens(tokens) if special_tokens else self._backend.add_tokens(tokens)

    def add_special_tokens(self, special_tokens_dict: dict[str, Any], replace_extra_special_tokens: bool = True) -> int:
        """Sets special tokens by name and adds those that the vocabulary lacks.

        Args:
            special_tokens_dict: name ("pad_token", ..., "extra_special_tokens") to a token or list of tokens.
            replace_extra_special_tokens: whether a list of extra tokens replaces the present one or extends it.

        Returns:
            As ``add_tokens``.

        Raises:
            ValueError: an unknown name, or a value that is not a token.
        """
        from tokenizers import AddedToken

        def special(token: Any) -> AddedToken:
            return AddedToken(token, normalized=False, special=True) if isinstance(token, str) else token

        tokens: list[AddedToken] = []
        for name, value in special_tokens_dict.items():
            if name in EXTRA:
                if not isinstance(value, (list, tuple)):
                    raise ValueError(f"{name} must be a list of tokens, not {type(value).__name__}.")
                given = [special(check_token(name, token)) for token in value]
                kept = [] if replace_extra_special_tokens else list(self._extra_tokens)
                known = set(map(str, kept))
                fresh = [token for token in given if str(token) not in known]
                self.__dict__["_extra_tokens"] = kept + fresh
                tokens += fresh
            elif name in self._named_tokens:
                if value is None:
                    raise ValueError(f"{name}: give a token, not None; to unset one, assign tokenizer.{name} = None.")
                token = special(check_token(name, value))
                self._named_tokens[name] = token
                tokens.append(token)
            else:
                accepted = [*self._named_tokens, EXTRA[0]]
                raise ValueError(
                    f"{name!r} is not a special token; give one of {', '.join(accepted)}.{nearest(name, accepted)}"
                )
        return self.add_tokens(tokens, special_tokens=True)


def check_token(name: str, token: Any) -> Any:
    """Returns a token that is a string, a ``tokenizers.AddedToken`` or None.

    Raises:
        ValueError: it is anything else.
    """
    from tokenizers import AddedToken

    if token is None or isinstance(token, (str, AddedToken)):
        return token
    raise ValueError(f"{name}: {token!r} is not a token; give a string or a tokenizers.AddedToken.")
