"""What client, edge, control and engine all speak: values only, without torch and gRPC."""
