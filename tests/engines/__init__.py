"""The real engines of production: started for tests, on loopback, and stopped by their ids."""
