"""What the chain model remembers: a hash over all inputs of a session, one for each denoising step."""
