"""How many GPUs: the service's own placement, scheduler and scaling in virtual time. Reads no clock."""
