"""The target device of a run: what a policy costs there, and which policies its budget allows."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from amcsearch.config import AUTO, TABLES, Config, check_priced, make, read_device, read_latency_table
from amcsearch.core import BadInputError, Cost, InfeasibleBudgetError, Limit, NetworkSpec, PolicySpace
from amcsearch.costs import (
    CostGrid,
    CostModel,
    DeviceProfile,
    EnergyModel,
    LatencyModel,
    LatencyTable,
    Macs,
    ModelBytes,
    Params,
    PeakMemory,
)
from amcsearch.jobs.left_alone import largest_left_alone
from amcsearch.jobs.machine_table import MachineTable
from amcsearch.jobs.runtimes import check_provider, runtime_of
from amcsearch.jobs.workload import CONFIGURED, InMemory, TracedNetwork
from amcsearch.runs import HERE, OFFLINE, TableErrors, TableOrigin, TableSummary, table_commands
from amcsearch.runtime import differences
from amcsearch.search import Budget, FeasibleSet, without_dominated

__all__ = [
    "Device",
    "PricedLimit",
    "further_costs",
    "given_profile",
    "given_table",
    "load_device",
    "policy_space",
    "priced",
    "table_name",
    "table_summary",
]

POOR_ERROR = 0.05  # mean error of a table on networks it had not seen
GOOD_SHARE = 0.90  # of predictions within 10 %
INT8_BITS = 8
FEW_WIDTHS = 3  # of a group, for an agent to choose from
NAMED = 3  # layers left alone, in an error
FLOAT_BITS = 32  # of a weight where no device profile says otherwise
BITS_PER_BYTE = 8.0


@dataclass(frozen=True)
class PricedLimit:
    """A limit, and the cost that a grid prices for it: one of ``cost`` is ``unit`` of what was asked for.

    Bytes are parameters of some bits; any other cost is priced as itself. ``value`` is the limit and ``dense`` what the
    dense network costs, both in the unit of ``cost``.
    """

    asked: Limit
    cost: str
    unit: float
    value: float
    dense: float

    @property
    def written(self) -> str | float:
        """The limit as a configuration would say it of ``cost``."""
        return self.asked.written if self.asked.of_dense else self.value


@dataclass(frozen=True)
class Device:
    """The target: what a policy costs there, and which policies its budget allows.

    ``table`` predicts the network's latency. ``limits`` are those that were asked for, ``feasible`` holds their budget.
    ``widths_left_out`` counts the choices that the space lacks because a wider one is no slower. ``weight_bits`` are
    those of a stored weight. ``origin`` is that of the table of ``device.table: auto``.
    """

    profile: DeviceProfile | None
    table: LatencyModel | None
    channel_multiple: int
    space: PolicySpace
    grid: CostGrid
    feasible: FeasibleSet
    dense: Cost
    warnings: tuple[str, ...]
    widths_left_out: int = 0
    limits: tuple[PricedLimit, ...] = ()
    weight_bits: int = FLOAT_BITS
    origin: TableOrigin | None = None

    def limit(self, cost: str) -> Limit | None:
        """What was asked of one cost; None where nothing was."""
        return next((limit.asked for limit in self.limits if limit.cost == cost), None)


def load_device(
    config: Config,
    network: TracedNetwork,
    limits: Sequence[Limit],
    given: InMemory = CONFIGURED,
    *,
    strict: bool = False,
    is_here: bool = True,
    machine: MachineTable | None = None,
) -> Device:
    """Price the network on the target and find the policies within the limits.

    Shapes alone matter, so the network need not be trained yet. ``strict`` turns a latency table made elsewhere from a
    warning into an error; without ``is_here`` nothing will be measured on this machine, and the table may be of any.
    ``machine`` is this machine's table, for ``device.table: auto``; without it that does not price latency.

    Raises:
        BadInputError: a missing or unfit profile or table, or a limit that is out of range or nothing prices.
        InfeasibleBudgetError: no policy meets the limits; gives the smallest feasible value.
    """
    check_priced(config, limits, table=given.table is not None, profile=given.profile is not None)
    profile, spec = given_profile(config, given), network.trace.network
    measured = given_table(config, given) if machine is None else machine.table
    name = table_name(config, None if machine is None else machine.origin)
    _check_kernels(config, measured, name)
    table = None if measured is None else measured.bind(spec)
    grid = CostGrid(spec, _cost_models(config, spec, table, profile))
    dense = grid.cost(spec.dense)
    multiple = _channel_multiple(config, table, profile, name)
    is_final = machine is None or machine.is_final
    foreign = _foreign(config, measured, name) if is_here and is_final and config.device.location == HERE else []
    warnings = [*_table_warnings(config, measured if is_final else None, table, name), *_word_warnings(config, profile)]
    if strict and foreign:
        raise BadInputError(f"--strict: {foreign[0]}")
    bits = _weight_bits(profile)
    priced_limits = tuple(priced(limit, dense, bits) for limit in limits)
    try:
        fitted = _on_grid(config, grid, priced_limits, multiple, thinned=table is not None)
    except InfeasibleBudgetError as error:
        doubts = [*foreign, *warnings] if any(limit.cost == "latency_ms" for limit in priced_limits) else []
        raise _with_reasons(error, network, doubts) from error
    feasible = fitted.feasible
    notes = (*foreign, *warnings, *fitted.warnings)
    origin = None if machine is None else machine.origin
    return Device(
        *(profile, table, fitted.multiple, feasible.space, grid, feasible, dense, notes, fitted.left_out),
        *(priced_limits, bits),
        origin=origin,
    )


def _cost_models(
    config: Config, spec: NetworkSpec, table: LatencyModel | None, profile: DeviceProfile | None
) -> list[CostModel]:
    models: list[CostModel] = [Macs(), Params()]
    if table is not None:
        models.append(table)
    if profile is not None:
        models.append(EnergyModel(profile, config.device.batch, table))
    return [*models, *_memory(config, spec), *further_costs(config)]


def _memory(config: Config, spec: NetworkSpec) -> list[CostModel]:
    """Make the costs of memory; the peak only where the order of execution is known."""
    dtype, batch = config.device.dtype, config.device.batch
    peak = [PeakMemory(spec, dtype, batch)] if spec.execution.moments else []
    return [ModelBytes(dtype), *peak]


def policy_space(config: Config, network: NetworkSpec, multiple: int) -> PolicySpace:
    """Return the policies that the configuration allows on a channel grid."""
    return PolicySpace.on_grid(network.groups, multiple, config.search.max_pruning_ratio, vanish=config.may_vanish)


def _with_reasons(error: InfeasibleBudgetError, network: TracedNetwork, doubts: Sequence[str]) -> InfeasibleBudgetError:
    """Say in the error which large layers pruning cannot reach, and why predicted latencies may be wrong."""
    layers = largest_left_alone(network.trace)[:NAMED]
    left_alone = [f"left alone: {'; '.join(map(str, layers))}"] if layers else []
    return InfeasibleBudgetError("; ".join([str(error), *left_alone, *doubts]))


@dataclass(frozen=True)
class _Multiple:
    """The channel multiple, and what prefers it: None where the configuration sets it."""

    value: int
    preferred_by: str | None


@dataclass(frozen=True)
class _Fitted:
    """The policies within the limits on one channel multiple, the choices left out there, and warnings."""

    multiple: int
    feasible: FeasibleSet
    left_out: int
    warnings: tuple[str, ...]


def _on_grid(
    config: Config, grid: CostGrid, limits: Sequence[PricedLimit], preferred: _Multiple, *, thinned: bool
) -> _Fitted:
    """Return the policies within the limits on the channel multiple, and how they came about.

    A multiple that the configuration leaves open, on which there are none, halves until there are and every group has a
    few widths: a narrow group may have none but its own.

    Raises:
        InfeasibleBudgetError: no policy meets the limits; on an open multiple, with channels removed one by one.
    """

    def fitted(multiple: int) -> _Fitted:
        whole = policy_space(config, grid.network, multiple)
        feasible, warnings = _feasible(whole, grid, limits, thinned and preferred.preferred_by is not None)
        left_out = sum(map(len, whole.choices)) - sum(map(len, feasible.space.choices))
        return _Fitted(multiple, feasible, left_out, tuple(warnings))

    try:
        return fitted(preferred.value)
    except InfeasibleBudgetError as error:
        if preferred.value == 1:
            raise
        if preferred.preferred_by is None:
            raise InfeasibleBudgetError(f"{error}; device.channel_multiple = {preferred.value}") from error
    chosen, multiple = fitted(1), preferred.value // 2
    widths = [min(len(choices), FEW_WIDTHS) for choices in policy_space(config, grid.network, 1).choices]
    while multiple > chosen.multiple:
        choices = policy_space(config, grid.network, multiple).choices
        if all(len(few) >= least for few, least in zip(choices, widths, strict=True)):
            with suppress(InfeasibleBudgetError):
                chosen = fitted(multiple)
        multiple //= 2
    warning = (
        f"{_written(limits)} is met by no policy on multiples of {preferred.value} channels, which "
        f"{preferred.preferred_by} prefers; multiples of {chosen.multiple} are searched (device.channel_multiple)"
    )
    return replace(chosen, warnings=(warning, *chosen.warnings))


def _written(limits: Sequence[PricedLimit]) -> str:
    return " and ".join(f"{limit.asked.key} = {limit.asked.written}" for limit in limits)


def _feasible(
    whole: PolicySpace, grid: CostGrid, limits: Sequence[PricedLimit], thinned: bool
) -> tuple[FeasibleSet, list[str]]:
    """Return the policies within the limits, and warnings.

    ``thinned`` leaves out widths that are no faster than wider ones, unless only they meet the limits.
    """
    budget = Budget({limit.cost: limit.value for limit in limits})
    if not thinned:
        return FeasibleSet(whole, grid, budget), []
    try:
        return FeasibleSet(without_dominated(whole, grid), grid, budget), []
    except InfeasibleBudgetError:  # other costs than latency may need narrow widths, however slow
        warning = (
            f"{_written(limits)} is met by no policy without widths that are no faster than wider ones; the search may "
            "propose them"
        )
        return FeasibleSet(whole, grid, budget), [warning]


def _weight_bits(profile: DeviceProfile | None) -> int:
    return FLOAT_BITS if profile is None else profile.weight_bits or profile.word_bits


def priced(limit: Limit, dense: Cost, weight_bits: int) -> PricedLimit:
    """Price a limit by the dense network's costs.

    Raises:
        BadInputError: nothing prices its cost, or it is above the dense network's.
    """
    cost, unit = ("params", weight_bits / BITS_PER_BYTE) if limit.cost == "bytes" else (limit.cost, 1.0)
    whole = limit.dense_cost({**dense, "bytes": dense["params"] * unit} if limit.cost == "bytes" else dense)
    return PricedLimit(limit, cost, unit, limit.resolve(whole) / unit, dense[cost])


def further_costs(config: Config) -> list[CostModel]:
    """Make the costs of the user's own.

    Raises:
        BadInputError: as ``config.make``, or a model whose name is not its key.
    """
    models: list[CostModel] = []
    for name, cost in config.device.costs.items():
        key = f"device.costs.{name}"
        registry: dict[str, Callable[..., CostModel]] = {}
        model = make(registry, cost.model, cost.params, (key, f"{key}.params"), CostModel)
        if model.name != name:
            raise BadInputError(f"{key} = {cost.model!r}: the model's name is {model.name!r}; write that as the key")
        models.append(model)
    return models


def given_profile(config: Config, given: InMemory) -> DeviceProfile | None:
    """Return the target's profile: the one in memory, else the configured one."""
    if given.profile is not None or not config.device.profile:
        return given.profile
    return read_device(config.device.profile)


