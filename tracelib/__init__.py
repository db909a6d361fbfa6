"""Retrievers that reason before they embed: training, evaluation and use."""

import os

# On CPUs oneDNN multiplies. It and torch keep the code made for every shape they meet, up to 1,024
# of them. Batches vary in rows and length, so it would come to that; what recurs are the few shapes
# of a decoding step.
os.environ.setdefault("LRU_CACHE_CAPACITY", "6")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "12")
