"""README says what is true."""

import re
from pathlib import Path

from jaxpipe.cli.readme import with_table

ROOT = Path(__file__).parents[1]


def test_the_table_of_architectures_is_that_of_the_registry() -> None:
    text = (ROOT / "README.md").read_text()
    assert text == with_table(text), "run `make readme`"


def test_files_that_it_links_to_exist() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
