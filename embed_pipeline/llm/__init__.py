"""Asking language models: client, embedded server, throttle, response store, budget."""
