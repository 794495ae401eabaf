"""The pipelines beside Transformers' own, on tiny random checkpoints: structure, keys, texts and ids equal."""

import copy

import pytest

from jaxpipe.pipelines import KeyDataset, pipeline
from tests.pipelines.same import assert_same

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

PROMPTS = ["the cat", "a dog ate the rat and sat on the mat", "hello", "hello world again a dog"]
CHAT = [{"role": "user", "content": "the cat sat"}]
PREFILLED = [*CHAT, {"role": "assistant", "content": "on the"}]
GREEDY = {"do_sample": False, "max_new_tokens": 8}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, backend_of):
    """Directories by model type; gpt2 has no tokens around a text and no pad token, as on the Hub."""
    import torch
    import transformers as theirs

    root = tmp_path_factory.mktemp("checkpoints")
    common = {"vocab_size": 300, "initializer_range": 0.5, "bos_token_id": 0, "eos_token_id": 1}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "llama": theirs.LlamaConfig(**common, **sizes, num_key_value_heads=2, max_position_embeddings=128),
        "gpt2": theirs.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "bert": theirs.BertConfig(vocab_size=300, initializer_range=0.5, **sizes, max_position_embeddings=40),
    }
    heads = {"bert": theirs.AutoModel}
    template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    for name, config in configs.items():
        torch.manual_seed(0)
        model = heads.get(name, theirs.AutoModelForCausalLM).from_config(config).eval()
        model.save_pretrained(root / name)
        pad = {} if name == "gpt2" else {"pad_token": "<pad>"}
        tokenizer = theirs.PreTrainedTokenizerFast(
            tokenizer_object=backend_of(bos=name == "llama"),
            bos_token="<s>",
            eos_token="</s>",
            model_max_length=40,
            **pad,
        )
        if name == "llama":
            tokenizer.chat_template = template
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def pair_of(checkpoints):
    """(Transformers' pipeline, ours) of a model type, made once."""
    import transformers as theirs

    made = {}

    def pair(name, task="text-generation"):
        if name not in made:
            path = str(checkpoints / name)
            made[name] = (theirs.pipeline(task, model=path, device="cpu"), pipeline(task, model=path, device_map="cpu"))
        return made[name]

    return pair


FORMS = {
    "prompt": lambda: PROMPTS[0],
    "list of one": lambda: PROMPTS[:1],
    "list": lambda: PROMPTS,
    "generator": lambda: (prompt for prompt in PROMPTS),
}
CHAT_FORMS = {
    "chat": lambda: CHAT,
    "prefilled": lambda: PREFILLED,
    "list of chats": lambda: [CHAT, PREFILLED],
    "generator of chats": lambda: (chat for chat in [CHAT, PREFILLED]),
    "generator of messages": lambda: (message for message in PREFILLED),
}
PARAMETERS = {
    "plain": {},
    "new text": {"return_full_text": False},
    "full text": {"return_full_text": True},
    "return_text": {"return_text": True},
    "ids": {"return_tensors": True},
    "special tokens": {"skip_special_tokens": False},
    "prefix": {"prefix": "again "},
    "clean up": {"clean_up_tokenization_spaces": True},
    "no special tokens": {"add_special_tokens": False},
    "stop": {"stop_sequence": "a", "max_new_tokens": 20},
    "stops": {"stop_sequence": ["e", "t"], "max_new_tokens": 20},
    "truncation": {"truncation": True, "max_length": 4},
    "hole": {"handle_long_generation": "hole", "max_new_tokens": 36},
    "minimum": {"min_new_tokens": 6},
    "penalty": {"repetition_penalty": 1.5},
    "encode": {"tokenizer_encode_kwargs": {"truncation": True, "max_length": 3}},
    "several eos": {"eos_token_id": [1, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109]},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 2},
    "logits": {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2},
}


def run(pipe, inputs, arguments):
    result = pipe(inputs, **arguments)
    return result if isinstance(result, list) else list(result)


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_parameters(pair_of, name, parameters):
    theirs, ours = pair_of(name)
    arguments = {**GREEDY, **PARAMETERS[parameters]}
    assert_same(ours(PROMPTS, **arguments), theirs(PROMPTS, **arguments))


