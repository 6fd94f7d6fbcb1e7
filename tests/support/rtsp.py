"""A camera that speaks RTSP: PyAV's own packets, interleaved in the connection (RFC 2326), to one watcher.

PyAV can watch such a camera and send to one who listens, but not be one.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import av
from client.clips import picture

__all__ = ["rtsp_camera"]

SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:streamid=0\r\n"
)
ANSWERS = {
    "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
    "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n",
    "SETUP": "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n",
    "PLAY": "Session: 1\r\n",
}


@contextlib.contextmanager
def rtsp_camera(width: int = 96, height: int = 80) -> Iterator[str]:
    """Its address, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=_serve, args=(listening, width, height))
        server.start()
        try:
            yield f"rtsp://127.0.0.1:{listening.getsockname()[1]}/camera"
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            server.join()


def _serve(listening: socket.socket, width: int, height: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                if _wants_pictures(connection):
                    _play(connection, width, height)


def _wants_pictures(connection: socket.socket) -> bool:
    """Answer what comes before PLAY, and that."""
    text = ""
    while data := connection.recv(4096):
        text += data.decode()
        while "\r\n\r\n" in text:
            request, text = text.split("\r\n\r\n", 1)
            method, sequence = request.split()[0], re.findall(r"(?m)^CSeq: (\d+)", request)[0]
            body = SDP if method == "DESCRIBE" else ""
            answer = f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\n{ANSWERS.get(method, '')}\r\n{body}"
            connection.sendall(answer.encode())
            if method in ("PLAY", "TEARDOWN"):
                return method == "PLAY"
    return False


def _play(connection: socket.socket, width: int, height: int) -> None:
    """Moving stripes until nobody watches."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as packets:
        packets.bind(("127.0.0.1", 0))
        packets.setblocking(False)
        place = f"rtp://127.0.0.1:{packets.getsockname()[1]}?localrtcpport=0"
        with av.open(place, "w", format="rtp") as container:
            stream = container.add_stream("libx264", rate=30, options={"tune": "zerolatency", "g": "5"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number in itertools.count():
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture(number, width, height))):
                    container.mux(packet)
                with contextlib.suppress(BlockingIOError):
                    while data := packets.recv(65_536):
                        connection.sendall(struct.pack(">cBH", b"$", 0, len(data)) + data)
                time.sleep(0.01)
