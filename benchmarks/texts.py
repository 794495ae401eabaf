"""Texts of known lengths in tokens, the same for every worker."""

import numpy as np


def texts(tokenizer, count: int, shortest: int = 8, longest: int = 256, seed: int = 0) -> list[str]:
    """Returns texts whose lengths in tokens, two of them special, are log-uniform between two bounds.

    Args:
        tokenizer: a BERT tokenizer; words are those that it keeps whole.
        count: number of texts.
        shortest, longest: of a text, in tokens.
        seed: of the random numbers.
    """
    whole = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower())
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(shortest), np.log(longest + 1), count)).astype(int)
    return [" ".join(rng.choice(whole, length - 2)) for length in lengths]
