"""The studio: a gateway between browsers and the service, of which it is an ordinary client.

    page ─WebSocket─► server ─► wall ─► tile ─► feed ─► rearview.client
    viewer ◄────────── viewers ◄──┘

`docs/studio-protocol.md` has the protocol. Pictures pass as bytes: nothing here decodes one.
"""
