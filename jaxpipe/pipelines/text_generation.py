"""Text generation: prompts or chats in, their continuations out."""

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.generation.kept import LastConversation
from jaxpipe.model import PreTrainedModel
from jaxpipe.pipelines.base import Parameters
from jaxpipe.pipelines.batching import Side
from jaxpipe.pipelines.ends import Ends, total_length
from jaxpipe.pipelines.generating import GeneratingPipeline
from jaxpipe.pipelines.inputs import Chat, Inputs, described, is_message, peek
from jaxpipe.pipelines.streaming import StreamPlan, cleans_spaces


class ReturnType(enum.Enum):
    """What a record holds: token ids, the new text, or the prompt and the new text."""

    TENSORS = 0
    NEW_TEXT = 1
    FULL_TEXT = 2


_TOKENIZER_PARAMETERS = ("add_special_tokens", "truncation", "padding", "max_length")
_PARAMETERS = frozenset(
    {
        "return_full_text", "return_text", "return_tensors", "return_type", "clean_up_tokenization_spaces", "prefix",
        "handle_long_generation", "stop_sequence", "truncation", "padding", "add_special_tokens", "max_length",
        "continue_final_message", "skip_special_tokens", "tokenizer_encode_kwargs", "tools", "documents",
    }
)  # fmt: skip


