"""hpcrl: reinforcement-learning trading agents on a Slurm cluster."""

__version__ = "0.1.0"
