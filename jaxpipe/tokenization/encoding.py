"""Text to ids: the tokenizer's call, encode, tokenize and pad."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import logger
from jaxpipe.tokenization import padding as rows_padding
from jaxpipe.tokenization.batch import BatchEncoding, check_tensor_type
from jaxpipe.tokenization.padding import Strategy
from jaxpipe.tokenization.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend


class Encoder(SpecialTokens):
    """The half of a tokenizer that turns text into ids; ``Tokenizer`` sets its attributes."""

    model_input_names: list[str]
    model_max_length: int
    padding_side: str
    truncation_side: str
    split_special_tokens: bool
    pad_token_type_id: int
    _warned_too_long: bool
    _lock: threading.RLock

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        max_target_length: int | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
    ) -> BatchEncoding:
        """Encodes a text, a pair of texts, or a batch of either.

        Args:
            text: a str or a list of them; with ``is_split_into_words`` a list of words or a list of such lists.
            text_pair: the second text of each row, of the same form.
            text_target: text whose ids come as ``labels``, or alone where there is no ``text``.
            text_pair_target: the pair of ``text_target``.
            add_special_tokens: add what the model expects around each text.
            padding: False or "do_not_pad", True or "longest", "max_length".
            truncation: False or "do_not_truncate", True or "longest_first", "only_first", "only_second";
                None truncates where ``max_length`` is given and nothing is padded.
            max_length: tokens to cut and fill to; None takes ``model_max_length``.
            stride: tokens that a piece of an overflowing text shares with the next.
            is_split_into_words: the text is given as words.
            pad_to_multiple_of: fill on to a multiple of so many tokens.
            padding_side: "left" or "right"; None takes the tokenizer's.
            return_tensors: None for lists, "np" for int64, "jax" for int32 arrays (B, T).
            return_token_type_ids: 0 and 1 for the first and second text; None follows ``model_input_names``.
            return_attention_mask: 1 for tokens, 0 for padding; None follows ``model_input_names``.
            return_overflowing_tokens: keep what truncation cuts as more rows, and say whose they are in
                ``overflow_to_sample_mapping``.
            return_special_tokens_mask: 1 for special tokens.
            return_offsets_mapping: (start, end) characters of each token.
            return_length: tokens in each row.
            verbose: warn about texts that are too long and lengths that have no effect.
            split_special_tokens: take special tokens that stand in the text as plain text.
            max_target_length: ``max_length`` of ``text_target``.
            tokenizer_kwargs: more of these arguments, as a dict.

        Raises:
            ValueError: an argument is not known or contradicts another, or there is no pad token to pad with.
            TypeError: the input is not text.
        """
        options: dict[str, Any] = {
            "add_special_tokens": add_special_tokens,
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "stride": stride,
            "is_split_into_words": is_split_into_words,
            "pad_to_multiple_of": pad_to_multiple_of,
            "padding_side": padding_side,
            "return_tensors": return_tensors,
            "return_token_type_ids": return_token_type_ids,
            "return_attention_mask": return_attention_mask,
            "return_overflowing_tokens": return_overflowing_tokens,
            "return_special_tokens_mask": return_special_tokens_mask,
            "return_offsets_mapping": return_offsets_mapping,
            "return_length": return_length,
            "verbose": verbose,
            "split_special_tokens": split_special_tokens,
        }
        for name, value in (tokenizer_kwargs or {}).items():
            if name not in options:
                raise TypeError(f"tokenizer_kwargs has an unknown argument {name!r}.{nearest(name, options)}")
            options[name] = value
        if text is None and text_target is None:
            raise ValueError("The tokenizer was called without text; give text= or text_target=.")
        encoded = None if text is None else self._encode(text, text_pair, **options)
        if text_target is None:
            return encoded  # type: ignore[return-value]
        length = options.pop("max_length") if max_target_length is None else max_target_length
        with self._for_target():
            labels = self._encode(text_target, text_pair_target, **{**options, "max_length": length})
        if encoded is None:
            return labels
        encoded["labels"] = labels["input_ids"]
        return encoded

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """Returns the ids alone; options are those of a call."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Returns the tokens of a text, as strings; options are those of a call."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pads rows that are already encoded.

        Args:
            encoded_inputs: a mapping of names to one row or to rows, or a list of mappings, one a row.
            padding: as in a call.
            max_length: tokens to fill to with "max_length".
            pad_to_multiple_of: fill on to a multiple of so many tokens.
            padding_side: "left" or "right"; None takes the tokenizer's.
            return_attention_mask: None follows ``model_input_names``.
            return_tensors: None, "np" or "jax"; arrays in give numpy arrays out where it is None.
            verbose: warn about lengths that have no effect.

        Raises:
            ValueError: the ids are missing, rows differ in their names or number, or there is no pad token.
        """
        check_tensor_type(return_tensors)
        strategy = self._strategy(
            padding, False, max_length, 0, pad_to_multiple_of, padding_side, verbose and max_length is None
        )
        columns = rows_padding.to_columns(encoded_inputs)
        main = self.model_input_names[0]
        if main not in columns:
            raise ValueError(f"pad needs {main!r} and got {', '.join(map(str, columns)) or 'nothing'}.")
        if return_tensors is None and rows_padding.is_array(columns[main]):
            return_tensors = "np"
        columns = {name: rows_padding.to_lists(value) for name, value in columns.items()}
        rows = columns[main]
        if not rows:
            return BatchEncoding(columns, tensor_type=return_tensors)
        pad_id = 0 if strategy.padding == "do_not_pad" else self._need_pad_id()
        with_mask = return_attention_mask
        if with_mask is None:
            with_mask = "attention_mask" in self.model_input_names
        single = not isinstance(rows[0], list)
        if single:
            columns = {name: [value] for name, value in columns.items()}
            rows = [rows]
        if wrong := [name for name, value in columns.items() if len(value) != len(rows)]:
            raise ValueError(f"{wrong[0]!r} has {len(columns[wrong[0]])} rows and {main!r} has {len(rows)}.")
        length = strategy.filled_length(max(map(len, rows)))
        padded = [
            rows_padding.pad_row(
                {name: value[i] for name, value in columns.items()},
                main, length, strategy.side, pad_id, self.pad_token_type_id, with_mask,
            )
            for i in range(len(rows))
        ]  # fmt: skip
        if single:
            return BatchEncoding(padded[0], tensor_type=return_tensors)
        return BatchEncoding({name: [row[name] for row in padded] for name in padded[0]}, tensor_type=return_tensors)

    def _strategy(
        self,
        padding: Any,
        truncation: Any,
        max_length: int | None,
        stride: int,
        multiple: int | None,
        side: str | None,
        verbose: bool,
    ) -> Strategy:
        side = self.padding_side if side is None else side
        limit = self.model_max_length
        strategy = rows_padding.choose(padding, truncation, max_length, multiple, side, stride, limit, verbose)
        if strategy.padding != "do_not_pad":
            self._need_pad_id()
        return strategy

    def _need_pad_id(self) -> int:
        index = self.pad_token_id
        if index is None:
            raise ValueError(
                "Padding needs a pad token and the tokenizer has none. Set one: tokenizer.pad_token = "
                "tokenizer.eos_token, or tokenizer.add_special_tokens({'pad_token': '[PAD]'}) and grow the model."
            )
        return index

    def _encode(
        self,
        text: Any,
        text_pair: Any,
        *,
        padding: Any,
        truncation: Any,
        max_length: int | None,
        stride: int,
        pad_to_multiple_of: int | None,
        padding_side: str | None,
        add_special_tokens: bool,
        is_split_into_words: bool,
        split_special_tokens: bool | None,
        return_tensors: str | None,
        return_overflowing_tokens: bool,
        verbose: bool,
        **returned: Any,
    ) -> BatchEncoding:
        check_tensor_type(return_tensors)
        strategy = self._strategy(padding, truncation, max_length, stride, pad_to_multiple_of, padding_side, verbose)
        rows, batched = _to_rows(text, text_pair, is_split_into_words)
        if split_special_tokens is None:
            split_special_tokens = self.split_special_tokens
        results = self._run_backend(rows, strategy, add_special_tokens, is_split_into_words, split_special_tokens)
        owners = list(range(len(results)))
        if return_overflowing_tokens:
            owners = [i for i, first in enumerate(results) for _ in range(1 + len(first.overflowing))]
            results = [encoding for first in results for encoding in (first, *first.overflowing)]
        columns = self._columns(results, **returned)
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = owners
        if strategy.max_length is None and verbose:
            self._warn_if_too_long(max(map(len, columns["input_ids"]), default=0))
        if not batched and return_tensors is None and not return_overflowing_tokens:
            columns = {name: value[0] if isinstance(value[0], list) else value for name, value in columns.items()}
        return BatchEncoding(columns, results, tensor_type=return_tensors)

    def _columns(
        self,
        results: "list[Encoding]",
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_special_tokens_mask: bool,
        return_offsets_mapping: bool,
        return_length: bool,
    ) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [encoding.ids for encoding in results]}
        if "token_type_ids" in self.model_input_names if return_token_type_ids is None else return_token_type_ids:
            columns["token_type_ids"] = [encoding.type_ids for encoding in results]
        if "attention_mask" in self.model_input_names if return_attention_mask is None else return_attention_mask:
            columns["attention_mask"] = [encoding.attention_mask for encoding in results]
        if return_special_tokens_mask:
            columns["special_tokens_mask"] = [encoding.special_tokens_mask for encoding in results]
        if return_offsets_mapping:
            columns["offset_mapping"] = [encoding.offsets for encoding in results]
        if return_length:
            columns["length"] = [len(encoding.ids) for encoding in results]
        return columns

    @property
    def _text_backend(self) -> "Backend":
        """The backend that splits text."""
        return self._backend

    def _run_backend(
        self, rows: Sequence[Any], strategy: Strategy, add_special_tokens: bool, pretokenized: bool, split: bool
    ) -> "list[Encoding]":
        # The backend keeps padding and truncation as state, so two threads must not set them at once.
        with self._lock:
            backend = self._text_backend
            try:
                self._set_truncation(strategy)
                self._set_padding(strategy)
                if backend.encode_special_tokens != split:
                    backend.encode_special_tokens = split
                return backend.encode_batch(rows, add_special_tokens=add_special_tokens, is_pretokenized=pretokenized)
            except TypeError as error:
                raise TypeError(f"The tokenizer's input is not text: {error}") from error
            except BaseException as error:
                # The backend raises bare Exceptions, such as "Truncation error: ...", and where the stride does not fit
                # it panics, which is none.
                if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                    raise
                raise ValueError(
                    f"Encoding failed with truncation={strategy.truncation!r}, max_length={strategy.max_length} and "
                    f"stride={strategy.stride}: {error}"
                ) from error

    @contextlib.contextmanager
    def _for_target(self) -> Iterator[None]:
        """Encodes what a model is to write; tokenizers of translation models do that by other rules."""
        yield

    @contextlib.contextmanager
    def without_padding(self) -> "Iterator[Backend]":
        """Gives the backend with padding and truncation off, for as long as nothing else uses it."""
        with self._lock:
            self._set_truncation(Strategy())
            self._set_padding(Strategy())
            yield self._backend

    def _set_truncation(self, strategy: Strategy) -> None:
        backend = self._text_backend
        if strategy.truncation == "do_not_truncate":
            if backend.truncation is not None:
                backend.no_truncation()
            return
        target = {
            "max_length": strategy.max_length,
            "stride": strategy.stride,
            "strategy": strategy.truncation,
            "direction": rows_padding.check_side("truncation_side", self.truncation_side),
        }
        if backend.truncation != target:
            backend.enable_truncation(**target)

    def _set_padding(self, strategy: Strategy) -> None:
        backend = self._text_backend
        if strategy.padding == "do_not_pad":
            if backend.padding is not None:
                backend.no_padding()
            return
        target = {
            "length": strategy.max_length if strategy.padding == "max_length" else None,
            "direction": strategy.side,
            "pad_id": self._need_pad_id(),
            "pad_token": self.pad_token,
            "pad_type_id": self.pad_token_type_id,
            "pad_to_multiple_of": strategy.multiple,
        }
        if backend.padding != target:
            backend.enable_padding(**target)

    def _warn_if_too_long(self, length: int) -> None:
        if length > self.model_max_length > 0 and not self._warned_too_long:
            self._warned_too_long = True
            logger.warning(
                "A text has %d tokens, more than the %d that the model takes; pass truncation=True to cut it.",
                length,
                self.model_max_length,
            )


def _to_rows(text: Any, text_pair: Any, words: bool) -> tuple[list[Any], bool]:
    """The rows for the backend, and whether the caller gave a batch."""
    _check_text("text", text, words)
    if text_pair is not None:
        _check_text("text_pair", text_pair, words)
    batched = isinstance(text, (list, tuple))
    if words:
        batched = batched and bool(text) and isinstance(text[0], (list, tuple))
    if not batched:
        return [(text, text_pair)] if text_pair else [text], False
    if text_pair is None:
        return list(text), True
    if isinstance(text_pair, str):
        raise TypeError(f"text is a batch of {len(text)} rows and text_pair is one str; give a list of {len(text)}.")
    if len(text) != len(text_pair):
        raise ValueError(f"text has {len(text)} rows and text_pair has {len(text_pair)}; they must be as many.")
    return list(zip(text, text_pair, strict=True)), True


def _check_text(name: str, value: Any, words: bool) -> None:
    """Raises TypeError for anything but text, with the place of what is wrong."""
    if isinstance(value, str) and not words:
        return
    if isinstance(value, str):
        raise ValueError(f"{name} is a str, but is_split_into_words=True needs lists of words; use text.split().")
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a str or a list of str, not {type(value).__name__}.")
    for index, item in enumerate(value):
        if not isinstance(item, (str, list, tuple)):
            raise TypeError(f"{name}[{index}] must be a str, not {type(item).__name__} ({item!r}).")
