"""Tokenizers: loading and conversion, encoding and decoding, chat templates."""

from jaxpipe.tokenization.auto import AutoTokenizer
from jaxpipe.tokenization.batch import BatchEncoding
from jaxpipe.tokenization.tokenizer import Tokenizer

__all__ = ["AutoTokenizer", "BatchEncoding", "Tokenizer"]
