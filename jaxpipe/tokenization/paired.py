"""Tokenizers whose ids are not those of their SentencePiece model: Marian and M2M100."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpipe.tokenization import padding
from jaxpipe.tokenization.families import BASE, Family
from jaxpipe.tokenization.tokenizer import Tokenizer
from jaxpipe.tokenization.translation import LanguageTokenizer

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding
    from tokenizers import Tokenizer as Backend

SPACE = "\u2581"


class PairedTokenizer(Tokenizer):
    """A tokenizer of two backends: one splits text by a SentencePiece model, the other gives tokens their ids.

    The ids in a `BatchEncoding` are the vocabulary's. Its ``encodings`` come from the model that split the text: their
    tokens and offsets hold, their ``ids`` are that model's own.

    Args:
        backend: gives ids to tokens.
        config: as for ``Tokenizer``.
        source: splits texts.
        target: splits what is given as ``text_target``.
        target_backend: gives the ids of those, where the vocabularies are two.
        space_after_special: decoding puts a space after a special token.
        files: what the tokenizer was made of, copied when it is saved.
        family: as for ``Tokenizer``.
        name_or_path: where it came from.
    """

    def __init__(
        self,
        backend: "Backend",
        config: dict[str, Any] | None = None,
        *,
        source: "Backend",
        target: "Backend | None" = None,
        target_backend: "Backend | None" = None,
        space_after_special: bool = False,
        files: Sequence[Path] = (),
        family: Family = BASE,
        name_or_path: str | PathLike[str] = "",
    ) -> None:
        self._source, self._target, self._splitter = source, target or source, source
        self._target_backend = target_backend or backend
        self._ids = backend
        self._space_after_special = space_after_special
        self._files = list(files)
        super().__init__(backend, config, family=family, name_or_path=name_or_path)
        self._family_name = family.name
        self._add_to_splitters()
        self._set_eos()

    def _add_to_splitters(self) -> None:
        """Makes both models keep the vocabulary's added tokens whole, each text between them a text of its own."""
        from tokenizers import AddedToken

        tokens = [
            AddedToken(**{**_written(token), "normalized": False})
            for token in self._backend.get_added_tokens_decoder().values()
        ]
        for splitter in (self._source, self._target):
            splitter.add_tokens(tokens)

    def _set_eos(self) -> None:
        """Makes encoding add ``eos_token`` behind a text."""
        from tokenizers import processors

        eos = str(self.eos_token)
        for splitter in (self._source, self._target):
            splitter.post_processor = processors.TemplateProcessing(
                single=["$A", eos], pair=["$A", "$B", eos], special_tokens=[(eos, splitter.token_to_id(eos))]
            )

    def add_tokens(
        self, new_tokens: "str | AddedToken | Sequence[str | AddedToken]", special_tokens: bool = False
    ) -> int:
        """Adds tokens to the vocabulary and keeps them whole in text; see ``SpecialTokens.add_tokens``."""
        count = super().add_tokens(new_tokens, special_tokens)
        self._add_to_splitters()
        return count

    @property
    def _text_backend(self) -> "Backend":
        return self._splitter

    def _columns(self, results: "list[Encoding]", *args: Any, **returned: Any) -> dict[str, list[Any]]:
        columns = super()._columns(results, *args, **returned)
        unknown = self.unk_token_id
        # Added tokens are the same in both vocabularies.
        added = self.added_tokens_encoder

        def index(token: str) -> int | None:
            found = added[token] if token in added else self._ids.token_to_id(token)
            return unknown if found is None else found

        columns["input_ids"] = [[index(token) for token in encoding.tokens] for encoding in results]
        return columns

    @contextlib.contextmanager
    def _for_target(self) -> Iterator[None]:
        with self._lock, super()._for_target():
            self._splitter, self._ids = self._target, self._target_backend
            try:
                yield
            finally:
                self._splitter, self._ids = self._source, self._backend

    def saved_settings(self) -> dict[str, Any]:
        """Keys of tokenizer_config.json: the class, and the tokens that the vocabulary's files do not hold."""
        added = {str(index): _written(token) for index, token in self.added_tokens_decoder.items()}
        named = {**super().saved_settings(), "tokenizer_class": self._family_name}
        return {**named, "added_tokens_decoder": added}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Returns the text of a list of tokens: pieces joined, special tokens as they are."""
        special = set(self.all_special_tokens)
        parts: list[str] = []
        fresh = True
        for token in tokens:
            if token in special:
                parts.append(f"{token} " if self._space_after_special else token)
                fresh = True
                continue
            # The space before the first word of a text belongs to none.
            part = token.removeprefix(SPACE) if fresh else token
            parts.append(part)
            fresh = fresh and not part
        return "".join(parts).replace(SPACE, " ").strip()

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Returns the token of an id, or the tokens of ids, in the vocabulary of what a model writes."""
        ids = padding.to_lists(ids)
        tokens = self._target_backend_tokens([ids] if isinstance(ids, int) else ids, skip_special_tokens)
        return tokens[0] if isinstance(ids, int) else tokens

    def _decode(self, ids: Any, skip_special_tokens: bool, clean_up: bool | None) -> str:
        tokens = self._target_backend_tokens([ids] if not isinstance(ids, list) else ids, skip_special_tokens)
        text = self.convert_tokens_to_string(tokens)
        clean_up = self.clean_up_tokenization_spaces if clean_up is None else clean_up
        return self.clean_up_tokenization(text) if clean_up else text

    def _target_backend_tokens(self, ids: list[int], skip_special_tokens: bool) -> list[str]:
        """Tokens of ids that a model wrote, in the vocabulary of the target; an id without a token is unknown."""
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        added = {index: token.content for index, token in self.added_tokens_decoder.items()}
        kept = [index for index in ids if index not in skipped]
        tokens = [added.get(index) or self._target_backend.id_to_token(index) for index in kept]
        return [str(self.unk_token) if token is None else token for token in tokens]

    def save_pretrained(self, save_directory: str | PathLike[str], **_: Any) -> tuple[str, ...]:
        """Writes tokenizer_config.json, the chat templates, and the files that the tokenizer was made of.

        Transformers (4 and 5) reads the directory too.
        """
        written = super().save_pretrained(save_directory)
        # A tokenizer.json holds one model, and its ids.
        (Path(save_directory) / "tokenizer.json").unlink()
        copies = [Path(save_directory) / file.name for file in self._files]
        for file, copy in zip(self._files, copies, strict=True):
            if not copy.exists() or not copy.samefile(file):
                shutil.copyfile(file, copy)
        return (*(name for name in written if not name.endswith("tokenizer.json")), *map(str, copies))


class M2M100Tokenizer(PairedTokenizer, LanguageTokenizer):
    """A tokenizer whose ids are a vocabulary's, and whose languages are tokens such as ``__en__``.

    Args: as for `PairedTokenizer`, with those of `LanguageTokenizer` in the config.
    """

    def _set_eos(self) -> None:
        """Leaves it to the language."""

    def language_token(self, language: str) -> str:
        """Returns the token that stands for a language, such as ``__en__``."""
        return f"__{language}__"

    @property
    def lang_code_to_id(self) -> dict[str, int]:
        """Code of a language to id."""
        languages = [token[2:-2] for token in map(str, self._extra_tokens) if token[:2] == token[-2:] == "__"]
        return {language: self.get_lang_id(language) for language in languages}

    def _processed(self) -> "Backend":
        return self._source


def _written(token: "AddedToken") -> dict[str, Any]:
    """An added token as tokenizer_config.json has it."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}
