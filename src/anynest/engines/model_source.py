"""The sources of a session: a network, a run folder, a weights file or an exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..nets import AnytimeNetwork
from ..store import WeightsInfo, load, read_info
from .onnx.manifest import FILE as MANIFEST
from .onnx.manifest import read_manifest


@dataclass(frozen=True)
class Source:
    """A network, or a folder of exported graphs, with what is known of its images.

    Attributes:
        network: in memory or read from weights; None for an exported folder.
        export: the exported folder; None for a network.
        info: classes and preprocessing, where the weights file or the manifest has them.
    """

    network: AnytimeNetwork | None = None
    export: Path | None = None
    info: WeightsInfo | None = None

    def require_network(self, remedy: str = "use backend='onnxruntime'") -> AnytimeNetwork:
        """The network; ValueError for an exported folder, which has none."""
        if self.network is None:
            raise ValueError(
                "the source must be a network, a run folder or a weights file, found the exported "
                f"folder {self.export}; {remedy}"
            )
        return self.network


def resolve(source: AnytimeNetwork | str | Path | Source) -> Source:
    """Determine what ``source`` is, and load it if it is weights.

    Raises:
        RunFolderError: the path does not exist, or holds neither a network nor an export.
        TypeError: neither a network nor a path.
        ValueError: a network on the meta device.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, AnytimeNetwork):
        if any(tensor.is_meta for tensor in (*source.parameters(), *source.buffers())):
            raise ValueError(
                "the network must have weights, found tensors on the meta device; load them first"
            )
        return Source(network=source)
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"a session is opened from an AnytimeNetwork or a path, found {type(source).__name__}"
        )
    path = Path(source)
    if path.is_dir() and (path / MANIFEST).is_file():
        return Source(export=path, info=read_manifest(path).info)
    return Source(network=load(path), info=read_info(path))