class TextGenerationPipeline(GeneratingPipeline):
    """Continues prompts and chats with a causal language model.

    Where neither the call nor the model's generation_config.json says otherwise, 256 new tokens are sampled at
    temperature 0.7. Construct it with `pipeline`.

    Raises:
        ValueError: the model is an encoder-decoder model, or there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    # The new tokens follow the last prompt token in every row.
    _padding_side: ClassVar[Side] = "left"
    _default_generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "text-generation", **parameters: Any) -> None:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise ValueError(
                f"text-generation continues a prompt with a causal language model; {type(model).__name__} is an "
                "encoder-decoder model, whose answer is no continuation of its input. Call model.generate instead."
            )
        if tokenizer is None:
            raise ValueError("text-generation needs a tokenizer: give tokenizer=.")
        super().__init__(model, tokenizer, task, **parameters)
        self._conversation = LastConversation()

    def __call__(self, text_inputs: Any, **parameters: Any) -> Any:
        """Continues text.

        Args:
            text_inputs: a prompt; a chat, that is a list of messages with ``role`` and ``content``; a list of
                prompts or chats; or a data set, generator or iterator of these.
            **parameters: ``batch_size``, ``item_offset`` and the following, and all settings of ``generate``.
                return_full_text: whether the text starts with the prompt, or the chat holds the messages (True).
                return_tensors: give token ids, of prompt and continuation, instead of text.
                return_type: a `ReturnType` or its name, instead of the two above.
                clean_up_tokenization_spaces: None: as the tokenizer says.
                skip_special_tokens: leave special tokens out of the text (True).
                prefix: put before each prompt for the model; not part of the text.
                handle_long_generation: ``"hole"`` drops the start of a prompt that leaves no room below the
                    tokenizer's ``model_max_length``.
                stop_sequence: a text or a list of texts after which a continuation ends; they stay in the text.
                continue_final_message: continue the last message of a chat instead of adding one; None: where the
                    last message is the assistant's.
                tools, documents: for the chat template.
                add_special_tokens, truncation, padding, max_length: for the tokenizer; max_length also limits
                    prompt and new tokens together.
                tokenizer_encode_kwargs: more arguments of the tokenizer, or of the chat template.
                seed: of sampling; None: see `jaxpipe.set_seed`.

        Returns:
            Records ``{"generated_text": str}``, one for each of ``num_return_sequences``; for a chat
            ``{"generated_text": messages}``; with ``return_tensors`` ``{"generated_token_ids": list}``. A list of
            such lists for a list, and an iterator of them for a data set or generator.

        Raises:
            TypeError: an input is neither text nor a chat.
            ValueError: a parameter is unknown, wrong or contradicts another.
        """
        return super().__call__(text_inputs, **parameters)

    def arrange(self, inputs: Any) -> Inputs:
        """Tells one prompt or chat from many; the first item of a lazy input is read for that."""
        arranged = super().arrange(inputs)
        if arranged.kind == "list":
            return Inputs("one", [inputs], 1) if inputs and is_message(inputs[0]) else arranged
        if arranged.kind == "lazy":
            first, items = peek(arranged.items)
            if first and is_message(first[0]):
                return Inputs("one", [list(items)], 1)
            arranged.items = items
        return arranged

    def check_item(self, item: Any, where: str) -> str | Chat:
        """Returns a prompt as it is, and messages as a `Chat`."""
        if isinstance(item, str):
            return item
        if isinstance(item, Chat):
            return item
        if isinstance(item, (list, tuple)) and (not item or isinstance(item[0], Mapping)):
            return Chat(item, where)
        if is_message(item):
            raise TypeError(f"{where} is a single message; a chat is a list of messages.")
        if isinstance(item, Mapping):
            raise TypeError(
                f"{where} is a mapping with the keys {sorted(map(str, item))}; expected a prompt (str) or a chat (a "
                "list of messages with 'role' and 'content'). For a column of a data set use KeyDataset."
            )
        raise TypeError(f"{where} is {described(item)}; expected a prompt (str) or a chat (a list of messages).")

    def _sanitize_parameters(
        self,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        return_type: ReturnType | str | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        prefix: str | None = None,
        handle_long_generation: str | None = None,
        stop_sequence: str | list[str] | None = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        tokenizer_encode_kwargs: dict[str, Any] | None = None,
        tools: list[Any] | None = None,
        documents: list[dict[str, str]] | None = None,
        **rest: Any,
    ) -> Parameters:
        if handle_long_generation not in (None, "hole"):
            raise ValueError(f"handle_long_generation={handle_long_generation!r}: expected 'hole' or None.")
        if prefix is not None and not isinstance(prefix, str):
            raise TypeError(f"prefix= takes a text, not {described(prefix)}.")
        forward = dict(rest)
        encode = {name: forward.pop(name) for name in _TOKENIZER_PARAMETERS if name in forward}
        if encode.get("max_length") is not None:
            forward["max_length"] = encode["max_length"]
        if stop_sequence is not None:
            if forward.get("stop_strings") is not None:
                raise ValueError("stop_sequence= and stop_strings= mean the same; give one.")
            forward["stop_strings"] = [stop_sequence] if isinstance(stop_sequence, str) else list(stop_sequence)
        self._check_arguments(forward, _PARAMETERS)
        preprocess = encode | {
            "prefix": prefix,
            "handle_long_generation": handle_long_generation,
            "continue_final_message": continue_final_message,
            "tokenizer_encode_kwargs": tokenizer_encode_kwargs,
            "tools": tools,
            "documents": documents,
        }
        postprocess = {
            "return_type": _return_type(return_type, return_full_text, return_tensors, return_text),
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "continue_final_message": continue_final_message,
            "skip_special_tokens": skip_special_tokens,
        }
        return _given(preprocess), forward, _given(postprocess)

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        preprocess.setdefault("prefix", getattr(self.model.config, "prefix", None) or "")
        given = self._given_settings(forward)
        if preprocess["prefix"]:
            forward |= self._lengths_with_prefix(preprocess, given)
            given |= {name: forward[name] for name in ("max_length", "min_length") if name in forward}
        preprocess["generation"] = given
        stop_strings = given.get("stop_strings")
        if stop_strings:
            forward.setdefault("tokenizer", self.tokenizer)
        postprocess["ends"] = Ends(given, self.tokenizer)
        return preprocess, forward, postprocess

    def _stream_plan(self, item: Any, parameters: dict[str, Any], settled: Parameters, whole: bool) -> StreamPlan:
        preprocess, _, postprocess = settled
        kind = postprocess.get("return_type", ReturnType.FULL_TEXT)
        if kind is ReturnType.TENSORS:
            raise ValueError("stream gives text; leave return_tensors= and return_type= out.")
        returned = ("return_full_text", "return_text", "return_tensors", "return_type")
        own = {name: value for name, value in parameters.items() if name not in returned}
        # An empty prompt begins with a token that its text may show.
        keeps_prompt = item == "" and self.preprocess(item, **preprocess)["no_tokens"]
        return StreamPlan(
            first=item if isinstance(item, str) and kind is ReturnType.FULL_TEXT else "",
            decode=lambda ids: self._text(ids, **postprocess),
            keeps_prompt=keeps_prompt,
            cleans=cleans_spaces(self.tokenizer, postprocess.get("clean_up_tokenization_spaces")),
            run=lambda streamer: self(item, **own, return_full_text=False, streamer=streamer)[0]["generated_text"],
            whole=whole,
        )

    def _text(
        self,
        ids: list[int],
        clean_up_tokenization_spaces: bool | None = None,
        skip_special_tokens: bool | None = None,
        **_: Any,
    ) -> str:
        return self.tokenizer.decode(
            ids,
            skip_special_tokens=True if skip_special_tokens is None else skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
        )

    def _lengths_with_prefix(self, preprocess: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Total lengths, unlike numbers of new tokens, have to count the prefix."""
        special = bool(preprocess.get("add_special_tokens", False))
        extra = len(self.tokenizer(preprocess["prefix"], add_special_tokens=special)["input_ids"])
        lengths = (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))
        return {
            total: given[total] + extra for total, new in lengths if given.get(total) is not None and new not in given
        }

    def _default_batch_size(self, arranged: Inputs, forward: Mapping[str, Any]) -> int:
        # A streamer prints one row; a tokenizer without pad token says that its model is not for batches.
        if forward.get("streamer") is not None or self.tokenizer.pad_token_id is None:
            return 1
        sequences = self._given_settings(forward).get("num_return_sequences") or 1
        return max(1, super()._default_batch_size(arranged, forward) // sequences)

    def _needs_same_length(self, forward: Mapping[str, Any]) -> bool:
        # min_length and max_length count the prompt, which generate takes to be as long as the batch is wide. A larger
        # number of new tokens makes up for that (`_with_new_tokens`), unless learned positions end before it.
        given = self._given_settings(forward)
        if given.get("min_length") and given.get("min_new_tokens") is None:
            return True
        return total_length(given) is not None and self._position_limit is not None

    def _check_batch_size(self, batch_size: int) -> None:
        if batch_size > 1 and self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"batch_size={batch_size} needs a tokenizer with a pad token, and this one has none. Set one, such as "
                "pipe.tokenizer.pad_token = pipe.tokenizer.eos_token, or leave batch_size= out."
            )

    def preprocess(
        self,
        prompt: str | Chat,
        prefix: str = "",
        handle_long_generation: str | None = None,
        continue_final_message: bool | None = None,
        tokenizer_encode_kwargs: Mapping[str, Any] | None = None,
        tools: list[Any] | None = None,
        documents: list[dict[str, str]] | None = None,
        generation: Mapping[str, Any] | None = None,
        **encode: Any,
    ) -> dict[str, Any]:
        """Returns ``input_ids`` and ``attention_mask`` (1, T) of a prompt or a chat, and the prompt itself."""
        generation = generation or {}
        options = {name: value for name, value in encode.items() if value is not None}
        options = {"padding_side": "left", **options} if options.get("padding") else options
        options |= tokenizer_encode_kwargs or {}
        if isinstance(prompt, Chat):
            options.pop("add_special_tokens", None)
            encoded = self._encode_chat(prompt, continue_final_message, tools, documents, options)
        else:
            encoded = self.tokenizer(prefix + prompt, return_tensors="np", **options)
        ids = np.asarray(encoded["input_ids"])
        # A prompt without tokens starts from the beginning-of-sequence token, as generate does without input_ids.
        no_tokens = ids.shape[1] == 0
        if no_tokens:
            ids = np.array([[self._bos_token_id(generation)]])
        mask = None if no_tokens else encoded.get("attention_mask")
        mask = np.ones_like(ids) if mask is None else np.asarray(mask)
        if handle_long_generation == "hole":
            kept = self._kept_tokens(ids.shape[1], generation)
            ids, mask = ids[:, -kept:], mask[:, -kept:]
        return {
            "input_ids": ids.astype(np.int32),
            "attention_mask": mask.astype(np.int32),
            "prompt": prompt,
            "prompt_tokens": ids.shape[1],
            "no_tokens": no_tokens,
        }

    def _encode_chat(
        self,
        chat: Chat,
        continue_final_message: bool | None,
        tools: list[Any] | None,
        documents: list[dict[str, str]] | None,
        options: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        continued = chat.ends_with_assistant if continue_final_message is None else continue_final_message
        content = chat.messages[-1]["content"]
        if continued and not isinstance(content, str):
            raise ValueError(
                f"The last message of the chat cannot be continued, as its content is {described(content)} and not a "
                "text; pass continue_final_message=False to add a message."
            )
        return self.tokenizer.apply_chat_template(
            chat.messages,
            add_generation_prompt=not continued,
            continue_final_message=continued,
            return_dict=True,
            return_tensors="np",
            tools=tools,
            documents=documents,
            **options,
        )

    def _bos_token_id(self, generation: Mapping[str, Any]) -> int:
        bos = generation.get("bos_token_id")
        if bos is None:
            raise ValueError(
                "The prompt is empty, and the model has no bos_token_id to start from; give a prompt or bos_token_id=."
            )
        return bos

    def _kept_tokens(self, length: int, generation: Mapping[str, Any]) -> int:
        """Number of prompt tokens that leave room for the new ones below the tokenizer's ``model_max_length``."""
        limit = self.tokenizer.model_max_length
        new = generation.get("max_new_tokens")
        if new is None:
            new = generation["max_length"] - length
            if new < 0:
                raise ValueError(
                    f"handle_long_generation='hole': the prompt has {length} tokens and max_length is "
                    f"{generation['max_length']}, so the number of new tokens is unknown; give max_new_tokens=."
                )
        if length + new <= limit:
            return length
        if limit - new <= 0:
            raise ValueError(
                f"handle_long_generation='hole': {new} new tokens leave no room for the prompt below the tokenizer's "
                f"model_max_length of {limit}; ask for fewer."
            )
        return limit - new

    def _forward(self, model_inputs: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        rows, length = model_inputs["input_ids"].shape
        arguments = self._with_new_tokens(arguments, model_inputs["prompt_tokens"])
        arguments = self._with_last_turn(arguments, model_inputs["prompt"])
        output = self.model.generate(
            input_ids=model_inputs["input_ids"], attention_mask=model_inputs["attention_mask"], **arguments
        )
        sequences = getattr(output, "sequences", output)
        outputs = {
            "sequences": sequences.reshape(rows, -1, sequences.shape[-1]),  # (B, return sequences, T)
            "prompt_end": length,
            **{name: model_inputs[name] for name in ("prompt", "prompt_tokens", "no_tokens")},
        }
        for name in ("scores", "logits"):
            steps = getattr(output, name, None)
            if steps is not None:
                stacked = np.stack([np.asarray(step, np.float32) for step in steps], axis=1)  # (B n, new tokens, V)
                outputs[name] = stacked.reshape(rows, -1, *stacked.shape[1:])
        return outputs

    def _with_last_turn(self, arguments: dict[str, Any], prompts: list[Any]) -> dict[str, Any]:
        """Returns the arguments of generate with the cache of the last chat, whose next turn a single chat may be."""
        given = any(arguments.get(name) is not None for name in ("past_key_values", "prefix_cache"))
        one = len(prompts) == 1 and isinstance(prompts[0], Chat)
        if given or not one or not isinstance(self.model, PreTrainedModel):
            return arguments
        return {**arguments, "past_key_values": self._conversation}

    def _with_new_tokens(self, arguments: dict[str, Any], lengths: list[int]) -> dict[str, Any]:
        """Returns the arguments of generate with a total length turned into new tokens, where prompts differ in length.

        generate counts padding as prompt. So the shortest prompt gets what it may have, and the others are cut
        afterwards (`Ends`): each row then has the tokens that it would have alone.
        """
        total = total_length(self._given_settings(arguments))
        if total is None or min(lengths) == max(lengths) or max(lengths) >= total:
            return arguments
        return {**arguments, "max_length": None, "max_new_tokens": total - min(lengths)}

    def postprocess(
        self,
        model_outputs: Mapping[str, Any],
        return_type: ReturnType = ReturnType.FULL_TEXT,
        clean_up_tokenization_spaces: bool | None = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        ends: Ends | None = None,
    ) -> list[dict[str, Any]]:
        """Returns one record a return sequence."""
        end, prompt = model_outputs["prompt_end"], model_outputs["prompt"]
        start = end - model_outputs["prompt_tokens"]
        records = []
        for number, sequence in enumerate(model_outputs["sequences"][0].tolist()):
            own, new = sequence[start:end], sequence[end:]
            new = new if ends is None else ends.cut(own, new)
            if return_type is ReturnType.TENSORS:
                records.append({"generated_token_ids": own + new})
                continue
            ids = own + new if model_outputs["no_tokens"] else new
            text = self._text(ids, clean_up_tokenization_spaces, skip_special_tokens)
            full = return_type is ReturnType.FULL_TEXT
            record = {"generated_text": _joined(prompt, text, continue_final_message) if full else text}
            for name in ("scores", "logits"):
                if name in model_outputs:
                    record[name] = model_outputs[name][0, number, : len(new)].tolist()
            records.append(record)
        return records


def _joined(prompt: str | Chat, text: str, continue_final_message: bool | None) -> Any:
    if isinstance(prompt, str):
        return prompt + text
    continued = prompt.ends_with_assistant if continue_final_message is None else continue_final_message
    messages = [dict(message) for message in prompt.messages]
    if not continued:
        return [*messages, {"role": "assistant", "content": text}]
    last = messages[-1]
    return [*messages[:-1], {"role": last["role"], "content": last["content"] + text}]


def _return_type(
    return_type: ReturnType | str | None, full: bool | None, tensors: bool | None, text: bool | None
) -> ReturnType | None:
    if isinstance(return_type, str):
        names = {kind.name.lower(): kind for kind in ReturnType}
        if return_type.lower() not in names:
            raise ValueError(f"return_type={return_type!r}: expected {sorted(names)}.{nearest(return_type, names)}")
        return names[return_type.lower()]
    if return_type is not None:
        if not isinstance(return_type, ReturnType):
            raise TypeError(f"return_type= takes a ReturnType or its name, not {described(return_type)}.")
        return return_type
    given = [
        name
        for name, value in (("return_full_text", full), ("return_text", text), ("return_tensors", tensors))
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"{given[0]}= and {given[1]}= are mutually exclusive; give one.")
    if tensors:
        return ReturnType.TENSORS
    return None if full is None else ReturnType.FULL_TEXT if full else ReturnType.NEW_TEXT


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
