"""Chat templates: conversations to text, by Jinja in a sandbox."""

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import warn_once
from jaxpipe.tokenization import sandbox
from jaxpipe.tokenization.tools import function_schema

if TYPE_CHECKING:
    from jaxpipe.tokenization.tokenizer import Tokenizer

# Names under which models' reasoning is passed; templates read the first, older ones the second.
REASONING = ("reasoning_content", "thinking", "reasoning")


def named_templates(templates: Any) -> str | dict[str, str] | None:
    """Returns a template's text, or name to text, of any form that checkpoints store.

    Raises:
        ValueError: the form is not known.
    """
    if isinstance(templates, (list, tuple)):
        try:
            templates = {entry["name"]: entry["template"] for entry in templates}
        except (TypeError, KeyError) as error:
            raise ValueError("chat_template is a list, but not of dicts with 'name' and 'template'.") from error
    if isinstance(templates, Mapping):
        if wrong := [name for name, text in templates.items() if not isinstance(text, str)]:
            raise ValueError(f"The chat template {wrong[0]!r} is not text.")
        only_default = list(templates) == ["default"]
        return templates["default"] if only_default else dict(templates)
    if templates is None or isinstance(templates, str):
        return templates
    raise ValueError(f"chat_template must be text or a dict of named texts, not {type(templates).__name__}.")


def choose_template(
    templates: str | dict[str, str] | None, asked: str | None, tools: list[Any] | None, where: str
) -> tuple[str, str]:
    """Returns the name and the text of the template to use.

    Args:
        templates: the tokenizer's own.
        asked: a name among them, or a template's text.
        tools: with tools the template "tool_use" is preferred.
        where: the tokenizer's name, for errors.

    Raises:
        ValueError: there is no template, or several and none to prefer.
    """
    if isinstance(templates, dict):
        if asked in templates:
            return str(asked), templates[str(asked)]
        if asked is None:
            name = "tool_use" if tools is not None and "tool_use" in templates else "default"
            if name not in templates:
                raise ValueError(f"{where} has several chat templates; name one of {', '.join(templates)}.")
            return name, templates[name]
    if asked is not None:
        if isinstance(templates, dict) and re.fullmatch(r"[\w-]+", asked):
            raise ValueError(
                f"There is no chat template {asked!r}; there are {', '.join(templates)}.{nearest(asked, templates)}"
            )
        return "given", asked
    if templates is None:
        raise ValueError(
            f"The tokenizer of {where or 'this model'} has no chat template. Pass plain text, give chat_template=, or "
            "set tokenizer.chat_template to a Jinja template."
        )
    return "default", str(templates)


