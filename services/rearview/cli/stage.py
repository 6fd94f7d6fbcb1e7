"""What `rearview studio` has beside its page: OSC, NDI, a virtual camera; checked before anything starts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

import typer

if TYPE_CHECKING:
    from rearview.contract.opening import OpenRequest
    from rearview.studio.gateway import Gateway
    from rearview.studio.stage.ndi import NdiIn
    from rearview.studio.stage.osc import OscPort
    from rearview.studio.stage.outputs import Output

__all__ = [
    "NdiAddressOption",
    "NdiInOption",
    "NdiOutOption",
    "NdiPromptOption",
    "OscOption",
    "Stage",
    "VirtualCameraOption",
]

OscOption = Annotated[
    str | None,
    typer.Option(help="PORT or HOST:PORT (UDP) for OSC; of this machine alone without HOST (extra `stage`)."),
]
VirtualCameraOption = Annotated[
    bool, typer.Option("--virtual-camera", help="The program as a camera of this machine (extra `camera`).")
]
NdiInOption = Annotated[
    str | None,
    typer.Option(help="NDI source, or its HOST:PORT, to paint on a wall of its own (extra `ndi`)."),
]
NdiOutOption = Annotated[
    str | None, typer.Option(help="The program as an NDI source of this name (extra `ndi`).")
]
NdiAddressOption = Annotated[
    list[str] | None, typer.Option(help="Address of a machine with NDI sources, for --ndi-in. Repeat it.")
]
NdiPromptOption = Annotated[
    str | None,
    typer.Option(help="What --ndi-in is painted as, to begin with; a style of the model without it."),
]


@dataclass(frozen=True)
class Stage:
    """Bound, and devices open."""

    osc: OscPort | None = None
    outputs: Sequence[Output] = ()
    ndi_in: NdiIn | None = None
    ndi_prompt: str | None = None
    words: Sequence[str] = ()
    """What whoever starts the studio is told of it."""

    @classmethod
    def of(
        cls,
        *,
        osc: str | None = None,
        virtual_camera: bool = False,
        ndi_in: str | None = None,
        ndi_out: str | None = None,
        ndi_addresses: Sequence[str] = (),
        ndi_prompt: str | None = None,
    ) -> Self:
        """Raises ConfigError that names the option to change."""
        from rearview.errors import ConfigError

        if ndi_in is None and (ndi_addresses or ndi_prompt is not None):
            raise ConfigError("--ndi-address and --ndi-prompt are for --ndi-in")
        words: list[str] = []
        outputs: list[Output] = []
        port = source = None
        if osc is not None:
            from rearview.studio.stage.osc import OscPort

            port = OscPort.bind(osc)
            words.append(f"OSC: UDP at {port.address}, /rearview/TILE/SETTING")
        if virtual_camera:
            from rearview.studio.stage.virtual_camera import VirtualCamera

            outputs.append(camera := VirtualCamera.open())
            words.append(f"virtual camera: {camera.device}")
        if ndi_in is not None or ndi_out is not None:
            from rearview.studio.stage.ndi import NdiIn, NdiOut, library

            ndi = library()
            if ndi_out is not None:
                outputs.append(sender := NdiOut(ndi, ndi_out))
                words.append(f"NDI out: {sender.full_name}")
            if ndi_in is not None:
                source = NdiIn(ndi, ndi_in, ndi_addresses)
                words.append(f"NDI in: {ndi_in}, as soon as it is found")
        return cls(port, outputs, source, ndi_prompt, words)

    @contextlib.asynccontextmanager
    async def open(self, gateway: Gateway) -> AsyncIterator[None]:
        """Hear and show until the block ends."""
        from rearview.studio.stage.osc import listening

        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(listening(gateway, self.osc))
            if self.outputs:
                from rearview.studio.stage.outputs import showing

                await stack.enter_async_context(showing(gateway, self.outputs))
            if self.ndi_in is not None:
                from rearview.studio.stage.ndi import bringing

                await stack.enter_async_context(bringing(gateway, self.ndi_in, self._asked()))
            yield

    def _asked(self) -> OpenRequest:
        from rearview.contract.opening import OpenRequest
        from rearview.contract.settings import SettingsChange

        return OpenRequest(settings=SettingsChange(prompt=self.ndi_prompt))
