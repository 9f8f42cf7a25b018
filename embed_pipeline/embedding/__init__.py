"""Texts to vectors, and the search over them: one encoder for mining, evaluation and serving."""
