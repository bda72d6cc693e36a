"""Pictures and the page that show what a run found and why to trust it."""
