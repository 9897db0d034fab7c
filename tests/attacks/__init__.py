"""Attacks on the service, each of which a careless server lets through."""
