"""`python -m tracelib`: a verb's error is one line; TRACELIB_TRACEBACK=1 shows where it is from."""

import os
import sys

from tracelib.cli import VERBS, main

if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        if sys.argv[1] not in VERBS or os.environ.get("TRACELIB_TRACEBACK"):
            raise
        sys.exit(f"tracelib: {error}")
