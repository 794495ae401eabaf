"""Freezes what sentence-transformers makes of `sentence_encoders.REPOSITORIES`: sentence_modules.json.

Run from the root of the repository, where sentence-transformers 6.0.1 and its Transformers 5 are installed:

    HF_HUB_OFFLINE=1 python -m tests.pipelines.frozen.make_sentence_modules
"""

import json
import tempfile
from pathlib import Path

from tests.pipelines.frozen.sentence_encoders import ITEM, REPOSITORIES, TEXTS, write_repository


def main():
    import sentence_transformers
    from sentence_transformers import SentenceTransformer, util

    frozen = {"sentence_transformers": sentence_transformers.__version__, "embeddings": {}, "similarities": {}}
    for name in REPOSITORIES:
        with tempfile.TemporaryDirectory() as directory:
            model = SentenceTransformer(str(write_repository(directory, name)), device="cpu").eval()
            embeddings = [model.encode(text) for text in TEXTS]
            frozen["embeddings"][name] = [[round(float(number), 6) for number in row] for row in embeddings]
            source, others = model.encode(ITEM["source_sentence"]), model.encode(ITEM["sentences"])
            frozen["similarities"][name] = [round(float(number), 6) for number in util.cos_sim(source, others)[0]]
    path = Path(__file__).with_name("sentence_modules.json")
    path.write_text(json.dumps(frozen) + "\n")


if __name__ == "__main__":
    main()
