"""The model card of a trained network: ``README.md`` of its repository, made from files of the run.

Every number comes from the run's summary or is counted from the network, with what it was measured
on. Texts that come from a file, such as names of classes, are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import Environment, StrictUndefined

from .._version import __version__
from ..engines.inputs import InputSpec
from ..nets import StageCost
from ..predict.early_stopping.saved_policy import SavedPolicy, policy_file
from ..profiling.costs import stage_costs
from ..store import RunFolderError, WeightsInfo, load, local_source, read_info
from ..training import read_config
from ..training.output.run_folder import RunFolder
from ..training.output.summary import read_result
from .command import FOLDER, train_command

if TYPE_CHECKING:
    from ..nets.staged import StagedModule

MAX_CLASSES = 100  # names shown
FRONT_MATTER = """\
library_name: anynest
pipeline_tag: image-classification
tags:
- anytime-prediction
- early-exit"""

TEMPLATE = """\
---
{{ front_matter }}
---

# {{ model | text }}

An image classifier with {{ stages | length }} outputs, its stages: a prediction can stop after any
of them, and each goes on from the ones before. Trained on {{ data | text -}}
{% if run %} with the method {{ run.method | text }}{% endif %}.

No licence is stated: whoever owns the weights adds one (`license:` in the block above).
{% if run %}

## Errors

{{ run.measured }}; one training run, seed {{ run.seed }}, measured with these weights.

{{ run.table }}
{% endif %}

## Cost

One image of {{ channels }} x {{ size }} x {{ size }}, up to and including each stage.

{{ costs }}

Latency depends on the machine:

    anynest profile {{ source }} --out profile.json{{ imported }}

## Use

```python
import anynest
{% if module %}
import {{ module }}  # registers {{ model }}; not part of the weights file
{% endif %}

with anynest.AnytimePredictor("{{ source }}") as predictor:
    prediction = predictor.predict(image, deadline=0.010)  # seconds
print(prediction.label, prediction.stage)
```

`image` is a float32 tensor [{{ channels }}, {{ size }}, {{ size }}]: pixels from 0 to 1, minus
{{ mean }}, divided by {{ std }} (per channel). The command line prepares pictures itself:

    anynest predict {{ source }} picture.png --deadline 10ms{{ imported }}

`anynest.load("{{ source }}")` gives the network. Loading the file executes nothing.
{% if policy %}

`policy.json` has confidences at which a prediction stops early, chosen on {{ policy.data | text }},
split {{ policy.split | text }}: {{ policy.goal | text }}. `anynest predict` stops by it;
`--policy none` does not.
{% endif %}

Classes, in the order of the outputs: {{ classes }}.
{% if run %}

## Training

    {{ run.command }} --out RUN

{{ run.trained }}
{% endif %}

## Limits

{% for limit in limits %}
- {{ limit }}
{% endfor %}

Written by anynest {{ version }}.
"""


def model_card(source: str | Path, repository: str, front_matter: str = "") -> str:
    """The card of a finished run's folder or a weights file, as Markdown.

    Args:
        source: a finished run's folder, whose summary has the errors, or a weights file.
        repository: OWNER/NAME, for the examples.
        front_matter: of an earlier card, kept as it is; default: without a licence.

    Raises:
        RunFolderError: the source is damaged or unfinished, its network is not registered, or its
            policy is of other weights.
    """
    path = Path(local_source(source))
    info = read_info(path)
    run = _run(path, info) if path.is_dir() else None
    model = load(path)
    is_module = all(part.isidentifier() for part in info.module.split("."))
    module = info.module if is_module else ""
    imported = f" --import {module}" if module else ""
    hub = f"hf://{repository}"
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = escape
    return environment.from_string(TEMPLATE).render(
        front_matter=front_matter or FRONT_MATTER,
        model=info.model,
        module=module,
        imported=imported,
        source=hub,
        data=info.data,
        stages=range(model.num_stages),
        run=run,
        costs=_cost_table(costs_of(model, info)),
        policy=_policy(source, model.num_stages),
        channels=len(info.mean),
        size=info.image_size,
        mean=", ".join(f"{value:.4g}" for value in info.mean),
        std=", ".join(f"{value:.4g}" for value in info.std),
        classes=_names(info.classes),
        limits=[*_limits(info, run, f"{hub}{imported}"), *_code_limit(info, module)],
        version=__version__,
    )


def costs_of(model: StagedModule, info: WeightsInfo) -> tuple[StageCost, ...]:
    """Parameters and multiply-adds of every stage for one of the network's images."""
    x = torch.zeros(1, len(info.mean), info.image_size, info.image_size)
    return stage_costs(model, {InputSpec.of(model).names[0]: x})


