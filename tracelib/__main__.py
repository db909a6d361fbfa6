"""`python -m tracelib`: what a verb finds wrong is one line here, not a traceback."""

import sys

from tracelib.cli import VERBS, main

if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        if sys.argv[1] not in VERBS:
            raise
        sys.exit(f"tracelib: {error}")
