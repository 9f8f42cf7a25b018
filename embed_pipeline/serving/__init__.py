"""The release behind HTTP: an OpenAI-compatible embedding endpoint."""
