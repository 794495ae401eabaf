"""Traits of the Hub's tokenizer classes: inputs, padding side and default special tokens.

A checkpoint names its class in tokenizer_config.json; where it does not, the model type tells. The vocabulary
and the splitting rules come from the files, never from here.
"""

import dataclasses
from typing import Any

IDS_AND_MASK = ("input_ids", "attention_mask")
IDS_TYPES_MASK = ("input_ids", "token_type_ids", "attention_mask")


@dataclasses.dataclass(frozen=True)
class Family:
    """Traits that a tokenizer class has where tokenizer_config.json does not say otherwise.

    ``splitting`` names the rules for bare vocabulary files: "bert", "gpt2", "roberta" or "qwen2".
    ``mask_takes_space`` tells whether the mask token takes the space before it.
    ``language`` is the source language of a translation model where none is given, ``language_first`` whether a
    language's code stands before the text and not behind it.
    """

    name: str = "TokenizersBackend"
    model_input_names: tuple[str, ...] = IDS_AND_MASK
    padding_side: str = "right"
    special_tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    splitting: str | None = None
    mask_takes_space: bool = False
    language: str | None = None
    language_first: bool = True


def _tokens(**tokens: str) -> dict[str, str]:
    return {f"{name}_token": token for name, token in tokens.items()}


