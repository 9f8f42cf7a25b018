"""embed-pipeline: a folder of documents becomes a tuned, exported and served text-embedding model."""
