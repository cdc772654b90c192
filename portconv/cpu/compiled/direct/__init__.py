"""The compiled `direct`."""
