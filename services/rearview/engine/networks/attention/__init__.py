"""Attention that also sees a session's past: functions, and processors over stock diffusers UNets."""
