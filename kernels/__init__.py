"""Numerical kernels: one folder per operation, each with a plain reference and one public function.

A kernel knows tensors only. It never reads files, settings or the environment; the model in encoder/ calls it.
"""
