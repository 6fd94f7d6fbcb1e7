"""The engine: rows of many sessions through the networks, in pure PyTorch.

Nothing here knows Ray, gRPC, Redis, Prometheus or asyncio. Start with `engine.py`, and read
`reference.py` beside it: the same pictures, one frame and one step at a time. This package imports
nothing by itself, so that the edge can use `session` and `card` without loading torch.
"""
