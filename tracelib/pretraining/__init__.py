"""Language-model pretraining of the embedded backbone."""
