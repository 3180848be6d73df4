"""``anynest push``."""

import argparse
import sys

from ...sharing import model_card, push_to_hub
from ...store.hub import check_repository
from ..console import Console


def run(arguments: argparse.Namespace) -> int:
    """Upload and print the commit's address, or print the card."""
    source, repository = arguments.source, check_repository(arguments.repository)
    if arguments.dry_run:
        sys.stdout.write(model_card(source, repository))
        return 0
    with Console(stderr=True).status(f"uploading to {repository}"):
        address = push_to_hub(
            source, repository, private=arguments.private, message=arguments.message or ""
        )
    print(address)
    return 0
