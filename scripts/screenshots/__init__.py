"""Pictures of the page for its documentation, of photos that are drawn: they are ours to show."""