def apply(
    tokenizer: "Tokenizer",
    conversation: Any,
    tools: list[Any] | None,
    documents: list[dict[str, str]] | None,
    chat_template: str | None,
    add_generation_prompt: bool,
    continue_final_message: bool | str,
    tokenize: bool,
    padding: bool | str,
    truncation: bool | str,
    max_length: int | None,
    return_tensors: str | None,
    return_dict: bool,
    return_assistant_tokens_mask: bool,
    tokenizer_kwargs: dict[str, Any] | None,
    variables: dict[str, Any],
) -> Any:
    """Renders and encodes conversations; see ``Tokenizer.apply_chat_template`` for the arguments."""
    if variables.pop("sanitize_control_tokens", False):
        raise ValueError("sanitize_control_tokens is not supported; remove control tokens from the messages yourself.")
    if return_assistant_tokens_mask and not (return_dict and tokenize):
        raise ValueError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True.")
    if continue_final_message and add_generation_prompt:
        raise ValueError(
            "continue_final_message and add_generation_prompt exclude each other: one leaves the last message open, "
            "the other opens a new one."
        )
    if continue_final_message and return_assistant_tokens_mask:
        raise ValueError("continue_final_message and return_assistant_tokens_mask exclude each other.")
    chats, batched = conversations(conversation)
    name, text = choose_template(tokenizer.chat_template, chat_template, tools, tokenizer.name_or_path)
    shared = {
        **tokenizer.special_tokens_map,
        **sandbox.plain(variables),
        "tools": tool_schemas(tools),
        "documents": _check_documents(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    if return_assistant_tokens_mask and not re.search(r"{%-?\s*generation\s*-?%}", text):
        warn_once(f"The chat template {name!r} has no generation block, so the assistant's mask is all zero.")
    texts, spans = [], []
    for messages in chats:
        if continue_final_message:
            rendered, found = _render_open(name, text, messages, shared, continue_final_message), []
        else:
            rendered, found = sandbox.render(name, text, {"messages": messages, **shared}, return_assistant_tokens_mask)
        texts.append(rendered)
        spans.append(found)
    if not tokenize:
        return texts if batched else texts[0]
    encoded = tokenizer(
        texts if batched else texts[0],
        padding=padding,
        truncation=truncation,
        max_length=max_length,
        add_special_tokens=False,
        return_tensors=return_tensors,
        tokenizer_kwargs=tokenizer_kwargs,
    )
    if return_assistant_tokens_mask:
        masks = [_mask(encoded[row], found) for row, found in enumerate(spans)]
        encoded["assistant_masks"] = masks if batched or return_tensors else masks[0]
        encoded.convert_to_tensors(return_tensors)
    return encoded if return_dict else encoded["input_ids"]


def _mask(encoding: Any, spans: list[tuple[int, int]]) -> list[int]:
    """1 for every token of the assistant's spans of characters."""
    mask = [0] * len(encoding.ids)
    for start, end in spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None:
            break  # truncated before it
        stop = len(mask) if last is None else last + 1
        mask[first:stop] = [1] * (stop - first)
    return mask


def conversations(conversation: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """Returns conversations of plain, checked messages, and whether the caller gave several.

    Raises:
        ValueError: there is no message, or one without a role.
        TypeError: a message is not a dict.
    """
    conversation = getattr(conversation, "messages", conversation)
    if not isinstance(conversation, (list, tuple)):
        raise TypeError(
            f"A conversation is a list of messages such as {{'role': 'user', 'content': 'Hi'}}, "
            f"not {type(conversation).__name__}."
        )
    if not conversation:
        raise ValueError("The conversation is empty; give at least one message.")
    batched = isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")
    chats = [getattr(chat, "messages", chat) for chat in conversation] if batched else [conversation]
    places = [f"conversation[{row}]" if batched else "conversation" for row in range(len(chats))]
    return [_check_messages(chat, place) for chat, place in zip(chats, places, strict=True)], batched


def _check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"{where} must be a list of messages, not {type(messages).__name__}.")
    checked = []
    for index, given in enumerate(messages):
        message = sandbox.plain(given)
        if not isinstance(message, dict):
            raise TypeError(
                f"{where}[{index}] must be a dict with 'role' and 'content', not {type(given).__name__} ({given!r})."
            )
        # A key that is None counts as absent: APIs write content=None beside tool calls.
        message = {key: value for key, value in message.items() if value is not None}
        if not isinstance(message.get("role"), str):
            raise ValueError(f"{where}[{index}] needs a 'role' such as 'user' or 'assistant'; it has {list(message)}.")
        reasoning = next((message[key] for key in REASONING if key in message), None)
        if reasoning is not None:
            message = {REASONING[1]: reasoning, **message, REASONING[0]: reasoning}
        checked.append(message)
    return checked


def tool_schemas(tools: list[Any] | None) -> list[dict[str, Any]] | None:
    """Returns JSON schemas of tools that are schemas or Python functions.

    Raises:
        ValueError: a tool is neither, or a function lacks what a schema needs.
    """
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        raise ValueError(f"tools must be a list of JSON schemas or functions, not {type(tools).__name__}.")
    schemas = []
    for index, tool in enumerate(tools):
        if isinstance(tool, Mapping):
            schemas.append(sandbox.plain(tool))
        elif callable(tool) and hasattr(tool, "__name__") and not isinstance(tool, type):
            schemas.append(function_schema(tool))
        else:
            raise ValueError(f"tools[{index}] is {tool!r}; give a JSON schema (dict) or a function with a docstring.")
    return schemas


def _check_documents(documents: Any) -> Any:
    for index, document in enumerate(documents or ()):
        if not isinstance(document, Mapping):
            raise TypeError(f"documents[{index}] must be a dict with 'title' and 'text', not {document!r}.")
    return sandbox.plain(documents)


def _render_open(
    name: str, text: str, messages: list[dict[str, Any]], shared: dict[str, Any], field: bool | str
) -> str:
    """Renders a conversation up to the end of what its last message says."""
    key = field if isinstance(field, str) else "content"
    last = messages[-1]
    if key not in last:
        raise ValueError(f"continue_final_message: the last message has no {key!r} to continue; it has {list(last)}.")
    said = last[key]
    keys = [k for k in REASONING if last.get(k) == said] if key in REASONING else [key]
    if not any(k in text for k in keys):
        raise ValueError(f"continue_final_message={field!r}: the chat template {name!r} does not read {key!r}.")
    # The space shows whether the template strips the message: then the mark's is stripped, not the message's.
    mark = f"open{secrets.token_hex(12)} "
    if isinstance(said, list):
        block = next((block for block in reversed(said) if isinstance(block, dict) and "text" in block), None)
        if block is None:
            raise ValueError("continue_final_message: the last message has no text to continue.")
        said = block["text"]
        block["text"] = said + mark
    elif isinstance(said, str):
        last.update(dict.fromkeys(keys, said + mark))
    else:
        raise ValueError(f"continue_final_message: {key!r} of the last message is {said!r}, not text.")
    rendered, _ = sandbox.render(name, text, {"messages": messages, **shared})
    place = rendered.rfind(mark.strip())
    if place < 0 or said.strip() not in rendered:
        raise ValueError(
            f"continue_final_message: the chat template {name!r} changes or drops the last message, so that it cannot "
            "be continued."
        )
    # A template that writes the field more than once has left more marks.
    kept = rendered[:place].replace(mark, "").replace(mark.strip(), "")
    return kept if rendered[place:].startswith(mark) else kept.rstrip()
