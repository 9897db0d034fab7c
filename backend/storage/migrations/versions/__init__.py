"""The revisions, each in a module of its own. What one says is never changed again."""
