"""The plain path: the oracle of the tests."""