def given_table(config: Config, given: InMemory) -> LatencyTable | None:
    """Return the target's latency table: the one in memory, else the configured one; None for ``auto``."""
    if given.table is not None or config.device.table in (None, AUTO):
        return given.table
    return read_latency_table(config.device.table)


def table_name(config: Config, origin: TableOrigin | None = None) -> str:
    """Name the latency table in messages: its folder, or that it was handed over in Python."""
    return origin.folder if origin is not None else config.device.table or "in memory"


def table_summary(table: LatencyModel | None, name: str, origin: TableOrigin | None = None) -> TableSummary | None:
    """Say how well a table predicts the network, None without a table."""
    if table is None:
        return None
    if table.accuracy is None:
        return TableSummary(name, table.network, origin=origin)
    errors = table.accuracy.as_mapping()
    numbers = {key: value for key, value in errors.items() if value is None or isinstance(value, int | float)}
    return TableSummary(name, table.network, TableErrors.from_json(numbers, f"{name}: accuracy"), origin)


def _channel_multiple(
    config: Config, table: LatencyModel | None, profile: DeviceProfile | None, name: str
) -> _Multiple:
    if config.device.channel_multiple != "auto":
        return _Multiple(int(config.device.channel_multiple), None)
    if table is not None and table.channel_multiple:
        return _Multiple(table.channel_multiple, f"latency table {name}")
    if profile is not None and profile.channel_multiple:
        return _Multiple(profile.channel_multiple, f"device profile {config.device.profile or 'in memory'}")
    return _Multiple(1, "auto")


