"""The engine: rows of many sessions through the networks, in pure PyTorch.

Nothing here knows Ray, gRPC, Redis, Prometheus or asyncio. Start with `reference/frame.py`, one frame and one
step at a time, then read `engine.py` and `ready.py`: the same pictures, many at a time. This package imports
nothing by itself, so that the edge can use `session` and `card` without loading torch.
"""
