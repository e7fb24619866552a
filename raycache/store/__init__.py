"""Jobs that outlive whoever asked for them: a deployment that keeps them in a folder and has them generated."""
