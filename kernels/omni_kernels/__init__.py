"""Kernels: one folder per operation, each with its reference in plain torch."""
