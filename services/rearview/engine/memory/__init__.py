"""Temporal memory: a session's past, outside the model, in slots."""
