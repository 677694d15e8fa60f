"""What is made of samples. All pure."""

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement: ns (or what else the case's unit is) for one operation.

    `cpu` is the daemon's CPU time in ns for one operation; None if it was not looked at. `partial`
    if the operation was given up and the rest reckoned.
    """

    value: float
    cpu: float | None = None
    partial: bool = False


@dataclasses.dataclass(frozen=True)
class Summary:
    """A summary of the samples of one contender, as it is written to the JSON."""

    median: float
    min: float
    q1: float
    q3: float
    cpu: float | None  # the median
    partial: bool
    samples: list[float]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third, between the smallest and the largest value."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def summarise(samples: Sequence[Sample]) -> Summary:
    """The summary of samples. There has to be at least one."""
    values = [sample.value for sample in samples]
    cpu = [sample.cpu for sample in samples if sample.cpu is not None]
    first, third = quartiles(values)
    return Summary(
        median=statistics.median(values),
        min=min(values),
        q1=first,
        q3=third,
        cpu=statistics.median(cpu) if cpu else None,
        partial=any(sample.partial for sample in samples),
        samples=values,
    )


def ratio(of: float, to: float) -> float | None:
    """None where there is nothing to compare with."""
    return of / to if to else None


def rotated(contenders: Sequence[str], turn: int) -> list[str]:
    """The order of a round: A B C, B C A, C A B, so that none always comes first."""
    at = turn % len(contenders)
    return [*contenders[at:], *contenders[:at]]
