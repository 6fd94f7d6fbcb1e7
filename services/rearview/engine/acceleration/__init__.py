"""Other ways to run a UNet call than module by module: captured in graphs, or compiled ahead of time."""
