"""Load tests with locust: what the service carries, and what becomes of requests when it is too much or breaks."""
