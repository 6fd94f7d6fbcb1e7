"""`rearview translate IN OUT`: a video, images, a camera or an address, through the service."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rearview.cli.choices import (
    DEVICE_HELP,
    MODEL_HELP,
    Look,
    Past,
    check_started_here,
    one_of,
    parse_adapters,
    parse_control_videos,
    parse_controls,
    parse_mask,
    parse_reference,
    parse_size,
    parse_timesteps,
    with_sent,
)
from rearview.cli.cues import parse_cue
from rearview.cli.failure import fails_in_one_line
from rearview.cli.files import Files
from rearview.cli.run import run_translation
from rearview.cli.server import Named, TlsChoice
from rearview.contract.memories import BankPolicy, Rewarm
from rearview.contract.methods import Method
from rearview.contract.settings import Guidance

__all__ = ["TranslateCommand", "translate"]


PICTURE, METHOD, SERVER, FILES = "Picture", "Method", "Server", "Files"
"""Panels of `--help`."""


class Policy(StrEnum):
    """`--drop-policy`."""

    LOSSLESS = "lossless"
    LATEST = "latest"


class FitChoice(StrEnum):
    """`--fit`."""

    KEEP = "keep"
    CROP = "crop"
    STRETCH = "stretch"
    PAD = "pad"


def _option(panel: str, help: str, *flags: str, **more: Any) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


_picture, _method = partial(_option, PICTURE), partial(_option, METHOD)
_server, _files = partial(_option, SERVER), partial(_option, FILES)


class TranslateCommand(TyperCommand):
    """`--at` has two words, and may be given again: typer knows one or the other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.name == "at":
                parameter.nargs = 2


