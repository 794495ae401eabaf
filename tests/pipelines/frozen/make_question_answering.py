"""Freezes what Transformers 4.57.6, the last version with the task, answers to question_answering_cases.py.

In an environment with transformers==4.57.6, torch and safetensors, in any directory:

    python tests/pipelines/frozen/make_question_answering.py

The checkpoints are those of encoders.py.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2]))


def rounded(value):
    """Scores with six significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main():
    import transformers

    from tests.pipelines.frozen.encoders import write_checkpoint
    from tests.pipelines.frozen.question_answering_cases import ERRORS, calls, plain

    if transformers.__version__ != "4.57.6":
        sys.exit(f"This needs Transformers 4.57.6, not {transformers.__version__}.")
    warnings.simplefilter("ignore")
    frozen = {}
    with tempfile.TemporaryDirectory() as directory:
        for family in ("bert", "roberta"):
            path = write_checkpoint(Path(directory) / family, family, "qa")
            pipe = transformers.pipeline("question-answering", model=str(path), device="cpu")
            for name, (inputs, parameters) in calls().items():
                frozen[f"{family}, {name}"] = rounded(plain(pipe(*inputs, **parameters)))
            for name, make in ERRORS.items():
                inputs, parameters = make()
                try:
                    pipe(*inputs, **parameters)
                except Exception as error:
                    frozen[f"{family}, error: {name}"] = type(error).__name__
                else:
                    sys.exit(f"{name} is no error.")
    lines = (f" {json.dumps(name)}: {json.dumps(result)}" for name, result in frozen.items())
    (HERE / "question_answering.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
