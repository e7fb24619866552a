"""Jobs that outlive their client's connection: a deployment that keeps them in a folder and runs them."""
