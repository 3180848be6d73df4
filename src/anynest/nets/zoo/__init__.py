"""The paper's architectures, one file each; importing a file registers its models."""
