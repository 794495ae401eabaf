import itertools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxpipe.generation.stopping import MaxTime, StopStrings, eos_array, is_eos, stopped_by, token_bytes


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "st", "op", "stop", "Ġstop", "topper", "las", "ab", "aba", "ÃŁ", "opĠit", "<|end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<a b>"])
    return tokenizer


def _byte_fallback() -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefstop▁ß", "▁stop", "st", "op", "ope"]
    tokenizer = Tokenizer(
        models.BPE(vocab={p: n for n, p in enumerate(pieces)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _wordpiece() -> Tokenizer:
    pieces = ["[UNK]", "abc", "##def", "abcdef", "st", "##op", "##o", "##p", "stop", "it", "##s", "##ab", "ab", "##a"]
    tokenizer = Tokenizer(models.WordPiece(vocab={p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


TOKENIZERS = {"byte level": _byte_level, "byte fallback": _byte_fallback, "wordpiece": _wordpiece}


def _ids(tokenizer: Tokenizer, pieces: list[str]) -> list[int]:
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    assert None not in ids
    return ids


def test_eos_ids_fill_a_bucket() -> None:
    assert eos_array([7]).tolist() == [7, -1, -1, -1]
    assert len(eos_array([])) == 4 and len(eos_array(range(5))) == 8
    check = jax.jit(is_eos)
    tokens = jnp.array([7, 3, -1])
    assert check(tokens, eos_array([7])).tolist() == [True, False, False]
    assert check(tokens, eos_array([2, 3, 7])).tolist() == [True, True, False]
    assert check(tokens, eos_array([])).tolist() == [False, False, False]
    assert check._cache_size() == 1


@pytest.mark.parametrize(
    ("pieces", "keep"),
    [
        (["st", "op"], 2),
        (["s", "t", "op", "s"], 3),
        (["stop", "a"], 1),
        (["las", "topper"], 2),
        (["st", "opĠit"], 2),
        (["Ġstop"], 1),
        (["st", "a", "op"], None),
        (["s", "op"], None),
        (["<|end|>", "st", "op"], 3),
    ],
)
def test_a_text_is_found_across_token_borders(pieces: list[str], keep: int | None) -> None:
    tokenizer = _byte_level()
    ids = _ids(tokenizer, ["a", *pieces])
    assert StopStrings(tokenizer, ["never", "stop"]).first_stop(ids, 1) == keep


def test_a_text_may_begin_but_not_end_in_the_prompt() -> None:
    tokenizer = _byte_level()
    stop = StopStrings(tokenizer, "stop")
    assert stop.first_stop(_ids(tokenizer, ["stop", "a", "b"]), 1) is None
    assert stop.first_stop(_ids(tokenizer, ["s", "t", "o", "p"]), 3) == 1
    assert stop.first_stop(_ids(tokenizer, ["stop"]), 1) is None


def test_text_in_the_middle_of_a_characters_bytes() -> None:
    tokenizer = _byte_level()
    ids = [tokenizer.token_to_id("a"), *(tokenizer.token_to_id(c) for c in "ÃŁ")]
    assert StopStrings(tokenizer, "ß").first_stop(ids, 1) == 2
    assert StopStrings(tokenizer, "ß").first_stop(ids[:2], 1) is None


def test_special_tokens_and_unknown_ids() -> None:
    tokenizer = _byte_level()
    assert StopStrings(tokenizer, "<|end|>").first_stop(_ids(tokenizer, ["a", "<|end|>"]), 1) == 1
    assert StopStrings(tokenizer, "a b").first_stop(_ids(tokenizer, ["a", "<a b>"]), 1) == 1
    between = [tokenizer.token_to_id("st"), 100_000, tokenizer.token_to_id("op")]
    assert StopStrings(tokenizer, "stop").first_stop(between, 0) is None
    assert token_bytes(tokenizer)(-1) == b"\xff"


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_calls_token_by_token_find_what_one_call_finds(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    rng = random.Random(0)
    stop = StopStrings(tokenizer, ["stop", "aba", "tops"])
    pieces = token_bytes(tokenizer)
    found = 0
    for _ in range(300):
        ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(3)]
        ids += _ids_of_letters(tokenizer, rng)
        whole = stop.first_stop(ids, 2)
        steps = (n for n in range(1, len(ids) - 1) if stop.first_stop(ids[: 2 + n], 2, checked=n - 1) is not None)
        assert next(steps, None) == whole
        if whole is not None:
            found += 1
            text = b"".join(map(pieces, ids[: 2 + whole]))
            assert any(wanted in text for wanted in (b"stop", b"aba", b"tops"))
    assert found > 20


def _ids_of_letters(tokenizer: Tokenizer, rng: random.Random) -> list[int]:
    """Random tokens, most of which hold letters of the texts that are looked for."""
    vocab = tokenizer.get_vocab()
    fitting = [
        n for piece, n in sorted(vocab.items()) if set(piece.strip("#▁Ġ")) <= set("stopab") and piece.strip("#▁Ġ")
    ]
    return [rng.choice(fitting) for _ in range(12)]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_stops_where_the_oracle_stops(kind: str) -> None:
    import torch
    import transformers

    tokenizer = TOKENIZERS[kind]()
    strings = ["stop", "aba", "ops ", "s"] if kind == "wordpiece" else ["stop", "aba", "it", "ß", " st"]
    rng = random.Random(1)
    for chosen in itertools.combinations(strings, 2):
        theirs = transformers.StopStringCriteria(
            transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer), list(chosen)
        )
        ours = StopStrings(tokenizer, chosen)
        for _ in range(30):
            ids = _ids_of_letters(tokenizer, rng)
            if kind != "wordpiece" and rng.random() < 0.5:
                sharp_s = ["<0xC3>", "<0x9F>"] if kind == "byte fallback" else ["Ã", "Ł"]
                ids[6:6] = _ids(tokenizer, sharp_s)
            ends = (n for n in range(1, len(ids) - 2) if bool(theirs(torch.tensor([ids[: 3 + n]]), None)[0]))
            assert ours.first_stop(ids, 3) == next(ends, None), (chosen, [tokenizer.id_to_token(i) for i in ids])


def test_stop_strings_are_checked() -> None:
    with pytest.raises(ValueError, match="tokenizer="):
        StopStrings(None, "stop")
    for strings in ([], [""], ["a", 3]):
        with pytest.raises(ValueError, match="none of them empty"):
            StopStrings(_byte_level(), strings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="object"):
        StopStrings(object(), "stop")


def test_criteria_of_users_are_joined() -> None:
    ids = np.arange(6).reshape(3, 2)

    def after_three(input_ids: np.ndarray, scores: Any, **kwargs: Any) -> np.ndarray:
        return input_ids[:, -1] > 3

    assert stopped_by([after_three, lambda ids, scores: False], ids).tolist() == [False, False, True]
    assert stopped_by([lambda ids, scores: True], ids).all()
    assert stopped_by([lambda ids, scores: jnp.array([True, False, False])], ids).tolist() == [True, False, False]
    assert not stopped_by([], ids).any()
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        stopped_by([lambda ids, scores: np.zeros(2, bool)], ids)
    with pytest.raises(ValueError, match="int64"):
        stopped_by([lambda ids, scores: np.zeros(3, np.int64)], ids)


def test_time_is_up_once_it_has_passed() -> None:
    now = [10.0]
    limit = MaxTime(5.0, clock=lambda: now[0])
    assert not limit.expired()
    now[0] = 15.5
    assert limit.expired()
    assert limit(np.zeros((2, 1), int)).tolist() == [True, True]
