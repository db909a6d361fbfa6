"""`python -m tracelib`."""

from tracelib.cli import main

if __name__ == "__main__":
    main()
