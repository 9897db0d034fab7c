"""Runs named models: one small Protocol, a file for each runtime. Knows no photo and no store."""