_BERT = _tokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = _tokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_MBART50 = _tokens(eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_M2M100 = _tokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>")
_DEBERTA = _BERT | _tokens(bos="[CLS]", eos="[SEP]")
_GPT2 = _tokens(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>")
_QWEN2 = _tokens(eos="<|endoftext|>", unk="<|endoftext|>", pad="<|endoftext|>")
_LLAMA = _tokens(bos="<s>", eos="</s>", unk="<unk>")
_GEMMA = _tokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>")
_T5 = _tokens(eos="</s>", unk="<unk>", pad="<pad>")
_COHERE = _tokens(bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", unk="<UNK>", sep="<SEP>", pad="<PAD>")
_COHERE |= _tokens(cls="<CLS>", mask="<MASK_TOKEN>")
_ALBERT = _tokens(bos="[CLS]", eos="[SEP]", unk="<unk>", sep="[SEP]", pad="<pad>", cls="[CLS]", mask="[MASK]")

BASE = Family()
FAMILIES = {
    family.name: family
    for family in (
        BASE,
        Family("BertTokenizer", IDS_TYPES_MASK, special_tokens=_BERT, splitting="bert"),
        Family("ElectraTokenizer", IDS_TYPES_MASK, special_tokens=_BERT, splitting="bert"),
        Family("MobileBertTokenizer", IDS_TYPES_MASK, special_tokens=_BERT, splitting="bert"),
        Family("LxmertTokenizer", IDS_TYPES_MASK, special_tokens=_BERT, splitting="bert"),
        Family("DistilBertTokenizer", special_tokens=_BERT, splitting="bert"),
        Family("MPNetTokenizer", special_tokens=_ROBERTA | _tokens(unk="[UNK]"), splitting="bert"),
        Family("DebertaTokenizer", (*IDS_AND_MASK, "token_type_ids"), special_tokens=_DEBERTA),
        Family("DebertaV2Tokenizer", (*IDS_AND_MASK, "token_type_ids"), special_tokens=_DEBERTA),
        Family("AlbertTokenizer", special_tokens=_ALBERT),
        Family("RobertaTokenizer", special_tokens=_ROBERTA, splitting="roberta"),
        Family("BartTokenizer", special_tokens=_ROBERTA, splitting="roberta"),
        Family("XLMRobertaTokenizer", special_tokens=_ROBERTA),
        Family("CamembertTokenizer", special_tokens=_ROBERTA, mask_takes_space=True),
        Family(
            "MBartTokenizer", special_tokens=_ROBERTA, mask_takes_space=True, language="en_XX", language_first=False
        ),
        Family("MBart50Tokenizer", special_tokens=_MBART50, mask_takes_space=True, language="en_XX"),
        Family("NllbTokenizer", special_tokens=_ROBERTA, mask_takes_space=True, language="eng_Latn"),
        Family("M2M100Tokenizer", special_tokens=_M2M100, language="en"),
        Family("MarianTokenizer", special_tokens=_T5),
        Family("GPT2Tokenizer", special_tokens=_GPT2, splitting="gpt2"),
        Family("CodeGenTokenizer", special_tokens=_GPT2, splitting="gpt2"),
        Family("GPTNeoXTokenizer", special_tokens=_GPT2 | _tokens(pad="<|padding|>"), splitting="gpt2"),
        Family("WhisperTokenizer", special_tokens=_GPT2, splitting="gpt2"),
        Family("Qwen2Tokenizer", special_tokens=_QWEN2, splitting="qwen2"),
        Family("LlamaTokenizer", padding_side="left", special_tokens=_LLAMA),
        Family("CodeLlamaTokenizer", padding_side="left", special_tokens=_LLAMA),
        Family("GemmaTokenizer", padding_side="left", special_tokens=_GEMMA),
        Family("CohereTokenizer", padding_side="left", special_tokens=_COHERE),
        Family("T5Tokenizer", special_tokens=_T5),
        Family("PegasusTokenizer", special_tokens=_T5 | _tokens(mask="<mask_2>")),
    )
}

_MODEL_TYPES = {
    "BertTokenizer": "bert convbert distilbert electra ernie layoutlm megatron-bert nomic_bert squeezebert",
    "MobileBertTokenizer": "mobilebert",
    "MPNetTokenizer": "mpnet",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "AlbertTokenizer": "albert",
    "RobertaTokenizer": "roberta roberta-prelayernorm bart longformer data2vec-text",
    "XLMRobertaTokenizer": "xlm-roberta xmod trocr",
    "CamembertTokenizer": "camembert",
    "MBartTokenizer": "mbart",
    "MBart50Tokenizer": "mbart50",
    "NllbTokenizer": "nllb nllb-moe",
    "M2M100Tokenizer": "m2m_100",
    "MarianTokenizer": "marian",
    "GPT2Tokenizer": "gpt2 gpt_neo gptj codegen opt phi starcoder2 dbrx",
    "GPTNeoXTokenizer": "gpt_neox mamba mamba2 falcon_mamba mpt olmo olmoe rwkv",
    "WhisperTokenizer": "whisper",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen2_vl qwen2_5_vl qwen3 qwen3_moe qwen3_next qwen3_vl",
    "CodeLlamaTokenizer": "code_llama",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma t5gemma",
    "CohereTokenizer": "cohere cohere2",
    "T5Tokenizer": "t5 mt5 switch_transformers",
    "PegasusTokenizer": "pegasus",
    # Their checkpoints often name a class whose rules are not theirs; tokenizer.json alone counts.
    "TokenizersBackend": "mistral mistral3 mixtral ministral ministral3 pixtral phi3 phimoe olmo2 olmo3 granite "
    "granitemoe granitemoehybrid glm glm4 glm4_moe stablelm persimmon nemotron modernbert gpt_bigcode jamba "
    "internlm2 internlm3 minicpm3 llava llava_next smolvlm umt5 xlm-roberta-xl bigbird_pegasus pegasus_x",
}
FAMILY_OF_MODEL_TYPE = {model_type: name for name, types in _MODEL_TYPES.items() for model_type in types.split()}


def family_of(tokenizer_class: Any, model_type: Any, byte_level: bool = False) -> Family:
    """Returns the traits for a checkpoint's tokenizer class and model type.

    Args:
        tokenizer_class: as in tokenizer_config.json, with or without "Fast"; None where it is not given.
        model_type: as in config.json; None where it is not given.
        byte_level: whether tokenizer.json splits into bytes, which tells Llama 3 from Llama 2.
    """
    registered = FAMILY_OF_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if not isinstance(tokenizer_class, str):
        return FAMILIES[registered or BASE.name]
    name = tokenizer_class.removesuffix("Fast")
    if registered == BASE.name or (name == "LlamaTokenizer" and byte_level):
        return BASE
    return FAMILIES.get(name, BASE)
