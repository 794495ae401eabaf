"""StarCoder2 (Lozhkov et al., 2024; arXiv 2402.19173), as bigcode/starcoder2-7b holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxpipe.common.gguf_spec import GGUFSpec
from jaxpipe.models.decoder import GGUF_TENSORS, DecoderConfig, classifiers
from jaxpipe.models.registry import BASE, CAUSAL_LM, Architecture, register
from jaxpipe.nn.activations import activation
from jaxpipe.nn.decoder import CausalLM
from jaxpipe.nn.init import Init
from jaxpipe.nn.linear import Linear
from jaxpipe.nn.norms import LayerNorm
from jaxpipe.nn.rotary_attention import RotaryAttention
from jaxpipe.nn.rotary_decoder import PreNormLayer, RotaryDecoder

Array = jax.Array


class Starcoder2Config(DecoderConfig):
    """Configuration of StarCoder2."""

    model_type: ClassVar[str] = "starcoder2"
    inert: ClassVar[frozenset[str]] = frozenset({"activation_function", "residual_dropout", "embedding_dropout"})
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mlp_type": ("default", None),
        "norm_type": ("layer_norm", None),
    }

    vocab_size: int = 49152
    hidden_size: int = 3072
    intermediate_size: int = 12288
    num_hidden_layers: int = 30
    num_attention_heads: int = 24
    num_key_value_heads: int = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.018042
    norm_epsilon: float = 1e-5
    use_bias: bool = True
    sliding_window: int | None = None
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256


class Starcoder2MLP(nnx.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: Starcoder2Config, init: Init):
        width, features, bias = config.hidden_size, config.intermediate_size, config.use_bias
        self.c_fc = Linear(init, width, features, bias=bias, axes=("embed", "mlp"))
        self.c_proj = Linear(init, features, width, bias=bias, axes=("mlp", "embed"))
        self.act = activation(config.hidden_act)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(self.act(self.c_fc(x)))


class Starcoder2Model(RotaryDecoder):
    """The decoder without a head; every layer sees the last tokens only, where the config gives a window."""

    def __init__(self, config: Starcoder2Config, init: Init):
        def norm() -> LayerNorm:
            return LayerNorm(init, config.hidden_size, config.norm_epsilon)

        def layer() -> PreNormLayer:
            given: dict[str, Any] = {"bias": config.use_bias, "window": config.sliding_window}
            attention = RotaryAttention(init, config.hidden_size, config.heads, **given)
            return PreNormLayer(attention, Starcoder2MLP(config, init), norm)

        layers = [layer() for _ in range(config.num_hidden_layers)]
        super().__init__(init, config.vocab_size, config.hidden_size, layers, norm(), config.rope())


class Starcoder2ForCausalLM(CausalLM):
    """The decoder with a language-model head."""

    def __init__(self, config: Starcoder2Config, init: Init):
        model = Starcoder2Model(config, init)
        super().__init__(init, model, config.hidden_size, config.vocab_size, tied=config.tie_word_embeddings)


register(
    Architecture(
        config=Starcoder2Config,
        heads={BASE: Starcoder2Model, CAUSAL_LM: Starcoder2ForCausalLM, **classifiers("Starcoder2", Starcoder2Model)},
        base="model",
        tied={"lm_head.weight": "embed_tokens.weight"},
        gguf=GGUFSpec(
            architecture="starcoder2",
            model_type="starcoder2",
            tensors={
                **GGUF_TENSORS,
                "blk.{bid}.ffn_up": "model.layers.{bid}.mlp.c_fc",
                "blk.{bid}.ffn_down": "model.layers.{bid}.mlp.c_proj",
            },
            config_keys={"attention.layer_norm_epsilon": "norm_epsilon"},
            flags={"use_bias": "blk.0.attn_q.bias"},
        ),
    )
)
