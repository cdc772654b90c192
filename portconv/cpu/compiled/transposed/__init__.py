"""The compiled transposed convolution: all phases of its strides at once."""
