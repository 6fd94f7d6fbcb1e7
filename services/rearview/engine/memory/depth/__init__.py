"""The running range of a session's depth maps."""
