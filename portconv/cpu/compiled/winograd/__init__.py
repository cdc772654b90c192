"""The compiled `winograd`."""
