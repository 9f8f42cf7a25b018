"""The asset graph, a module per stage."""
