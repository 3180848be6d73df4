"""A Ray Serve ingress round the server of ``anynest serve``: replicas, restarts, rolling updates.

    pip install '.[serve]' 'ray[serve]'    # in the clone
    python examples/ray_serve.py runs/a

Each replica is one server of its own, with its own deadline, admission and shedding; Ray starts
them, watches them and spreads the requests. Ctrl-C ends it.
"""

import sys

from ray import serve

from anynest.serving import create_app


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=256,  # the server itself refuses what cannot be answered in time
    health_check_period_s=5,
    graceful_shutdown_timeout_s=30,
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class Anynest:
    """One replica."""

    def __init__(self, run: str) -> None:
        self.run = run

    def __serve_build_asgi_app__(self):
        return create_app(self.run)


if __name__ == "__main__":
    serve.run(Anynest.bind(sys.argv[1]), blocking=True)
