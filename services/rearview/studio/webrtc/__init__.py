"""WebRTC for the studio: WHIP takes a camera (RFC 9725), WHEP gives a wall's program to watchers.

    WHIP sender ─► Peer ─► Camera, a page without a browser ─► Wall ─► tile 0, a session
    WHEP watcher ◄─ Peer ◄─ Show, one more of the wall's viewers ◄─┘

A wall knows neither. Only `peers`, `jitter` and `show` import aiortc, which comes with the extra `webrtc`;
WebSocket needs none of it and stays the default.
"""
