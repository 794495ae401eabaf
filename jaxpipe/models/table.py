"""The table of supported architectures, made from the registry."""

from jaxpipe.models.registry import BASE, architecture, model_types


def architectures_table() -> str:
    """Returns a Markdown table: ``model_type``, heads, and whether GGUF files of it are read."""
    rows = ["| model_type | heads | GGUF |", "|---|---|---|"]
    for model_type in model_types():
        known = architecture(model_type)
        heads = ", ".join(head for head in known.heads if head != BASE) or "base model only"
        rows.append(f"| `{model_type}` | {heads} | {'yes' if known.gguf else ''} |")
    return "\n".join(rows)
