"""Retrievers that reason before they embed: training, evaluation and use."""

import ctypes
import os
import sys

# On CPUs torch computes bfloat16 by oneDNN, and both keep the code made for every shape they meet,
# up to 1,024 of them. Batches vary in rows and length, so it would come to that.
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

# Freed memory that glibc hands back to the system comes again page by page, and activations are
# taken and freed all the time, so it may keep up to 256 MiB of it, blocks of its largest kind too.
# The first numbers are malloc.h's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_HAS_OWN_LIMITS = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
if sys.platform == "linux" and not _HAS_OWN_LIMITS:
    if _mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        _mallopt(-1, 256 * 2**20)
        _mallopt(-3, 32 * 2**20)
