"""Photos are decoded in processes that may be killed."""
