"""translation and translation_XX_to_YY: tasks, directions, prefixes and the codes of languages."""

import types

import pytest

from jaxpipe.generation.config import GenerationConfig
from jaxpipe.pipelines import PIPELINE_REGISTRY, TranslationPipeline, check_task, pipeline
from jaxpipe.pipelines import factory as factory_module
from jaxpipe.pipelines.registry import SUPPORTED_TASKS, default_model, infer_task
from jaxpipe.pipelines.translation import languages_of
from tests.pipelines.conftest import make_tokenizer
from tests.pipelines.frozen import encoder_decoders as recipe
from tests.pipelines.seq2seq_model import START, ArithmeticSeq2Seq

GREEDY = {"num_beams": 1, "max_new_tokens": 4}
TEXTS = ["the cat", "a dog ate the rat", "hello"]
ENGLISH_FRENCH = {"src_lang": "eng_Latn", "tgt_lang": "fra_Latn"}
T5_TASKS = {
    "translation_en_to_de": {"prefix": "the ", "num_beams": 3},
    "translation_en_to_fr": {"prefix": "a ", "num_beams": 2},
}


@pytest.fixture(scope="module")
def language_tokenizer(tmp_path_factory):
    from jaxpipe.tokenization import AutoTokenizer

    return AutoTokenizer.from_pretrained(recipe.write("m2m_100", tmp_path_factory.mktemp("nllb")))


def make(task="translation", tokenizer=None, model=None, **parameters):
    made = ArithmeticSeq2Seq(**(model or {}))
    return pipeline(task, model=made, tokenizer=tokenizer or make_tokenizer(), **parameters)


# ---- names of tasks


@pytest.mark.parametrize(
    ("task", "languages"),
    [
        ("translation_en_to_fr", ("en", "fr")),
        ("translation_XX_to_YY", ("XX", "YY")),
        ("translation_eng_Latn_to_fra_Latn", ("eng_Latn", "fra_Latn")),
        ("translation_zh-CN_to_en", ("zh-CN", "en")),
        ("translation", None),
        ("translation_foo", None),
        ("translation_en_fr", None),
        ("translation_to_fr", None),
        ("translation_a_b_c_to_d", None),
    ],
)
def test_languages_of_tasks(task, languages):
    assert languages_of(task) == languages
    if languages:
        assert check_task(task) == ("translation", SUPPORTED_TASKS["translation"])


@pytest.mark.parametrize("task", ["translation_foo", "translation_en_fr", "translations"])
def test_tasks_that_name_no_languages(task):
    with pytest.raises(KeyError, match=f"Invalid translation task '{task}'; use .*translation_XX_to_YY"):
        pipeline(task)


def test_the_name_of_the_task_is_kept():
    pipe = make("translation_en_to_fr")
    assert isinstance(pipe, TranslationPipeline)
    assert pipe.task == "translation_en_to_fr"
    assert make("translation").task == "translation"


@pytest.mark.parametrize("target", ["fr", "de", "ro"])
def test_default_models(target):
    entry = SUPPORTED_TASKS["translation"]
    assert default_model(f"translation_en_to_{target}", entry) == ("google-t5/t5-base", "a9723ea")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ("translation_fr_to_en", r"default model for the options \('fr', 'en'\); give model=, or one of .*en_to_fr"),
        ("translation", "does not provide a default model without its languages.*translation_en_to_de"),
    ],
)
def test_no_default_model(task, text):
    with pytest.raises(ValueError, match=text):
        pipeline(task)


def test_the_default_model_is_loaded(monkeypatch):
    asked = []
    monkeypatch.setattr(factory_module, "resolve", lambda name, **more: asked.append((name, more)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline("translation_en_to_ro")
    assert asked == [("google-t5/t5-base", {"revision": "a9723ea"})]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("T5ForConditionalGeneration", "text2text-generation"),
        ("UMT5ForConditionalGeneration", "text2text-generation"),
        ("MBartForConditionalGeneration", "text2text-generation"),
        ("M2M100ForConditionalGeneration", "text2text-generation"),
        ("PegasusForConditionalGeneration", "text2text-generation"),
        ("MarianMTModel", "text2text-generation"),
        ("T5WithLMHeadModel", "text2text-generation"),
        ("Gemma3ForConditionalGeneration", "text-generation"),
        ("LlavaForConditionalGeneration", None),
        ("T5Model", "feature-extraction"),
    ],
)
def test_tasks_of_architectures(architecture, task):
    assert infer_task([architecture]) == task


def test_a_task_of_that_name_may_be_registered(monkeypatch):
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", dict(PIPELINE_REGISTRY.supported_tasks))
    loader = types.SimpleNamespace(from_pretrained=None)
    PIPELINE_REGISTRY.register_pipeline("translation_foo", TranslationPipeline, model_class=loader)
    assert check_task("translation_foo")[0] == "translation_foo"


# ---- prefixes


def test_the_prefix_of_a_direction():
    plain = make()
    pipe = make("translation_en_to_fr", model={"task_specific_params": T5_TASKS})
    assert pipe(TEXTS, **GREEDY) == plain(["a " + text for text in TEXTS], **GREEDY)
    pipe("hello", max_new_tokens=3)
    assert pipe.model.settled.num_beams == 2
    assert list(pipe("hello", **GREEDY)[0]) == ["translation_text"]
    assert list(pipe("hello", return_tensors=True, **GREEDY)[0]) == ["translation_token_ids"]


