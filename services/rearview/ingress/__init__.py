"""The edge: authenticates, admits, paces, speaks gRPC."""
