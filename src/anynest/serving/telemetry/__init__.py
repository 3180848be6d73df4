"""What a server tells of itself: metrics, the access log, and traces."""
