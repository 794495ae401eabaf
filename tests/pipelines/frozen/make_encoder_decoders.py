"""Writes the outputs of Transformers 4.57.6 for text2text-generation, summarization and translation.

    python -m venv .venv-4.57 && .venv-4.57/bin/pip install transformers==4.57.6 torch safetensors numpy
    .venv-4.57/bin/python tests/pipelines/frozen/make_encoder_decoders.py

It makes the checkpoints of `encoder_decoders` and writes text2text_generation.json, summarization.json and
translation.json beside this file. A case whose ``oracle_call`` says more than the ``call`` shows a
difference that docs/differences.md lists: version 4.57.6 needs more arguments for the same settings. Cases
marked ``full`` compile much of their own and run in `make test-full`.
"""

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import encoder_decoders as recipe
import transformers
from transformers.pipelines.pt_utils import KeyDataset

HERE = Path(__file__).parent
TEXTS = ["the cat sat on the mat.", "a dog", "hello world again and again", "the old house, the red tree and"]
LONG = "the cat sat on the mat and " * 12
GREEDY = {"num_beams": 1, "max_new_tokens": 10}
PROCESSED = (
    "min_length",
    "min_new_tokens",
    "repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "forced_bos_token_id",
)
LOGGER = logging.getLogger("transformers.pipelines.text2text_generation")


def case(
    name: str, kind: str, inputs: Any = TEXTS, form: str = "as it is", full: bool = False, **more: Any
) -> dict[str, Any]:
    return {"name": f"{kind}: {name}", "kind": kind, "inputs": inputs, "form": form, "full": full, **more}


def forms(kind: str, **more: Any) -> list[dict[str, Any]]:
    """A text, lists, and lazy inputs, with text and with token ids."""
    made = {"one": (TEXTS[0], "as it is"), "list of one": (TEXTS[:1], "as it is"), "list": (TEXTS, "as it is")}
    made |= {"generator": (TEXTS, "generator"), "data set": (TEXTS, "data set"), "empty list": ([], "as it is")}
    made |= {"empty text": (["", *TEXTS[1:]], "as it is")}
    call = {**GREEDY, **more.pop("call", {})}
    cases = [case(name, kind, inputs, form, call=call, **more) for name, (inputs, form) in made.items()]
    return cases + [
        case(f"{name}, ids", kind, *made[name], call={**call, "return_tensors": True}, **more)
        for name in ("one", "list", "generator")
    ]


def beams(kind: str, **more: Any) -> list[dict[str, Any]]:
    """Numbers of beams, and what only acts with them."""
    settings: dict[str, dict[str, Any]] = {f"{count} beams": {"num_beams": count} for count in (1, 2, 4)}
    settings["default beams"] = {}
    settings["2 of 2 beams"] = {"num_beams": 2, "num_return_sequences": 2}
    settings["3 of 4 beams"] = {"num_beams": 4, "num_return_sequences": 3}
    own = more.pop("call", {})
    cases = [
        case(name, kind, full="2" in name, call={"max_new_tokens": 10, "return_tensors": True, **own, **call}, **more)
        for name, call in settings.items()
    ]
    one = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 10, **own}
    return [*cases, case("2 of 4 beams, one", kind, TEXTS[0], full=True, call=one, **more)]


