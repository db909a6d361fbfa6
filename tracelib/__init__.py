"""Retrievers that reason before they embed: training, evaluation and use."""

import os

# On CPUs bfloat16 is computed by oneDNN, and float32 in part, and both keep the code made for every shape they meet,
# up to 1,024 of them. Batches vary in rows and length, so it would come to that.
os.environ.setdefault("LRU_CACHE_CAPACITY", "6")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "12")
