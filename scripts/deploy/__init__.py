"""What a deployment needs besides the service itself."""
