"""The gradient of the weight, compiled."""
