"""The file that runs on a device, and the results that it writes."""
