"""The compiled `gemm`."""
