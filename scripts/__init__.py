"""Command-line tools around the service; nothing in the service imports them."""
