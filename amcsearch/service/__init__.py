"""The search service: jobs in a database, workers that run them, an HTTP interface, and its client."""
