"""What clients see: routes, requests, answers. Knows the services, never an engine."""