@fails_in_one_line
def translate(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", help="A video, an image, a folder of images, - (camera) or an address."),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="A .mp4, .mov, .mkv, .webm or .gif, an image of an image, a folder, or an address.",
        ),
    ],
    prompt: Annotated[str | None, _picture("What the pictures shall look like.")] = None,
    at: Annotated[
        list[Any] | None,
        _picture(
            "The prompt from there on: --at 3s neon; also 1:02.5, or the number of a frame. Repeat it.",
            metavar="<when prompt>",
            parser=parse_cue,
        ),
    ] = None,
    blend_frames: Annotated[
        int | None, _picture("Frames over which one prompt becomes the next.", min=0, max=10_000)
    ] = None,
    strength: Annotated[float | None, _picture("How far from the input, 0 to 1.")] = None,
    steps: Annotated[int | None, _picture("Denoising steps.", min=1)] = None,
    timesteps: Annotated[
        str | None,
        _picture("Entries of the 50-step grid to visit, instead of both: 15,32 is noisier than 30,40."),
    ] = None,
    seed: Annotated[int | None, _picture("Seed of the noise. Default 0.", min=0)] = None,
    guidance: Annotated[
        Any,  # A `Guidance`: typer's own choices would be its numbers.
        _picture(
            "self: away from the input; initialize, full: from the negative prompt; none.",
            metavar="<kind>",
            parser=one_of(Guidance),
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, _picture("How far. Default with --guidance: 1.5.", min=1, max=20)
    ] = None,
    delta: Annotated[
        float | None, _picture("Of guidance self, initialize: less adds grain, more softens.", min=0, max=10)
    ] = None,
    negative_prompt: Annotated[
        str | None, _picture("What they shall not look like (guidance initialize, full).")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        _picture(
            "One of the deployment's adapter sets: ink, or ink=0.6, from -4 to 4. Repeat it.",
            metavar="<name[=weight]>",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        _picture(
            "One of the deployment's ControlNets: edges, or edges=0.8, from 0 to 2. Repeat it.",
            metavar="<name[=weight]>",
        ),
    ] = None,
    control_video: Annotated[
        list[str] | None,
        _picture(
            "What a ControlNet is shown: pose=pose.mp4, or an image, or a folder; a picture for each frame.",
            metavar="<name=video>",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        _picture(
            "A picture whose face, style or look is followed: face.jpg, or face.jpg=0.6, from 0 to 2.",
            metavar="<file[=scale]>",
        ),
    ] = None,
    reference_mask: Annotated[
        Path | None, _picture("Where in the frame it is followed: a picture, white there.")
    ] = None,
    size: Annotated[
        str | None, _picture("WIDTHxHEIGHT. Default: IN's shape, and as many pixels as the model is for.")
    ] = None,
    fit: Annotated[
        FitChoice, _picture("How IN's shape is brought to it; all but keep: to the model's own size.")
    ] = FitChoice.KEEP,
    method: Annotated[Method | None, _method("Default: the deployment's.")] = None,
    bank_interval: Annotated[
        int | None, _method("Frames from one write to the feature bank to the next.", min=1)
    ] = None,
    bank_policy: Annotated[
        BankPolicy | None, _method("Merge new features into the bank, or keep the last ones whole.")
    ] = None,
    prompt_change: Annotated[
        Rewarm | None, _method("Of live2diff, at a new prompt: wait, take over later, or keep.")
    ] = None,
    scene_cut: Annotated[Rewarm | None, _method("The same, at a cut to another scene.")] = None,
    instant_start: Annotated[
        bool, _method("Of live2diff: show the first picture at once.", "--instant-start")
    ] = False,
    skip_unchanged: Annotated[
        bool, _method("Repeat the last picture while little changes.", "--skip-unchanged")
    ] = False,
    skip_threshold: Annotated[
        float | None, _method("The same, from this similarity on. Default 0.98.", min=0, max=1)
    ] = None,
    model: Annotated[str | None, _server(f"{MODEL_HELP} Default: the bundled one.")] = None,
    device: Annotated[str, _server(DEVICE_HELP)] = "auto",
    server: Annotated[str | None, _server("host:port. Default: start a service here.")] = None,
    token_file: Annotated[Path | None, _server("File with the tenant's token.")] = None,
    tls: Annotated[bool, _server("Speak TLS.", "--tls")] = False,
    tls_ca: Annotated[Path | None, _server("PEM of who signed the server.")] = None,
    tls_cert: Annotated[Path | None, _server("PEM certificate of this client.")] = None,
    tls_key: Annotated[Path | None, _server("PEM key of --tls-cert.")] = None,
    tls_name: Annotated[str | None, _server("Name in the server's certificate, if not the address.")] = None,
    drop_policy: Annotated[
        Policy | None, _server("Default: lossless for files, latest for a camera.")
    ] = None,
    compare: Annotated[bool, _files("Write input and output side by side.", "--compare")] = False,
    score: Annotated[Path | None, _files("Render a take of the studio: its settings, and when.")] = None,
    overwrite: Annotated[bool, _files("Take a folder that has images in it.", "--overwrite")] = False,
    report: Annotated[Path | None, _files("Write figures to this JSON file.")] = None,
    max_frames: Annotated[int | None, _files("Stop after so many frames.", min=1)] = None,
    camera: Annotated[str | None, _files("Camera device, for IN = -.")] = None,
    fps: Annotated[float | None, _files("Of a folder or camera. Default 30.", min=0.1)] = None,
    as_json: Annotated[bool, _files("Print the figures of --report on stdout.", "--json")] = False,
) -> None:
    """Translate a video, images, a camera or a stream. Keeps frame times and the audio track.

    With --score, options that are given win over the score's, and --at comes on top of its events.
    """
    from rearview.forks import begin_imports

    check_started_here(server, model, device)
    if server is None:
        begin_imports()
    sent = parse_control_videos(control_video or ())
    look = Look(
        prompt=prompt,
        strength=strength,
        steps=steps,
        timesteps=parse_timesteps(timesteps) if timesteps else None,
        seed=seed,
        guidance=guidance,
        guidance_scale=guidance_scale,
        delta=delta,
        negative_prompt=negative_prompt,
        adapters=parse_adapters(adapters) if adapters else None,
        blend_frames=blend_frames,
        controls=with_sent(parse_controls(control) if control else None, sent),
        reference=parse_reference(reference) if reference else None,
        reference_mask=parse_mask(reference_mask) if reference_mask else None,
    )
    past = Past(
        method=method,
        bank_interval=bank_interval,
        bank_policy=bank_policy,
        prompt_change=prompt_change,
        scene_cut=scene_cut,
        instant_start=instant_start,
        skip_unchanged=skip_unchanged,
        skip_threshold=skip_threshold,
    )
    files = Files(
        source=source,
        out=out,
        size=parse_size(size) if size else None,
        fit=fit.value,
        compare=compare,
        max_frames=max_frames,
        camera=camera,
        fps=fps,
        cues=tuple(at or ()),
        control_videos=sent,
        score=score,
        overwrite=overwrite,
        report=report,
    )
    choice = TlsChoice(on=tls, ca=tls_ca, cert=tls_cert, key=tls_key, name=tls_name)
    named = Named(address=server, token_file=token_file, tls=choice)
    run_translation(
        files.job(look, past, drop_policy and drop_policy.name), named, report, model, device, as_json=as_json
    )
