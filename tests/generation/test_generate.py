"""`generate` as users call it, on a tiny Llama with random weights."""

import jax
import numpy as np
import pytest

from jaxpipe.auto import AutoConfig, AutoModel, AutoModelForCausalLM
from jaxpipe.generation.config import GenerationConfig
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.model import PreTrainedModel

VOCABULARY = 97


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        initializer_range=0.5,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config, seed=1)


def prompt(length: int, rows: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def new_tokens(model: PreTrainedModel, ids: np.ndarray, **settings: object) -> np.ndarray:
    return np.asarray(model.generate(ids, **settings))[:, ids.shape[1] :]


def test_greedy_equals_a_loop_over_the_forward_pass(model: PreTrainedModel) -> None:
    ids = prompt(5)
    out = model.generate(ids, max_new_tokens=6)
    assert isinstance(out, jax.Array) and out.dtype == np.int32
    for _ in range(6):
        logits = np.asarray(model(ids).logits)
        ids = np.concatenate([ids, logits[:, -1].argmax(-1)[:, None]], axis=1)
    np.testing.assert_array_equal(out, ids)


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"do_sample": True, "seed": 5, "temperature": 1.3}])
def test_rows_do_not_depend_on_neighbours_or_padding(model: PreTrainedModel, settings: dict) -> None:
    lengths = (3, 17, 1, 30, 9)
    rows = [prompt(n, seed=n)[0] for n in lengths]
    ids = np.zeros((len(rows), max(lengths)), int)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if i % 2 else slice(max(lengths) - len(row), None)  # padded on either side
        ids[i, place], mask[i, place] = row, 1
    together = np.asarray(model.generate(ids, mask, max_new_tokens=12, pad_token_id=0, **settings))
    for i, row in enumerate(rows):
        alone = new_tokens(model, row[None], max_new_tokens=12, item_indices=[i], **settings)
        np.testing.assert_array_equal(together[i, max(lengths) :], alone[0])


def test_masked_tokens_inside_a_row_are_as_good_as_absent(model: PreTrainedModel) -> None:
    ids = prompt(8)
    mask = np.array([[1, 1, 0, 1, 0, 0, 1, 1]])
    with_holes = np.asarray(model.generate(ids, mask, max_new_tokens=5))[:, 8:]
    np.testing.assert_array_equal(with_holes, new_tokens(model, ids[mask.astype(bool)][None], max_new_tokens=5))


def test_the_mask_is_inferred_from_padding_that_does_not_end_sequences(model: PreTrainedModel) -> None:
    ids = prompt(4)
    padded = np.concatenate([np.zeros((1, 3), int), ids], axis=1)
    inferred = np.asarray(model.generate(padded, max_new_tokens=5, pad_token_id=0))[:, 7:]
    np.testing.assert_array_equal(inferred, new_tokens(model, ids, max_new_tokens=5))


def test_ended_rows_are_padded_and_the_loop_ends_with_the_last(model: PreTrainedModel) -> None:
    ids = prompt(6, rows=2)
    plain = new_tokens(model, ids, max_new_tokens=20)
    ends = [int(plain[0, 2]), int(plain[1, 7])]
    first = [min(int(np.argmax(row == end)) for end in ends if end in row) for row in plain]
    out = new_tokens(model, ids, max_new_tokens=20, eos_token_id=ends, pad_token_id=0)
    assert out.shape[1] == max(first) + 1
    for row, answer, stop in zip(out, plain, first, strict=True):
        np.testing.assert_array_equal(row[: stop + 1], answer[: stop + 1])
        assert (row[stop + 1 :] == 0).all()


def test_sampling_repeats_by_seed_and_differs_without(model: PreTrainedModel) -> None:
    ids = prompt(4)
    draw = {"do_sample": True, "max_new_tokens": 16, "top_k": 0}
    first = new_tokens(model, ids, seed=3, **draw)
    np.testing.assert_array_equal(first, new_tokens(model, ids, seed=3, **draw))
    assert (first != new_tokens(model, ids, seed=4, **draw)).any()
    assert (new_tokens(model, ids, **draw) != new_tokens(model, ids, **draw)).any()


