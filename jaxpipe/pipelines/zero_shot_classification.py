"""Zero-shot classification: labels that a model was not trained for, through natural language inference."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxpipe.common.logging import logger
from jaxpipe.pipelines.base import ChunkPipeline, Parameters
from jaxpipe.pipelines.chunks import check_positions, checked_flag
from jaxpipe.pipelines.inputs import described
from jaxpipe.pipelines.scores import finite, label_names, logits_of, softmax, unknown_parameter

_PARAMETERS = ("candidate_labels", "hypothesis_template", "multi_label")
_LOADER = "AutoModelForSequenceClassification"
_TEMPLATE = "This example is {}."


class ZeroShotClassificationPipeline(ChunkPipeline):
    """Tells which of the labels that a call names suit a text.

    Each label makes a hypothesis ("This example is politics."), and a model of natural language inference says whether
    the text entails it. The hypotheses of all texts share batches. Construct it with `pipeline`::

        pipe = pipeline("zero-shot-classification", model="facebook/bart-large-mnli")
        pipe("Who will be elected?", candidate_labels=["politics", "cooking"])
        # {"sequence": "Who will be elected?", "labels": ["politics", "cooking"], "scores": [0.97, 0.03]}

    The output that stands for entailment is the one whose name in ``label2id`` of config.json begins with "entail", in
    upper or lower case; where there is none, the last, and the log says so. Too long texts are cut, hypotheses are not.

    Raises:
        ValueError: there is no tokenizer.
    """

    _load_tokenizer: ClassVar[bool | None] = True
    _forwards_at_once: ClassVar[bool] = True

    def __init__(
        self, model: Any, tokenizer: Any = None, task: str = "zero-shot-classification", **parameters: Any
    ) -> None:
        if tokenizer is None:
            raise ValueError("zero-shot-classification needs a tokenizer: give tokenizer=.")
        super().__init__(model, tokenizer, task, **parameters)
        if self.entailment_id == -1:
            logger.warning(
                "No label of %s begins with 'entail', so the last one is taken for entailment; name the labels in "
                "label2id of the model's config.json to be sure.",
                sorted(self._label2id),
            )

    @property
    def _label2id(self) -> Mapping[str, int]:
        return getattr(self.model.config, "label2id", None) or {}

    @property
    def entailment_id(self) -> int:
        """Index of the logit that stands for entailment; -1, the last, where no label's name tells."""
        names = (name for name in self._label2id if name.lower().startswith("entail"))
        return next((self._label2id[name] for name in names), -1)

    def __call__(self, sequences: Any, *args: Any, **parameters: Any) -> Any:
        """Classifies texts.

        Args:
            sequences: a text, a list of texts, or a data set, generator or iterator of texts.
            *args: ``candidate_labels``, if not given by name.
            **parameters: ``batch_size`` (pairs of text and label run at once) and the following.
                candidate_labels: a list of labels, or one str with commas between them.
                hypothesis_template: a text with ``{}`` where the label goes; "This example is {}." by default.
                multi_label: whether several labels may hold. False: the scores of all labels sum to 1, and of a
                single label it is as with True. True: each score is the probability of entailment against
                contradiction.

        Returns:
            ``{"sequence": str, "labels": [str, ...], "scores": [float, ...]}`` with the highest score first; a list of
            them for a list, also of one text; an iterator of them for a data set or generator.

        Raises:
            TypeError: a text or label is no str, there is no ``candidate_labels``, or a parameter is unknown.
            ValueError: a text or label is empty, the template has no ``{}``, there are more positional arguments, or
                the model gives NaN.
        """
        if len(args) > 1 or (args and "candidate_labels" in parameters):
            raise ValueError(
                f"{self._named} takes the texts and candidate_labels by position, and each once; found {len(args)} "
                f"beside the texts: {described(args)}."
            )
        if args:
            parameters["candidate_labels"] = args[0]
        return super().__call__(sequences, **parameters)

    def check_item(self, item: Any, where: str) -> str:
        """Returns a text that is not empty."""
        if not isinstance(item, str):
            hint = " For a column of a data set use KeyDataset." if isinstance(item, Mapping) else ""
            raise TypeError(f"{where} is {described(item)}; expected a text (str).{hint}")
        if not item:
            raise ValueError(f"{where} is an empty text; there is nothing to classify.")
        return item

    def _sanitize_parameters(
        self,
        candidate_labels: Any = None,
        hypothesis_template: Any = _TEMPLATE,
        multi_label: Any = None,
        **unknown: Any,
    ) -> Parameters:
        for name in unknown:
            raise unknown_parameter(name, self._named, _PARAMETERS)
        preprocess: dict[str, Any] = {}
        if candidate_labels is not None:
            preprocess["candidate_labels"] = _checked_labels(candidate_labels)
        if hypothesis_template is not _TEMPLATE:
            preprocess["hypothesis_template"] = _checked_template(hypothesis_template)
        return preprocess, {}, {} if multi_label is None else {"multi_label": checked_flag("multi_label", multi_label)}

    def _call_parameters(self, parameters: dict[str, Any]) -> Parameters:
        if "candidate_labels" in parameters and parameters["candidate_labels"] is None:
            raise TypeError("candidate_labels is None; give a list of labels, or a str with commas between them.")
        preprocess, forward, postprocess = super()._call_parameters(parameters)
        if "candidate_labels" not in preprocess:
            raise TypeError(f"{self._named} needs candidate_labels=: a list of labels, or a str with commas.")
        return preprocess, forward, postprocess

    def preprocess(
        self, sequence: str, candidate_labels: list[str], hypothesis_template: str = _TEMPLATE
    ) -> Iterator[dict[str, Any]]:
        """Yields the tokenizer's arrays (1, T) of the text with each label's hypothesis."""
        hypotheses = [hypothesis_template.format(label) for label in candidate_labels]
        for label, row in zip(candidate_labels, self._encoded(sequence, hypotheses), strict=True):
            tokens, limit = row["input_ids"].shape[1], self._position_limit
            check_positions(tokens, limit, f"shorten the text, or the label {described(label)}")
            yield {**row, "sequence": sequence, "candidate_label": label}

    def _encoded(self, sequence: str, hypotheses: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yields the arrays of each pair, whose first text is cut where the pair is too long."""
        try:
            encoded = self.tokenizer([sequence] * len(hypotheses), hypotheses, truncation="only_first")
        except ValueError as error:
            if "too short" not in str(error):
                raise
            if len(hypotheses) > 1:
                for hypothesis in hypotheses:
                    yield from self._encoded(sequence, [hypothesis])
                return
            # Nothing would be left of the text; the hypothesis alone is too long.
            encoded = self.tokenizer([sequence], hypotheses, truncation=False)
        names = [name for name in self.tokenizer.model_input_names if name in encoded]
        for index in range(len(hypotheses)):
            yield {name: np.asarray([encoded[name][index]], np.int32) for name in names}

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
        sequences, labels = model_inputs.pop("sequence"), model_inputs.pop("candidate_label")
        outputs = self.model(**model_inputs)
        return {
            "logits": logits_of(self.model, outputs, len(label_names(self.model.config)), _LOADER),
            "sequence": sequences,
            "candidate_label": labels,
        }

    def postprocess(self, model_outputs: Sequence[Mapping[str, Any]], multi_label: bool = False) -> dict[str, Any]:
        """Returns a text's labels and scores, the highest score first."""
        logits = np.stack([np.asarray(output["logits"][0], np.float32) for output in model_outputs])  # (n, outputs)
        entailment = self.entailment_id
        if not -1 <= entailment < logits.shape[1]:
            raise ValueError(f"label2id of config.json gives entailment {entailment}; the model has {logits.shape[1]}.")
        if multi_label or len(logits) == 1:
            contradiction = -1 if entailment == 0 else 0
            scores = softmax(logits[:, [contradiction, entailment]])[:, 1]
        else:
            scores = softmax(logits[:, entailment])
        scores = finite(scores, "a label")
        # Of equal scores the later label comes first, as in Transformers.
        order = np.argsort(scores, kind="stable")[::-1]
        return {
            "sequence": model_outputs[0]["sequence"],
            "labels": [model_outputs[index]["candidate_label"] for index in order],
            "scores": [float(scores[index]) for index in order],
        }


def _checked_labels(labels: Any) -> list[str]:
    """Returns the labels of a list, or of a str with commas between them.

    Raises:
        TypeError: it is neither, or a label is no str.
        ValueError: there is no label, or one is empty.
    """
    if isinstance(labels, str):
        parts = [label.strip() for label in labels.split(",")]
        labels = [label for label in parts if label]
    elif not isinstance(labels, (list, tuple)):
        raise TypeError(
            f"candidate_labels= takes a list of labels, or a str with commas between them, not {described(labels)}."
        )
    if not labels:
        raise ValueError("candidate_labels= names no label; give at least one.")
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise TypeError(f"candidate_labels[{index}] is {described(label)}; expected a str.")
        if not label.strip():
            raise ValueError(f"candidate_labels[{index}] is empty; leave it out.")
    return list(labels)


def _checked_template(template: Any) -> str:
    """Returns a template with one place for a label.

    Raises:
        TypeError: it is no str.
        ValueError: it has no place for a label, or asks for more than that.
    """
    if not isinstance(template, str):
        raise TypeError(f"hypothesis_template= takes a str such as {_TEMPLATE!r}, not {described(template)}.")
    try:
        filled = template.format("a"), template.format("b")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"hypothesis_template={template!r} cannot be filled in with a label; write {{}} where the label goes, as "
            f"in {_TEMPLATE!r} ({type(error).__name__}: {error})."
        ) from error
    if filled[0] == filled[1]:
        raise ValueError(f"hypothesis_template={template!r} has no {{}} where the label goes, as in {_TEMPLATE!r}.")
    return template
