"""Records of ``serve.py`` as tables for a page, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from _pages import replace_between, wrapped
from _serve_arrivals import BURSTS, SHOWN
from _serve_rounds import Record, merged

from anynest.store.figures import new_figure, save_figure, stage_colors

IDENTITY = ("server", "arrivals", "load", "deadline", "replicas", "front", "fault")
OURS, FIRST = "anynest", "first stage first"


def read_records(path: Path) -> list[Record]:
    """The newest record of each measurement, in the order of the first; rounds are one record."""
    found: dict[str, Record] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        found[json.dumps([*identity(record), record.get("round")])] = record
    return merged(found.values(), identity)


def identity(record: Record) -> list[Any]:
    """What a later record must agree in to replace an earlier one."""
    return [record["kind"], *(record.get(key) for key in IDENTITY)]


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


# -- cells ------------------------------------------------------------------------------------------
def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}"


def ms(seconds: float, digits: int = 2) -> str:
    return f"{1e3 * seconds:.{digits}f}"


def ranged(record: Record, key: str, show: Callable[[float], str]) -> str:
    """``99.4 (98.7 to 99.9)``: the median of the rounds, and their range."""
    if record.get("rounds", 1) == 1:
        return show(record[key])
    low, high = record["spread"][key]
    return f"{show(record[key])} ({show(low)} to {show(high)})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""]


def load_name(record: Record, facts: Record) -> str:
    """``1.5 C``; the load beyond stage 1's capacity as a multiple of it."""
    load: float = record["load"]
    beyond = load * facts["capacity"] / facts["first"]
    return f"{load:.3g} C" + (f" ({beyond:.2g} of stage 1)" if beyond > 1 else "")


def point(record: Record) -> tuple[Any, ...]:
    return record["arrivals"], record["load"], record["deadline"]


# -- tables -----------------------------------------------------------------------------------------
def facts_lines(facts: Record) -> list[str]:
    shown = ", ".join(percent(share, 1) for share in facts["accuracy"])
    heads = ["batch", *(f"stage {n}" for n, _ in enumerate(facts["seconds"], 1)), "full / s"]
    columns = zip(*facts["seconds"], strict=True)
    rows = [
        [str(size), *(ms(t) for t in times), f"{size / sum(times):.0f}"]
        for size, times in zip(facts["batches"], columns, strict=True)
    ]
    return [
        f"{facts['model']}. Accuracy of the stages on the {facts['images']} test images that are "
        f"sent: {shown} %. One core computes C = {facts['capacity']:.0f} requests/s to the last "
        f"stage, and {facts['first']:.0f}/s to the first. Median ms of each step:",
        "",
        *table(heads, rows),
    ]


def ours_lines(records: list[Record], facts: Record) -> list[str]:
    kinds = list(SHOWN)
    records = sorted(
        records,
        key=lambda r: (
            r["deadline"] != 0.025,
            r["deadline"],
            kinds.index(r["arrivals"]),
            r["load"],
        ),
    )
    heads = (
        "arrivals", "load", "deadline, ms", "requests", "in time, %", "mean stage", "504",
        "refused, %", "refusal p99, ms", "accuracy by deadline, %",
        "past the deadline p99.9 (bare timer), ms", "late steps a request: mean, most",
        "memory, MiB",
    )  # fmt: skip
    rows = [
        [
            SHOWN[r["arrivals"]].split(",")[0]
            if r["arrivals"] == "square"
            else SHOWN[r["arrivals"]],
            load_name(r, facts),
            f"{1e3 * r['deadline']:.0f}",
            str(r["requests"]),
            ranged(r, "in_time", percent),
            ranged(r, "mean_stage", "{:.2f}".format),
            str(r["timeouts"]),
            percent(r["refused"]),
            ms(r["refusal"]["p99"]) if r["refused"] else "",
            ranged(r, "accuracy", lambda share: percent(share, 1)),
            f"{ms(r['overshoot']['p99.9'])} ({ms(r['bare']['p99.9'])})",
            late_work(r),
            f"{r['memory'][1] / 2**20:.0f}",
        ]
        for r in records
    ]
    return table(heads, rows)


def late_work(record: Record) -> str:
    """Steps of a request that ended after its answer."""
    probe = record.get("probe")
    return f"{probe['late_share']:.3f}, {probe['late_most']}" if probe else ""


