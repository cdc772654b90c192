"""The compiled pooling and interpolation."""
