"""Text to text: an encoder-decoder answers a text. Summarization and translation build on it."""

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import info_once, logger, warn_once
from jaxpipe.generation.config import FIELDS
from jaxpipe.pipelines.base import Parameters
from jaxpipe.pipelines.ends import Ends, total_length
from jaxpipe.pipelines.generating import GeneratingPipeline
from jaxpipe.pipelines.inputs import Inputs, described
from jaxpipe.pipelines.streaming import StreamPlan, cleans_spaces


class ReturnType(enum.Enum):
    """What a record holds: token ids, or text."""

    TENSORS = 0
    TEXT = 1


_PARAMETERS = frozenset(
    {
        "return_tensors", "return_text", "return_type", "clean_up_tokenization_spaces", "truncation", "stop_sequence",
        "max_length",
    }
)  # fmt: skip


class Text2TextGenerationPipeline(GeneratingPipeline):
    """Answers texts with an encoder-decoder.

    Where neither the call, the constructor nor the model says otherwise, 256 new tokens are generated with 4 beams.
    Of an older model, config.json may say what this task needs: ``task_specific_params`` holds generation settings
    and the ``prefix`` that is put before each text, ``prefix`` one for every task. Construct it with `pipeline`:

        pipe = pipeline("text2text-generation", model="google/flan-t5-small")
        pipe("Translate to German: How old are you?")  # [{"generated_text": ...}]

    Raises:
        ValueError: the model is no encoder-decoder model, or there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _default_generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256, "num_beams": 4}
    # The first word of the keys of a record.
    return_name: ClassVar[str] = "generated"
    _own_parameters: ClassVar[frozenset[str]] = _PARAMETERS

    def __init__(
        self, model: Any, tokenizer: Any = None, task: str = "text2text-generation", **parameters: Any
    ) -> None:
        if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            name = getattr(model, "class_name", type(model).__name__)
            raise ValueError(
                f"{task} needs an encoder-decoder model, and {name} is none. For a causal language model use the task "
                "text-generation."
            )
        if tokenizer is None:
            raise ValueError(f"{task} needs a tokenizer: give tokenizer=.")
        specific = getattr(model.config, "task_specific_params", None) or {}
        task = self._named_task(task, specific)
        self._specific = {name: value for name, value in (specific.get(task) or {}).items() if value is not None}
        prefix = self._specific.get("prefix", getattr(model.config, "prefix", None))
        self._prefix: str = prefix or ""
        super().__init__(model, tokenizer, task, **parameters)

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Answers text.

        Args:
            inputs: a text, a list of texts, or a data set, generator or iterator of texts.
            **parameters: ``batch_size``, ``item_offset`` and the following, and all settings of ``generate``.
                return_tensors: give token ids, with the token that the decoder starts from, instead of text.
                return_text: accepted; ``return_tensors`` alone decides.
                return_type: ``"text"`` or ``"tensors"``, instead of ``return_tensors``.
                clean_up_tokenization_spaces: drop spaces before punctuation (False).
                truncation: cut texts that are longer than the tokenizer's ``model_max_length`` or than the positions
                    that the model has learned; without it the latter are an error.
                stop_sequence: a text whose first token ends an answer, instead of the end-of-sequence token.
                seed: of sampling; None: see `jaxpipe.set_seed`.

        Returns:
            Records ``{"generated_text": str}``, one for each of ``num_return_sequences``; with ``return_tensors``
            ``{"generated_token_ids": list[int]}``. A list of texts gives a list of such lists, or where each has one
            record, a list of the records. A data set or generator gives an iterator of lists of records.

        Raises:
            TypeError: an input is no text.
            ValueError: a parameter is unknown or wrong, or a text has no tokens or too many.
        """
        results = super().__call__(inputs, **parameters)
        flat = isinstance(inputs, (list, tuple)) and all(len(records) == 1 for records in results)
        return [record for records in results for record in records] if flat else results

    def check_item(self, item: Any, where: str) -> str:
        """Returns a text as it is."""
        if isinstance(item, str):
            return item
        hint = " For a column of a data set use KeyDataset." if isinstance(item, Mapping) else ""
        raise TypeError(f"{where} is {described(item)}; expected a text (str).{hint}")

    def _named_task(self, task: str, specific: Mapping[str, Any]) -> str:
        """The task under which ``task_specific_params`` of the model is read."""
        return task

    def _length_advice(self, length: int, given: Mapping[str, Any]) -> str | None:
        """Returns what should be said about an input of so many tokens, or None.

        Args:
            length: of the input.
            given: the settings of the call.
        """
        return None

    def _sanitize_parameters(
        self,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        return_type: ReturnType | str | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        truncation: bool | str | None = None,
        stop_sequence: str | None = None,
        **rest: Any,
    ) -> Parameters:
        forward = dict(rest)
        if return_text is not None:
            info_once("return_text= has no effect: return_tensors=True gives token ids instead of text.")
        if forward.get("return_dict_in_generate"):
            raise ValueError(f"return_dict_in_generate=: {self._named} gives text or token ids; call model.generate.")
        if stop_sequence is not None:
            if forward.get("eos_token_id") is not None:
                raise ValueError("stop_sequence= sets eos_token_id=; give one of them.")
            forward["eos_token_id"] = self._stop_token(stop_sequence)
        self._check_arguments(forward, self._own_parameters)
        postprocess: dict[str, Any] = {}
        if return_type is not None or return_tensors is not None:
            postprocess["return_type"] = _return_type(return_type, return_tensors)
        if clean_up_tokenization_spaces is not None:
            postprocess["clean_up_tokenization_spaces"] = clean_up_tokenization_spaces
        return {} if truncation is None else {"truncation": truncation}, forward, postprocess

    def _stop_token(self, text: str) -> int:
        """The first token of ``stop_sequence``."""
        if not isinstance(text, str):
            raise TypeError(f"stop_sequence= takes a text, not {described(text)}.")
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"stop_sequence={text!r} has no tokens.")
        if len(ids) > 1:
            first = self.tokenizer.convert_ids_to_tokens(ids[0])
            warn_once(
                f"stop_sequence={text!r} has {len(ids)} tokens, of which the first, {first!r}, ends an answer; "
                "stop_strings= waits for all of the text."
            )
        return ids[0]

    def _generate_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        # A generation_config of the call stands instead of what the task's settings would be.
        if "generation_config" not in arguments:
            asked = {**self._generation_settings, **arguments}
            arguments = {**_fitting(self._specific, asked), **arguments}
        return super()._generate_arguments(arguments)

    def _task_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        settings = super()._task_settings(arguments)
        if arguments.get("generation_config") is not None:
            return {name: value for name, value in settings.items() if name not in self._default_generation}
        limit = self._position_limit
        if limit is not None:
            # The start token has a position, and the last new token needs none.
            room = limit - np.size(arguments.get("decoder_input_ids", ()))
            settings["max_new_tokens"] = min(settings["max_new_tokens"], max(room, 1))
        return settings

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        given = self._given_settings(forward)
        if given.get("stop_strings"):
            forward.setdefault("tokenizer", self.tokenizer)
        postprocess["ends"] = Ends(given, self.tokenizer)
        # Shared by the texts of a call, so that it is said of one of them.
        preprocess["advice"] = {"given": given, "said": False}
        return preprocess, forward, postprocess

    def _stream_plan(self, item: Any, parameters: dict[str, Any], settled: Parameters, whole: bool) -> StreamPlan:
        if settled[2].get("return_type", ReturnType.TEXT) is ReturnType.TENSORS:
            raise ValueError("stream gives text; leave return_tensors= and return_type= out.")
        clean_up = settled[2].get("clean_up_tokenization_spaces", False)
        key = f"{self.return_name}_text"
        return StreamPlan(
            first="",
            decode=lambda ids: self._text(ids, clean_up),
            keeps_prompt=True,  # the answer is decoded with the token that the decoder starts from
            cleans=cleans_spaces(self.tokenizer, clean_up),
            run=lambda streamer: self(item, **parameters, streamer=streamer)[0][key],
            whole=whole,
        )

    def _text(self, ids: list[int], clean_up: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up)

    def _default_batch_size(self, arranged: Inputs, forward: Mapping[str, Any]) -> int:
        if forward.get("streamer") is not None:
            return 1
        given = self._given_settings(forward)
        sequences = max(given.get(name) or 1 for name in ("num_beams", "num_return_sequences"))
        return max(1, super()._default_batch_size(arranged, forward) // sequences)

    def preprocess(
        self, text: str, truncation: bool | str | None = None, advice: dict[str, Any] | None = None, **encode: Any
    ) -> dict[str, Any]:
        """Returns ``input_ids`` and ``attention_mask`` (1, T) of a text behind the prefix."""
        limit = self._position_limit
        options: dict[str, Any] = {"return_tensors": "np", "truncation": truncation}
        if truncation not in (None, False) and limit is not None:
            options["max_length"] = min(limit, self.tokenizer.model_max_length)
        encoded = self._encode(text, {**options, **encode})
        ids = np.asarray(encoded["input_ids"], np.int32)
        length = ids.shape[1]
        if length == 0:
            raise ValueError(f"The text {text!r} has no tokens, so there is nothing to answer.")
        if limit is not None and length > limit:
            raise ValueError(
                f"The text, {described(text)}, has {length} tokens, but the model has learned positions for {limit}; "
                "pass truncation=True to cut it."
            )
        if advice is not None and not advice["said"]:
            message = self._length_advice(length, advice["given"])
            if message is not None:
                logger.warning("%s (Said for the first such text of a call.)", message)
                advice["said"] = True
        mask = encoded.get("attention_mask")
        row = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else np.asarray(mask, np.int32)}
        return {**row, **{name: encoded[name] for name in ("forced_bos_token_id",) if name in encoded}}

    def _encode(self, text: str, options: dict[str, Any]) -> Mapping[str, Any]:
        return self.tokenizer(self._prefix + text, **options)

    def _forward(self, model_inputs: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        rows = len(model_inputs["input_ids"])
        forced = model_inputs.get("forced_bos_token_id")
        if forced is not None:
            arguments["forced_bos_token_id"] = forced[0]  # one language a call
        begun = arguments.get("decoder_input_ids")
        if begun is not None:
            begun = np.atleast_2d(np.asarray(begun))
            if len(begun) != 1:
                raise ValueError(
                    f"decoder_input_ids= of shape {begun.shape}: expected the ids (T,) that answers begin with."
                )
            arguments["decoder_input_ids"] = np.repeat(begun, rows, axis=0)
        output = self.model.generate(
            input_ids=model_inputs["input_ids"], attention_mask=model_inputs["attention_mask"], **arguments
        )
        sequences = np.asarray(getattr(output, "sequences", output))
        # The start token is put before decoder_input_ids that lack it.
        own = 1 if begun is None else begun.shape[1] + int(begun[0, 0] != sequences[0, 0])
        return {"sequences": sequences.reshape(rows, -1, sequences.shape[-1]), "begun": own}  # (B, return sequences, T)

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        return_type: ReturnType = ReturnType.TEXT,
        clean_up_tokenization_spaces: bool = False,
        ends: Ends | None = None,
    ) -> list[dict[str, Any]]:
        """Returns one record a return sequence."""
        begun, records = model_outputs["begun"], []
        for sequence in model_outputs["sequences"][0].tolist():
            own, new = sequence[:begun], sequence[begun:]
            ids = own + (new if ends is None else ends.cut(own, new))
            if return_type is ReturnType.TENSORS:
                records.append({f"{self.return_name}_token_ids": ids})
                continue
            records.append({f"{self.return_name}_text": self._text(ids, clean_up_tokenization_spaces)})
        return records


