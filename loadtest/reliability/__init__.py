"""Whether sessions survive: traffic with watermarks, faults, histories of both sides, and pure validators.

    plan ──► traffic ──► history ──┐
    faults ──► harness ──► counts ─┴──► Run ──► validators ──► report

`plan` says who sends what, `traffic` sends it whatever the service does, `harness` runs the service as plain
processes, `faults` hurts it, `validators` read what was written down. `chaos` does it many times.
"""
