"""Allocators, which decide how many tokens each rank gets: even, uneven, lut, formula and balanced."""

from heteroring.allocators.dispatch import ALLOCATORS, Allocation, allocate, allocation
from heteroring.allocators.fitting import fit, load_model
from heteroring.allocators.unit_costs import Cost, predicted_ms

__all__ = ["ALLOCATORS", "Allocation", "Cost", "allocate", "allocation", "fit", "load_model", "predicted_ms"]
