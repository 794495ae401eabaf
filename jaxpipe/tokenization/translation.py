"""Tokenizers of multilingual translation models, which mark a text by the code of its language."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import nearest
from jaxpipe.tokenization.batch import BatchEncoding
from jaxpipe.tokenization.families import BASE, Family
from jaxpipe.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


class LanguageTokenizer(Tokenizer):
    """A tokenizer that adds the code of a language to what it encodes, as mBART, mBART-50, NLLB and M2M100 do.

    ``src_lang`` marks the texts, ``tgt_lang`` those given as ``text_target``; both may be set at any time. The family
    says whether the code stands before the text or behind it; ``legacy_behaviour`` in the config puts it behind.

    Args:
        backend: as for ``Tokenizer``.
        config: as for ``Tokenizer``, with ``src_lang``, ``tgt_lang`` and ``legacy_behaviour``.
        family: as for ``Tokenizer``; names the language that ``src_lang`` is without a setting.
        name_or_path: where it came from.
    """

    def __init__(
        self,
        backend: "Backend",
        config: dict[str, Any] | None = None,
        *,
        family: Family = BASE,
        name_or_path: str | PathLike[str] = "",
    ) -> None:
        config = dict(config or {})
        self._language_first = family.language_first and not config.get("legacy_behaviour")
        super().__init__(backend, config, family=family, name_or_path=name_or_path)
        self._family_name = family.name
        self.tgt_lang: str | None = config.get("tgt_lang")
        asked = config.get("src_lang")
        self._src_lang: str | None = asked or family.language
        # A checkpoint may have been made for other languages than the family's first.
        if asked or self._code(str(self._src_lang)) is not None:
            self._mark(str(self._src_lang))

    def saved_settings(self) -> dict[str, Any]:
        """Keys of tokenizer_config.json: the class, whose rules stand in no other file, and the languages."""
        return {"tokenizer_class": self._family_name, "src_lang": self._src_lang, "tgt_lang": self.tgt_lang}

    def _code(self, language: str) -> int | None:
        """The id of a language's code, or None."""
        return self._backend.token_to_id(self.language_token(language))

    def language_token(self, language: str) -> str:
        """Returns the token that stands for a language."""
        return language

    def get_lang_id(self, language: str) -> int:
        """Returns the id of a language's code.

        Raises:
            ValueError: the vocabulary has no such code.
        """
        index = self._code(language)
        if index is None:
            known = [str(token) for token in self._extra_tokens]
            raise ValueError(
                f"{language!r} is no language of this tokenizer ({self.name_or_path}): its vocabulary has no token "
                f"{self.language_token(language)!r}.{nearest(self.language_token(language), known)}"
            )
        return index

    @property
    def lang_code_to_id(self) -> dict[str, int]:
        """Code of a language to id, of the extra special tokens."""
        return {token: self.convert_tokens_to_ids(token) for token in map(str, self._extra_tokens)}

    @property
    def src_lang(self) -> str | None:
        """The language of the texts; setting it changes what encoding adds."""
        return self._src_lang

    @src_lang.setter
    def src_lang(self, language: str) -> None:
        self._mark(language)
        self._src_lang = language

    def _mark(self, language: str) -> None:
        """Makes encoding add a language's code and ``eos_token``."""
        from tokenizers import processors

        code, eos = self.language_token(language), str(self.eos_token)
        used = [(code, self.get_lang_id(language)), (eos, self.convert_tokens_to_ids(eos))]
        before, behind = ([code], [eos]) if self._language_first else ([], [eos, code])
        self._processed().post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *behind], pair=[*before, "$A", "$B", *behind], special_tokens=used
        )

    def _processed(self) -> "Backend":
        """The backend whose post-processor adds the tokens."""
        return self._backend

    @contextlib.contextmanager
    def _for_target(self) -> Iterator[None]:
        with self._lock:
            self._mark(str(self.tgt_lang or self._src_lang))
            try:
                yield
            finally:
                self._mark(str(self._src_lang))

    def build_translation_inputs(
        self, text: Any, *, src_lang: str | None, tgt_lang: str | None, **options: Any
    ) -> BatchEncoding:
        """Encodes texts for translation, with ``forced_bos_token_id`` for the language that is wanted.

        Args:
            text: a str or a list of them.
            src_lang: language of the texts; becomes the tokenizer's.
            tgt_lang: language to translate to.
            options: of a call.

        Raises:
            ValueError: a language is missing or not known.
        """
        if src_lang is None or tgt_lang is None:
            raise ValueError(
                f"Translation by this model needs src_lang= and tgt_lang=, such as {self._src_lang!r}; "
                f"got src_lang={src_lang!r} and tgt_lang={tgt_lang!r}."
            )
        target = self.get_lang_id(tgt_lang)
        self.src_lang = src_lang
        inputs = self(text, **options)
        inputs["forced_bos_token_id"] = target
        return inputs
