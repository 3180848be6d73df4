"""The sources of a session: a network, a run folder, a weights file or an exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from torch import nn

from ..nets import AnytimeNetwork
from ..nets.staged import require_staged
from ..store import WeightsInfo, load, local_source, read_info
from .onnx.manifest import FILE as MANIFEST
from .onnx.manifest import read_manifest

if TYPE_CHECKING:
    from ..nets.staged import StagedModule

Network: TypeAlias = Union[AnytimeNetwork, "StagedModule"]  # any module that satisfies ``Staged``


@dataclass(frozen=True)
class Source:
    """A network, or a folder of exported graphs, with what is known of its images.

    Attributes:
        network: in memory or read from weights; None for an exported folder.
        export: the exported folder; None for a network.
        info: classes and preprocessing, where the weights file or the manifest has them.
    """

    network: Network | None = None
    export: Path | None = None
    info: WeightsInfo | None = None

    def require_network(self, remedy: str = "use backend='onnxruntime'") -> Network:
        """The network; ValueError for an exported folder, which has none."""
        if self.network is None:
            raise ValueError(
                "the source must be a network, a run folder or a weights file, found the exported "
                f"folder {self.export}; {remedy}"
            )
        return self.network

    def require_nested(self, purpose: str, remedy: str) -> AnytimeNetwork:
        """The network, if it is one of the paper's; else TypeError."""
        network = self.require_network(remedy)
        if not isinstance(network, AnytimeNetwork):
            raise TypeError(
                f"{purpose} needs an AnytimeNetwork, found {type(network).__name__}; {remedy}"
            )
        return network


def resolve(source: nn.Module | str | Path | Source) -> Source:
    """Determine what ``source`` is, and load it if it is weights.

    Raises:
        RunFolderError: the path does not exist, or holds neither a network nor an export.
        TypeError: neither a network nor a path, or a network that lacks a method of ``Staged``.
        ValueError: a network on the meta device.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        # torch.compile wraps the network; its stages are those of the network itself
        source = require_staged(getattr(source, "_orig_mod", source), "a session")
        if any(tensor.is_meta for tensor in (*source.parameters(), *source.buffers())):
            raise ValueError(
                "the network must have weights, found tensors on the meta device; load them first"
            )
        return Source(network=source)
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"a session is opened from a network or a path, found {type(source).__name__}"
        )
    path = Path(local_source(source))
    if path.is_dir() and (path / MANIFEST).is_file():
        return Source(export=path, info=read_manifest(path).info)
    return Source(network=load(path), info=read_info(path))
