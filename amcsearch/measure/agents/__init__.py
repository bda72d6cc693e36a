"""Agents of devices: the work that is handed out to them, the server that does so, and the client that asks it."""
