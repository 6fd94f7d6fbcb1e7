"""The operators of the chain as batched functions over networks."""
