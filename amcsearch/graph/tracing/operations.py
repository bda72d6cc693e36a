"""The mode of torch under which a module's operations are seen as they run."""

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperationMode"]


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """A dispatch mode whose code torch does not guard against its compiler.

    The guard imports the compiler, which takes a second, and stands between every operation and the mode. It matters
    only inside ``torch.compile``, and nothing is traced there.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
