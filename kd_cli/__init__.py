"""kd: knowledge distillation from the command line."""

__version__ = "0.4.0"
