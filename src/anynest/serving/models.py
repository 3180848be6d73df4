"""A model that is served: a session, what it takes and gives, and how long its steps take.

Legend: B batch, C channels, H height, W width, K classes, S stages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import DataError
from ..data.augment import Normalize
from ..data.readers.image_reader import ImageFileReader, open_image
from ..engines.inputs import InputSpec
from ..engines.model_source import Source, resolve
from ..engines.onnx.manifest import read_manifest
from ..engines.open import open_session
from ..engines.session import Session
from ..nets.pretrained import list_pretrained, read_card
from ..predict.early_stopping.policies import Confidence
from ..predict.early_stopping.saved_policy import SavedPolicy, policy_file, revision_of
from ..predict.stage_results import on_cpu
from ..store import WeightsInfo
from .estimates import Gains, StepTimes
from .protocol.errors import ProtocolError
from .protocol.tensors import Array, datatype_of

SUMMARY = "summary.json"  # of a run folder
ANY = -1  # a size that may vary, in metadata


class ServedModel:
    """One version of a model. Its inputs have one size, that of its training or its example.

    Args:
        name: of the model.
        version: of the model.
        session: computes.
        example: inputs by name, of any batch size.
        info: classes and preprocessing, where they are known.
        revision: identifies the weights.

    Attributes:
        num_stages: S.
        labels: names of the classes; None where unknown.
        times: estimated seconds of each step; None before the warm-up.
        gains: expected gain of each step.
        policy: stops requests that give no confidence of their own; None: only the deadline does.
    """

    platform = "anynest"

    def __init__(
        self,
        name: str,
        version: str,
        session: Session,
        example: Mapping[str, Tensor],
        info: WeightsInfo | None = None,
        revision: str = "",
    ) -> None:
        self.name, self.version, self.session, self.revision = name, version, session, revision
        self.num_stages, self.num_classes = session.num_stages, session.num_classes
        self.labels = info.classes if info is not None else None
        self.example = {key: value[:1].detach().clone() for key, value in example.items()}
        self.times: StepTimes | None = None
        self.gains = Gains.uniform(session.num_stages)
        self.policy: Confidence | None = None
        self.output_shape: tuple[int, ...] = ()  # without the batch; set by the warm-up
        self.output_type = "FP32"  # of an output that is no class logits; set by the warm-up
        self._normalize: Normalize | None = None
        self._pictures: ImageFileReader | None = None
        if session.in_channels is not None and info is not None:
            self._normalize = Normalize(info.mean, info.std, torch.device("cpu"), False)
            if session.in_channels in (1, 3):
                self._pictures = ImageFileReader(info.image_size, info.mean, info.std, info.fit)

    @classmethod
    def open(
        cls,
        name: str,
        version: str,
        source: nn.Module | str | Path,
        *,
        threads: int = 1,
        backend: str | None = None,
        device: str = "cpu",
        info: WeightsInfo | None = None,
        saved_policy: bool = False,
    ) -> ServedModel:
        """Load a model; see ``open_session`` for its source and errors.

        Args:
            name: of the model.
            version: of the model.
            source: what ``open_session`` takes.
            threads: within one kernel.
            backend: of the session.
            device: of the session.
            info: classes and preprocessing, where the source does not have them.
            saved_policy: stop early by the policy that is saved beside the weights.

        Raises:
            ValueError: nothing says which inputs the network takes, or there is no policy that
                fits.
        """
        found = resolve(source)
        info = info or found.info
        session = open_session(found, threads=threads, backend=backend, device=device)
        try:
            example = _example(found, session, info)
        except ValueError:
            session.close()
            raise
        if isinstance(source, nn.Module):
            return cls(name, version, session, example, info)
        model = cls(name, version, session, example, info, revision_of(source))
        if saved_policy:
            try:
                model.policy = _policy(source, session.num_stages)
            except ValueError:
                session.close()
                raise
        errors = _errors(source, session.num_stages)
        if errors is not None:
            model.gains = Gains.of_errors(errors)
        return model

    def close(self) -> None:
        """Free the session; running evaluations may finish."""
        self.session.close()

    # -- descriptions -----------------------------------------------------------------------------
    def metadata(self, versions: tuple[str, ...] = ()) -> dict[str, Any]:
        """The model's metadata in the Open Inference Protocol."""
        return {
            "name": self.name,
            "versions": list(versions or (self.version,)),
            "platform": self.platform,
            "inputs": [
                {
                    "name": name,
                    "datatype": datatype_of(value.numpy()),
                    "shape": [ANY, *value.shape[1:]],
                }
                for name, value in self.example.items()
            ],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": [ANY, *shape]}
                for name, datatype, shape in self._output_types()
            ],
        }

    def config(self) -> dict[str, Any]:
        """The model's configuration, in the form of Triton's endpoint."""
        described = self.metadata()
        parameters = {
            "stages": str(self.num_stages),
            "backend": self.session.backend,
            "revision": self.revision,
            "input_datatypes": ",".join(self.datatypes),
        }
        if self.policy is not None:
            parameters["policy"] = json.dumps({"confidence": self.policy.thresholds})
        if self.labels is not None:
            parameters["labels"] = json.dumps(self.labels)  # names of the classes, in their order
        return {
            "name": self.name,
            "platform": self.platform,
            "backend": "anynest",
            "max_batch_size": self.times.max_batch if self.times is not None else 0,
            "input": [_config_tensor(tensor) for tensor in described["inputs"]],
            "output": [_config_tensor(tensor) for tensor in described["outputs"]],
            "parameters": {key: {"string_value": text} for key, text in parameters.items()},
        }

    @property
    def datatypes(self) -> tuple[str, ...]:
        """The accepted types of the input images; of any other network, of its inputs in order."""
        if self.session.in_channels is None:
            return tuple(datatype_of(value.numpy()) for value in self.example.values())
        raw = ("UINT8",) if self._normalize is not None else ()
        return ("FP32", *raw, *(("BYTES",) if self._pictures is not None else ()))

    def least_rows(self, nbytes: int, header_length: int | None = None) -> int:
        """The rows that a body has at least, before it is read. A picture may have any size.

        Args:
            nbytes: of the body.
            header_length: of its JSON, where binary tensors follow; None: all is JSON.
        """
        if header_length is None or self._pictures is not None:
            return 1
        row = sum(value.numel() * value.element_size() for value in self.example.values())
        return max(1, (nbytes - header_length) // row)

    # -- inputs -----------------------------------------------------------------------------------
    def rows(self, inputs: Mapping[str, Array]) -> int:
        """The number of rows of a request's tensors, whose names are checked.

        Raises:
            ProtocolError: a missing or unknown input, or different numbers of rows.
        """
        if set(inputs) != set(self.example):
            raise ProtocolError(
                400,
                f"inputs must be {', '.join(self.example)}, found {', '.join(inputs)[:200]}",
            )
        counts = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
        if len(counts) != 1 or 0 in counts:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            raise ProtocolError(
                400, f"inputs must have one batch of at least 1 as dimension 0, found {shapes}"
            )
        return int(counts.pop())

    def is_encoded(self, inputs: Mapping[str, Array]) -> bool:
        """Whether there are pictures to decode, which takes time."""
        return self.session.in_channels is not None and any(
            array.dtype == object for array in inputs.values()
        )

    def read(
        self,
        inputs: Mapping[str, Array],
        max_pixels: int,
        is_over: Callable[[], bool] = lambda: False,
    ) -> dict[str, Tensor]:
        """The tensors that the session takes.

        Images are FP32, normalised ``[B, C, H, W]``; UINT8, raw ``[B, C, H, W]`` or
        ``[B, H, W, C]``; or BYTES, encoded pictures ``[B]`` or ``[B, 1]``, prepared as in the
        evaluation of the training. Other networks' inputs have the types of their example.

        Args:
            inputs: by name.
            max_pixels: bound on an encoded picture, checked before it is decoded.
            is_over: whether nobody waits any more; asked before each picture is decoded.

        Raises:
            ProtocolError: what does not fit (400, 413), or nobody waits (504).
        """
        self.rows(inputs)
        if self.session.in_channels is None:
            return {
                name: _fitting(name, inputs[name], value) for name, value in self.example.items()
            }
        ((name, array),) = inputs.items()
        value = self.example[name]
        if array.dtype == object:
            return {name: self._decode(name, array, max_pixels, is_over)}
        if array.dtype == np.uint8:
            return {name: self._raw(name, array)}
        images = _fitting(name, array, value, hint=f": {name} may be {', '.join(self.datatypes)}")
        return {name: images}

    def _raw(self, name: str, array: Array) -> Tensor:
        """Raw pixels, normalised."""
        if self._normalize is None:
            raise ProtocolError(
                400,
                f"{name}: raw images need the mean and std of the training images, which this "
                "model does not have; send normalised FP32",
            )
        channels, height, width = self.example[name].shape[1:]
        sizes = tuple(array.shape[1:])
        pixels = torch.from_numpy(np.array(array))
        if sizes == (height, width, channels) != (channels, height, width):
            pixels = pixels.permute(0, 3, 1, 2)
        elif sizes != (channels, height, width):
            raise ProtocolError(
                400,
                f"{name} of raw images must be [rows, {channels}, {height}, {width}] or [rows, "
                f"{height}, {width}, {channels}], found {list(array.shape)}; resize them, or send "
                "encoded pictures as BYTES",
            )
        return self._normalize(pixels.contiguous())

    def _decode(
        self, name: str, array: Array, max_pixels: int, is_over: Callable[[], bool]
    ) -> Tensor:
        """Encoded pictures, prepared."""
        if self._pictures is None or self._normalize is None:
            raise ProtocolError(
                400,
                f"{name}: encoded pictures need 1 or 3 channels and the preprocessing of the "
                f"training images; this model takes {', '.join(self.datatypes)}",
            )
        if array.size != len(array):
            raise ProtocolError(
                400, f"{name} of BYTES must be [rows] or [rows, 1], found {list(array.shape)}"
            )
        parts = []
        for number, data in enumerate(array.flat):
            where = f"picture {number}"
            if is_over():
                raise ProtocolError(504, f"the time was over before {where} was decoded")
            try:
                with open_image(bytes(data), where) as image:
                    if image.width * image.height > max_pixels:
                        raise ProtocolError(
                            413,
                            f"{name}: {where} must have at most {max_pixels} pixels, found "
                            f"{image.width}x{image.height}; make it smaller",
                        )
                    parts.append(self._pictures.of_image(image, where))
            except DataError as error:
                raise ProtocolError(400, f"{name}: {error}") from None
        return self._normalize(torch.stack(parts))

    # -- outputs ----------------------------------------------------------------------------------
    def outputs(
        self, output: Tensor, stage: int, wanted: Collection[str] | None = None
    ) -> dict[str, Array]:
        """The tensors of an answer.

        Of class logits ``[B, K]``: ``probabilities`` and ``logits`` ``[B, K]``, ``label``,
        ``confidence`` and ``stage`` ``[B]``. Of any other output: ``output`` and ``stage``.

        Args:
            output: of the session.
            stage: that gave it.
            wanted: names of those to compute; None: all.
        """
        values = as_array(output)
        makers: dict[str, Callable[[], Array]] = {}
        if self.num_classes is None or values.ndim != 2:
            makers["output"] = lambda: values
        else:
            logits = values.astype(np.float32, copy=False)
            shares = cache(lambda: softmax(logits))  # once for both outputs that need it
            makers["probabilities"] = shares
            makers["logits"] = lambda: logits
            makers["label"] = lambda: self._names(logits.argmax(axis=1))
            makers["confidence"] = lambda: shares().max(axis=1)
        makers["stage"] = lambda: np.full(len(values), stage, np.int32)
        return {name: make() for name, make in makers.items() if wanted is None or name in wanted}

    def _names(self, indices: Array) -> Array:
        """Of classes, in bytes."""
        found = np.empty(len(indices), object)
        for row, index in enumerate(indices.tolist()):
            found[row] = (self.labels[index] if self.labels else str(index)).encode()
        return found

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors of an answer."""
        return tuple(name for name, _, _ in self._output_types())

    def _output_types(self) -> list[tuple[str, str, tuple[int, ...]]]:
        if self.num_classes is None or len(self.output_shape) > 1:
            return [("output", self.output_type, self.output_shape), ("stage", "INT32", ())]
        classes = (self.num_classes,)
        return [
            ("probabilities", "FP32", classes),
            ("logits", "FP32", classes),
            ("label", "BYTES", ()),
            ("confidence", "FP32", ()),
            ("stage", "INT32", ()),
        ]


def as_array(output: Tensor) -> Array:
    """A network's output; of float16 and bfloat16, in float32."""
    found: Array = on_cpu(output.detach()).numpy()
    return found


def softmax(logits: Array) -> Array:
    """Probabilities ``[B, K]``; rows with an infinite logit are not-a-number, as in torch."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Array = powers / powers.sum(axis=1, keepdims=True)
    return found


def _fitting(name: str, array: Array, example: Tensor, hint: str = "") -> Tensor:
    """A tensor of exactly the type and sizes of the example's."""
    like = example.numpy()
    if array.dtype.newbyteorder("=") != like.dtype:
        wanted, found = datatype_of(like), datatype_of(array)
        raise ProtocolError(400, f"{name} must be {wanted}, found {found}{hint}")
    if array.shape[1:] != like.shape[1:]:
        sizes = ", ".join(map(str, like.shape[1:]))
        raise ProtocolError(
            400, f"{name} must be [rows, {sizes}], as the model serves, found {list(array.shape)}"
        )
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise ProtocolError(400, f"{name} must be finite, found NaN or infinite values")
    return torch.from_numpy(np.array(array, like.dtype))


def _config_tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    kind = tensor["datatype"]
    name = {"BYTES": "TYPE_STRING"}.get(kind, f"TYPE_{kind}")
    return {"name": tensor["name"], "data_type": name, "dims": tensor["shape"][1:]}


def _example(found: Source, session: Session, info: WeightsInfo | None) -> dict[str, Tensor]:
    """One sample of the inputs that are served."""
    names = session.input_names
    channels = session.in_channels
    if channels is not None and info is not None:
        return {names[0]: torch.zeros(1, channels, info.image_size, info.image_size)}
    given = getattr(found.network, "example_inputs", None)
    if given:
        known = InputSpec.of(found.require_network()).names
        example = dict(zip(known, given, strict=False))
        if channels is not None:  # images are cast to the network's type
            return {name: value.float() for name, value in example.items()}
        for name, value in example.items():
            if value.dtype == torch.bfloat16:
                raise ValueError(
                    f"{name} must have a type that NumPy has, found bfloat16: serve the network in "
                    "float32"
                )
        return example
    if found.export is not None:
        manifest = read_manifest(found.export)
        shapes = [
            [size if isinstance(size, int) else None for size in entry.shape]
            for entry in manifest.inputs
        ]
        if channels is not None and manifest.image_size is not None:
            return {names[0]: torch.zeros(1, channels, *manifest.image_size)}
        if all(size is not None for shape in shapes for size in shape):
            return {
                name: torch.from_numpy(np.zeros((1, *entry.shape), entry.dtype))
                for name, entry in zip(names, manifest.inputs, strict=True)
            }
    raise ValueError(
        "the sizes of the network's inputs must be known: serve a run folder, pass info=, or set "
        "the network's example_inputs"
    )


def _errors(source: str | Path, num_stages: int) -> list[float] | None:
    """Each stage's error on held-out images: from a run folder's summary, or a card's."""
    try:
        if str(source) in list_pretrained() and not Path(source).exists():
            errors = read_card(str(source))["held_out_error"]
        else:
            errors = json.loads((Path(source) / SUMMARY).read_bytes())["validation"]["error"]
        sound = len(errors) == num_stages and all(0 <= float(error) <= 1 for error in errors)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return [float(error) for error in errors] if sound else None


def _policy(source: str | Path, num_stages: int) -> Confidence:
    """The policy that is saved beside the weights."""
    file = policy_file(source)
    saved = SavedPolicy.read(file)
    saved.require_fit(source, num_stages, file)
    return saved.policy
