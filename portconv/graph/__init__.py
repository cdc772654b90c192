"""Networks from files of the format ONNX: read, made simpler, and run on the arrays of any library."""
