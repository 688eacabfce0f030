"""Numerical kernels: one folder per operation, each with a plain reference and one public function.

Kernels take tensors only and never read files, settings or the environment; the model in encoder/ calls them.
"""
