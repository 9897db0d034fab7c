"""A load test of the service, on Locust: `python -m scripts.load_test`."""
