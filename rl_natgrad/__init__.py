"""Policy gradients with a real trust region: PG, NPG and TRPO around one KL-constrained step."""

__version__ = "0.1.0"
