"""Generated from `proto/rearview/v1` by `make stubs`; never edited by hand."""