@pytest.mark.parametrize("parameters", ["plain", "ids"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(pair_of, form, parameters):
    theirs, ours = pair_of("llama")
    arguments = {**GREEDY, **PARAMETERS[parameters]}
    assert_same(run(ours, FORMS[form](), arguments), run(theirs, FORMS[form](), arguments))


@pytest.mark.parametrize(
    ("continue_final_message", "parameters"),
    [(None, "plain"), (True, "plain"), (False, "plain"), (None, "new text"), (None, "ids"), (None, "scores")],
)
@pytest.mark.parametrize("form", CHAT_FORMS)
def test_chats(pair_of, form, continue_final_message, parameters):
    theirs, ours = pair_of("llama")
    arguments = {**GREEDY, **PARAMETERS[parameters], "continue_final_message": continue_final_message}
    assert_same(run(ours, CHAT_FORMS[form](), arguments), run(theirs, CHAT_FORMS[form](), arguments))


@pytest.mark.parametrize("batch_size", [2, 3])
@pytest.mark.parametrize("parameters", ["plain", "new text", "special tokens", "stop"])
def test_our_batches_are_their_single_rows(pair_of, batch_size, parameters):
    theirs, ours = pair_of("llama")
    arguments = {**GREEDY, **PARAMETERS[parameters]}
    assert_same(ours(PROMPTS, batch_size=batch_size, **arguments), theirs(PROMPTS, batch_size=1, **arguments))


def test_their_batches(pair_of):
    theirs, ours = pair_of("llama")
    assert_same(ours(PROMPTS, batch_size=2, **GREEDY), theirs(PROMPTS, batch_size=2, **GREEDY))


def test_columns(pair_of):
    from transformers.pipelines.pt_utils import KeyDataset as TheirKeyDataset

    theirs, ours = pair_of("llama")
    rows = [{"text": prompt} for prompt in PROMPTS]
    wanted = list(theirs(TheirKeyDataset(rows, "text"), **GREEDY))
    assert_same(list(ours(KeyDataset(rows, "text"), **GREEDY)), wanted)
    assert_same(list(ours(TheirKeyDataset(rows, "text"), **GREEDY)), wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("arguments", [{}, {"return_tensors": True}, {"return_full_text": False}])
def test_empty_prompts(pair_of, name, arguments):
    theirs, ours = pair_of(name)
    assert_same(ours("", **GREEDY, **arguments), theirs("", **GREEDY, **arguments))


@pytest.mark.parametrize(
    "arguments", [{"max_length": 12}, {"max_length": 30}, {"max_length": 12, "prefix": "again "}, {"min_length": 12}]
)
@pytest.mark.parametrize("prompt", PROMPTS[:1])
def test_total_lengths(pair_of, prompt, arguments):
    theirs, ours = pair_of("llama")
    given = {"do_sample": False, "return_tensors": True, **arguments}
    given |= {} if "max_length" in arguments else {"max_new_tokens": 20}
    assert_same(ours(prompt, **given), theirs(prompt, **given))


def test_constructor_and_generation_config(pair_of, checkpoints):
    import transformers as oracle

    import jaxpipe

    path = str(checkpoints / "llama")
    init = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    theirs = oracle.pipeline("text-generation", model=path, device="cpu", **init)
    ours = pipeline("text-generation", model=path, device_map="cpu", **init)
    for call in ({}, {"max_new_tokens": 6}, {"return_full_text": True}, {"min_new_tokens": 4}):
        assert_same(ours(PROMPTS, **call), theirs(PROMPTS, **call))
    settings = {"do_sample": False, "max_new_tokens": 9}
    wanted = theirs("hello", generation_config=oracle.GenerationConfig(**settings))
    assert_same(ours("hello", generation_config=jaxpipe.GenerationConfig(**settings)), wanted)


@pytest.mark.parametrize(
    ("inputs", "arguments", "error"),
    [
        (None, {}, TypeError),
        ("a", {"return_full_text": True, "return_text": True}, ValueError),
        ("a", {"return_full_text": True, "return_tensors": True}, ValueError),
        ("a", {"return_text": True, "return_tensors": True}, ValueError),
        ("a", {"handle_long_generation": "gap"}, ValueError),
        ("a", {"handle_long_generation": "hole", "max_new_tokens": 60}, ValueError),
        ("a", {"no_such_argument": 3}, ValueError),
        ("a", {"num_return_sequences": 2, "do_sample": False}, ValueError),
        ([{"role": "user"}], {}, TypeError),
        ([CHAT[0], {"role": "user"}], {}, ValueError),
        (PROMPTS, {"max_new_tokens": 0}, ValueError),
    ],
)
def test_errors_are_of_the_same_kind(pair_of, inputs, arguments, error):
    for pipe in pair_of("llama"):
        with pytest.raises(error):
            pipe(inputs, **{**GREEDY, **arguments})


def test_errors_without_pad_token_and_template(pair_of):
    for pipe in pair_of("gpt2"):
        with pytest.raises(ValueError, match=r"pad.token"):
            pipe(PROMPTS, batch_size=2, **GREEDY)
        with pytest.raises(ValueError, match="template"):
            pipe(CHAT, **GREEDY)


def test_too_many_tokens_for_learned_positions(pair_of):
    theirs, ours = pair_of("gpt2")
    with pytest.raises(ValueError, match="positions"):
        ours("a dog ate the rat " * 12, **GREEDY)
    with pytest.raises((IndexError, RuntimeError)):
        theirs("a dog ate the rat " * 12, **GREEDY)


@pytest.mark.parametrize("form", ["prompt", "list"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"truncation": True, "tokenize_kwargs": {"max_length": 3}}, {"tokenize_kwargs": {"padding": "max_length"}}],
)
def test_features(pair_of, form, arguments):
    theirs, ours = pair_of("bert", "feature-extraction")
    got = ours(FORMS[form](), **arguments)
    # Transformers writes into the dictionary of tokenizer arguments, so it goes second.
    assert_same(got, theirs(FORMS[form](), **copy.deepcopy(arguments)))


@pytest.mark.parametrize("batch_size", [2, 4])
def test_batched_features_are_their_single_rows(pair_of, batch_size):
    theirs, ours = pair_of("bert", "feature-extraction")
    assert_same(ours(PROMPTS, batch_size=batch_size), theirs(PROMPTS))


def test_feature_arrays(pair_of):
    theirs, ours = pair_of("bert", "feature-extraction")
    assert ours("hello", return_tensors=True).shape == tuple(theirs("hello", return_tensors=True).shape)


def test_saving(pair_of, tmp_path):
    import transformers as oracle

    theirs, ours = pair_of("llama")
    ours.save_pretrained(tmp_path)
    wanted = theirs(CHAT, **GREEDY)
    assert_same(pipeline("text-generation", model=tmp_path, device_map="cpu")(CHAT, **GREEDY), wanted)
    assert_same(oracle.pipeline("text-generation", model=str(tmp_path), device="cpu")(CHAT, **GREEDY), wanted)
    assert pipeline(model=tmp_path).task == "text-generation"


def test_wrong_heads_are_refused(checkpoints):
    with pytest.raises((ValueError, RuntimeError), match="bert"):
        pipeline("text-generation", model=checkpoints / "bert")
