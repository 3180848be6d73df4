"""What a section's numbers were made with: cells, seeds, time, hardware, versions, commits."""

from collections import Counter
from collections.abc import Callable, Iterable

from ....training.output.reporting import clock, counted
from ...results.records import Line
from ..render.document import Block, Cell, Group, Table
from ..section import Section


def what_ran(section: Section) -> list[Block]:
    """A table of facts, each with how many lines say so where they do not all."""
    cells, lines = section.cells, section.lines
    facts: list[tuple[str, list[str]]] = [
        ("protocol", [f"{section.protocol.name}: {section.protocol.title}"]),
        ("data", [section.data]),
        ("cells", [f"{len(cells)} trained, {len(lines) - len(cells)} measured under deadlines"]),
        ("seeds", [", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))]),
        ("training images", shared(cells, lambda line: text_of(line, "train_images"))),
        ("test images", shared(cells, lambda line: text_of(line, "test_images"))),
        (
            "training time",
            [f"{clock(sum(line.get('seconds', 0) for line in cells))}, all cells together"],
        ),
        ("hardware", shared(lines, hardware)),
        ("versions", shared(lines, versions)),
        ("commits", shared(lines, commit)),
        ("finished", [span([line["finished"] for line in lines if "finished" in line])]),
    ]
    rows = tuple((Cell(name), Cell("; ".join(texts))) for name, texts in facts if any(texts))
    return [Table(f"What ran; {section.label}", ("", ""), (Group(rows),), words=2)]


def shared(lines: Iterable[Line], describe: Callable[[Line], str]) -> list[str]:
    """Each different answer, the commonest first, with its number of lines if there are several."""
    found = Counter(text for text in map(describe, lines) if text)
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    if len(ordered) == 1:
        return [ordered[0][0]]
    return [f"{text} ({counted(number, 'line')})" for text, number in ordered]


def text_of(line: Line, key: str) -> str:
    """A field, if there is one."""
    return f"{line[key]:,}" if key in line else ""


def hardware(line: Line) -> str:
    """The processor or accelerator, and how much of it."""
    given = line.get("environment", {})
    if not given:
        return ""
    parts = [str(given.get("accelerator") or given.get("processor") or "unknown processor")]
    for key, noun in (("cores", "core"), ("threads", "thread")):
        if isinstance(given.get(key), int):
            parts.append(counted(given[key], noun) + (" a run" if key == "threads" else ""))
    machine = line.get("machine")
    if isinstance(machine, dict) and machine.get("precision"):
        parts.append(str(machine["precision"]))
    return ", ".join(parts)


def versions(line: Line) -> str:
    """Of the package and what it stands on."""
    given = line.get("environment", {})
    parts = [f"anynest {line['anynest']}"] if "anynest" in line else []
    parts += [f"{name} {given[key]}" for name, key in WITH_VERSIONS if key in given]
    return ", ".join(parts)


WITH_VERSIONS = (("torch", "torch"), ("Python", "python"))


def commit(line: Line) -> str:
    """Shortened; ``-dirty`` says that the code had changes that are not in the commit."""
    revision = str(line.get("revision", ""))
    name, dirty, _ = revision.partition("-dirty")
    return (name[:10] if " " not in name else name) + (" with changes" if dirty else "")


def span(times: list[str]) -> str:
    """From the first to the last."""
    if not times:
        return ""
    return min(times) if min(times) == max(times) else f"{min(times)} to {max(times)}"