def test_returned_sequences_differ_and_do_not_depend_on_their_number(model: PreTrainedModel) -> None:
    ids = prompt(4, rows=2)
    draw = {"do_sample": True, "max_new_tokens": 10, "seed": 1}
    three = new_tokens(model, ids, num_return_sequences=3, **draw).reshape(2, 3, -1)
    assert (three[:, 0] != three[:, 1]).any()
    np.testing.assert_array_equal(three[:, 0], new_tokens(model, ids, **draw))


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.put_values: list[np.ndarray] = []
        self.ended = 0

    def put(self, value: np.ndarray) -> None:
        self.put_values.append(np.asarray(value))

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_sees_the_prompt_and_then_every_token(model: PreTrainedModel) -> None:
    ids, streamer = prompt(4), Collector()
    out = np.asarray(model.generate(ids, max_new_tokens=7, streamer=streamer))
    np.testing.assert_array_equal(streamer.put_values[0], ids)
    np.testing.assert_array_equal(np.concatenate(streamer.put_values[1:]), out[0, 4:])
    assert streamer.ended == 1
    np.testing.assert_array_equal(out, model.generate(ids, max_new_tokens=7))


def test_a_streamer_ends_also_when_a_criterion_raises(model: PreTrainedModel) -> None:
    def broken(input_ids: np.ndarray, scores: object) -> bool:
        raise RuntimeError("mine")

    streamer = Collector()
    with pytest.raises(RuntimeError, match="mine"):
        model.generate(prompt(4), max_new_tokens=7, streamer=streamer, stopping_criteria=[broken])
    assert streamer.ended == 1


def test_stopping_criteria_end_rows_one_by_one(model: PreTrainedModel) -> None:
    ids = prompt(4, rows=2)
    plain = new_tokens(model, ids, max_new_tokens=9)

    def criterion(input_ids: np.ndarray, scores: object) -> np.ndarray:
        return np.array([input_ids.shape[1] >= 4 + 3, input_ids.shape[1] >= 4 + 6])

    out = new_tokens(model, ids, max_new_tokens=9, stopping_criteria=[criterion], pad_token_id=0)
    assert out.shape == (2, 6)
    np.testing.assert_array_equal(out[0], [*plain[0, :3], 0, 0, 0])
    np.testing.assert_array_equal(out[1], plain[1, :6])


def test_scores_and_logits_are_returned_when_asked(model: PreTrainedModel) -> None:
    ids = prompt(5, rows=3)
    out = model.generate(
        ids,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        repetition_penalty=2.0,
    )
    assert len(out.scores) == len(out.logits) == 4
    whole = np.asarray(out.sequences)
    logits = np.asarray(model(whole).logits)
    for i in range(4):
        np.testing.assert_allclose(out.logits[i], logits[:, 4 + i], atol=1e-4)
        np.testing.assert_array_equal(out.scores[i].argmax(-1), whole[:, 5 + i])
    assert (out.scores[0] != out.logits[0]).any()
    assert model.generate(ids, max_new_tokens=2, return_dict_in_generate=True).scores is None


def test_without_a_prompt_generation_starts_from_bos(model: PreTrainedModel) -> None:
    np.testing.assert_array_equal(
        model.generate(bos_token_id=7, max_new_tokens=4), model.generate([[7]], max_new_tokens=4)
    )


def test_warmup_compiles_what_the_calls_then_run(model: PreTrainedModel) -> None:
    seconds = model.warmup(batch_sizes=(2,), prompt_lengths=(40,), max_new_tokens=30)
    assert set(seconds) == {"prefill 2x64", "decode 2x128"} and all(s > 0 for s in seconds.values())
    generator = model._generator
    before = generator.prefill._cache_size(), generator.decode._cache_size()
    model.generate(prompt(35, rows=2), max_new_tokens=25)
    assert (generator.prefill._cache_size(), generator.decode._cache_size()) == before


