"""What is kept: the catalog, which is the truth, and the vectors, an index over it.

Knows nothing of models, pixels or clients.
"""
