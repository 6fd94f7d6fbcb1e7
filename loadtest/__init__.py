"""Measuring the service from outside: open-loop load, checked answers, reports with the machine named.

`python -m loadtest.<name>` from the repository root: `generator` (any server), `transport`, `throughput`,
`demo_time` (the service on this machine, against its targets), `report` (the tables of figures).
"""
