"""From a policy to what it is worth: prune, recalibrate, evaluate; here or in worker processes.

Nothing is imported here: a worker process starts with its own module alone.
"""
