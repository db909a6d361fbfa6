"""Language-model pretraining of the embedded backbone, which plays the part of a pretrained multimodal LLM."""
