"""What two processes must agree on: requests, jobs, answers, errors. Neither Ray nor torch."""
