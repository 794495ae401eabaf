"""An encoder-decoder that is arithmetic, and notes how its `generate` was called."""

import jax
import numpy as np

from jaxpipe.generation.config import GenerationConfig, resolve
from tests.pipelines.conftest import ArithmeticModel

START = 2


class ArithmeticSeq2Seq(ArithmeticModel):
    """A row's answer depends on its own unmasked tokens alone; beams and return sequences are copies that differ.

    Args:
        generation: what the model's generation_config.json says.
        limit: number of positions, or None.
        **config: entries of config.json.
    """

    class_name = "ArithmeticSeq2Seq"

    def __init__(self, generation=None, limit=None, **config):
        generation = {"eos_token_id": 1, "decoder_start_token_id": START, **(generation or {})}
        super().__init__(300, GenerationConfig(**generation), {} if limit is None else {"position_ids": limit})
        self.config.is_encoder_decoder = True
        for name, value in config.items():
            setattr(self.config, name, value)

    def generate(
        self, input_ids=None, attention_mask=None, generation_config=None, tokenizer=None, seed=None, item_indices=None,
        decoder_input_ids=None, streamer=None, **settings,
    ):  # fmt: skip
        begun = np.full((len(input_ids), 1), START) if decoder_input_ids is None else np.asarray(decoder_input_ids)
        if (begun[:, 0] != START).all():
            begun = np.concatenate([np.full((len(begun), 1), START), begun], axis=1)
        self.calls.append({"input_ids": input_ids, "attention_mask": attention_mask, **settings})
        self.calls[-1] |= {"seed": seed, "item_indices": item_indices}
        settled = resolve(generation_config, self.generation_config, settings, prompt_length=begun.shape[1])
        self.settled = settled
        copies = settled.num_return_sequences
        new = np.full((len(input_ids) * copies, settled.max_new_tokens), settled.pad_token_id or 0)
        longest = 0
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            for copy in range(copies):
                start = int((ids * mask).sum()) + copy * 7 + int(begun[row, 1:].sum())
                start += (seed * 31 + item_indices[row]) if settled.do_sample else 0
                made = self._continue(start, settled, tokenizer)
                if settled.forced_bos_token_id is not None:
                    made[0] = settled.forced_bos_token_id
                new[row * copies + copy, : len(made)] = made
                longest = max(longest, len(made))
        sequences = np.concatenate([np.repeat(begun, copies, axis=0), new[:, :longest]], axis=1)
        return jax.numpy.asarray(sequences, np.int32)
