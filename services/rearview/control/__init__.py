"""Decisions about replicas and sessions, as functions of what is known; no I/O."""
