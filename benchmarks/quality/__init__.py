"""How good the service's answers are on annotated photos: retrieval of objects, and detection."""
