"""Weights as other libraries and files have them: the layouts of their axes, what their layers say, kinds of files."""
