"""Photos and requests that are changed at random: nothing may break whatever comes of it."""
