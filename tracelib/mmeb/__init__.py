"""Evaluation on MMEB v1."""

from tracelib.mmeb.run import mmeb

__all__ = ["mmeb"]
