"""The command `rearview`: a file per command; heavy imports wait until a command needs them."""
