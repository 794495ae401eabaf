"""Translation of a text by an encoder-decoder."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.common.logging import logger, warn_once
from jaxpipe.pipelines.base import Parameters
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.text2text_generation import Text2TextGenerationPipeline, longest_answer

# Codes of languages may hold an underscore themselves: translation_eng_Latn_to_fra_Latn.
_TASK = re.compile(r"translation_([^_]+(?:_[^_]+)?)_to_([^_]+(?:_[^_]+)?)")


def languages_of(task: str) -> tuple[str, str] | None:
    """Returns the languages that a task such as ``translation_en_to_fr`` names, or None where it names none."""
    found = _TASK.fullmatch(task)
    return None if found is None else (found[1], found[2])


class TranslationPipeline(Text2TextGenerationPipeline):
    """Translates texts with an encoder-decoder.

    Models of one pair of languages need no languages. Those that mark a text by the code of its language (NLLB, M2M100,
    mBART) need ``src_lang`` and ``tgt_lang``, of the call, of the constructor or of the task's name,
    ``translation_XX_to_YY``. T5 takes its prefix by the task's name; of the task ``translation`` the first direction
    that its config.json names is taken. The keys of a record are ``translation_text`` and ``translation_token_ids``.
    Construct it with `pipeline`:

        pipe = pipeline("translation", model="facebook/nllb-200-distilled-600M")
        pipe("How old are you?", src_lang="eng_Latn", tgt_lang="fra_Latn")  # [{"translation_text": ...}]

    Raises:
        ValueError: the model is no encoder-decoder model, or there is no tokenizer.
    """

    return_name: ClassVar[str] = "translation"
    _own_parameters: ClassVar[frozenset[str]] = Text2TextGenerationPipeline._own_parameters | {"src_lang", "tgt_lang"}

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "translation", **parameters: Any) -> None:
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Translates text.

        Args:
            inputs: a text, a list of texts, or a data set, generator or iterator of texts.
            **parameters: those of `Text2TextGenerationPipeline`, and the following.
                src_lang: the language of the texts, as the tokenizer names it.
                tgt_lang: the language to translate to. Without language codes in the tokenizer neither has an effect.

        Returns:
            As `Text2TextGenerationPipeline` gives them, records ``{"translation_text": str}``, or with
            ``return_tensors`` ``{"translation_token_ids": list[int]}``.

        Raises:
            TypeError: an input is no text.
            ValueError: a parameter or language is unknown, or a language is missing.
        """
        return super().__call__(inputs, **parameters)

    def _named_task(self, task: str, specific: Mapping[str, Any]) -> str:
        directions = [name for name in specific if languages_of(name)]
        if task == "translation" and directions:
            logger.warning(
                "The task translation names no languages; the model's %s is taken. Others are %s.",
                directions[0],
                directions[1:],
            )
            return directions[0]
        if directions and task not in directions and languages_of(task):
            warn_once(
                f"The model's config.json has no task_specific_params for {task!r}, so texts get no prefix that tells "
                f"the languages; it has them for {directions}."
            )
        return task

    def _sanitize_parameters(
        self, src_lang: str | None = None, tgt_lang: str | None = None, **parameters: Any
    ) -> Parameters:
        languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        for name, language in languages.items():
            if language is not None and not isinstance(language, str):
                raise TypeError(f"{name}= takes the code of a language, not {described(language)}.")
        preprocess, forward, postprocess = super()._sanitize_parameters(**parameters)
        given = {name: language for name, language in languages.items() if language is not None}
        return {**preprocess, **given}, forward, postprocess

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        source, target = languages_of(self.task) or (None, None)
        preprocess = {"src_lang": source, "tgt_lang": target, **preprocess}
        asked = {**self._generation_settings, **parameters}
        if self._marks_languages and asked.get("forced_bos_token_id") is not None:
            raise ValueError("tgt_lang= sets forced_bos_token_id= for this tokenizer; leave forced_bos_token_id= out.")
        return preprocess, forward, postprocess

    @property
    def _marks_languages(self) -> bool:
        return hasattr(self.tokenizer, "build_translation_inputs")

    def _encode(self, text: str, options: dict[str, Any]) -> Mapping[str, Any]:
        if self._marks_languages:
            return self.tokenizer.build_translation_inputs(text, **options)
        languages = ("src_lang", "tgt_lang")
        return super()._encode(text, {name: value for name, value in options.items() if name not in languages})

    def _length_advice(self, length: int, given: Mapping[str, Any]) -> str | None:
        name, longest = longest_answer(given)
        if longest is None or length <= 0.9 * longest:
            return None
        return (
            f"{name}={longest}, but a text has {length} tokens: its translation may be cut. Consider a larger {name}."
        )
