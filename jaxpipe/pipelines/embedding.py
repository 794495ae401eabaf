"""What feature-extraction and sentence-similarity share: texts to ids, ids to states, states to one vector."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.errors import nearest
from jaxpipe.common.logging import logger
from jaxpipe.pipelines.base import Parameters, Pipeline
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.pooling import MODES, Recipe, check_modes, pool
from jaxpipe.pipelines.scores import unknown_parameter
from jaxpipe.pipelines.sentence_modules import SentenceModules, read_modules, read_prompts
from jaxpipe.tokenization.padding import LARGEST_LENGTH

AUTO = "auto"
EMBEDDING = "sentence_embedding"
# Arguments with which a tokenizer treats each text of a list as it does one alone.
_ROW_BY_ROW = {"truncation", "max_length", "add_special_tokens"}


@dataclass(frozen=True)
class TextSettings:
    """What is done to a text before the tokenizer sees it, and which of its tokens are pooled.

    Attributes:
        pooled: whether its states become one vector.
        prompt: what is put before it.
        lower_case: whether it is written in lower case.
        skipped: number of tokens at its beginning that are not pooled.
    """

    pooled: bool = False
    prompt: str = ""
    lower_case: bool = False
    skipped: int = 0

    def applied(self, text: str) -> str:
        """Returns the text as the tokenizer gets it."""
        text = self.prompt + text
        return text.lower() if self.lower_case else text


class EmbeddingPipeline(Pipeline):
    """Base of the pipelines that make vectors of texts."""

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True
    # The value of pooling= where none is given.
    _default_pooling: ClassVar[str | None] = None

    def __init__(self, model: Any, tokenizer: Any = None, task: str = "", **parameters: Any) -> None:
        if tokenizer is None:
            raise ValueError(f"{task or type(self).__name__} needs a tokenizer: give tokenizer=.")
        self._recipes: dict[Any, Recipe] = {}
        super().__init__(model, tokenizer, task, **parameters)

    @functools.cached_property
    def modules(self) -> SentenceModules | None:
        """What the model's repository says of pooling, None where it has no modules.json.

        Raises:
            CheckpointError: a file of the modules is missing or damaged.
            ValueError: a module is not supported.
        """
        checkpoint = getattr(self.model, "checkpoint", None)
        return None if checkpoint is None else read_modules(checkpoint)

    def save_pretrained(self, save_directory: str | Path, **parameters: Any) -> None:
        """Saves model and tokenizer, and the modules of sentence-transformers where the repository has such.

        Args:
            save_directory: made where it does not exist.
            **parameters: passed on to the model's `save_pretrained`.

        Raises:
            NotADirectoryError: the path is a file.
        """
        super().save_pretrained(save_directory, **parameters)
        try:
            modules = self.modules
        except ValueError as error:
            logger.warning("The modules of sentence-transformers are not saved: %s", error)
            return
        if modules is not None:
            modules.save(Path(save_directory))

    def _shared_parameters(
        self,
        accepted: tuple[str, ...],
        given: Mapping[str, Any],
        *,
        truncation: bool | str | None = None,
        tokenize_kwargs: Mapping[str, Any] | None = None,
        pooling: Any = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters of preprocess and forward that were given; ``given`` holds unknown ones."""
        for name in given:
            hint = " Arguments of the tokenizer go to tokenize_kwargs=." + nearest(name, accepted)
            raise unknown_parameter(name, self._named, accepted, hint)
        preprocess = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in preprocess:
                raise ValueError("truncation is given twice: as truncation= and in tokenize_kwargs=; give one.")
            preprocess["truncation"] = truncation
        if "return_tensors" in preprocess:
            raise ValueError("return_tensors does not belong in tokenize_kwargs=; pass return_tensors=True for arrays.")
        forward: dict[str, Any] = {}
        if pooling is not None:
            forward["pooling"] = pooling
        if normalize is not None:
            if not isinstance(normalize, bool):
                raise TypeError(f"normalize= takes True, False or None, not {described(normalize)}.")
            forward["normalize"] = normalize
        if prompt is not None and prompt_name is not None:
            raise ValueError("prompt= is a text, prompt_name= the name of one of the repository's; give one.")
        for name, value in (("prompt", prompt), ("prompt_name", prompt_name)):
            if value is not None:
                if not isinstance(value, str):
                    raise TypeError(f"{name}= takes a str, not {described(value)}.")
                # Of two that say the same thing, the call's replaces the constructor's.
                preprocess |= {"prompt": None, "prompt_name": None, name: value}
        return preprocess, forward

    def _initial_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._initial_parameters(parameters)
        self._settle(dict(preprocess), dict(forward))
        return preprocess, forward, postprocess

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        return *self._settle(preprocess, forward), postprocess

    def _settle(self, preprocess: dict[str, Any], forward: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Turns what was asked for into the settings of texts and the recipe of vectors.

        Raises:
            ValueError: ``pooling`` is unknown, or asks for modules that the repository lacks.
        """
        pooling = forward.pop("pooling", self._default_pooling)
        normalize = forward.pop("normalize", None)
        modules = None
        if pooling == AUTO:
            modules = self.modules
            if modules is None:
                raise ValueError(
                    f"pooling='auto' follows the modules.json of sentence-transformers, which "
                    f"{getattr(self.model, 'name_or_path', '') or 'this model'!r} lacks; give pooling= "
                    f"{', '.join(map(repr, MODES))}."
                )
            self._truncate(preprocess, modules.max_length)
        elif pooling is None and normalize:
            raise ValueError("normalize=True is about one vector a text; give pooling= as well.")
        recipe = None if pooling is None else self._recipe(pooling, normalize, modules)
        prompt = self._prompt(preprocess.pop("prompt", None), preprocess.pop("prompt_name", None), modules)
        settings = TextSettings(recipe is not None, prompt, modules is not None and modules.lower_case)
        if prompt and modules is not None and not modules.pools_prompt:
            settings = TextSettings(True, prompt, settings.lower_case, self._tokens_of_prompt(prompt))
        return {**preprocess, "settings": settings}, {**forward, "recipe": recipe}

    def _recipe(self, pooling: Any, normalize: bool | None, modules: SentenceModules | None) -> Recipe:
        key = (AUTO if modules is not None else check_modes(pooling), normalize)
        if key not in self._recipes:
            recipe = modules.recipe if modules is not None else Recipe(check_modes(pooling))
            self._recipes[key] = recipe.normalized(normalize).placed(getattr(self.model, "mesh", None))
        return self._recipes[key]

    def _truncate(self, tokenize_kwargs: dict[str, Any], max_length: int | None) -> None:
        """Cuts texts as the repository does, unless told otherwise."""
        limits = [self.tokenizer.model_max_length if max_length is None else max_length, self._position_limit]
        known = [limit for limit in limits if limit is not None and limit <= LARGEST_LENGTH]
        tokenize_kwargs.setdefault("truncation", bool(known) or "max_length" in tokenize_kwargs)
        if tokenize_kwargs["truncation"] is not False and known:
            tokenize_kwargs.setdefault("max_length", min(known))

    def _prompt(self, prompt: str | None, name: str | None, modules: SentenceModules | None) -> str:
        if prompt is not None:
            return prompt
        if name is None:
            default = modules.default_prompt if modules is not None else None
            return modules.prompts[default] if modules is not None and default is not None else ""
        checkpoint = getattr(self.model, "checkpoint", None)
        prompts = modules.prompts if modules is not None else read_prompts(checkpoint)[0] if checkpoint else {}
        if name not in prompts:
            raise ValueError(
                f"prompt_name={name!r} is none of the prompts of the repository, {sorted(prompts)}."
                + nearest(name, prompts)
            )
        return prompts[name]

    def _tokens_of_prompt(self, prompt: str) -> int:
        """Number of tokens of a prompt, without a special one that ends it."""
        ids = self.tokenizer(prompt)["input_ids"]
        return len(ids) - self.tokenizer.get_special_tokens_mask(ids[-1:])[0] if ids else 0

    def encode(
        self, text: str | list[str], settings: TextSettings, where: str = "The text", **tokenize_kwargs: Any
    ) -> dict[str, np.ndarray]:
        """Returns the tokenizer's arrays (1, T), and for pooled texts the mask of the tokens that are pooled.

        Args:
            text: a text; or its words, where the tokenizer is told so.
            settings: see `TextSettings`.
            where: what errors call the text.
            **tokenize_kwargs: arguments of the tokenizer.

        Raises:
            ValueError: the text has no tokens.
        """
        if isinstance(text, str):
            text = settings.applied(text)
        elif settings.prompt:
            raise ValueError("prompt= goes with texts (str), not with lists of words.")
        encoded = self.tokenizer(text, return_tensors="np", **tokenize_kwargs)
        row = {name: np.asarray(value, np.int32) for name, value in encoded.items()}
        return self._with_mask(row, settings, f"{where} {text!r}")

    def encode_batch(self, texts: list[Any], settings: TextSettings, **tokenize_kwargs: Any) -> list[dict[str, Any]]:
        """Returns what `encode` returns for each text, by one call of the tokenizer where its rows stay apart."""
        if not _ROW_BY_ROW.issuperset(tokenize_kwargs) or not all(isinstance(text, str) for text in texts):
            return [self.encode(text, settings, **tokenize_kwargs) for text in texts]
        encoded = self.tokenizer([settings.applied(text) for text in texts], **tokenize_kwargs)
        columns = encoded.items()
        rows = [{name: np.asarray([value[i]], np.int32) for name, value in columns} for i in range(len(texts))]
        return [self._with_mask(row, settings, f"The text {text!r}") for row, text in zip(rows, texts, strict=True)]

    def _with_mask(self, row: dict[str, np.ndarray], settings: TextSettings, where: str) -> dict[str, np.ndarray]:
        """Adds to the arrays of a pooled text the mask of the tokens that are pooled."""
        if row["input_ids"].shape[-1] == 0:
            raise ValueError(f"{where} has no tokens, so it has no features.")
        if settings.pooled:
            mask = row.get("attention_mask", np.ones_like(row["input_ids"])).copy()
            first = mask.argmax(axis=1)[0]
            mask[:, first : first + settings.skipped] = 0
            if not mask.any():
                raise ValueError(f"{where} has no tokens beside those of the prompt.")
            row["pooling_mask"] = mask
        return row

    def _forward(self, model_inputs: dict[str, Any], recipe: Recipe | None = None, **_: Any) -> dict[str, Any]:
        mask = model_inputs.pop("pooling_mask", None)
        outputs = self.model(**model_inputs)
        if recipe is None:
            # The first output: a bare model's last hidden state; a head's logits where such a model was given.
            name, features = outputs.items()[0]
            return {name: features}
        # An encoder-decoder's vector is made of what its encoder says of the text.
        for name in ("encoder_last_hidden_state", "last_hidden_state"):
            if name in outputs:
                # What a token's states are, (B, T, D), stays on the device: only vectors leave it.
                return {EMBEDDING: pool(outputs[name], mask, recipe, getattr(self.model, "mesh", None))}
        raise ValueError(
            f"pooling= needs the last hidden state, but {type(self.model).__name__} gives {outputs.keys()}; load the "
            "model without a head, with AutoModel."
        )

    @staticmethod
    def vector_of(outputs: Mapping[str, Any]) -> np.ndarray:
        """Returns the vector (D,) of one row.

        Raises:
            ValueError: it holds NaN or infinity.
        """
        return check_finite(np.asarray(outputs[EMBEDDING], np.float32)[0])


def check_finite(array: np.ndarray) -> np.ndarray:
    """Returns an array as it is.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if not np.isfinite(array).all():
        raise ValueError(
            "The model gave NaN or infinity for this input; its weights may be damaged, or the dtype too narrow."
        )
    return array
