"""A tokenizer trained on a few words, and a model that is arithmetic: quick, exact, and it notes how it was called."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxpipe.common.outputs import BaseModelOutput
from jaxpipe.generation.config import GenerationConfig, resolve

CORPUS = ["the cat sat on the mat", "a dog ate the cat", "hello world again", "the rat sat on a dog and ate"] * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% if not loop.last or not continue_final_message %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def trained_backend(bos: bool = False):
    """A byte-level BPE ``tokenizers.Tokenizer``; with ``bos`` it puts ``<s>`` first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def make_tokenizer(bos: bool = False, **settings):
    """A `Tokenizer` over `trained_backend`; settings given as None are left out."""
    from jaxpipe.tokenization.tokenizer import Tokenizer

    given = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 64,
        **settings,
    }
    return Tokenizer(trained_backend(bos), {name: value for name, value in given.items() if value is not None})


class ArithmeticModel:
    """Follows the contract of ``PreTrainedModel``; a row's answer depends on its own unmasked tokens alone."""

    name_or_path = ""

    def __init__(self, vocabulary: int = 300, generation_config: GenerationConfig | None = None, limits=None):
        limits = limits or {}
        self.config = types.SimpleNamespace(
            is_encoder_decoder=False, limits=lambda: limits, longest_input=lambda: limits.get("position_ids")
        )
        self.generation_config = generation_config or GenerationConfig(bos_token_id=0, eos_token_id=1)
        self.vocabulary = vocabulary
        self.dtype = np.dtype(np.float32)
        self.mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        self.calls: list[dict] = []

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None):
        mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
        self.calls.append({"input_ids": input_ids, "attention_mask": mask})
        total = np.cumsum(input_ids * mask, axis=1)
        return BaseModelOutput(jax.numpy.asarray(np.stack([total, input_ids, mask], axis=2), np.float32))

    def generate(
        self, input_ids=None, attention_mask=None, generation_config=None, streamer=None, tokenizer=None, seed=None,
        item_indices=None, **settings,
    ):  # fmt: skip
        self.calls.append({"input_ids": input_ids, "seed": seed, "item_indices": item_indices, **settings})
        settled = resolve(generation_config, self.generation_config, settings, prompt_length=input_ids.shape[1])
        self.settled = settled
        copies = settled.num_return_sequences
        new = np.full((len(input_ids) * copies, settled.max_new_tokens), settled.pad_token_id or 0)
        longest = 0
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            for copy in range(copies):
                start = int((ids * mask).sum()) + copy * 7
                start += (seed * 31 + item_indices[row]) if settled.do_sample else 0
                made = self._continue(start, settled, tokenizer)
                new[row * copies + copy, : len(made)] = made
                longest = max(longest, len(made))
        sequences = np.concatenate([np.repeat(input_ids, copies, axis=0), new[:, :longest]], axis=1)
        if settled.return_dict_in_generate:
            steps = sequences[:, -longest:]
            scores = tuple(np.repeat(steps[:, step, None], 3, axis=1).astype(np.float32) for step in range(longest))
            return types.SimpleNamespace(sequences=sequences, scores=scores, logits=None)
        return jax.numpy.asarray(sequences, np.int32)

    def _continue(self, start, settled, tokenizer):
        made: list[int] = []
        for step in range(settled.max_new_tokens):
            # Now and then the end of sequence, so that rows of a batch end at different steps.
            token = 1 if (start + step) % 11 == 0 else 3 + (start * 5 + step * step) % (self.vocabulary - 3)
            made.append(token)
            if token in settled.eos_token_ids:
                break
            if settled.stop_strings and any(stop in tokenizer.decode(made) for stop in settled.stop_strings):
                break
        return made


@pytest.fixture(scope="session")
def tokenizer_of():
    """Makes a `Tokenizer`: ``tokenizer_of(bos=True, pad_token=None, ...)``."""
    return make_tokenizer


@pytest.fixture(scope="session")
def backend_of():
    """Makes the ``tokenizers.Tokenizer`` alone."""
    return trained_backend


@pytest.fixture(scope="session")
def model_of():
    """Makes an `ArithmeticModel`."""
    return ArithmeticModel


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return ArithmeticModel()


@pytest.fixture
def generator(model, tokenizer):
    from jaxpipe.pipelines import TextGenerationPipeline

    return TextGenerationPipeline(model, tokenizer)


@pytest.fixture
def extractor(model, tokenizer):
    from jaxpipe.pipelines import FeatureExtractionPipeline

    return FeatureExtractionPipeline(model, tokenizer)
