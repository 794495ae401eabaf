"""Text ranking beside a cross-encoder of Transformers: scores pair by pair, in the order of a stable sort."""

import json

import pytest

from jaxpipe.pipelines import pipeline
from tests.pipelines.frozen.encoders import byte_bpe_backend, wordpiece_backend
from tests.pipelines.same import assert_same

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

LIMIT = 40
QUERY = "who lives in paris ?"
DOCUMENTS = [
    "the cat sat on the mat",
    "sarah lives in paris and john lives in london",
    "",
    "paris is the capital of france . the river flows through the city",
    "a dog ate " * 30,
]
SPECIAL = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"},
    "roberta": {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"},
}


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    """(reference, ours) of a model type; the reference takes query, documents and arguments of the tokenizer."""
    import torch
    import transformers as theirs

    root, made = tmp_path_factory.mktemp("rankers"), {}
    backends = {"bert": wordpiece_backend, "roberta": byte_bpe_backend}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

    def write(name):
        backend = backends[name]()
        config = theirs.AutoConfig.for_model(
            name,
            vocab_size=backend.get_vocab_size(),
            initializer_range=0.5,
            max_position_embeddings=LIMIT + 2 * (name == "roberta"),
            type_vocab_size=1 + (name == "bert"),
            pad_token_id=backend.token_to_id(SPECIAL[name]["pad"]),
            num_labels=1,
            **sizes,
        )
        torch.manual_seed(1)
        theirs.AutoModelForSequenceClassification.from_config(config).eval().save_pretrained(root / name)
        theirs.PreTrainedTokenizerFast(
            tokenizer_object=backend,
            model_max_length=LIMIT,
            model_input_names=["input_ids", "attention_mask"] + ["token_type_ids"] * (name == "bert"),
            **{f"{kind}_token": token for kind, token in SPECIAL[name].items()},
        ).save_pretrained(root / name)
        return root / name

    def reference(path):
        model = theirs.AutoModelForSequenceClassification.from_pretrained(path)
        tokenizer = theirs.AutoTokenizer.from_pretrained(path)

        def rank(query, documents, function=torch.sigmoid, **arguments):
            arguments = {"truncation": "longest_first", **arguments}
            rows = [tokenizer([query], [document], return_tensors="pt", **arguments) for document in documents]
            with torch.no_grad():
                scores = [function(model(**row).logits).item() for row in rows]
            records = [{"index": i, "score": s, "document": documents[i]} for i, s in enumerate(scores)]
            return sorted(records, key=lambda record: record["score"], reverse=True)

        return rank

    def pair(name):
        if name not in made:
            path = write(name)
            made[name] = (reference(path), pipeline("text-ranking", model=path, device_map="cpu"))
        return made[name]

    return pair


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_scores_and_order(pair_of, name):
    theirs, ours = pair_of(name)
    wanted = theirs(QUERY, DOCUMENTS)
    assert_same(ours(query=QUERY, documents=DOCUMENTS), wanted)
    assert_same(ours([{"query": QUERY, "documents": DOCUMENTS}] * 2, batch_size=3), [wanted, wanted])
    assert_same(ours(QUERY, DOCUMENTS, top_k=2), wanted[:2])
    assert_same(ours(QUERY, DOCUMENTS, function_to_apply="none"), theirs(QUERY, DOCUMENTS, lambda logits: logits))


@pytest.mark.parametrize("arguments", [{"max_length": 16}, {"truncation": "only_second"}, {"truncation": True}])
def test_truncation(pair_of, arguments):
    theirs, ours = pair_of("bert")
    assert_same(ours(QUERY, DOCUMENTS, **arguments), theirs(QUERY, DOCUMENTS, **arguments))


def test_a_long_query(pair_of):
    theirs, ours = pair_of("bert")
    query = "who lives in paris ? " * 9
    assert_same(ours(query, DOCUMENTS), theirs(query, DOCUMENTS))


def test_the_function_in_config_json(pair_of, tmp_path):
    theirs, ours = pair_of("bert")
    ours.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    named = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    loaded = pipeline("text-ranking", model=tmp_path, device_map="cpu")
    wanted = theirs(QUERY, DOCUMENTS, lambda logits: logits)
    assert_same(loaded(QUERY, DOCUMENTS), wanted)
    loaded.save_pretrained(tmp_path / "again")
    assert_same(pipeline("text-ranking", model=tmp_path / "again", device_map="cpu")(QUERY, DOCUMENTS), wanted)
