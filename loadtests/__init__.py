"""Load tests with locust: the load that the service can carry, and what happens under overload and faults."""
