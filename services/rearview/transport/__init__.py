"""Persistent links between processes, and what travels on them."""
