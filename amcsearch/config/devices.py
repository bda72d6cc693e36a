"""Device profiles on disk."""

from pathlib import Path

from amcsearch.config.lookup import DEVICES, find
from amcsearch.config.yaml_text import read_yaml
from amcsearch.core import BadInputError
from amcsearch.costs import DeviceProfile

__all__ = ["read_device"]


def read_device(path: Path | str) -> DeviceProfile:
    """Read a device profile, a file or a name such as ``x86_server``.

    Raises:
        BadInputError: nothing has that name, or the file cannot be read, is not YAML, or holds keys or values a
            profile does not take.
    """
    path = Path(path) if Path(path).is_absolute() else find(DEVICES, path)
    data, _ = read_yaml(path, "device profile")
    try:
        return DeviceProfile.from_mapping(data)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from error
