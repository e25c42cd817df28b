"""The scheduler's real core in simulated time, with a model of the workers, many requests and a seeded trace."""
