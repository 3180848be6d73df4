"""The four published versions of CIFAR: their files and MD5 sums."""

from dataclasses import dataclass

from ..known_sets import CIFAR10, CIFAR100, KnownDataset


@dataclass(frozen=True)
class CifarVersion:
    """One published version.

    Attributes:
        archive, folder: the packed file, and the folder that it unpacks to.
        train, test, names: the files in the folder; `names` holds the class names.
        label: the label's key in a pickle, or its byte in a binary record.
        names_key: the key of the class names in a pickle.
        md5: published sums of the archive and of the Python version's files.
    """

    known: KnownDataset
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label: str | int
    md5: dict[str, str]
    names_key: str = ""


CIFAR_VERSIONS = (
    CifarVersion(
        known=CIFAR10,
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        names="batches.meta",
        label="labels",
        names_key="label_names",
        md5={
            "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    CifarVersion(
        known=CIFAR100,
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        names="meta",
        label="fine_labels",
        names_key="fine_label_names",
        md5={
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    CifarVersion(
        known=CIFAR10,
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
        label=0,
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    CifarVersion(
        known=CIFAR100,
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        label=1,
        md5={"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
)
