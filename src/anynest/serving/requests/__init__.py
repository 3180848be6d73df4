"""What a request is between its headers and its answer."""