def _policy(source: str | Path, num_stages: int) -> SavedPolicy | None:
    """The policy beside the weights; None where there is none.

    Raises:
        RunFolderError: it is damaged or of other weights.
    """
    file = policy_file(source)
    if not file.is_file():
        return None
    try:
        policy = SavedPolicy.read(file)
        policy.require_fit(source, num_stages, file)
    except ValueError as error:
        raise RunFolderError(f"{error}, or remove the file") from error
    return policy


def _run(folder: Path, info: WeightsInfo) -> dict[str, Any]:
    """What the card tells of a finished run.

    Raises:
        RunFolderError: the summary is damaged.
    """
    run_folder = RunFolder(folder)
    summary = read_result(run_folder).summary
    try:
        parts = {summary[role]["split"]: summary[role] for role in ("test", "validation")}
        machine = summary["environment"]
        hardware = machine["accelerator"] or f"{machine['processor']}, {machine['cores']} cores"
        versions = f"anynest {summary['anynest']}, torch {machine['torch']}"
        return {
            "method": summary["method"],
            "seed": int(summary["seed"]),
            "measured": ", ".join(
                f"{int(part['images'])} images of the {escape(name)} split"
                for name, part in parts.items()
            ),
            "table": _error_table(parts),
            "errors": [float(error) for error in summary["test"]["error"]],
            "command": train_command(read_config(run_folder.config), info.module),
            "trained": escape(
                f"{int(summary['epochs'])} epochs, {int(summary['steps'])} steps, processes: "
                f"{int(summary['ranks'])}; {float(summary['training_seconds']):.0f} s of training "
                f"on {hardware}; {versions}, Python {machine['python']}."
            ),
        }
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise RunFolderError(
            f"{run_folder.summary} must be a finished run's, found none for a card "
            f"({type(error).__name__}: {error})"
        ) from error


def _error_table(parts: dict[str, dict[str, Any]]) -> str:
    """Errors in percent and losses of every stage, on each split."""
    names, columns = [], []
    for split, part in parts.items():
        names += [f"{split} error %", f"{split} loss"]
        columns += [[f"{100 * value:.2f}" for value in part["error"]]]
        columns += [[f"{value:.4f}" for value in part["loss"]]]
        if "top5_error" in part:
            names.append(f"{split} top-5 error %")
            columns.append([f"{100 * value:.2f}" for value in part["top5_error"]])
    rows = enumerate(zip(*columns, strict=True), 1)
    return _table(["stage", *names], [[str(stage), *row] for stage, row in rows])


def _cost_table(costs: Sequence[StageCost]) -> str:
    rows = [[str(row.stage), f"{row.parameters:,}", f"{row.multiply_adds:,}"] for row in costs]
    return _table(["stage", "parameters", "multiply-adds"], rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[escape(name) for name in names], ["---:"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _names(classes: Sequence[str]) -> str:
    shown = ", ".join(escape(name) for name in classes[:MAX_CLASSES])
    left = len(classes) - MAX_CLASSES
    return f"{shown}, and {left} more" if left > 0 else shown


def _limits(info: WeightsInfo, run: dict[str, Any] | None, source: str) -> Iterator[str]:
    """What the numbers do not say, a sentence each."""
    if run is None:
        yield (
            "This card was made from a weights file alone, which holds no errors: "
            f"`anynest evaluate {source} --data {FOLDER}` measures them."
        )
    else:
        yield (
            f"The errors are those of one run, on images of {escape(info.data)}; other images have "
            "other errors."
        )
        for stage, (before, error) in enumerate(pairwise(run["errors"]), 2):
            if error > before:
                yield f"Stage {stage} has a higher test error than stage {stage - 1}."
        if FOLDER in run["command"]:
            yield f"`{FOLDER}` in the command stands for the place of the data."
    yield "Confidences are the softmax of the logits, which training does not calibrate."


def _code_limit(info: WeightsInfo, module: str) -> Iterator[str]:
    if module:
        yield (
            f"The network's code is not part of the file: the module `{module}` must register "
            f"{escape(info.model)}."
        )


def escape(text: object) -> str:
    """Text from a file on one line, without a meaning in Markdown or HTML.

    >>> escape("a|b *c*\\n<d>")
    'a\\\\|b \\\\*c\\\\* \\\\<d\\\\>'
    """
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#&~!$" else c for c in line)