def test_without_a_direction_the_first_is_taken(caplog):
    pipe = make(model={"task_specific_params": {"summarization": {"prefix": "no "}, **T5_TASKS}})
    assert pipe.task == "translation_en_to_de"
    assert "names no languages; the model's translation_en_to_de is taken" in caplog.text
    assert pipe("cat", **GREEDY) == make()("the cat", **GREEDY)


def test_a_direction_that_the_model_has_not(caplog):
    pipe = make("translation_en_to_it", model={"task_specific_params": T5_TASKS})
    assert "no task_specific_params for 'translation_en_to_it'" in caplog.text
    assert pipe("cat", **GREEDY) == make()("cat", **GREEDY)


def test_languages_have_no_effect_without_codes():
    assert make()("cat", **GREEDY, **ENGLISH_FRENCH) == make()("cat", **GREEDY)


# ---- codes of languages


def begun(pipe, **call):
    """(First token that the encoder reads, first new token)."""
    ids = pipe("the cat", return_tensors=True, **GREEDY, **call)[0]["translation_token_ids"]
    assert ids[0] == START
    read = pipe.model.calls[-1]["input_ids"][0, 0]
    return pipe.tokenizer.convert_ids_to_tokens([int(read), ids[1]])


def test_codes(language_tokenizer):
    pipe = make(tokenizer=language_tokenizer)
    assert begun(pipe, **ENGLISH_FRENCH) == ["eng_Latn", "fra_Latn"]
    assert begun(pipe, src_lang="deu_Latn", tgt_lang="eng_Latn") == ["deu_Latn", "eng_Latn"]


def test_where_codes_come_from(language_tokenizer):
    named = make("translation_eng_Latn_to_fra_Latn", language_tokenizer)
    assert begun(named) == ["eng_Latn", "fra_Latn"]
    assert begun(named, tgt_lang="deu_Latn") == ["eng_Latn", "deu_Latn"]
    made = make("translation_eng_Latn_to_fra_Latn", language_tokenizer, src_lang="deu_Latn")
    assert begun(made) == ["deu_Latn", "fra_Latn"]
    assert begun(made, src_lang="eng_Latn") == ["eng_Latn", "fra_Latn"]
    assert begun(made) == ["deu_Latn", "fra_Latn"]


def test_codes_in_batches(language_tokenizer):
    pipe = make(tokenizer=language_tokenizer, **ENGLISH_FRENCH)
    alone = [pipe(text, **GREEDY)[0] for text in TEXTS]
    assert pipe(TEXTS, batch_size=2, **GREEDY) == alone
    assert list(pipe(iter(TEXTS), batch_size=3, **GREEDY)) == [[record] for record in alone]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ({}, "needs src_lang= and tgt_lang="),
        ({"src_lang": "eng_Latn"}, "tgt_lang=None"),
        ({**ENGLISH_FRENCH, "tgt_lang": "fra_Latin"}, "'fra_Latin' is no language.*Did you mean 'fra_Latn'"),
        ({**ENGLISH_FRENCH, "src_lang": "eng_latn"}, "'eng_latn' is no language"),
    ],
)
def test_wrong_languages(language_tokenizer, call, text):
    pipe = make(tokenizer=language_tokenizer)
    with pytest.raises(ValueError, match=text) as caught:
        pipe(TEXTS, **GREEDY, **call)
    assert caught.value.__notes__ == ["Raised for item 0 of the inputs."]


def test_wrong_kinds_of_languages(language_tokenizer):
    with pytest.raises(TypeError, match="src_lang= takes the code of a language, not int 3"):
        make(tokenizer=language_tokenizer)("a", src_lang=3)
    with pytest.raises(TypeError, match=r"tgt_lang="):
        make(tokenizer=language_tokenizer, tgt_lang=["fra_Latn"])
    with pytest.raises(ValueError, match="Did you mean 'tgt_lang'"):
        make()("a", tgt_lan="fr")


def test_the_first_token_is_set_once(language_tokenizer):
    pipe = make(tokenizer=language_tokenizer, **ENGLISH_FRENCH)
    with pytest.raises(ValueError, match="tgt_lang= sets forced_bos_token_id="):
        pipe("a", forced_bos_token_id=5)
    config = GenerationConfig(max_new_tokens=3, forced_bos_token_id=5)
    first = pipe("the cat", generation_config=config, return_tensors=True)[0]["translation_token_ids"][1]
    assert pipe.tokenizer.convert_ids_to_tokens(first) == "fra_Latn"


# ---- advice


@pytest.mark.parametrize(
    ("call", "said"),
    [({"max_length": 11}, "max_length=11, but a text has 10 tokens"), ({"max_length": 12}, ""), ({}, "")],
)
def test_a_translation_that_may_be_cut(caplog, call, said):
    make()(["ab", "zyxwvutsrq"], num_beams=1, **call)
    assert said in caplog.text
    assert len(caplog.records) == bool(said)
