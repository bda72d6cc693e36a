"""What to measure: variants of networks, and the role of each."""
