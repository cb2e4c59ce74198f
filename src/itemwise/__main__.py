"""`python -m itemwise` is the `itemwise` command."""

from __future__ import annotations

from itemwise.cli.app import main

if __name__ == "__main__":
    main()
