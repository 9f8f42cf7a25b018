"""Files to documents to segments."""