def text2text() -> list[dict[str, Any]]:
    cases = [*forms("t5"), *forms("bart"), *beams("t5"), *beams("bart")]
    parameters: dict[str, dict[str, Any]] = {
        "clean up": {"clean_up_tokenization_spaces": True},
        "no clean up": {"clean_up_tokenization_spaces": False},
        "return_text": {"return_text": True},
        "return_tensors false": {"return_tensors": False},
        "stop token": {"stop_sequence": "blue"},
        "stop tokens": {"stop_sequence": "blue mat"},
        "eos ids": {"eos_token_id": [1, 7, 23, 31]},
        "min_length": {"min_length": 6, "eos_token_id": [1, 23, 31]},
        "min_new_tokens": {"min_new_tokens": 5, "eos_token_id": [1, 23, 31]},
        "repetition_penalty": {"repetition_penalty": 1.5},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
        "bad_words_ids": {"bad_words_ids": [[23], [31, 2]]},
        "forced_bos_token_id": {"forced_bos_token_id": 9},
        "batches": {"batch_size": 3},
    }
    for name, call in parameters.items():
        cases.append(case(name, "t5", full=name in PROCESSED, call={**GREEDY, **call}))
    for name in ("stop token", "batches", "no_repeat_ngram_size"):
        cases.append(case(f"{name}, ids", "t5", call={**GREEDY, **parameters[name], "return_tensors": True}))
    for name in ("min_length", "no_repeat_ngram_size", "batches"):
        cases.append(
            case(f"{name}, beams", "t5", full=True, call={**parameters[name], "num_beams": 4, "max_new_tokens": 10})
        )
    for penalty in (2.0, -1.0):
        call = {"num_beams": 4, "max_new_tokens": 10, "length_penalty": penalty, "early_stopping": penalty > 0}
        cases.append(case(f"length_penalty {penalty}", "t5", full=True, call=call))
    cases.append(case("truncation", "t5", ["a dog", LONG], call={**GREEDY, "truncation": True}))
    cases.append(case("truncation", "bart", ["a dog", LONG], full=True, call={**GREEDY, "truncation": True}))
    cases.append(case("no truncation", "t5", LONG, full=True, call=GREEDY))
    cases.append(case("no prefix", "bart", full=True, config={"prefix": None}, call=GREEDY))
    cases.append(case("all defaults", "t5", TEXTS[1], full=True))
    start = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    model = {"num_beams": 2, "max_new_tokens": 6}
    cases += [
        case("constructor", "t5", full=True, constructor={"max_new_tokens": 5, "num_beams": 2, "return_tensors": True}),
        case("constructor and call", "t5", constructor={"max_new_tokens": 5, "num_beams": 2}, call={"num_beams": 1}),
        case("constructor's max_length", "t5", constructor={"max_length": 6, "num_beams": 1}),
        case("call's max_length", "t5", call={"max_length": 6, "num_beams": 1}, oracle_call={"max_new_tokens": None}),
        case("model's max_length", "t5", full=True, generation={**start, "max_length": 7}, call={"num_beams": 1}),
        case("model's settings", "t5", full=True, generation={**start, **model}, oracle_call=model),
        case("generation_config", "t5", call={"generation_config": {"max_new_tokens": 5}}),
        case(
            "generation_config over constructor",
            "t5",
            full=True,
            constructor={"num_beams": 2, "min_length": 5},
            call={"generation_config": {"max_new_tokens": 5}, "min_length": 2},
        ),
    ]
    wrong = {"None": None, "number": 3, "mapping": {"a": 1}, "None in a list": ["a", None]}
    cases += [case(name, "t5", inputs, call=GREEDY) for name, inputs in wrong.items()]
    calls = {"unknown": {"foo": 1}, "prefix": {"prefix": "x"}, "src_lang": {"src_lang": "x"}}
    calls |= {"sequences": {"num_return_sequences": 2}, "no tokens": {"max_new_tokens": 0}}
    return cases + [case(name, "t5", TEXTS[0], call={**GREEDY, **call}) for name, call in calls.items()]


def summarization() -> list[dict[str, Any]]:
    open_end = {"max_new_tokens": None}
    advice = {"short": (6, 0, "a dog"), "long": (6, 0, "the cat sat on the mat.")}
    return [
        *forms("bart"),
        *beams("bart"),
        *forms("t5", call={"min_length": 0}),
        case("task_specific_params", "t5", full=True, oracle_call=open_end),
        case("task_specific_params, new tokens", "t5", full=True, call={"max_new_tokens": 5, "return_tensors": True}),
        case("task_specific_params, below its minimum", "t5", call={"max_new_tokens": 2, "num_beams": 1}),
        case("task_specific_params, call", "t5", call={**GREEDY, "min_length": 7}),
        case(
            "task_specific_params, constructor",
            "t5",
            constructor={"num_beams": 1, "min_length": 0, "max_new_tokens": 7},
            oracle_call={"num_beams": 1, "min_length": 0},
        ),
        case("truncation", "t5", LONG, full=True, call={**GREEDY, "truncation": True, "min_length": 0}),
        *(
            case(
                f"advice, {name}",
                "bart",
                text,
                constructor={"num_beams": 1, "max_length": longest, "min_length": shortest},
                call={"truncation": True},
            )
            for name, (longest, shortest, text) in advice.items()
        ),
    ]


