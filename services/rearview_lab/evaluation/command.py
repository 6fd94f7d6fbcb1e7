"""`rearview eval`: figures of temporal quality, measured on this machine.

The command collects its options (`options.py`) and refuses what cannot be before torch is imported; the work
is in `evaluate.py`.
"""

from __future__ import annotations

import typer

from rearview_lab.evaluation import options as said
from rearview_lab.evaluation.choices import DtypeChoice

__all__ = ["app"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    files: said.FilesArgument = None,
    checkpoint: said.CheckpointOption = "pocket",
    styles: said.StylesOption = "",
    methods: said.MethodsOption = None,
    noise: said.NoiseOption = None,
    clips: said.ClipsOption = None,
    frames: said.FramesOption = None,
    size: said.SizeOption = 256,
    steps: said.StepsOption = None,
    strength: said.StrengthOption = None,
    seed: said.SeedOption = 0,
    bank_interval: said.IntervalOption = None,
    bank_policy: said.PolicyOption = None,
    bank_frames: said.BankFramesOption = None,
    fusion_strength: said.FusionStrengthOption = None,
    fusion_threshold: said.FusionThresholdOption = None,
    motion: said.MotionOption = "",
    motion_depth: said.MotionDepthOption = "",
    sink_frames: said.SinkFramesOption = 8,
    ring_frames: said.RingFramesOption = 8,
    parts: said.PartsOption = None,
    drift_styles: said.DriftStylesOption = 2,
    clip: said.ClipOption = None,
    depth: said.DepthOption = None,
    device: said.DeviceOption = "auto",
    dtype: said.DtypeOption = DtypeChoice.FLOAT32,
    threads: said.ThreadsOption = 1,
    quick: said.QuickOption = False,
    json_file: said.JsonOption = None,
    markdown_file: said.MarkdownOption = None,
) -> None:
    """Measure flicker, looks, drift and the autoencoder on clips whose motion is known, and print tables."""
    options = said.Options(
        clips=said.ClipOptions(files=files, clips=clips, frames=frames, size=size),
        look=said.LookOptions(
            checkpoint=checkpoint, styles=styles, noise=noise, steps=steps, strength=strength, seed=seed
        ),
        methods=methods,
        memory=said.MemoryOptions(
            policy=bank_policy,
            interval=bank_interval,
            max_frames=bank_frames,
            fusion_strength=fusion_strength,
            fusion_threshold=fusion_threshold,
            sink_frames=sink_frames,
            ring_frames=ring_frames,
        ),
        motion=motion,
        motion_depth=motion_depth,
        figures=said.FigureOptions(parts=parts, drift_styles=drift_styles, clip=clip, depth=depth),
        machine=said.MachineOptions(device=device, dtype=dtype, threads=threads),
        quick=quick,
    )
    _run(options, said.OutputOptions(json_file=json_file, markdown_file=markdown_file))


def _run(options: said.Options, output: said.OutputOptions) -> None:
    import torch
    from rich.console import Console

    from rearview_lab.evaluation.evaluate import evaluate

    torch.set_num_threads(options.machine.threads)
    console, progress = Console(), Console(stderr=True)
    found = evaluate(options.plan(), lambda text: progress.print(text, style="dim", highlight=False))
    found.show(console if console.is_terminal else Console(width=200))
    if output.json_file is not None:
        found.write_json(output.json_file)
    if output.markdown_file is not None:
        found.write_markdown(output.markdown_file)