def policy_lines(records: list[Record], facts: Record) -> list[str]:
    """Accuracy by deadline of ours and of the other policies at the same points."""
    servers = list(dict.fromkeys(r["server"] for r in records))
    statics = [server for server in servers if server.startswith("static")]
    by_point: dict[Any, dict[str, Record]] = {}
    for record in records:
        by_point.setdefault(point(record), {})[record["server"]] = record
    rows = []
    for found in by_point.values():
        if OURS not in found or not any(server in found for server in statics):
            continue
        best = max(found[server]["accuracy"] for server in statics if server in found)
        first = found[OURS]
        rows.append(
            [
                SHOWN[first["arrivals"]],
                load_name(first, facts),
                f"{1e3 * first['deadline']:.0f}",
                *(cell(found.get(server)) for server in servers),
                f"{100 * (first['accuracy'] - best):+.1f}",
            ]
        )
    return table(["arrivals", "load", "deadline, ms", *servers, "ours - best static"], rows)


def cell(record: Record | None) -> str:
    """``71.2 (99.1)``: accuracy and, in brackets, the share in time."""
    if record is None:
        return ""
    return f"{percent(record['accuracy'], 1)} ({percent(record['in_time'], 1)})"


def peer_lines(records: list[Record], facts: Record) -> list[str]:
    points = sorted({point(r) for r in records}, key=lambda p: (p[0] != "poisson", p))
    by_server: dict[str, dict[Any, Record]] = {}
    for record in records:
        by_server.setdefault(record["server"], {})[point(record)] = record
    heads = [f"{SHOWN[p[0]].split(',')[0]}, {p[1]:.3g} C" for p in points]
    rows = []
    for server, found in by_server.items():
        tuned = next(iter(found.values())).get("tuned")
        chosen = f"{tuned['batch']}, {ms(tuned['wait'], 0)} ms" if tuned else ""
        rows.append([server, chosen, *(cell(found.get(p)) for p in points)])
    return table(["server", "batch, wait", *heads], rows)


def goal_lines(records: list[Record]) -> list[str]:
    """The goals of the benchmark beside what was measured."""
    loads = of_kind(records, "load")
    ours = [r for r in loads if r["server"] == OURS]
    (facts,) = of_kind(records, "facts")[-1:]
    rows: list[tuple[str, str, str]] = []

    def add(goal: str, measured: str, met: bool) -> None:
        rows.append((goal, measured, "yes" if met else "**no**"))

    for r in ours:
        if (r["arrivals"], r["load"], r["deadline"]) == ("poisson", 0.6, 0.025):
            met = r["in_time"] >= 0.999 and r["mean_stage"] >= 2.9
            shown = f"{percent(r['in_time'])} %, mean stage {r['mean_stage']:.3f}"
            add("0.6 C, Poisson, 25 ms: 99.9 % in time, mean stage 2.9", shown, met)
    beyond = [r for r in ours if r["load"] * facts["capacity"] > facts["first"]]
    within = [r for r in ours if 1 <= r["load"] <= 3 and r not in beyond]
    steady = [r for r in within if r["arrivals"] == "poisson" and r["deadline"] == 0.025]
    if steady:
        least = min(r["in_time"] for r in steady)
        late = sum(r["timeouts"] for r in steady)
        met = least >= 0.99 and late == 0
        shown = f"{percent(least)} % at least, {late} times 504"
        add("1 to 3 C, Poisson, 25 ms: 99 % in time, no 504", shown, met)
    full = [
        r for r in loads
        if r["server"].endswith(f" {len(facts['accuracy'])}") and r.get("tuned")
        and (r["arrivals"], r["load"]) == ("poisson", 1.5)
    ]  # fmt: skip
    here = [r for r in steady if r["load"] == 1.5]
    if full and here:
        best = max(r["in_time"] for r in full)
        shown = f"{percent(here[0]['in_time'])} % against {percent(best)} %"
        met = here[0]["in_time"] >= 2 * best
        add("1.5 C: twice the answers in time of the best full-depth peer", shown, met)
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for r in ours:
        rivals = [
            s["accuracy"]
            for s in loads
            if s["server"].startswith("static") and point(s) == point(r)
        ]
        if rivals:
            gaps[r["arrivals"] in BURSTS].append(100 * (r["accuracy"] - max(rivals)))
    if gaps[True] or gaps[False]:
        least = min(gaps[True] + gaps[False])
        shown = f"{least:+.1f} points at least"
        add("every load: accuracy by deadline of the best static stage - 0.5", shown, least >= -0.5)
    if gaps[True]:
        shown = f"{min(gaps[True]):+.1f} to {max(gaps[True]):+.1f} points"
        add("bursts: 2 points above the best static stage", shown, min(gaps[True]) >= 2)
    for r in beyond:
        if r["arrivals"] == "poisson":
            capacity = r["in_time_per_second"] / facts["first"]
            refusal = r["refusal"]["p99"]
            shown = f"{percent(capacity, 1)} %; refusals {ms(refusal)} ms"
            met = capacity >= 0.9 and refusal <= 0.005
            add("beyond stage 1: 90 % of its capacity in time; refusals in 5 ms (p99)", shown, met)
    if ours:
        worst = max(ours, key=lambda r: r["overshoot"]["p99.9"])
        shown = f"{ms(worst['overshoot']['p99.9'])} ms (bare timer {ms(worst['bare']['p99.9'])} ms)"
        met = worst["overshoot"]["p99.9"] <= 0.005
        add("past the deadline at p99.9: 5 ms at most, every load", shown, met)
        late = [r["probe"]["late_most"] for r in ours if r.get("probe")]
        if late:
            add("late work: at most one step a request", f"{max(late)} steps", max(late) <= 1)
        first, last = ours[0]["memory"][0] / 2**20, ours[-1]["memory"][1] / 2**20
        shown = f"{first:.0f} MiB before the first run, {last:.0f} MiB after the last"
        add("memory flat over all loads", shown, last < 1.1 * first + 16)
    for r in of_kind(records, "idle"):
        shown = f"{ms(r['price'])} ms ({ms(r['http'])} against {ms(r['engine'])} ms)"
        add("HTTP's price, idle, p50: 1 ms", shown, r["price"] <= 0.001)
    for r in of_kind(records, "soak"):
        shown = f"{r['minutes']:.0f} min: {soak_text(r)}"
        add("1.5 C with vanishing clients and malformed requests: no leak", shown, r["passed"])
    for r in of_kind(records, "fault"):
        add(r["goal"], r["shown"], r["passed"])
    return table(("goal", "measured", "met"), rows)


