"""Ray Serve, thin: one deployment per span, links between them, lanes and leases."""
