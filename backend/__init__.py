"""Image similarity search with object detection: the service."""
