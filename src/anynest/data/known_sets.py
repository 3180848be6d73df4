"""Published data sets that are recognized by their content and reported under their own name."""

import re
from dataclasses import dataclass

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class KnownDataset:
    """A published data set. shape: (C, H, W); sizes: its numbers of (train, test) images."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sizes: tuple[int, int]
    label_column: str = "label"
    mirror: bool = True


CIFAR10 = KnownDataset(
    name="CIFAR-10",
    classes=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    shape=(3, 32, 32),
    sizes=(50_000, 10_000),
)
CIFAR100 = KnownDataset(
    name="CIFAR-100",
    classes=tuple(_CIFAR100.split()),
    shape=(3, 32, 32),
    sizes=(50_000, 10_000),
    label_column="fine_label",
)
FASHION_MNIST = KnownDataset(
    name="Fashion-MNIST",
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    shape=(1, 28, 28),
    sizes=(60_000, 10_000),
)
MNIST = KnownDataset(
    name="MNIST",
    classes=tuple("0123456789"),
    shape=(1, 28, 28),
    sizes=(60_000, 10_000),
    mirror=False,
)
KNOWN_DATASETS = (CIFAR10, CIFAR100, FASHION_MNIST, MNIST)


def _normalized(classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(re.sub(r"[^a-z0-9]", "", name.lower()) for name in classes)


def identify(
    classes: tuple[str, ...], shape: tuple[int, ...], sizes: tuple[int, int], label_column: str
) -> KnownDataset | None:
    """The known data set with these class names and shape; without names, sizes must agree too.

    MNIST's class names are digits and prove nothing, so its sizes are compared in any case.
    """
    for known in KNOWN_DATASETS:
        if shape != known.shape:
            continue
        named = bool(classes) and _normalized(classes) == _normalized(known.classes)
        if named and known is not MNIST:
            return known
        unnamed = not classes and known.shape[0] == 3 and label_column == known.label_column
        if (named or unnamed) and sizes == known.sizes:
            return known
    return None


def partial_notes(known: KnownDataset | None, sizes: tuple[int, int]) -> tuple[str, ...]:
    """("partial",) if images of a known data set are missing."""
    return ("partial",) if known and sizes != known.sizes else ()
