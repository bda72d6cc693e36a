"""The error of the device's program; the host turns it into its own bad-input error."""

__all__ = ["DeviceError"]


class DeviceError(ValueError):
    """What stops a measurement; the message names the value, the bound and the cure (exit code 2)."""