def _check_kernels(config: Config, table: LatencyTable | None, name: str) -> None:
    """Refuse a table of another data type or provider: unlike another machine's, it says nothing of what will run."""
    if table is not None:
        check_provider(table, config, f"latency table {name}")
    wanted = config.device.dtype
    measured = wanted if table is None else table.provenance.dtype or "float32"
    if measured != wanted:
        raise BadInputError(
            f"device.dtype is {wanted}, latency table {name} was measured in {measured}; set "
            f"device.dtype={measured}, or measure another one: {table_commands(config.device.location)}"
        )


def _foreign(config: Config, table: LatencyTable | None, name: str) -> list[str]:
    """How the table's device and setting differ from this machine's."""
    if table is None:
        return []
    cure = "leave device.table at auto, which measures this machine's own"
    device = config.device
    here = runtime_of(config).provenance(device.batch, device.dtype)
    differing = differences(table.provenance, here)
    return [f"latency table {name}: {difference}; {cure}" for difference in differing]


def _table_warnings(config: Config, table: LatencyTable | None, model: LatencyModel | None, folder: str) -> list[str]:
    """Why the table's predictions of this network may be wrong, whatever the machine."""
    if table is None or model is None:
        return []
    name, cure = f"latency table {folder}", "amcsearch.measure_latency_table(model, example, known=table)"
    if config.device.table is not None:
        is_shipped = Path(folder).resolve().parent in TABLES.shipped_folders  # an installed package is not written to
        written = f"latency_tables/{Path(folder).name}" if is_shipped else folder
        cure = table_commands(config.device.location, written)
    if model.network is None:
        known = ", ".join(table.networks)
        return [f"{name} holds no measurement of this network: predictions borrow from {known}; add it: {cure}"]
    accuracy = model.accuracy
    if accuracy is None or accuracy.mape is None or accuracy.within_10 is None:
        if config.device.location == OFFLINE:
            return [f"{name} was never checked on this network; measure more: {cure}"]
        check = f"amcsearch table check {'FOLDER' if config.device.table is None else folder} CONFIG --write"
        return [f"{name} was never checked on this network; run {check}"]
    if accuracy.mape <= POOR_ERROR and accuracy.within_10 >= GOOD_SHARE:
        return []
    noise = accuracy.noise_mape
    beside = "" if noise is None else f", where measuring twice differs by {noise:.1%}"
    errors = (
        f"mean error {accuracy.mape:.1%}, {accuracy.within_10:.0%} within 10 %, on networks it had not seen{beside}"
    )
    return [f"{name} is poor on this network: {errors}; trust the measured latency, or measure more: {cure}"]


def _word_warnings(config: Config, profile: DeviceProfile | None) -> list[str]:
    """Say where latency is of integers and energy of wider words."""
    if profile is None or config.device.dtype != "int8" or profile.word_bits == INT8_BITS:
        return []
    return [
        f"device.dtype is int8, but {config.device.profile} counts words of {profile.word_bits} bits: energy is "
        f"predicted for those; set word_bits: {INT8_BITS} in a copy of the profile"
    ]
