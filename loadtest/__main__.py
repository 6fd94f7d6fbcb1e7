"""`python -m loadtest`: every benchmark of the service on this machine, then the table; or one by name."""

from __future__ import annotations

import subprocess
import sys

import typer

from loadtest import (
    adapter_switches,
    admission,
    cache_precision,
    compiled,
    control_loop,
    demo_time,
    generator,
    host_time,
    report,
    studio,
    throughput,
    transport,
    webrtc,
)

app = typer.Typer(help="Measure the service. Without a command: transport, throughput, report.")
app.command("adapter-switches")(adapter_switches.main)
app.command("admission")(admission.main)
app.command("generator")(generator.main)
app.command("transport")(transport.main)
app.command("throughput")(throughput.main)
app.command("studio")(studio.main)
app.command("webrtc")(webrtc.main)
app.command("demo-time")(demo_time.main)
app.command("cache-precision")(cache_precision.main)
app.command("host-time")(host_time.main)
app.command("compiled")(compiled.main)
app.command("control-loop")(control_loop.main)
app.command("report")(report.main)


@app.command(
    "engine",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def engine(context: typer.Context) -> None:
    """Measure the engine with no service around it; its own --help says more."""
    raise typer.Exit(_run("engine_bench", *context.args))


@app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    """Run what needs no clone, each in a process of its own."""
    if context.invoked_subcommand is not None:
        return
    for name in ("transport", "throughput", "report"):
        status = _run(name)
        if status:
            raise typer.Exit(status)


def _run(name: str, *arguments: str) -> int:
    """Exit code of a benchmark in a process of its own."""
    return subprocess.run([sys.executable, "-m", f"loadtest.{name}", *arguments], check=False).returncode


if __name__ == "__main__":
    app()
