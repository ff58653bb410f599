"""Measurements: each prints a table and ends with one line of JSON; ``make bench`` draws them.

Nothing in the product imports this package.
"""
