"""A latency table for a configuration's network, measured on this machine."""

from amcsearch.config import Config
from amcsearch.costs.latency_table import LatencyTable
from amcsearch.pipeline.network import load_network
from amcsearch.pipeline.observer import Observer
from amcsearch.runtime.table_builder import build_table

__all__ = ["measure_table"]


def measure_table(config: Config, observer: Observer, *, variants: int = 48) -> LatencyTable:
    """Measure random pruned variants of the network as the factory makes it: its time does not depend on training.

    Raises:
        BadInputError: as ``load_network``, or a network that cannot be exported.
    """
    observer.phase("Tracing the network")
    network = load_network(config, train=False)
    observer.phase(f"Measuring on this machine, {config.device.threads} thread(s), batch {config.device.batch}")
    return build_table(
        network.model,
        network.trace,
        network.example[:1],
        batch=config.device.batch,
        threads=config.device.threads,
        variants=variants,
        seed=config.seed,
        progress=observer.progress,
    )
