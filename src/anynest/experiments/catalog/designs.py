"""The network designs of the paper's tables and the names of their stages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Design:
    """A network of the paper.

    Args:
        name: Its name here.
        title: Its name in the paper's tables.
        model: Its name among ``anynest models``, at full size.
        family: Images and recipe of its training: ``cifar`` or ``imagenet``.
        growth: (width, depth) of each stage.
        names: Which of w and d the paper's subscripts show.
        short: Its name in the report's rows and legends; empty: ``name``.
    """

    name: str
    title: str
    model: str
    family: str
    growth: tuple[tuple[int, int], ...]
    names: str
    short: str = ""

    @property
    def words(self) -> str:
        """
        >>> DESIGNS["width"].words, DESIGNS["eann"].words
        ('width', 'EANN cascade')
        """
        return self.short or self.name

    def subscripts(self, growth: tuple[tuple[int, int], ...] | None = None) -> tuple[str, ...]:
        """The stages' names in the paper's tables.

        >>> DESIGNS["depth"].subscripts(), DESIGNS["simultaneous"].subscripts()
        (('d1', 'd2', 'd4', 'd8'), ('w1d1', 'w2d2', 'w4d4'))
        """
        return tuple(
            "".join(f"{letter}{w if letter == 'w' else d}" for letter in self.names)
            for w, d in growth or self.growth
        )


WIDTH = ((1, 1), (2, 1), (4, 1))
DEPTH = ((1, 1), (1, 2), (1, 4), (1, 8))
EVEN = ((1, 1), (2, 1), (3, 1), (4, 1))
ALTERNATING = ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))
SIMULTANEOUS = ((1, 1), (2, 2), (4, 4))

DESIGNS: dict[str, Design] = {
    design.name: design
    for design in (
        Design(
            "depth",
            "Our Depth Nested Sparse ResNet-98",
            "depth_nested_sparse_resnet98",
            "cifar",
            DEPTH,
            "d",
        ),
        Design("width", "Our Width Nested ResNet-42", "width_nested_resnet42", "cifar", WIDTH, "w"),
        Design(
            "alternating",
            "Our (Alternating) Width-Depth Nested Sparse ResNet-98",
            "alternating_nested_sparse_resnet98",
            "cifar",
            ALTERNATING,
            "wd",
        ),
        Design(
            "simultaneous",
            "Our (Simultaneous) Width-Depth Nested Sparse ResNet-98",
            "simultaneous_nested_sparse_resnet98",
            "cifar",
            SIMULTANEOUS,
            "wd",
        ),
        Design(
            "eann",
            "EANN Cascade Sparse ResNet-98",
            "cascade_sparse_resnet98",
            "cifar",
            DEPTH,
            "d",
            "EANN cascade",
        ),
        Design(
            "even",
            "Even-Width Nested ResNet-42",
            "even_width_resnet42",
            "cifar",
            EVEN,
            "w",
            "even width",
        ),
        Design(
            "imagenet-width",
            "Our Width Nested ResNet-50",
            "width_nested_resnet50",
            "imagenet",
            WIDTH,
            "w",
            "width (ImageNet)",
        ),
        Design(
            "imagenet-depth",
            "Our Depth Nested Sparse ResNet-66",
            "depth_nested_sparse_resnet66",
            "imagenet",
            DEPTH[:3],
            "d",
            "depth (ImageNet)",
        ),
    )
}
CIFAR = tuple(design.name for design in DESIGNS.values() if design.family == "cifar")
IMAGENET = tuple(design.name for design in DESIGNS.values() if design.family == "imagenet")