def soak_text(record: Record) -> str:
    first, last = record["samples"][len(record["samples"]) // 5], record["samples"][-1]
    grown = (last["memory"] - first["memory"]) / 2**20
    return (
        f"{grown:+.1f} MiB and {last['files'] - first['files']:+.0f} handles after the first fifth, "
        f"{percent(record['in_time'])} % in time, {record['malformed']} malformed and "
        f"{record['vanished']} vanished, the next answer "
        + ("right" if record["next_right"] else "wrong")
    )


def simulation_lines(records: list[Record]) -> list[str]:
    lines: list[str] = []
    predicted = of_kind(records, "predicted")
    if predicted:
        rows = [
            [
                r["server"],
                SHOWN[r["arrivals"]],
                f"{r['load']:.3g} C",
                f"{1e3 * r['deadline']:.0f}",
                *(
                    f"{r['predicted'][key]:.3f} / {r['measured'][key]:.3f}"
                    for key in ("in_time", "mean_stage", "refused", "accuracy")
                ),
                f"{100 * r['error']:.1f}",
            ]
            for r in predicted
        ]
        heads = ["server", "arrivals", "load", "deadline, ms", "in time", "mean stage", "refused"]
        lines += ["Simulated / measured:", ""]
        lines += table([*heads, "accuracy", "largest error, %"], rows)
    plans = of_kind(records, "plan")
    if plans:
        rows = [
            [str(r["replicas"]), r["front"], f"{r['load']:.3g} C", percent(r["in_time"]),
             f"{r['mean_stage']:.3f}", percent(r["refused"])]
            for r in plans
        ]  # fmt: skip
        heads = ["replicas", "front", "load of each", "in time, %", "mean stage", "refused, %"]
        lines += ["Planned:", "", *table(heads, rows)]
    return lines


def heading(record: Record) -> list[str]:
    environment, versions = record["environment"], record["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    where = f"{environment['processor']}, {environment['cores']} cores"
    return [f"{where}; Python {environment['python']}, {listed}. Commands:", ""]


def markdown(records: list[Record]) -> str:
    """All tables."""
    facts = of_kind(records, "facts")[-1]
    loads = of_kind(records, "load")
    peers = [r for r in loads if r.get("tuned")]
    own = [r for r in loads if not r.get("tuned")]
    commands = dict.fromkeys(r["command"] for r in records if "command" in r)
    lines = [*heading(facts), *(f"    {command}" for command in commands), "", *facts_lines(facts)]
    rounds = sorted({r.get("rounds", 1) for r in own})
    if rounds and rounds[-1] > 1:
        lines += [
            f"Loads of this server and its policies ran in {' or '.join(map(str, rounds))} rounds, "
            "each with servers that were started anew: medians (and ranges) of shares, sums of "
            "counts, the worst round's quantiles.",
            "",
        ]
    parts = [
        ("Goals", goal_lines(records)),
        ("This server", ours_lines([r for r in own if r["server"] == OURS], facts)),
        ("Policies: accuracy by the deadline (in time), %", policy_lines(own, facts)),
        ("Other servers: accuracy by the deadline (in time), %", peer_lines(peers, facts)),
        ("Simulation", simulation_lines(records)),
    ]
    for title, part in parts:
        if len(part) > 3 or (title == "Simulation" and part):
            lines += [f"### {title}", "", *part]
    generators = [r["generator"] for r in loads]
    if generators:
        lag = max(r["lag"]["p99"] for r in loads)
        busy = max(g["busy"] for g in generators)
        limit = min(g["limit"] for g in generators)
        taken = max(r.get("stolen", 0.0) for r in loads)
        lines += [
            f"The generator was busy {percent(busy, 0)} % of the time at most, which puts its own "
            f"limit at {limit:.0f} requests/s or more; it sent {ms(lag)} ms late at p99 of its worst "
            f"run. The hypervisor took {percent(taken, 1)} % of a core from both at most; runs from "
            "which it took over 2 % were repeated up to twice.",
            "",
        ]
        slow = [r for r in loads if bottleneck(r)]
        for r in slow:
            lines.append(
                f"- The generator was the bottleneck: {r['server']}, {r['arrivals']}, {r['load']} C."
            )
    return wrapped("\n".join(lines).rstrip() + "\n")


def bottleneck(record: Record) -> bool:
    """Whether the generator, not the server, may have decided."""
    return record["generator"]["busy"] > 0.8 or record["lag"]["p99"] > 0.002


def write_into(path: Path, records: list[Record]) -> None:
    """Put the tables between the page's marks; ValueError where it has none."""
    replace_between(path, "serve.py", markdown(records))


# -- picture ----------------------------------------------------------------------------------------
def draw(records: list[Record], path: Path) -> None:
    """Share in time and accuracy by the deadline against the load: Poisson arrivals, 25 ms."""
    facts = of_kind(records, "facts")[-1]
    chosen = [
        r for r in of_kind(records, "load") if (r["arrivals"], r["deadline"]) == ("poisson", 0.025)
    ]
    depth = len(facts["accuracy"])
    colors = stage_colors(depth)
    figure = new_figure(10.0, 4.4)
    left, right = figure.subplots(1, 2)
    others = {r["server"] for r in chosen if r.get("tuned")}
    names = dict.fromkeys(r["server"] for r in chosen)
    for server in sorted(names, key=others.__contains__):  # the others last
        rows = sorted((r for r in chosen if r["server"] == server), key=lambda r: r["load"])
        if server in others and not server.endswith(f" {depth}"):
            continue
        style: dict[str, Any] = {"color": "#999999", "lw": 1.2, "ls": ":", "marker": "."}
        if server == OURS:
            style = {"color": "#1f8a4c", "lw": 2.6, "marker": "o", "zorder": 5}
        elif server == FIRST:
            style = {"color": "black", "lw": 1.2, "ls": "--", "marker": "."}
        elif server.startswith("static"):
            style = {"color": colors[int(server[-1]) - 1], "lw": 1.4, "marker": "."}
        if server in others:
            style["marker"] = {"starlette": "x", "litserve": "+", "mlserver": "1"}.get(
                server.split()[0], "2"
            )
        load = [r["load"] for r in rows]
        left.plot(load, [100 * r["in_time"] for r in rows], label=server, **style)
        right.plot(load, [100 * r["accuracy"] for r in rows], label=server, **style)
    for axes, title in ((left, "answered in time (%)"), (right, "right by the deadline (%)")):
        axes.set_xlabel(f"load (C = {facts['capacity']:.0f} requests/s)")
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.axvline(facts["first"] / facts["capacity"], color="#bbbbbb", lw=0.8)
    left.annotate(
        "stage 1's capacity", (facts["first"] / facts["capacity"], 2), rotation=90, fontsize="x-small",
        color="#888888", ha="right",
    )  # fmt: skip
    right.legend(fontsize="small", frameon=False)
    figure.suptitle("Poisson arrivals, deadline 25 ms, one core", fontsize="medium")
    save_figure(figure, path)
