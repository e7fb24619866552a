"""The data that processes exchange: requests, jobs, answers, errors."""
