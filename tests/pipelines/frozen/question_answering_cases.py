"""The calls whose outputs are frozen in question_answering.json."""

from collections.abc import Callable
from typing import Any

QUESTION = "where does sarah live ?"
OTHER = "Who works at Hugging Face?"
CONTEXT = "Sarah works at Microsoft and lives in Paris. John lives in London, not in Paris."
SHORT = "Wolfgang lives in New York"
# Several pieces; words that no vocabulary has, two spaces, other letters, and answers that differ only in case.
LONG = (
    "My name is Wolfgang and I live in Berlin. Sarah was born in York, 1987, and works for Hugging Face in PARIS.  The "
    "river flows through Paris and the city of London; Zoë's dog ate the cat, who sat on the mat. Paris is the capital."
)
PAIR = {"question": QUESTION, "context": CONTEXT}
SECOND = {"question": OTHER, "context": LONG}

# Name -> positional and named arguments, made anew for every call as some are iterators.
FORMS: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "question and context": lambda: ((), dict(PAIR)),
    "two texts": lambda: ((QUESTION, CONTEXT), {}),
    "mapping": lambda: ((PAIR,), {}),
    "data": lambda: ((), {"data": PAIR}),
    "X": lambda: ((), {"X": [PAIR, SECOND]}),
    "list of one": lambda: (([PAIR],), {}),
    "list": lambda: (([PAIR, SECOND],), {}),
    "tuple": lambda: (((PAIR, SECOND),), {}),
    "several mappings": lambda: ((PAIR, SECOND), {}),
    "mapping of lists": lambda: (({"question": [QUESTION, OTHER], "context": [CONTEXT, LONG]},), {}),
    "lists": lambda: ((), {"question": [QUESTION, OTHER], "context": [CONTEXT, LONG]}),
    "lists of one": lambda: ((), {"question": [QUESTION], "context": [CONTEXT]}),
    "questions of one context": lambda: ((), {"question": [QUESTION, OTHER], "context": CONTEXT}),
    "empty list": lambda: (([],), {}),
    "empty lists": lambda: ((), {"question": [], "context": []}),
    "generator": lambda: (((pair for pair in [PAIR, SECOND]),), {}),
    "generator of one": lambda: (((pair for pair in [PAIR]),), {}),
    "generator with more keys": lambda: ((({**pair, "id": 7} for pair in [PAIR, SECOND]),), {}),
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top 3": {"top_k": 3},
    "topk": {"topk": 2},
    "no words": {"align_to_words": False, "top_k": 4},
    "short answers": {"max_answer_len": 1, "top_k": 2},
    "answers of three tokens": {"max_answer_len": 3, "top_k": 3},
    "long answers": {"max_answer_len": 40, "top_k": 2},
    "impossible": {"handle_impossible_answer": True},
    "impossible among many": {"handle_impossible_answer": True, "top_k": 4, "max_answer_len": 2},
    "no stride": {"doc_stride": 0},
    "stride": {"doc_stride": 8, "top_k": 2},
    "small pieces": {"max_seq_len": 28, "doc_stride": 6},
    "small pieces, default stride": {"max_seq_len": 36, "top_k": 3},
    "padding": {"padding": "max_length", "top_k": 2},
    "longest": {"padding": "longest"},
    "question length": {"max_question_len": 2},
}
CONTEXTS = {"short": SHORT, "one": CONTEXT, "long": LONG}

# Name -> arguments that the oracle refuses; the type of its exception is frozen.
ERRORS: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "empty question": lambda: ((), {"question": "", "context": CONTEXT}),
    "no question": lambda: ((), {"question": None, "context": CONTEXT}),
    "empty context": lambda: ((), {"question": QUESTION, "context": ""}),
    "no context": lambda: ((), {"question": QUESTION, "context": None}),
    "None in a list": lambda: (([PAIR, {"question": None, "context": CONTEXT}],), {}),
    "missing key": lambda: (({"question": QUESTION},), {}),
    "one question, contexts": lambda: ((), {"question": QUESTION, "context": [CONTEXT, LONG]}),
    "different lengths": lambda: ((), {"question": [QUESTION, OTHER], "context": [CONTEXT]}),
    "nothing": lambda: ((), {}),
    "top_k 0": lambda: ((), {**PAIR, "top_k": 0}),
    "max_answer_len 0": lambda: ((), {**PAIR, "max_answer_len": 0}),
    "doc_stride": lambda: ((), {**PAIR, "doc_stride": 60}),
}


def calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns every call by name; iterators in it can be read once."""
    made = {f"form: {name}": form() for name, form in FORMS.items()}
    for name, given in PARAMETERS.items():
        for length, context in CONTEXTS.items():
            made[f"{name}: {length}"] = ((), {"question": QUESTION, "context": context, **given})
    return made


def plain(result: Any) -> Any:
    """Returns a result with iterators as ``{"lazy": [...]}``."""
    return result if isinstance(result, (dict, list)) else {"lazy": list(result)}
