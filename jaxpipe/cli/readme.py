"""Writes the table of architectures into a Markdown file: ``python -m jaxpipe.cli.readme README.md``."""

import sys
from pathlib import Path

from jaxpipe.models.table import architectures_table

START, END = "<!-- architectures: made by `make readme` -->", "<!-- end of architectures -->"


def with_table(text: str) -> str:
    """Returns a text with what stands between the two marks replaced by the table of today."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{architectures_table()}\n\n{END}{after}"


def main() -> None:
    """Rewrites the file that the command line names."""
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    main()
