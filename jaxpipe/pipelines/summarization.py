"""Summarization of a text by an encoder-decoder."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxpipe.pipelines.text2text_generation import Text2TextGenerationPipeline, longest_answer


class SummarizationPipeline(Text2TextGenerationPipeline):
    """Summarizes texts with an encoder-decoder.

    Parameters and defaults are those of `Text2TextGenerationPipeline`; the keys of a record are ``summary_text`` and
    ``summary_token_ids``. The log says where the longest summary that is allowed is longer than the text, or shorter
    than the shortest. Construct it with `pipeline`:

        pipe = pipeline("summarization", model="sshleifer/distilbart-cnn-12-6")
        pipe("An apple a day keeps the doctor away, ...", min_length=5, max_length=20)  # [{"summary_text": ...}]

    Raises:
        ValueError: the model is no encoder-decoder model, or there is no tokenizer.
    """

    return_name: ClassVar[str] = "summary"

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "summarization", **parameters: Any) -> None:
        super().__init__(model, tokenizer, task, **parameters)

    def _length_advice(self, length: int, given: Mapping[str, Any]) -> str | None:
        name, longest = longest_answer(given)
        shortest = given.get("min_length") or 0
        # The default is longer than most texts, and nobody asked for it.
        if longest is None or longest == self._task_settings({}).get(name):
            return None
        if longest < shortest:
            return f"min_length={shortest} is above {name}={longest}; a summary ends at {name}."
        if length < longest:
            return (
                f"{name}={longest}, but a text has only {length} tokens. Summaries are mostly shorter than their "
                f"texts: consider {name}={max(length // 2, 1)}."
            )
        return None
