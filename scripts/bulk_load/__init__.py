"""Loads very many photos on the machines of a Ray cluster."""
