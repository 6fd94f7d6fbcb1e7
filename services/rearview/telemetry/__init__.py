"""What a running service tells: metrics and logs."""
