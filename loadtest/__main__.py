"""`python -m loadtest`: every benchmark of the service on this machine, then the table; or one by name."""

from __future__ import annotations

import subprocess
import sys

import typer

from loadtest import demo_time, generator, report, throughput, transport

app = typer.Typer(help="Measure the service. Without a command: transport, throughput, report.")
app.command("generator")(generator.main)
app.command("transport")(transport.main)
app.command("throughput")(throughput.main)
app.command("demo-time")(demo_time.main)
app.command("report")(report.main)


@app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    """Run what needs no clone, each in a process of its own."""
    if context.invoked_subcommand is not None:
        return
    for name in ("transport", "throughput", "report"):
        status = subprocess.run([sys.executable, "-m", f"loadtest.{name}"], check=False).returncode
        if status:
            raise typer.Exit(status)


if __name__ == "__main__":
    app()
