"""From files that people have to networks that run."""