def test_warmup_compiles_what_streamed_calls_run() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=31, eos_token_id=None, **sizes))
    model.warmup(batch_sizes=(2,), prompt_lengths=(40,), max_new_tokens=30, streamed=True)
    generator = model._generator
    before = generator.prefill._cache_size(), generator.decode._cache_size()
    model.generate(np.ones((2, 35), int), max_new_tokens=25, stopping_criteria=[lambda ids, scores, **_: False])
    assert (generator.prefill._cache_size(), generator.decode._cache_size()) == before == (1, 1)


def test_compilations_are_no_more_than_the_buckets() -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=31,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    random = np.random.default_rng(0)
    calls = [(int(random.integers(1, 61)), int(random.integers(1, 9)), int(random.integers(2, 60))) for _ in range(20)]
    calls[0], calls[1] = (1, 1, 2), (60, 8, 59)
    prefills, decodes = set(), set()
    for length, rows, new in calls:
        model.generate(random.integers(1, 31, (rows, length)), max_new_tokens=new)
        batch = 1 << (rows - 1).bit_length()
        width = max(16, 1 << (length - 1).bit_length())
        slots = max(64, 1 << (width + new - 1).bit_length())
        prefills.add((batch, width, slots))
        decodes.add((batch, slots))
    generator = model._generator
    assert generator.prefill._cache_size() == len(prefills)
    assert generator.decode._cache_size() == len(decodes)
    before = len(compiled)
    assert before
    # Lengths, batch sizes and counts that were not seen before, in buckets that were; no helper compiles either.
    for length, rows, new in calls:
        model.generate(
            random.integers(1, 31, (rows, max(length - 1, 1) if length > 17 else length)), max_new_tokens=new
        )
    assert len(compiled) == before


def test_another_temperature_seed_or_eos_does_not_compile(model: PreTrainedModel) -> None:
    ids = prompt(5)
    draw = {"do_sample": True, "max_new_tokens": 4, "top_p": 0.9}
    model.generate(ids, temperature=0.5, top_k=40, seed=0, eos_token_id=3, **draw)
    generator = model._generator
    before = generator.prefill._cache_size(), generator.decode._cache_size()
    model.generate(ids, temperature=1.7, top_k=50, seed=1, eos_token_id=[4, 5], **{**draw, "top_p": 0.3})
    assert (generator.prefill._cache_size(), generator.decode._cache_size()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"max_new_token": 3}, "'max_new_token'.*max_new_tokens"),
        ({"max_length": 4}, "max_length"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature=nan"),
        ({"stop_strings": "x"}, "tokenizer"),
        ({"item_indices": [1, 2]}, "item_indices has 2"),
        ({"attention_mask": np.ones((1, 3))}, "attention_mask"),
        ({"attention_mask": np.ones((1, 3), int)}, r"attention_mask has shape \(1, 3\)"),
        ({"attention_mask": np.zeros((1, 4), int)}, "row 0"),
        ({"input_ids": [[1, 2], [3]]}, "different lengths"),
        ({"input_ids": [[1, VOCABULARY]]}, rf"input_ids\[0, 1\] is {VOCABULARY}; accepted are 0 to {VOCABULARY - 1}"),
        ({"input_ids": [[-1, 2]]}, r"input_ids\[0, 0\] is -1"),
        ({"input_ids": [1, 2]}, "shape"),
        ({"input_ids": np.zeros((0, 4), int)}, "at least 1"),
    ],
)
def test_bad_arguments_raise_before_anything_compiles(model: PreTrainedModel, arguments: dict, message: str) -> None:
    generator = model._generator
    before = generator.prefill._cache_size()
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": prompt(4), **arguments})
    assert generator.prefill._cache_size() == before


def test_a_streamer_takes_one_row(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="streamer"):
        model.generate(prompt(4, rows=2), max_new_tokens=3, streamer=Collector())


def test_settings_of_a_generation_config_are_followed(model: PreTrainedModel) -> None:
    settings = GenerationConfig(max_new_tokens=3)
    assert model.generate(prompt(4), generation_config=settings).shape == (1, 7)


def test_a_model_without_a_language_model_head_does_not_generate() -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    with pytest.raises(TypeError, match="AutoModelForCausalLM"):
        AutoModel.from_config(config).generate([[1]])