def translation() -> list[dict[str, Any]]:
    pair = {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}
    german = {"src_lang": "deu_Latn", "tgt_lang": "eng_Latn"}
    return [
        *forms("m2m_100", call=pair),
        *beams("m2m_100", call=pair),
        case("constructor", "m2m_100", constructor=pair, call={**GREEDY, "return_tensors": True}),
        case("constructor and call", "m2m_100", constructor=pair, call={**GREEDY, "tgt_lang": "deu_Latn"}),
        case("from German", "m2m_100", call={**GREEDY, **german, "return_tensors": True}),
        case("batches", "m2m_100", call={**GREEDY, **pair, "batch_size": 2}),
        case("truncation", "m2m_100", LONG, full=True, call={**GREEDY, **pair, "truncation": True}),
        case("no languages", "m2m_100", TEXTS[0], call=GREEDY),
        case("no target", "m2m_100", TEXTS[0], call={**GREEDY, "src_lang": "eng_Latn"}),
        *forms("t5", task="translation_en_to_de"),
        case("to French", "t5", task="translation_en_to_fr", call={**GREEDY, "return_tensors": True}),
        case("to Spanish", "t5", task="translation_en_to_es", call=GREEDY),
        case("no direction", "t5", call=GREEDY),
        case("task_specific_params", "t5", full=True, task="translation_en_to_de", call={"max_new_tokens": 6}),
        case("languages without codes", "t5", task="translation_en_to_fr", call={**GREEDY, **pair}),
        *(
            case(f"advice, {name}", "bart", text, constructor={"num_beams": 1, "max_length": 12})
            for name, text in {"short": "a", "long": "the cat sat on the mat."}.items()
        ),
    ]


class Told(logging.Handler):
    """Counts records."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def outcome(pipe: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The output of a case, or the name of its error, and whether the length of the input was remarked on."""
    call = {**case.get("call", {}), **case.get("oracle_call", {})}
    if "generation_config" in call:
        call["generation_config"] = transformers.GenerationConfig(**call["generation_config"])
    inputs = case["inputs"]
    if case["form"] == "generator":
        inputs = (text for text in inputs)
    if case["form"] == "data set":
        inputs = KeyDataset([{"text": text} for text in inputs], "text")
    told = Told()
    LOGGER.addHandler(told)
    try:
        output = pipe(inputs, **call)
        output = output if isinstance(output, list) else list(output)
    except Exception as error:
        return {"error": type(error).__name__}
    finally:
        LOGGER.removeHandler(told)
    return {"output": plain(output), "told": told.count > 0, "task": pipe.task}


def plain(value: Any) -> Any:
    """Tensors as lists."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    """Writes the three files."""
    assert transformers.__version__ == "4.57.6", transformers.__version__
    transformers.logging.set_verbosity_error()
    LOGGER.setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    tasks = {"text2text-generation": text2text, "summarization": summarization, "translation": translation}
    with tempfile.TemporaryDirectory() as folder:
        for task, cases_of in tasks.items():
            lines, made = [], {}
            for case in cases_of():
                own = [case.get(key) for key in ("kind", "config", "generation")]
                key = json.dumps([*own, case.get("task"), case.get("constructor")])
                if key not in made:
                    path = recipe.write(own[0], Path(folder) / f"{task}{len(made)}", *own[1:])
                    arguments = {"model": str(path), "device": "cpu", **case.get("constructor", {})}
                    made[key] = transformers.pipeline(case.get("task", task), **arguments)
                pipe = made[key]
                lines.append(json.dumps({**case, **outcome(pipe, case)}, ensure_ascii=False))
            text = '{"transformers": "4.57.6", "cases": [\n' + ",\n".join(lines) + "\n]}\n"
            (HERE / f"{task.replace('-', '_')}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
