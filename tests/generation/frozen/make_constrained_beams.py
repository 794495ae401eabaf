"""Writes what the constrained beam search of Transformers 4.49.0 gives, the last version that has it in its core.

    python -m venv .venv-4.49 && .venv-4.49/bin/pip install transformers==4.49.0 torch safetensors numpy
    .venv-4.49/bin/python tests/generation/frozen/make_constrained_beams.py

It makes the checkpoints of `beam_group_models` and writes constrained_beams.json beside this file. Sequences are the
new tokens alone. ``constraints`` of a case are phrases, or lists of phrases of which one has to come, passed as
``force_words_ids``; where such phrases begin alike they are passed as objects whose copies do not share their state,
as those of 4.49.0 do. At the greatest length 4.49.0 lets sequences that lack a constraint compete with those that do
not; ``sequences`` has them behind, by a change made here, and ``as_it_is`` what comes without it, where that differs.
``fulfilled`` says which of the former hold all constraints.
"""

import itertools
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import beam_group_models as models
import numpy as np
import transformers
from make_group_beams import ends, load, rounded, run
from transformers.generation.beam_constraints import DisjunctiveConstraint
from transformers.generation.beam_search import BeamHypotheses

HERE = Path(__file__).parent
BEHIND = 1000.0
ADD = BeamHypotheses.add


class Apart(DisjunctiveConstraint):
    """A disjunction whose copies have a state of their own."""

    def copy(self, stateful: bool = False) -> Any:
        new = Apart(self.token_ids)
        if stateful:
            new.current_seq, new.completed = list(self.current_seq), self.completed
        return new


def holds(answer: list[int], words: list[Any]) -> bool:
    def has(phrase: list[int]) -> bool:
        return any(answer[i : i + len(phrase)] == phrase for i in range(len(answer)))

    return all(any(map(has, word)) if isinstance(word[0], list) else has(word) for word in words)


def add_behind(self: BeamHypotheses, hyp: Any, total: float, generated_len: int, **given: Any) -> None:
    """As `BeamHypotheses.add`; 4.49.0 gives no beam indices with sequences that lack a constraint, and then fails."""
    behind = 0 if "beam_indices" in given else BEHIND * generated_len**self.length_penalty
    ADD(self, hyp, total - behind, generated_len=generated_len, **{"beam_indices": (), **given})


def case(model: Any, prompt: Any, words: list[Any], rows: int = 3, apart: bool = False, **settings: Any) -> Any:
    ids, mask = (x[:rows] for x in prompt)
    objects = [Apart(word) for word in words] if apart else None
    given = {"constraints": objects} if apart else {"force_words_ids": words}
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]

    def outcome(**more: Any) -> Any:
        return run(model, ids, mask, **given, **settings, **more)

    as_it_is = outcome(output_scores=False).sequences[:, start:].tolist()
    BeamHypotheses.add = add_behind
    out = outcome()
    BeamHypotheses.add = ADD
    scores = out.sequences_scores.numpy()
    made = {
        "sequences": out.sequences[:, start:].tolist(),
        "sequences_scores": rounded(np.where(scores < -BEHIND / 2, scores + BEHIND, scores)),
        "beam_indices": out.beam_indices.tolist(),
    }
    fulfilled = [holds(answer, words) for answer in made["sequences"]]
    row = {"rows": rows, "words": words, "settings": settings, **made, "fulfilled": fulfilled}
    return row if as_it_is == made["sequences"] else row | {"as_it_is": as_it_is}


def cases(model: Any, model_type: str) -> list[dict[str, Any]]:
    prompt = models.prompts(model_type)
    eos = ends(model, *prompt)
    free = [token for token in range(3, models.VOCABULARY) if token not in eos]
    one, two, three = free[:1], free[5:7], free[9:12]
    common: dict[str, Any] = {"max_new_tokens": models.NEW, "pad_token_id": 0}
    kinds = [[one], [three], [two, one], [[two, three]], [[one, two], three]]
    found = []
    product = itertools.product((False, True, "never"), (1.0, 0.5, 2.0, -1.0))
    for i, (stopping, length) in enumerate(product):
        if model_type not in ("llama", "t5") and i not in (0, 5, 10):
            continue
        beams = (3, 4, 2, 6)[(i + i // 4) % 4]
        more = {"early_stopping": stopping, "length_penalty": length, "num_return_sequences": 1 + i % 2}
        settings = {"num_beams": beams, **more, **common, "eos_token_id": eos[: 1 + i % 2]}
        found.append(case(model, prompt, kinds[i % 5], **settings))
    search = {"num_beams": 5, "num_return_sequences": 3, "eos_token_id": eos[0]}
    alike = [[[free[2], free[3], free[4]], [free[2], free[8]]]]
    found.append(case(model, prompt, alike, apart=True, **search, **common))
    if model_type in ("llama", "t5"):
        processed = {"repetition_penalty": 1.4, "min_new_tokens": 4, "no_repeat_ngram_size": 2, "suppress_tokens": [7]}
        found.append(case(model, prompt, [two], **search, **common, **processed))
        found.append(case(model, prompt, [three, two], **search | {"eos_token_id": None}, **common))
        # More than there is room for.
        found.append(case(model, prompt, [three, two], **search, **common | {"max_new_tokens": 4}))
    if model_type == "llama":
        # What the prompt holds is fulfilled.
        found.append(case(model, prompt, [prompt[0][0, 5:7].tolist(), one], 1, **search, **common))
        found.append(case(model, prompt, [[int(prompt[0][0, -1]), free[6]]], 1, **search, **common))
    return found


def main() -> None:
    """Writes the file."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    assert transformers.__version__ == "4.49.0", transformers.__version__
    written = {}
    for model_type in models.CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            written[model_type] = cases(load(model_type, Path(directory)), model_type)
    rows = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, made)) + "\n]" for name, made in written.items()]
    (HERE / "constrained_beams.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
