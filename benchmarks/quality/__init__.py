"""How good the service's answers are on annotated photos: detection, and retrieval of objects and
of whole photos.
"""
