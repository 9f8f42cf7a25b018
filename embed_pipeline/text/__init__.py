"""Text as every room reads it: a document's blocks, and the Markdown that all kept text is."""
