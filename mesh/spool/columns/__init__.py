"""Columns: records of one shape as columns of numbers, exact to the canonical byte."""
