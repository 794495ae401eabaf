"""Tokenizer: text to ids and back, with the surface of Transformers' tokenizers."""

import threading
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.common.logging import warn_once
from jaxpipe.tokenization import chat, padding, saving, settings
from jaxpipe.tokenization.encoding import Encoder
from jaxpipe.tokenization.families import BASE, Family

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

# Spaces that a WordPiece decoder leaves before English punctuation and contractions.
_CLEAN_UP = {f" {mark}": mark for mark in (".", "?", "!", ",")}
_CLEAN_UP |= {" ' ": "'"} | {f" {tail}": tail for tail in ("n't", "'m", "'s", "'ve", "'re")}


class Tokenizer(Encoder):
    """A tokenizer over a ``tokenizers.Tokenizer``; made by ``AutoTokenizer.from_pretrained``.

    ``padding_side``, ``truncation_side``, ``model_max_length``, ``chat_template`` and the special tokens
    (``eos_token``, ``pad_token_id``, ...) may be set at any time.

    Args:
        backend: the ``tokenizers.Tokenizer`` that splits and joins text; owned by this object from now on.
        config: keys of tokenizer_config.json, among them the special tokens, ``model_max_length``,
            ``padding_side``, ``chat_template``, ``add_bos_token`` and ``add_eos_token``.
        family: traits of the Hub's tokenizer class, for keys that the config lacks.
        name_or_path: where it came from.
    """

    is_fast = True

    def __init__(
        self,
        backend: "Backend",
        config: dict[str, Any] | None = None,
        *,
        family: Family = BASE,
        name_or_path: str | PathLike[str] = "",
    ) -> None:
        config = dict(config or {})
        named, extra, added = settings.special_tokens(config)
        super().__init__(backend, {**family.special_tokens, **named}, extra)
        self.init_kwargs = config
        self.name_or_path = str(name_or_path)
        self.model_input_names = list(config.get("model_input_names") or family.model_input_names)
        limit = config.get("model_max_length", config.get("max_len"))
        self.model_max_length: int = padding.UNLIMITED if limit is None else int(limit)
        self.padding_side: str = padding.check_side("padding_side", config.get("padding_side", family.padding_side))
        side = config.get("truncation_side", "right")
        self.truncation_side: str = padding.check_side("truncation_side", side)
        self.chat_template = chat.named_templates(config.get("chat_template"))
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces", False))
        self.split_special_tokens = bool(config.get("split_special_tokens", False))
        self.pad_token_type_id = 0
        self._warned_too_long = False
        self._lock = threading.RLock()
        # Padding and truncation are chosen call by call, whatever the file was saved with.
        backend.no_padding()
        backend.no_truncation()
        self._add_listed_tokens(added)
        self._add_bos, self._add_eos = bool(config.get("add_bos_token")), bool(config.get("add_eos_token"))
        if "add_bos_token" in config or "add_eos_token" in config or backend.post_processor is None:
            self.update_post_processor()

    def _add_listed_tokens(self, added: "dict[int, AddedToken]") -> None:
        """Makes the backend keep whole every token that the config lists, in the order of their ids."""
        from tokenizers import AddedToken

        tokens = [added[index] for index in sorted(added)]
        known = {token.content for token in (*self._backend.get_added_tokens_decoder().values(), *tokens)}
        named = [token for token in self._named_tokens.values() if token is not None]
        for token in (*named, *self._extra_tokens):
            if str(token) not in known:
                known.add(str(token))
                tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        names = set(map(str, named))
        for token in tokens:
            token.special = token.special or token.content in names
        if tokens:
            self._backend.add_tokens(tokens)

    def update_post_processor(self) -> None:
        """Makes encoding add ``bos_token`` and ``eos_token`` as ``add_bos_token`` and ``add_eos_token`` say."""
        from tokenizers import processors

        bos = self.bos_token if self._add_bos else None
        eos = self.eos_token if self._add_eos else None

        def around(text: str, kind: int) -> str:
            parts = (f"{bos}:{kind}" if bos else "", f"{text}:{kind}", f"{eos}:{kind}" if eos else "")
            return " ".join(part for part in parts if part)

        used = [(token, self.convert_tokens_to_ids(token)) for token in (bos, eos) if token]
        self._backend.post_processor = processors.TemplateProcessing(
            single=around("$A", 0), pair=f"{around('$A', 0)} {around('$B', 1)}", special_tokens=used
        )

    @property
    def add_bos_token(self) -> bool:
        """Whether ``bos_token`` was asked for by argument; setting it rebuilds what encoding adds."""
        return self._add_bos

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._add_bos = bool(value)
        self.update_post_processor()

    @property
    def add_eos_token(self) -> bool:
        """Whether ``eos_token`` was asked for by argument; setting it rebuilds what encoding adds."""
        return self._add_eos

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._add_eos = bool(value)
        self.update_post_processor()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def backend_tokenizer(self) -> "Backend":
        """The ``tokenizers.Tokenizer`` underneath."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, without added ones."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Returns token to id, added tokens too."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """Token to id, added tokens too."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> "dict[int, AddedToken]":
        """Id to added token."""
        return self._backend.get_added_tokens_decoder()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Added token to id, by id."""
        return {token.content: index for index, token in sorted(self.added_tokens_decoder.items())}

    def get_added_vocab(self) -> dict[str, int]:
        """Returns added token to id, by id."""
        return self.added_tokens_encoder

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Returns how many special tokens encoding adds to one text, or to a pair."""
        return self._backend.num_special_tokens_to_add(pair)

    def get_special_tokens_mask(self, token_ids: Any) -> list[int]:
        """Returns 1 for every special token among the ids of one row, else 0."""
        special = set(self.all_special_ids)
        return [int(index in special) for index in padding.to_lists(token_ids)]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id, or the tokens of a list or array of ids; None for an id past the vocabulary."""
        ids = padding.to_lists(ids)
        if isinstance(ids, int):
            return self._backend.id_to_token(_check_ids([ids])[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._backend.id_to_token(index) for index in _check_ids(ids) if index not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Returns the text of a list of tokens."""
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Returns the text of one row of ids, or a list of texts for rows.

        Args:
            token_ids: int, list, nested list, or numpy or jax array of shape (), (T,) or (B, T).
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: drop spaces before punctuation (never for BPE); None takes the tokenizer's.

        Raises:
            ValueError: an id is negative or not an integer.
        """
        if hasattr(token_ids, "keys"):
            token_ids = token_ids["input_ids"]
        ids = padding.to_lists(token_ids)
        if isinstance(ids, list) and ids and isinstance(ids[0], list):
            return [self._decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        return self._decode(ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Returns the texts of rows of ids; arguments as in ``decode``."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    def _decode(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        ids = _check_ids([ids] if not isinstance(ids, list) else ids)
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self.clean_up_tokenization_spaces if clean_up is None else clean_up:
            if type(self._backend.model).__name__ == "BPE":
                warn_once("clean_up_tokenization_spaces is ignored for BPE, whose spaces are part of the text.")
            else:
                text = self.clean_up_tokenization(text)
        return text

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """Returns an English text without the spaces before punctuation and contractions."""
        for before, after in _CLEAN_UP.items():
            text = text.replace(before, after)
        return text

    def get_chat_template(self, chat_template: str | None = None, tools: list[Any] | None = None) -> str:
        """Returns the template's text: of a name, the text that was given, or the one that fits.

        Raises:
            ValueError: the tokenizer has no template, or several and none by default.
        """
        return chat.choose_template(self.chat_template, chat_template, tools, self.name_or_path)[1]

    def apply_chat_template(
        self,
        conversation: Any,
        tools: list[Any] | None = None,
        documents: list[dict[str, str]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """Renders a conversation, or a list of them, by the chat template, and encodes it.

        Args:
            conversation: messages, each a dict with "role" and mostly "content"; or a list of conversations.
            tools: JSON schemas, or functions with type hints and a Google-style docstring.
            documents: dicts with "title" and "text".
            chat_template: a name of the tokenizer's templates, or the text of one.
            add_generation_prompt: end with the opening of the assistant's answer.
            continue_final_message: leave the last message open; a str names the field to continue.
            tokenize: False returns the text.
            padding: as in a call.
            truncation: as in a call.
            max_length: as in a call.
            return_tensors: as in a call.
            return_dict: False returns the ids alone.
            return_assistant_tokens_mask: add ``assistant_masks``, 1 for what generation blocks write.
            tokenizer_kwargs: more arguments of a call.
            variables: what the template reads besides.

        Returns:
            A BatchEncoding; ids alone with ``return_dict=False``; text with ``tokenize=False``.

        Raises:
            ValueError: no template, one that fails or that the sandbox refuses, or malformed messages.
            TypeError: messages that are not dicts.
        """
        return chat.apply(
            self, conversation, tools, documents, chat_template, add_generation_prompt, continue_final_message,
            tokenize, padding, truncation, max_length, return_tensors, return_dict, return_assistant_tokens_mask,
            tokenizer_kwargs, variables,
        )  # fmt: skip

    def saved_settings(self) -> dict[str, Any]:
        """Returns keys of tokenizer_config.json that this kind of tokenizer writes when it is saved."""
        # The general class, so that a reader takes every rule from tokenizer.json.
        return {"tokenizer_class": "PreTrainedTokenizerFast"}

    def save_pretrained(self, save_directory: str | PathLike[str], **_: Any) -> tuple[str, ...]:
        """Writes tokenizer.json, tokenizer_config.json and the chat templates; returns their paths.

        Transformers (4 and 5) reads the directory too.
        """
        return saving.save(self, Path(save_directory))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )


def _check_ids(ids: list[Any]) -> list[int]:
    """The ids as ints; raises ValueError for one that is no id."""
    for index in ids:
        if not isinstance(index, int) or index < 0:
            raise ValueError(f"{index!r} is not a token id; ids are integers >= 0 (drop label padding such as -100).")
    return ids