def _fitting(specific: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of ``task_specific_params`` that leave what the user has asked for as it is."""
    settings = {name: value for name, value in specific.items() if name in FIELDS and name not in asked}
    if asked.get("max_new_tokens") is not None:
        settings.pop("max_length", None)
    name, longest = longest_answer(asked)
    if longest is not None and "min_length" in settings:
        # Lengths count the token that the decoder starts from, numbers of new tokens do not.
        settings["min_length"] = min(settings["min_length"], longest + (name == "max_new_tokens"))
    return settings


def longest_answer(given: Mapping[str, Any]) -> tuple[str, int | None]:
    """Returns the setting that limits an answer, of the settings of a call, and its value."""
    total = total_length(given)
    return ("max_new_tokens", given.get("max_new_tokens")) if total is None else ("max_length", total)


def _return_type(return_type: ReturnType | str | None, tensors: bool | None) -> ReturnType:
    if return_type is None:
        return ReturnType.TENSORS if tensors else ReturnType.TEXT
    name = return_type.name if isinstance(return_type, enum.Enum) else return_type
    if not isinstance(name, str):
        raise TypeError(f"return_type= takes 'text' or 'tensors', not {described(return_type)}.")
    names = {kind.name.lower(): kind for kind in ReturnType}
    if name.lower() not in names:
        raise ValueError(f"return_type={return_type!r}: expected {sorted(names)}.{nearest(name, names)}")
    return names[name.lower()]
