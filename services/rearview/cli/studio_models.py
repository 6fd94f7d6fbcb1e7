"""The models that a studio of this machine offers: known ones of the hub, each in a service of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from rearview.errors import ConfigError

if TYPE_CHECKING:
    from rearview.config import ServiceConfig
    from rearview.models import Progress
    from rearview.studio.models import Offer
    from rearview.studio.service import Endpoint

__all__ = ["HubModels"]


class HubModels:
    """A `rearview.studio.models.Source`."""

    def __init__(self, device: str = "auto", *, endpoint: str | None = None) -> None:
        """`device`: on which they compute. `endpoint`: another hub than the environment's."""
        self._device, self._endpoint = device, endpoint

    def offers(self) -> Sequence[Offer]:
        """The known models; how many bytes they have, only the hub can say."""
        from rearview.models import known_models
        from rearview.studio.models import Offer

        return [
            Offer(model.id, model.title, ", ".join(one.name for one in model.licences), 0, model.note)
            for model in known_models().values()
        ]

    def is_here(self, model: str) -> bool:
        """Whether it was fetched, all of it."""
        from rearview.models import fetched, model_folder

        return fetched(model_folder(model))

    def look(self, model: str) -> int:
        """Ask the hub how many bytes it has. Raises FetchFailed."""
        from rearview.models import list_files, model_named

        return list_files(model_named(model), self._endpoint).num_bytes

    def fetch(self, model: str, on_bytes: Callable[[int, int], None], cancel: threading.Event) -> None:
        """Fetch it, or go on with it. Raises FetchFailed."""
        from rearview.models import fetch, model_folder, model_named

        def on_progress(progress: Progress) -> None:
            on_bytes(progress.bytes_done, progress.bytes_total)

        fetch(model_named(model), model_folder(model), on_progress, cancel, endpoint=self._endpoint)

    @contextlib.contextmanager
    def start(self, model: str, on_progress: Callable[[str], None]) -> Iterator[Endpoint]:
        """A service with it until the block ends, sized for this machine. Blocks. Raises ConfigError."""
        from rearview.cli.model_choice import remember_costs
        from rearview.local import PlainService
        from rearview.studio.service import Endpoint

        config = _config_from_elsewhere(model, self._device)
        with PlainService(config, on_progress) as service:
            remember_costs(config, service.stages)
            yield Endpoint(service.address)


def _config_from_elsewhere(model: str, device: str) -> ServiceConfig:
    """`model_config` of a process of its own: it asks torch for the device, and while torch is imported no
    other thread passes a picture on.
    """
    own = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, own, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as process:
        return process.submit(_config, model, device).result()


def _config(model: str, device: str) -> ServiceConfig:
    from rearview.cli.model_choice import model_config
    from rearview.studio.protocol import MAX_TILES

    try:
        return model_config(model, device=device, sessions=MAX_TILES)
    except ConfigError as error:
        raise ConfigError(str(error)) from None  # Its kinds do not all travel.
