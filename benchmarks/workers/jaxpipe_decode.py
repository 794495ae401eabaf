"""Worker: generates with jaxpipe. Settings: shape, dtype, device_map, cycle."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from harness import serve
from shapes import SHAPES

from jaxpipe.auto import AutoConfig, AutoModelForCausalLM
from jaxpipe.generation.streamers import BaseStreamer
from jaxpipe.nn.cache import Cache, CacheLayout

settings = json.loads(sys.argv[1])
start = time.perf_counter()
# The length of the cycles of tokens that the model goes through for ever; without it no token follows from another.
cycle = settings.get("cycle")
config = AutoConfig.for_model(**{**SHAPES[settings["shape"]], **({"tie_word_embeddings": False} if cycle else {})})
model = AutoModelForCausalLM.from_config(config, dtype=settings["dtype"], device_map=settings.get("device_map"))
jax.block_until_ready(model.functional()[1])
made = time.perf_counter() - start


def turn(leaves: list[jax.Array], names: list[str]) -> None:
    """Changes the weights so that the model repeats texts: layers hardly matter, and the head puts out what comes next
    in the cycle that the token belongs to. Nothing is read or computed less than before.
    """
    place = {name: i for i, name in enumerate(names)}
    embedding = leaves[place["model.embed_tokens.embedding"]]
    ids = np.arange(config.vocab_size)
    before = ids - ids % cycle + (ids - 1) % cycle
    leaves[place["lm_head.kernel"]] = jax.jit(lambda x, ids: x[ids].T)(embedding, before)
    for name, i in place.items():
        if name.endswith(("o_proj.kernel", "down_proj.kernel")):
            leaves[i] = jax.jit(lambda x: x * 1e-3, donate_argnums=0)(leaves[i])


class Counter(BaseStreamer):
    """Takes tokens and does nothing with them."""

    def put(self, value: np.ndarray) -> None:
        """Takes the prompt or a token."""

    def end(self) -> None:
        """Takes the end."""


def prompts(batch: int, length: int) -> np.ndarray:
    """Random ids (batch, length), or one of the model's cycles."""
    if cycle:
        return np.tile(cycle + np.arange(length) % cycle, (batch, 1))
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Returns a jitted function that notes how long it took, once what it is given was there."""

    def call(*arguments: Any) -> Any:
        jax.block_until_ready(arguments)  # a long prompt's parts are only queued
        start = time.perf_counter()
        out = jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
        return out

    return call


def in_parts(decode: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """Returns a decode that takes its steps in as many dispatches."""

    def call(leaves: Any, state: Any, choice: Any, steps: Any) -> Any:
        last = None
        for _ in range(parts):
            state, last = decode(leaves, state, choice, np.int32(steps // parts))
        return state, last

    return call


def call_and_alone(generate: Callable[[], Any], times: int) -> list[tuple[float, float]]:
    """Returns the seconds of a call and, in turns, those that its two jitted functions take without it, given what it
    gave them, on the device already, until their tokens can be read.
    """
    plain, seen = model._generator.strategies.plain, {}

    def noted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen[name] = arguments
            return getattr(plain, name)(*arguments)

        return call

    model._generator.strategies.plain = plain._replace(prefill=noted("prefill"), decode=noted("decode"))
    generate()
    model._generator.strategies.plain = plain
    leaves, *arrays, slots, recorded, layout = seen.pop("prefill")
    arrays = jax.device_put(arrays, model.device)
    _, _, *rest = seen.pop("decode")

    def alone() -> Any:
        state = plain.prefill(leaves, *arrays, slots, recorded, layout)
        state, tokens = plain.decode(leaves, state, *rest)
        jax.block_until_ready(tokens)
        return state

    def seconds(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        held = call()  # freed after the time was taken
        end = time.perf_counter()
        del held
        return end - start

    return [(seconds(lambda: np.asarray(generate())), seconds(alone)) for _ in range(times)]


def answer(
    batch: int, prompt: int, new: int, stream: bool = False, parts: int = 0, host: int = 0, **call: Any
) -> dict[str, Any]:
    """Generates `new` tokens for `batch` prompts, with more arguments of ``generate``; returns seconds, those of the
    prefill and of each of the decode's `parts` apart, and `host` times `call_and_alone`.
    """
    ids = prompts(batch, prompt)
    given = {**call, "streamer": Counter()} if stream else call
    plain, inside = model._generator.strategies.plain, {"prefill": [], "decode": []}
    if parts:
        functions = {name: timed(getattr(plain, name), noted) for name, noted in inside.items()}
        functions["decode"] = in_parts(functions["decode"], parts)
        model._generator.strategies.plain = plain._replace(**functions)

    def generate() -> Any:
        return model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0, **given)

    start = time.perf_counter()
    out = generate()
    np.asarray(out)
    seconds = time.perf_counter() - start
    model._generator.strategies.plain = plain
    assert out.shape == (batch, prompt + new)
    peak = (model.device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    distinct = len(set(np.asarray(out)[0, prompt:].tolist()))
    both = call_and_alone(generate, host) if host else []
    return {"seconds": seconds, "peak_bytes": peak, "distinct": distinct, **inside, "call_and_alone": both}


weights = model.functional()[1]
if cycle:
    turn(model._built.leaves, list(weights))
total = sum(array.nbytes for array in weights.values())
# A step reads every weight once, but of an embedding that is not also the head only the rows of its tokens.
read = total if config.tie_word_embeddings else total - weights["model.embed_tokens.embedding"].nbytes
# Of the experts only those that a token chose.
experts = sum(array.nbytes for name, array in weights.items() if ".experts." in name)
chosen = config.num_experts_per_tok / config.num_local_experts if experts else 1
device = jax.devices()[0]
info = {"device": device.device_kind, "platform": device.platform, "made_s": made, "weight_bytes": total}
layers = model.module.cache_layers()


def cache_bytes(stored: str | None) -> int:
    """Bytes of a row of 1024 slots."""
    empty = jax.eval_shape(lambda: Cache.empty(layers, 1, 1024, model.dtype, CacheLayout(stored=stored)))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(empty.layers))


per_token = {name: cache_bytes(stored) // 1024 for name, stored in (("plain", None), ("int8", "int8"))}
parts = {"read_bytes": read, "expert_bytes": experts, "chosen_part": chosen, "cache_bytes_per_token": per_token}
serve({**info, **parts}, answer)
