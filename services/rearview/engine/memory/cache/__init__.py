"""The temporal KV cache of Live2Diff."""
