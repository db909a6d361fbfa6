"""Retrievers that reason before they embed: training, evaluation and use."""

import os

# oneDNN, which computes bfloat16 on CPUs, keeps code for every shape it meets, by default for 1,024
# of them at some .3 MB each; rows and lengths of a batch vary, so it would come to that
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
