"""How good the pictures are: what `rearview eval` measures, on the path that the service runs.

It may know the engine, the sample clip and the training's scenes and filters; nothing of the service knows
it. What each figure means, and what it does not, is in `docs/evaluation.md`.
"""
