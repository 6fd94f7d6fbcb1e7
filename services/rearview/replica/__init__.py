"""One replica of one span: its engine's thread, its links, its sessions."""
