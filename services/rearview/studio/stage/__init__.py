"""The studio among other things on a stage.

    OSC ─► dials of a tile            NDI source ─► Camera ─► Wall ─► tile 0, a session
    a wall's program ─► outputs: NDI, a virtual camera

A wall knows none of it. The extras `stage`, `ndi` and `camera` bring what it needs.
"""
