"""A network's costs and latencies, as JSON that the predictor reads."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..nets import StageCost
from ..store import write_whole
from .input_size import InputSize
from .times import ProfileError, StageLatency, Way, whole_number

FORMAT = "anynest-profile-1"
FILE = "profile.json"


@dataclass(frozen=True)
class Profile:
    """The costs of every stage of a network on one machine.

    Attributes:
        model: the network's registered name, or that of its class.
        arguments: ``create_model(model, **arguments)`` builds it, if it is registered.
        image_size: pixels per side of the images that it was measured with; None for other inputs.
        costs: parameters and multiply-adds of every stage, own and up to it.
        rows: latencies: a row per stage and way to run the network (backend, device, threads, batch
            size), the stages of a way together and in order.
        plain_costs: costs of the plain network of each stage's size; may be empty.
        plain: their latencies; may be empty.
        environment: hardware and versions.
        inputs: names, dtypes and shapes of inputs that are no square images; else None.
    """

    model: str
    arguments: dict[str, Any]
    image_size: int | None
    costs: tuple[StageCost, ...]
    rows: tuple[StageLatency, ...]
    plain_costs: tuple[StageCost, ...]
    plain: tuple[StageLatency, ...]
    environment: dict[str, Any]
    inputs: InputSize | None = None

    def __post_init__(self) -> None:
        if not self.costs:
            raise ProfileError("a profile must have the costs of at least one stage, found none")
        expected = list(range(1, self.num_stages + 1))
        for name in ("rows", "plain"):
            found: dict[Way, list[int]] = {}
            for row in getattr(self, name):
                found.setdefault(row.way, []).append(row.stage)
            for way, stages in found.items():
                if stages != expected:
                    raise ProfileError(
                        f"{name} must have each of the stages {expected} once and in order, "
                        f"found {stages} for {describe_way(way)}"
                    )

    @property
    def num_stages(self) -> int:
        """S."""
        return len(self.costs)

    @property
    def on(self) -> str:
        """What it was measured on, for titles: ``images 32x32``, or each input's name and shape."""
        if self.inputs is None:
            return f"images {self.image_size}x{self.image_size}"
        return ", ".join(f"{name} {list(shape)}" for name, _, shape in self.inputs.rows)

    def is_of(self, size: InputSize, channels: int | None) -> bool:
        """Whether it was measured with inputs of this size.

        Args:
            size: of the inputs.
            channels: C of a network of images; else None.
        """
        if channels is None:
            return size == self.inputs
        shapes = [shape for _, _, shape in size.rows]  # images may have any name
        if self.image_size is not None:
            return shapes == [(channels, self.image_size, self.image_size)]
        return self.inputs is not None and shapes == [shape for _, _, shape in self.inputs.rows]

    @property
    def ways(self) -> tuple[Way, ...]:
        """(backend, device, threads, batch size) of all rows, in order."""
        return tuple(dict.fromkeys(row.way for row in self.rows))

    def stages(
        self,
        backend: str = "onnxruntime",
        device: str = "cpu",
        threads: int = 1,
        batch_size: int = 1,
    ) -> tuple[StageLatency, ...]:
        """The latency of every stage in one way to run the network, from stage 1.

        A batch size that was not measured has the latency of the next larger one; above the
        largest, latency grows in proportion to the batch size. Both are upper bounds.

        Raises:
            ProfileError: nothing was measured with this backend, device and threads.
        """
        size = whole_number("batch_size", batch_size)
        return _select(self.rows, backend, device, whole_number("threads", threads), size)

    def probability(
        self,
        stage: int,
        elapsed: float,
        deadline: float,
        *,
        backend: str = "onnxruntime",
        device: str = "cpu",
        threads: int = 1,
        batch_size: int = 1,
    ) -> float:
        """The probability that a stage is finished in time.

        It is the share of the measured runs in which the stage took at most
        ``deadline - elapsed`` seconds. A machine busier than during the measurement is slower.

        Args:
            stage: from 1.
            elapsed: seconds from the call to the end of the stage before (for stage 1: to now).
            deadline: seconds from the call.
            backend: the backend; the others likewise as in ``stages``.
            device: where it computes.
            threads: within one step.
            batch_size: images at once.

        Returns:
            0 to 1.

        Raises:
            ProfileError: no such stage, or nothing measured in this way.
        """
        stage = whole_number("stage", stage, least=0)
        if not 1 <= stage <= self.num_stages:
            raise ProfileError(f"stages are numbered 1 to {self.num_stages}, found {stage}")
        rows = self.stages(backend, device, threads, batch_size)
        return rows[stage - 1].step_within(float(deadline) - float(elapsed))

    def dumps(self) -> str:
        """The profile as JSON text, one row per line."""
        head: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            "arguments": self.arguments,
            "image_size": self.image_size,
            "environment": self.environment,
        }
        if self.inputs is not None:
            head["inputs"] = self.inputs.to_json()
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for name in ("costs", "plain_costs", "rows", "plain"):
            lines = ",\n".join("  " + json.dumps(_row_json(row)) for row in getattr(self, name))
            parts.append(f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []')
        return "{\n" + ",\n".join(parts) + "\n}\n"

    def save(self, path: str | Path) -> None:
        """Write the JSON file atomically (RunError)."""
        write_whole(Path(path), self.dumps().encode())

    @classmethod
    def loads(cls, text: str, where: str = "the profile") -> "Profile":
        """Parse what ``dumps`` wrote. ProfileError, in one line that names ``where``."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProfileError(
                f"{where} is not JSON: {error}; profile the network again"
            ) from error
        try:
            return cls(**_parse(data))
        except ProfileError as error:
            raise ProfileError(f"{where}: {error}; profile the network again") from error

    @classmethod
    def read(cls, path: str | Path) -> "Profile":
        """Read the profile in a file or in the folder of a profiled run."""
        path = Path(path)
        file = path / FILE if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ProfileError(
                f"cannot read the profile {file}: {reason}; `anynest profile` writes one"
            ) from error
        return cls.loads(text, str(file))


def describe_way(way: Way) -> str:
    """
    >>> describe_way(("torch", "cpu", 1, 8))
    'torch on cpu, 1 thread, batch 8'
    """
    backend, device, threads, batch_size = way
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{backend} on {device}, {counted}, batch {batch_size}"


def _select(
    rows: tuple[StageLatency, ...], backend: str, device: str, threads: int, batch_size: int
) -> tuple[StageLatency, ...]:
    alike = [row for row in rows if row.way[:3] == (backend, device, threads)]
    if not alike:
        there = "; ".join(describe_way(way) for way in dict.fromkeys(row.way for row in rows))
        raise ProfileError(
            f"nothing was measured for {describe_way((backend, device, threads, batch_size))}; "
            f"the profile has {there or 'no latencies'}"
        )
    sizes = sorted({row.batch_size for row in alike})
    chosen = next((size for size in sizes if size >= batch_size), sizes[-1])
    found = tuple(row for row in alike if row.batch_size == chosen)
    if chosen >= batch_size:
        return found
    return tuple(row.scaled(batch_size / chosen, batch_size) for row in found)


def _row_json(row: StageCost | StageLatency) -> dict[str, Any]:
    data = asdict(row)
    if isinstance(row, StageLatency):  # shown for other readers; ours uses the quantiles
        lists = {key: data.pop(key) for key in ("quantiles", "step_quantiles")}
        data |= {"p50": row.p50, "p95": row.p95, "p99": row.p99} | lists
    return data


def _parse(data: Any) -> dict[str, Any]:
    """The arguments of ``Profile``; ProfileError for a wrong key or type."""
    kinds = {"model": str, "arguments": dict, "image_size": int, "environment": dict}
    lists = ("costs", "plain_costs", "rows", "plain")
    images = not (isinstance(data, dict) and "inputs" in data)
    _require_keys(data, {"format", *kinds, *lists, *(() if images else ("inputs",))}, "it")
    if not images:
        kinds["image_size"] = type(None)
    if data["format"] != FORMAT:
        raise ProfileError(f"format must be {FORMAT}, found {str(data['format'])[:60]!r}")
    for key, kind in kinds.items():
        if type(data[key]) is not kind:
            raise ProfileError(f"{key} must be a {kind.__name__}, found {str(data[key])[:60]!r}")
    if images and data["image_size"] < 1:
        raise ProfileError(f"image_size must be at least 1, found {data['image_size']}")
    result = {key: data[key] for key in kinds}
    result["inputs"] = None if images else InputSize.from_json(data["inputs"])
    for key in lists:
        if not isinstance(data[key], list):
            raise ProfileError(f"{key} must be a list, found {str(data[key])[:60]!r}")
        read = _latency if key in ("rows", "plain") else _cost
        result[key] = tuple(read(row, f"{key}[{i}]") for i, row in enumerate(data[key]))
    return result


def _cost(row: Any, where: str) -> StageCost:
    names = [field.name for field in fields(StageCost)]
    _require_keys(row, names, where)
    for name in names:
        if type(row[name]) is not int or row[name] < 0:
            raise ProfileError(f"{where}.{name} must be a whole number, found {row[name]!r:.60}")
    return StageCost(**row)


def _latency(row: Any, where: str) -> StageLatency:
    shown = ("p50", "p95", "p99")
    _require_keys(row, [*(field.name for field in fields(StageLatency)), *shown], where)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    wanted = {key: given.pop(key) for key in shown}
    try:
        read = StageLatency(**given)
    except ProfileError as error:
        raise ProfileError(f"{where}.{error}") from error
    for key, value in wanted.items():
        if value != getattr(read, key):
            raise ProfileError(f"{where}.{key} must be that of its quantiles, found {value!r:.60}")
    return read


def _require_keys(data: Any, keys: Iterable[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ProfileError(f"{where} must be an object, found {str(data)[:60]!r}")
    wanted = set(keys)
    for word, odd in (("lacks", wanted - set(data)), ("has the unknown", set(data) - wanted)):
        if odd:
            raise ProfileError(f"{where} {word} key {sorted(odd)[0][:60]!r}")
