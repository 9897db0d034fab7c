"""What the embedded vector engine costs at size, and how its versions and indexes compare."""
