"""The compiled `gemm` for images whose channels lie side by side."""
