"""`python -m itemwise.launch_server ...` is `itemwise serve ...`."""

from __future__ import annotations

import sys

from itemwise.cli.app import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
