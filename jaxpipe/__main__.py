"""``python -m jaxpipe`` is the ``jaxpipe`` command."""

from jaxpipe.cli import main

if __name__ == "__main__":
    main()
