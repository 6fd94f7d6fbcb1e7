"""What `tests/same_pictures.py` translates with two versions of the service, and how it compares them."""
