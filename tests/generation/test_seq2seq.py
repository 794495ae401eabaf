"""`generate` of encoder-decoders, on a tiny T5 and a tiny BART with random weights."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from jaxpipe.checkpoint.build import dotted
from jaxpipe.generation.run import Run
from jaxpipe.generation.settle import Settled
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel
from jaxpipe.sharding.mesh import use_mesh
from tests.parity.cases import CASES, SEQ2SEQ_LM, Case
from tests.parity.harness import Made, batch, made  # noqa: F401

VOCABULARY = 97


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    shape = {"d_model": 24, "d_kv": 7, "num_heads": 3, "d_ff": 40, "num_layers": 2, "vocab_size": VOCABULARY}
    settings = {"decoder_start_token_id": 0, "eos_token_id": None, "tie_word_embeddings": False}
    config = AutoConfig.for_model("t5", **shape, **settings)
    return AutoModelForSeq2SeqLM.from_config(config, seed=1)


@pytest.fixture(scope="module")
def bart() -> PreTrainedModel:
    layers = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in (("layers", 1), ("ffn_dim", 30))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 3, "d_model": 24, "init_std": 0.5}
    config = AutoConfig.for_model("bart", vocab_size=VOCABULARY, max_position_embeddings=40, **layers, **heads)
    return AutoModelForSeq2SeqLM.from_config(config, seed=1)


def source(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, (rows, length))


def answer(model: PreTrainedModel, ids: np.ndarray, mask: Any = None, **settings: Any) -> np.ndarray:
    return np.asarray(model.generate(ids, mask, **{"eos_token_id": None, "forced_eos_token_id": None, **settings}))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_greedy_is_what_the_forward_pass_finds_most_likely(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    ids, mask = source(13, rows=3), np.ones((3, 13), int)
    mask[1, 5:] = mask[2, :4] = 0
    out = answer(model, ids, mask, max_new_tokens=9)
    assert out.shape == (3, 10)
    assert (out[:, 0] == model.config.to_dict().get("decoder_start_token_id", 0)).all()
    logits = np.asarray(model(ids, mask, decoder_input_ids=out[:, :-1]).logits)
    np.testing.assert_array_equal(out[:, 1:], logits.argmax(-1))


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True, "seed": 5, "temperature": 1.3}])
def test_rows_do_not_depend_on_neighbours(t5: PreTrainedModel, settings: dict) -> None:
    lengths = (3, 17, 9)
    ids, mask = np.zeros((3, 17), int), np.zeros((3, 17), int)
    for i, n in enumerate(lengths):
        ids[i, :n], mask[i, :n] = source(n, seed=n)[0], 1
    together = answer(t5, ids, mask, max_new_tokens=8, **settings)
    for i, n in enumerate(lengths):
        alone = answer(t5, source(n, seed=n), max_new_tokens=8, item_indices=[i], **settings)
        np.testing.assert_array_equal(together[i], alone[0])


def test_padding_is_inferred_from_the_padding_token(t5: PreTrainedModel) -> None:
    ids = np.pad(source(6), ((0, 0), (0, 4)))
    np.testing.assert_array_equal(answer(t5, ids, max_new_tokens=5), answer(t5, ids[:, :6], max_new_tokens=5))


def test_several_sequences_of_one_source(t5: PreTrainedModel) -> None:
    out = answer(t5, source(6, rows=2), max_new_tokens=6, do_sample=True, num_return_sequences=3, seed=2, top_k=0)
    assert out.shape == (6, 7)
    assert len({tuple(row) for row in out.tolist()}) > 2


def test_the_answer_may_be_begun(t5: PreTrainedModel) -> None:
    ids = source(7, rows=2)
    free = answer(t5, ids, max_new_tokens=8)
    begun = answer(t5, ids, max_new_tokens=5, decoder_input_ids=free[:, :4])
    np.testing.assert_array_equal(begun, free)
    # Without the start token, it is put before.
    np.testing.assert_array_equal(answer(t5, ids, max_new_tokens=5, decoder_input_ids=free[:, 1:4]), free)


def test_forced_tokens(bart: PreTrainedModel) -> None:
    out = np.asarray(bart.generate(source(5, rows=2), max_new_tokens=6, forced_bos_token_id=7, eos_token_id=3))
    assert (out[:, 1] == 7).all()
    assert [(row == 3).any() or row[-1] == 2 for row in out]  # the config's forced_eos_token_id is 2
    with pytest.raises(ValueError, match=f"forced_bos_token_id={VOCABULARY}.*0 to {VOCABULARY - 1}"):
        bart.generate(source(5), max_new_tokens=6, forced_bos_token_id=VOCABULARY)


def test_lengths_count_the_decoder_s_tokens(bart: PreTrainedModel) -> None:
    assert answer(bart, source(30), max_length=5).shape == (1, 5)
    assert answer(bart, source(30), max_new_tokens=40).shape == (1, 41)
    with pytest.raises(ValueError, match=r"max_new_tokens=41 need 41 positions.*'bart' has learned 40"):
        answer(bart, source(3), max_new_tokens=41)
    with pytest.raises(ValueError, match="input_ids has 41 tokens, but 'bart' has positions for 40"):
        answer(bart, source(41), max_new_tokens=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": None}, "needs input_ids"),
        ({"decoder_start_token_id": None, "bos_token_id": None}, "decoder_start_token_id"),
        ({"decoder_start_token_id": VOCABULARY}, "decoder_start_token_id=97.*0 to 96"),
        ({"decoder_start_token_id": [1, 2]}, r"decoder_start_token_id=\[1, 2\]"),
        ({"decoder_input_ids": [[1], [2]]}, "decoder_input_ids has 2 rows, but input_ids has 1"),
        ({"decoder_input_ids": [[VOCABULARY]]}, r"decoder_input_ids\[0, 0\] is 97"),
        ({"attention_mask": [[0, 0, 0, 0]]}, "row 0"),
        ({"num_beams": 4, "num_return_sequences": 5}, "num_return_sequences=5 is more than num_beams=4"),
        ({"decoder_inputs": 1}, "decoder_inputs"),
    ],
)
def test_errors(t5: PreTrainedModel, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        t5.generate(**{"input_ids": source(4), "max_new_tokens": 3, **given})


def test_inputs_of_the_model_are_checked(t5: PreTrainedModel, bart: PreTrainedModel) -> None:
    ids = source(6, rows=2)
    with pytest.raises(ValueError, match="needs decoder_input_ids"):
        t5(ids)
    with pytest.raises(ValueError, match=r"decoder_attention_mask is given without decoder_input_ids"):
        t5(ids, decoder_attention_mask=ids)
    with pytest.raises(ValueError, match=r"decoder_input_ids has shape \(3, 2\), but input_ids has \(2, 6\)"):
        t5(ids, decoder_input_ids=source(2, rows=3))
    with pytest.raises(
        ValueError, match=r"decoder_attention_mask has shape \(2, 6\), but decoder_input_ids has \(2, 2\)"
    ):
        t5(ids, decoder_input_ids=source(2, rows=2), decoder_attention_mask=ids)
    with pytest.raises(TypeError, match="takes no input 'position_ids'; it takes input_ids, attention_mask, decoder_"):
        t5(ids, decoder_input_ids=ids, position_ids=ids)
    with pytest.raises(ValueError, match=r"\(decoder_input_ids\) has 41 tokens"):
        bart(ids, decoder_input_ids=source(41, rows=2))
    base = AutoModel.from_config(t5.config)
    with pytest.raises(TypeError, match="AutoModelForSeq2SeqLM"):
        base.generate(ids)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.seen.append(np.asarray(value).ravel().tolist())

    def end(self) -> None:
        self.ended = True


def test_streaming_gives_the_same_tokens(t5: PreTrainedModel) -> None:
    streamer = Collector()
    out = answer(t5, source(5), max_new_tokens=6, streamer=streamer)
    assert streamer.ended and [i for put in streamer.seen for i in put] == out[0].tolist()


def test_what_is_returned_beside_the_sequences(t5: PreTrainedModel) -> None:
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out: Any = t5.generate(source(5, rows=2), max_new_tokens=4, repetition_penalty=2.0, **asked)
    assert out.sequences.shape == (2, 5) and len(out.scores) == len(out.logits) == 4
    np.testing.assert_array_equal(np.stack(out.scores, 1).argmax(-1), out.sequences[:, 1:])
    assert not np.array_equal(out.scores[0], out.logits[0])  # the start token counts


def test_lengths_of_one_bucket_compile_once(t5: PreTrainedModel) -> None:
    generator = t5._generator
    warmed = t5.warmup(batch_sizes=(2,), prompt_lengths=(20,), max_new_tokens=10)
    assert set(warmed) == {"prefill 2x32", "decode 2x64"}
    count = generator.prefill._cache_size(), generator.decode._cache_size()
    for length, new in ((17, 3), (32, 10), (25, 7)):
        t5.generate(source(length, rows=2), max_new_tokens=new)
    assert (generator.prefill._cache_size(), generator.decode._cache_size()) == count


def test_a_decode_step_reads_no_weight_of_the_encoder_and_copies_no_cache(bart: PreTrainedModel) -> None:
    generator = bart._generator
    settled = Settled(prompt_length=1, max_new_tokens=6)
    with use_mesh(bart.mesh):
        prompts = generator.prompts(source(20, rows=3), None, bart.generation_config, None, {})
        run = Run(generator, prompts, settled, range(3), 0)
        compiled = generator.decode.lower(generator.leaves, run.state, run._choice, np.int32(5)).compile()
        leaves = [
            leaf * np.nan if re.search(r"encoder\.|key_value", dotted(path).replace("encoder_attn", "")) else leaf
            for path, leaf in zip(bart._built.paths, generator.leaves, strict=True)
        ]
        batch, slots, heads, width = run.state.cache.memory.layers[0].keys.shape
        state, _ = generator.decode(leaves, run.state, run._choice, np.int32(5))
    assert sum(bool(np.isnan(leaf).any()) for leaf in leaves) > 5
    free = np.asarray(bart.generate(source(20, rows=3), max_new_tokens=6, eos_token_id=None, forced_eos_token_id=None))
    np.testing.assert_array_equal(np.asarray(state.tokens)[:3, :7], free)
    assert slots == 32
    assert not re.findall(rf"= f32\[{batch},{slots},{heads},{width}\]\S* copy\(", compiled.as_text())
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves(run_cache(state)))


def run_cache(state: Any) -> Any:
    return state.cache.layers, state.cache.memory.layers


def first(model_type: str) -> Case:
    return next(case for case in CASES[model_type][0] if case.head == SEQ2SEQ_LM)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("t5", {"repetition_penalty": 1.7, "min_new_tokens": 6, "eos_token_id": 9}),
        ("t5", {"decoder_input_ids": [[0, 5, 6]] * 3, "max_new_tokens": 7}),
        ("t5", {"decoder_input_ids": [[5, 6]] * 3, "max_new_tokens": 7, "repetition_penalty": 0.8}),
        ("bart", {"forced_bos_token_id": 17, "forced_eos_token_id": 2, "max_new_tokens": 9}),
        ("bart", {"forced_bos_token_id": 17, "forced_eos_token_id": [4, 2], "max_length": 9, "min_length": 8}),
        ("m2m_100", {"forced_bos_token_id": 17, "max_new_tokens": 12, "decoder_start_token_id": 30}),
    ],
    ids=str,
)
def test_settings_do_what_they_do_in_transformers(
    model_type: str,
    settings: dict[str, Any],
    made: Callable[[Case], Made],  # noqa: F811
) -> None:
    import torch

    checkpoint = made(first(model_type))
    ids, mask = batch(first(model_type), "right")
    given = {"max_new_tokens": 8, "pad_token_id": 0} if "max_length" not in settings else {"pad_token_id": 0}
    given |= settings
    arrays = {k: torch.tensor(v) for k, v in given.items() if k == "decoder_input_ids"}
    theirs = checkpoint.oracle_greedy(ids, mask, **{**given, **arrays})
    np.testing.assert_array_equal(np.asarray(checkpoint.ours.generate(ids, mask, **given)), theirs)
