"""Measured figures and what produces them. Uses the service as it is; the service knows none of it.

README.md says what there is, how to run it and what came out.
"""
